"""Parts of files that several ranks need of: each is read once by all ranks together, who then exchange it.

A slice along an inner dimension has some bytes of every row, and checksums are of whole cells. So ranks that
read such slices alone would read the tensor as often as they are many. Here each reads some whole rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shardstream.checkpoint.files import Files
from shardstream.checkpoint.layout import CELL, byte_size
from shardstream.checkpoint.manifest import Manifest
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.reading import Request, read
from shardstream.slices import Box, intersection

if TYPE_CHECKING:
    import torch

__all__ = ["Slice", "exchange", "shared"]

Wanted = Mapping[str, Sequence[Box]]  # by the name of a tensor, the parts of it that a rank needs

_SMALLEST = 4 * CELL  # bytes of a part of a file that is worth it
_PIECES = (2 << 20, 16 << 20)  # bytes that one rank reads of it, at least and at most, where that can be
_ROUND = 128 << 20  # bytes that all ranks read before they exchange them
_SLACK = 1.04  # of what is needed; more than that is too much to read


class Slice(NamedTuple):
    """A part of a tensor that this rank needs.

    Attributes:
        name: The tensor.
        box: The part.
        data: Where it belongs, a plain tensor of torch.
    """

    name: str
    box: Box
    data: torch.Tensor


class _Piece(NamedTuple):
    """Whole rows of a part of a file, which one rank reads."""

    name: str
    chunk: int
    owner: int
    box: Box
    bytes: int


def shared(manifest: Manifest, wanted: Sequence[Wanted], replicas: bool) -> list[_Piece]:
    """Which rows the ranks read for each other. All ranks find the same.

    Args:
        manifest: Of the checkpoint.
        wanted: What each rank needs.
        replicas: Whether to read once what several ranks need alike; for stores that are far away.
    """
    pieces: list[_Piece] = []
    load = [0] * len(wanted)
    for name, tensor in manifest.tensors.items():
        needers = [(rank, box) for rank, each in enumerate(wanted) for box in each.get(name, ())]
        if len(needers) < 2:
            continue
        item = byte_size(tensor.dtype, ())
        for number, chunk in enumerate(tensor.chunks):
            source = Box(chunk.offsets or (0,) * len(chunk.shape), chunk.shape)
            if not chunk.shape or source.elements * item < _SMALLEST:
                continue
            parts = [(rank, common) for rank, box in needers if (common := intersection(source, box))]
            if _is_shared(source, [common for _, common in parts], item, replicas):
                ranks = sorted({rank for rank, _ in parts})
                for box in _rows(source, [common for _, common in parts], item, len(ranks)):
                    owner = min(ranks, key=lambda rank: (load[rank], rank))
                    load[owner] += box.elements * item
                    pieces.append(_Piece(name, number, owner, box, box.elements * item))
    return pieces


def _is_shared(source: Box, parts: Sequence[Box], item: int, replicas: bool) -> bool:
    """Whether the ranks would read much more alone than together."""
    if len(parts) < 2:
        return False
    first, end = _extent(parts)
    cut = any(part.shape[1:] != source.shape[1:] for part in parts)
    if not cut and not replicas and sum(part.shape[0] for part in parts) > end - first:
        return False  # the same rows on several ranks
    row = Box(source.offsets[1:], source.shape[1:]).elements * item
    alone = sum(part.shape[0] * row + CELL for part in parts)  # each begins and ends within a cell
    return alone > _SLACK * (end - first) * row


def _extent(parts: Sequence[Box]) -> tuple[int, int]:
    """(first row, the one behind the last) that these have."""
    return min(part.offsets[0] for part in parts), max(part.offsets[0] + part.shape[0] for part in parts)


def _rows(source: Box, parts: Sequence[Box], item: int, ranks: int) -> Iterator[Box]:
    """The rows of a part of a file, cut among ranks."""
    first, end = _extent(parts)
    row = Box(source.offsets[1:], source.shape[1:]).elements * item
    size = (end - first) * row
    count = max(-(-size // _PIECES[1]), min(ranks, max(1, size // _PIECES[0])))
    step = max(1, -(-(end - first) // count))
    for start in range(first, end, step):
        rows = min(step, end - start)
        yield Box((start, *source.offsets[1:]), (rows, *source.shape[1:]))


def exchange(
    files: Files, ranks: Ranks, pieces: Sequence[_Piece], wanted: Sequence[Wanted], slices: Sequence[Slice]
) -> None:
    """Read the pieces of this rank, and give all ranks what they need of them. All ranks call it.

    Args:
        files: The checkpoint.
        ranks: The ranks.
        pieces: From `shared`.
        wanted: What each rank needs.
        slices: What this rank needs, and where it belongs.

    Raises:
        CorruptionError: Bytes are not those that were written, on this rank. The others have theirs then, or
            an error of their own: all ranks come to the end.
        StorageError: The store failed, on this rank.
    """
    targets: dict[str, list[Slice]] = {}
    for each in slices:
        targets.setdefault(each.name, []).append(each)
    rounds = [_Round.of(files.manifest, ranks, together, wanted, targets) for together in _rounds(pieces)]
    if not rounds:
        return
    error: Exception | None = None
    buffers: list[torch.Tensor] = []
    try:
        import torch

        # For all rounds, and before the first one: who has no memory cannot take part in any.
        sizes = max(sum(one.given) for one in rounds), max(sum(one.got) for one in rounds)
        buffers = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    except Exception as caught:  # noqa: BLE001 - raised once the other ranks know
        error = caught
    ready = all(ranks.gather(error is None))
    for one in rounds if ready else ():
        given, got = buffers[0][: sum(one.given)], buffers[1][: sum(one.got)]
        if error is None:
            error = _caught(functools.partial(one.give, files, given))
        ranks.exchange(given, got, one.given, one.got)  # after an error, too: the others wait for it
        if error is None:
            error = _caught(functools.partial(one.take, got))
    if error is not None:
        raise error


def _caught(work: Callable[[], None]) -> Exception | None:
    """The error of this rank, which is raised once the other ranks have what they need."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - see above
        return error
    return None


def _rounds(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    found: list[_Piece] = []
    size = 0
    for piece in pieces:
        if found and size + piece.bytes > _ROUND:
            yield found
            found, size = [], 0
        found.append(piece)
        size += piece.bytes
    if found:
        yield found


def _request(files: Files, piece: _Piece, into: memoryview) -> Request:
    tensor = files.manifest.tensors[piece.name]
    chunk = tensor.chunks[piece.chunk]
    row = Box(piece.box.offsets[1:], piece.box.shape[1:]).elements * byte_size(tensor.dtype, ())
    start = chunk.start + (piece.box.offsets[0] - (chunk.offsets or (0,))[0]) * row
    return Request(chunk.file, start, len(into), into, piece.name)


class _Round(NamedTuple):
    """What goes from rank to rank at once.

    Attributes:
        parts: What this rank gives: its pieces, and the parts of each in the order of the ranks.
        taken: What it gets, in the order of the ranks: where it belongs, the part, and its bytes.
        given: Bytes for each rank.
        got: Bytes from each rank.
    """

    parts: list[tuple[_Piece, Box]]
    taken: list[tuple[Slice, Box, int]]
    given: list[int]
    got: list[int]

    @classmethod
    def of(
        cls, manifest: Manifest, ranks: Ranks, pieces: Sequence[_Piece], wanted: Sequence[Wanted],
        targets: Mapping[str, Sequence[Slice]],
    ) -> _Round:  # fmt: skip
        """The round in which these pieces are exchanged."""
        made = cls([], [], [0] * ranks.size, [0] * ranks.size)
        sizes = {piece.name: byte_size(manifest.tensors[piece.name].dtype, ()) for piece in pieces}
        for rank, each in enumerate(wanted):
            for piece in pieces:
                for box in each.get(piece.name, ()) if piece.owner == ranks.rank else ():
                    common = intersection(piece.box, box)
                    if common is not None:
                        made.parts.append((piece, common))
                        made.given[rank] += common.elements * sizes[piece.name]
        for owner in range(ranks.size):
            for piece in pieces:
                for target in targets.get(piece.name, ()) if piece.owner == owner else ():
                    common = intersection(piece.box, target.box)
                    if common is not None:
                        made.taken.append((target, common, common.elements * sizes[piece.name]))
                        made.got[owner] += made.taken[-1][2]
        return made

    def give(self, files: Files, into: torch.Tensor) -> None:
        """Read the pieces of this rank, and place what each rank needs of them one behind the other."""
        import numpy as np

        memories = {piece: memoryview(bytearray(piece.bytes)) for piece, _ in self.parts}
        read(files, [_request(files, piece, memory) for piece, memory in memories.items()])
        flat, start = into.numpy(), 0
        for piece, common in self.parts:
            item = piece.bytes // piece.box.elements
            rows = np.frombuffer(memories[piece], np.dtype((np.void, item))).reshape(piece.box.shape)
            size = common.elements * item
            flat[start : start + size].view(rows.dtype).reshape(common.shape)[...] = rows[
                _within(piece.box, common)
            ]
            start += size

    def take(self, got: torch.Tensor) -> None:
        """Copy what came to where it belongs."""
        start = 0
        for target, common, size in self.taken:
            part = got[start : start + size].clone().view(target.data.dtype).reshape(common.shape)
            target.data[_within(target.box, common)].copy_(part)
            start += size


def _within(box: Box, part: Box) -> tuple[slice, ...]:
    """Where a part of a box lies in it."""
    return tuple(
        slice(p - b, p - b + n) for p, b, n in zip(part.offsets, box.offsets, part.shape, strict=True)
    )

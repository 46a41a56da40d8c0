"""Parts of files that several ranks need of: each is read once by all ranks together, who then exchange it.

A slice along an inner dimension has some bytes of every row, and checksums are of whole cells. So ranks that
read such slices alone would read the tensor as often as they are many. Here each reads some whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
    error: Exception | None = None
    for together in _rounds(pieces):
        mine = [piece for piece in together if piece.owner == ranks.rank]
        memories = [memoryview(bytearray(piece.bytes)) for piece in mine]
        if error is None:
            try:
                read(
                    files, [_request(files, piece, into) for piece, into in zip(mine, memories, strict=True)]
                )
            except Exception as caught:  # noqa: BLE001 - raised once the other ranks have theirs
                error = caught
        _give(files.manifest, ranks, together, dict(zip(mine, memories, strict=True)), wanted, targets)
    if error is not None:
        raise error


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


def _give(
    manifest: Manifest, ranks: Ranks, pieces: Sequence[_Piece], mine: Mapping[_Piece, memoryview],
    wanted: Sequence[Wanted], targets: Mapping[str, Sequence[Slice]],
) -> None:  # fmt: skip
    """One round: what each rank needs of the pieces goes to it."""
    import numpy as np
    import torch

    sizes = {piece.name: byte_size(manifest.tensors[piece.name].dtype, ()) for piece in pieces}
    sent: list[Any] = []
    given = [0] * ranks.size
    for rank, each in enumerate(wanted):
        for piece, memory in mine.items():
            rows = np.frombuffer(memory, np.dtype((np.void, sizes[piece.name]))).reshape(piece.box.shape)
            for box in each.get(piece.name, ()):
                common = intersection(piece.box, box)
                if common is not None:
                    part = np.ascontiguousarray(rows[_within(piece.box, common)])
                    sent.append(part.reshape(-1).view(np.uint8))
                    given[rank] += part.nbytes
    taken: list[tuple[Slice, Box, int]] = []
    got = [0] * ranks.size
    for owner in range(ranks.size):
        for piece in pieces:
            for target in targets.get(piece.name, ()) if piece.owner == owner else ():
                common = intersection(piece.box, target.box)
                if common is not None:
                    taken.append((target, common, common.elements * sizes[piece.name]))
                    got[owner] += taken[-1][2]
    flat = torch.from_numpy(np.concatenate(sent) if sent else np.empty(0, np.uint8))
    received = ranks.exchange(flat, given, got)
    start = 0
    for target, common, size in taken:
        part = received[start : start + size].clone().view(target.data.dtype).reshape(common.shape)
        target.data[_within(target.box, common)].copy_(part)
        start += size


def _within(box: Box, part: Box) -> tuple[slice, ...]:
    """Where a part of a box lies in it."""
    return tuple(
        slice(p - b, p - b + n) for p, b, n in zip(part.offsets, box.offsets, part.shape, strict=True)
    )

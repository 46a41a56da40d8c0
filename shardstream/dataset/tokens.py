"""TokenDataset: blocks of a fixed number of tokens, straight from token shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.base import Cache, OrderedDataset, Request
from shardstream.errors import OptionError, noted
from shardstream.format.manifest import Manifest
from shardstream.order.lanes import Order, in_order
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.read.batch import collate as default_collate
from shardstream.read.batch import tensor
from shardstream.read.segments import FLAT
from shardstream.read.token_blocks import BlockOptions
from shardstream.read.token_frames import TokenSource
from shardstream.read.tokens import TokenPlan, TokenUnit

__all__ = ["TokenDataset"]

FIELD = "tokens"
_THREADS = 16  # that read indexes
_PLAN = 16 << 10  # blocks
_LONG = 1 << 10  # bytes of a block from which on copying it costs more than the call
_UNIT = 16 << 20  # bytes of batches that one thread builds at a time
_DIRECT = 64 << 20  # and that the consumer builds, a batch at a time
_OUT: dict[str, np.dtype[Any]] = {"int64": np.dtype(np.int64), "int32": np.dtype(np.int32)}
_STORED: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class TokenDataset(OrderedDataset):
    """Blocks of `seq_len` + 1 tokens of the dataset at `url`, which was packed with a tokenizer.

    Block b of a shard is its tokens [b T, b T + T], T = seq_len: inputs and targets are
    tokens[:-1] and tokens[1:]. Iterating gives dicts {"tokens": tensor [T + 1]}; a StreamingLoader
    gives {"tokens": tensor [B, T + 1]} and more by these options:

    tail: the tokens after the last whole block of each shard are left out and counted in
        `dropped_tokens` ("drop"), or fill the beginning of one more block ("pad").
    pack: "best-fit" never splits a document of at most T + 1 tokens; longer ones are cut into pieces
        of T + 1, each with the last token of the one before. Blocks are filled by best-fit-decreasing
        within groups of frames, from the indexes of all shards, which are read at the start.
        `padding_share` says how much is padding.
    pad_id: the token that fills up blocks; the end token of the tokenizer by default, or 0.
        Where blocks may be padded, batches have "mask", bool [B, T]: False where the target
        tokens[:, 1:] is padding and, with "best-fit", where it belongs to another document than its
        input. So each token but a document's first is a target exactly once.
    boundaries: describe the documents of the inputs, tokens[:, :-1], for attention that does not
        cross them. "position_ids", int64 [B, T], starts at 0 at each document and at each block.
        Batches of a loader also have "cu_seqlens", int32, the bounds of the same runs of
        tokens[:, :-1].flatten() from 0 to B T, and "max_seqlen", an int: what FlashAttention's varlen
        functions take. Padding is a run of its own.

    dtype: of the tokens, "int64" or "int32".  transform: called with each dict of one block, in
    background threads; batches are then collated from what it returns.
    The other arguments are those of StreamingDataset.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        seq_len: int,
        dtype: str = "int64",
        shuffle: bool | Shuffle = False,
        cache: Cache | str | os.PathLike[str] | None = None,
        topology: Ranks | str = "auto",
        transform: Callable[[dict[str, Any]], Any] | None = None,
        storage_options: dict[str, Any] | None = None,
        *,
        boundaries: bool = False,
        pack: str | None = None,
        tail: str = "drop",
        pad_id: int | None = None,
    ) -> None:
        super().__init__(url, shuffle, cache, topology, storage_options)
        self.blocks = BlockOptions(seq_len, pack, tail)
        if dtype not in _OUT:
            raise OptionError(f"dtype={dtype!r} must be 'int64' or 'int32'")
        if not isinstance(boundaries, bool):
            raise OptionError(f"boundaries={boundaries!r} must be True or False")
        info = next((info for info in self.manifest.fields if info.name == FIELD), None)
        if info is None or info.dtype not in _STORED:
            raise OptionError(
                f"{self.url} holds no tokens; pack it with --tokenizer, or read it with StreamingDataset"
            )
        self.transform, self.boundaries = transform, boundaries
        self._out, self._stored = _OUT[dtype], _STORED[info.dtype]
        self.pad_id = _pad_id(self.manifest, pad_id, self._stored)
        self._column = [field.name for field in self.manifest.fields].index(FIELD)
        self._blocks, self._padding = self._count()
        self._total = sum(self._blocks)

    def _count(self) -> tuple[list[int], int]:
        """The blocks of each shard, and the padding in all of them."""
        options, shards = self.blocks, self.manifest.shards
        if options.pack is None:
            tokens = [shard.tokens for shard in shards]
            return list(map(options.stream_blocks, tokens)), sum(map(options.stream_padding, tokens))
        source: TokenSource = self.source

        def measure(shard: int) -> tuple[int, int]:
            blocks = source.blocks(shard)
            return blocks.count, blocks.padding

        # Indexes may be a round trip away each.
        with ThreadPoolExecutor(_THREADS, "shardstream-index") as pool:
            found = list(pool.map(measure, range(len(shards))))
        return [count for count, _ in found], sum(padding for _, padding in found)

    @property
    def seq_len(self) -> int:
        """T: the inputs and the targets of a block."""
        return self.blocks.seq_len

    @property
    def total(self) -> int:
        """The blocks of all ranks."""
        return self._total

    @property
    def dropped_tokens(self) -> int:
        """The tokens of an epoch that no block holds: those after the last whole block of a shard."""
        if self.blocks.pack is not None:
            return 0
        counts = zip(self.manifest.shards, self._blocks, strict=True)
        return sum(max(0, shard.tokens - (number * self.seq_len + bool(number))) for shard, number in counts)

    @property
    def padding_share(self) -> float:
        """The share of all blocks' tokens that is padding."""
        return self._padding / (self._total * (self.seq_len + 1)) if self._total else 0.0

    @property
    def ahead(self) -> int:
        """How many items are best planned at once."""
        return max(1, min(_PLAN, (1 << 30) // self.item_bytes))

    @property
    def item_bytes(self) -> int:
        """The bytes of one block."""
        return (self.seq_len + 1) * self._out.itemsize

    @property
    def row_shape(self) -> tuple[object, ...] | None:
        """What datasets must share for their blocks to fit in one tensor; None where a transform decides."""
        if self.transform is not None:
            return None
        return self.seq_len, self._out.name, self.boundaries, self.blocks.padded

    def order(self, epoch: int, lanes: int | None = None) -> Order:
        """The order of one epoch, in so many lanes or in the dataset's own number."""
        source = self.source
        lanes = lanes or self.lanes
        return Order(self._blocks, lambda shard: source.blocks(shard).first, self.shuffle, epoch, lanes)

    def _open_source(self) -> TokenSource:
        return TokenSource(self.reader, self._column, self._stored, self.blocks, self.pad_id)

    def frames_of(self, shard: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames that these blocks lie in; a block may end in a later one than it begins in."""
        blocks = self.source.blocks(shard)
        rows, frames, _, _ = blocks.pieces(numbers, False)
        return in_order(frames[np.argsort(rows, kind="stable")])

    def units(self, order: Order, requests: Iterable[Request], direct: bool) -> Iterator[TokenUnit]:
        """The work for all requests; what is planned at once is then cut for the threads."""
        direct = direct and self.transform is None and self.item_bytes >= _LONG
        most = max(1, (_DIRECT if direct else _UNIT) // self.item_bytes)
        for request, shards, numbers in self.located(order, requests):
            plan = TokenPlan(self.source, shards, numbers, self.boundaries)
            begin = at = 0
            sizes: list[int] = []
            for size in request.sizes:
                if sizes and at - begin + size > most:
                    yield TokenUnit(plan, begin, sizes, self._out, self.boundaries, direct)
                    begin, sizes = at, []
                sizes.append(size)
                at += size
            yield TokenUnit(plan, begin, sizes, self._out, self.boundaries, direct)

    def collated(self, collate: Callable[[list[Any]], Any] | None) -> Callable[[Any], Any]:
        """The `finish` that makes tensors of arrays, or collates the single blocks."""
        if collate is None and self.transform is None:
            return _tensors
        join = default_collate if collate is None else self.noting(collate)
        return lambda batch: join(list(self.items(batch)))

    def items(self, batch: dict[str, Any]) -> Iterable[Any]:
        """The single blocks of a batch."""
        columns = {name: value for name, value in batch.items() if name not in FLAT}
        for values in zip(*columns.values(), strict=True):
            block = _tensors(dict(zip(columns, values, strict=True)))
            if self.transform is None:
                yield block
                continue
            begin = block[FIELD][:8].tolist()
            with noted(f"in the transform of the block that begins with {begin} of {self.url}"):
                made = self.transform(block)
            yield made

    def __getitem__(self, number: int) -> Any:
        """Block `number` in the natural order, of all ranks' blocks."""
        if not -self._total <= number < self._total:
            raise IndexError(f"block {number} of {self.url}, which has {self._total}")
        bounds = np.cumsum([0, *self._blocks])
        shard = int(np.searchsorted(bounds, number % self._total, side="right")) - 1
        place = np.array([number % self._total - bounds[shard]], np.int64)
        plan = TokenPlan(self.source, np.array([shard], np.int64), place, self.boundaries)
        unit = TokenUnit(plan, 0, [1], self._out, self.boundaries)
        buffers = {need.frame: self.source.fetch(*need.frame) for need in unit.needs}
        batch = next(iter(unit.build(buffers)))
        return next(iter(self.items(batch)))

    def identity(self) -> dict[str, Any]:
        """What a state must agree with; how tokens are cut into blocks decides what a position means."""
        blocks = self.blocks
        return super().identity() | {"seq_len": blocks.seq_len, "pack": blocks.pack, "tail": blocks.tail}


def _tensors(batch: dict[str, Any]) -> dict[str, Any]:
    if len(batch) == 1:  # most batches: nothing but tokens
        return {FIELD: tensor(batch[FIELD])}
    return {name: tensor(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}


def _pad_id(manifest: Manifest, asked: int | None, stored: np.dtype[Any]) -> int:
    """The padding token: the one asked for, the tokenizer's end token, or 0."""
    if asked is None:
        eos = manifest.provenance.get("tokenizer", {}).get("eos")
        return eos if isinstance(eos, int) else 0
    if isinstance(asked, bool) or not isinstance(asked, int) or not 0 <= asked <= np.iinfo(stored).max:
        raise OptionError(f"pad_id={asked!r} must be a token id, an int that fits {stored.name}")
    return asked

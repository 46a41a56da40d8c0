"""TokenDataset: blocks of a fixed number of tokens, straight from token shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.base import Cache, OrderedDataset, Request, in_order
from shardstream.errors import OptionError
from shardstream.order.lanes import Order
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.read.batch import collate as default_collate
from shardstream.read.batch import tensor
from shardstream.read.token_frames import TokenSource, blocks
from shardstream.read.tokens import TokenPlan, TokenUnit

__all__ = ["TokenDataset"]

FIELD = "tokens"
_PLAN = 16 << 10  # blocks
_LONG = 1 << 10  # bytes of a block from which on copying it costs more than the call
_UNIT = 8 << 20  # bytes of batches that one thread builds at a time
_OUT: dict[str, np.dtype[Any]] = {"int64": np.dtype(np.int64), "int32": np.dtype(np.int32)}
_STORED: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class TokenDataset(OrderedDataset):
    """Blocks of `seq_len` + 1 tokens of the dataset at `url`, which was packed with a tokenizer.

    Block b of a shard is its tokens [b T, b T + T], T = seq_len: inputs and targets are
    tokens[:-1] and tokens[1:]. The tokens after the last whole block of each shard are left out and
    counted in `dropped_tokens`. Iterating gives dicts {"tokens": tensor [seq_len + 1]}; a
    StreamingLoader gives {"tokens": tensor [B, seq_len + 1]}.

    dtype: of the tensors, "int64" or "int32".  transform: called with each dict of one block, in
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
    ) -> None:
        super().__init__(url, shuffle, cache, topology, storage_options)
        if isinstance(seq_len, bool) or not isinstance(seq_len, int) or seq_len < 1:
            raise OptionError(f"seq_len={seq_len!r} must be an int, at least 1")
        if dtype not in _OUT:
            raise OptionError(f"dtype={dtype!r} must be 'int64' or 'int32'")
        info = next((info for info in self.manifest.fields if info.name == FIELD), None)
        if info is None or info.dtype not in _STORED:
            raise OptionError(
                f"{self.url} holds no tokens; pack it with --tokenizer, or read it with StreamingDataset"
            )
        self.seq_len, self.transform = seq_len, transform
        self._out, self._stored = _OUT[dtype], _STORED[info.dtype]
        self._column = [field.name for field in self.manifest.fields].index(FIELD)
        self._blocks = [blocks(shard.tokens, seq_len) for shard in self.manifest.shards]
        self._total = sum(self._blocks)

    @property
    def total(self) -> int:
        """The blocks of all ranks."""
        return self._total

    @property
    def dropped_tokens(self) -> int:
        """The tokens of an epoch that no block holds: those after the last whole block of a shard."""
        counts = zip(self.manifest.shards, self._blocks, strict=True)
        return sum(max(0, shard.tokens - (number * self.seq_len + bool(number))) for shard, number in counts)

    @property
    def ahead(self) -> int:
        """How many items are best planned at once."""
        return max(1, min(_PLAN, (1 << 30) // self.item_bytes))

    @property
    def item_bytes(self) -> int:
        """The bytes of one block."""
        return (self.seq_len + 1) * self._out.itemsize

    def order(self, epoch: int) -> Order:
        """The order of one epoch."""
        source = self.source
        return Order(self._blocks, lambda shard: source.layout(shard).first, self.shuffle, epoch, self.lanes)

    def _open_source(self) -> TokenSource:
        return TokenSource(self.reader, self._column, self._stored, self.seq_len)

    def frames_of(self, shard: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames that these blocks lie in; a block may end in a later one than it begins in."""
        start = self.source.layout(shard).start
        first = np.searchsorted(start, numbers * self.seq_len, side="right") - 1
        last = np.searchsorted(start, numbers * self.seq_len + self.seq_len, side="right") - 1
        most = int((last - first).max(initial=0))
        # What a frame's buffer holds of the frames behind it is read for each of its blocks.
        spans = first[:, None] + np.arange(max(most, 1) + 1)
        return in_order(np.minimum(spans, len(start) - 2).ravel())

    def units(self, order: Order, requests: Iterable[Request], direct: bool) -> Iterator[TokenUnit]:
        """The work for all requests; what is planned at once is then cut for the threads."""
        direct = direct and self.transform is None and self.item_bytes >= _LONG
        for request in requests:
            plan = TokenPlan(self.source, *order.locate(request.positions))
            begin = at = 0
            sizes: list[int] = []
            for size in request.sizes:
                if sizes and (at - begin + size) * self.item_bytes > _UNIT:
                    yield TokenUnit(plan, begin, sizes, self._out, direct)
                    begin, sizes = at, []
                sizes.append(size)
                at += size
            yield TokenUnit(plan, begin, sizes, self._out, direct)

    def collated(self, collate: Callable[[list[Any]], Any] | None) -> Callable[[Any], Any]:
        """The `finish` that makes a batch of an array, or collates the single blocks."""
        if collate is None and self.transform is None:
            return lambda rows: {FIELD: tensor(rows)}
        join = collate or default_collate
        return lambda rows: join(list(self.items(rows)))

    def items(self, batch: NDArray[Any]) -> Iterable[Any]:
        """The single blocks of an array."""
        for row in batch:
            block = {FIELD: tensor(row)}
            yield block if self.transform is None else self.transform(block)

    def __getitem__(self, number: int) -> Any:
        """Block `number` in the natural order, of all ranks' blocks."""
        if not -self._total <= number < self._total:
            raise IndexError(f"block {number} of {self.url}, which has {self._total}")
        bounds = np.cumsum([0, *self._blocks])
        shard = int(np.searchsorted(bounds, number % self._total, side="right")) - 1
        place = np.array([number % self._total - bounds[shard]], np.int64)
        unit = TokenUnit(TokenPlan(self.source, np.array([shard], np.int64), place), 0, [1], self._out)
        buffers = {need.frame: self.source.fetch(*need.frame) for need in unit.needs}
        rows = next(iter(unit.build(buffers)))
        return next(iter(self.items(rows)))

    def identity(self) -> dict[str, Any]:
        """What a state must agree with; the length of blocks decides what a position means."""
        return super().identity() | {"seq_len": self.seq_len}

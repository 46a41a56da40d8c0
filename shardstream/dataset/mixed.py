"""What the threads of a mixture build: batches put together from those of its datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.base import OrderedDataset
from shardstream.read.engine import Source, Unit
from shardstream.read.prefetch import FrameId, Need
from shardstream.read.segments import FLAT, runs

__all__ = ["SOURCE", "MixedSource", "MixedUnit", "Part"]

SOURCE = "__source__"
_SHIFT = 48  # bits of a shard's number; those above are the dataset's
_SHARD = (1 << _SHIFT) - 1

Ints = NDArray[np.int64]


class MixedSource:
    """The frames of all datasets; the upper bits of a shard's number say of which."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def expect(self, frames: Sequence[FrameId]) -> None:
        for number, source in enumerate(self._sources):
            source.expect([(s & _SHARD, frame) for s, frame in frames if s >> _SHIFT == number])

    def counters(self) -> dict[str, Any]:
        """The sums of those of all datasets."""
        found: dict[str, Any] = {}
        for source in self._sources:
            for name, count in source.counters().items():
                known = found.get(name)
                found[name] = known + count if isinstance(known, int) and isinstance(count, int) else count
        return found

    def fetch(self, shard: int, frame: int) -> tuple[int, Any]:
        number, shard = divmod(shard, 1 << _SHIFT)
        return number, self._sources[number].fetch(shard, frame)

    def recycle(self, buffer: tuple[int, Any]) -> None:
        self._sources[buffer[0]].recycle(buffer[1])

    def name(self, shard: int, frame: int) -> str:
        number, shard = divmod(shard, 1 << _SHIFT)
        return self._sources[number].name(shard, frame)


class Part:
    """What one dataset gives to some batches: `rows` of all, `counts` of each batch."""

    def __init__(
        self, number: int, ds: OrderedDataset, rows: Ints, counts: list[int], units: list[Unit]
    ) -> None:
        self.number, self.ds, self.rows, self.counts, self.units = number, ds, rows, counts, units

    def frame(self, frame: FrameId) -> FrameId:
        return (self.number << _SHIFT) + frame[0], frame[1]

    def needs(self) -> Iterator[Need]:
        for unit in self.units:
            for need in unit.needs:
                yield need._replace(frame=self.frame(need.frame))

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[Any]:
        def built(unit: Unit) -> Iterable[Any]:
            return unit.build({need.frame: frames[self.frame(need.frame)][1] for need in unit.needs})

        return chain.from_iterable(map(built, self.units))


class MixedUnit:
    """Consecutive batches, each put together from what the datasets build of it.

    tensors: a batch is one tensor, else a list of samples.
    """

    direct = False
    unverified: Sequence[FrameId] = ()

    def __init__(self, sizes: list[int], source: Ints, parts: list[Part], tensors: bool) -> None:
        self.sizes, self._source, self._parts = sizes, source, parts
        self._tensors = tensors
        self.needs = [need for part in parts for need in part.needs()]
        self.volume = sum(unit.volume for part in parts for unit in part.units)

    def prepare(self) -> None:
        """Nothing: a thread builds it all."""

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[Any]:
        """The batches: rows of tokens and their sources, or a list of samples."""
        built = [part.build(frames) for part in self._parts]
        done = [0] * len(built)
        begin = 0
        for number, size in enumerate(self.sizes):
            columns: dict[str, NDArray[Any]] = {}
            samples: list[Any] = [] if self._tensors else [None] * size
            for which, part in enumerate(self._parts):
                count = part.counts[number]
                if not count:
                    continue
                rows = part.rows[done[which] : done[which] + count] - begin
                done[which] += count
                some = next(built[which])
                if self._tensors:
                    for name, column in some.items():
                        if name in FLAT:
                            continue
                        if name not in columns:
                            columns[name] = np.empty((size, *column.shape[1:]), column.dtype)
                        columns[name][rows] = column
                else:
                    found = part.ds.items(part.ds.listed(some))
                    for row, sample in zip(rows.tolist(), found, strict=True):
                        samples[row] = _marked(sample, part.number)
            source = self._source[begin : begin + size]
            flat = runs(columns["position_ids"]) if "position_ids" in columns else {}
            yield columns | flat | {SOURCE: source} if self._tensors else samples
            begin += size


def _marked(sample: Any, number: int) -> Any:
    """The sample with its source, if it is a dict; what a transform made of it is the user's."""
    return sample | {SOURCE: number} if isinstance(sample, dict) else sample

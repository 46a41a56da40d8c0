"""Units of a mixture: its batches are put together from the batches of its datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.batch_maker import BatchMaker
from shardstream.read.engine.frames import FrameId, Need
from shardstream.read.engine.units import Source, Unit
from shardstream.read.tokens.document_bounds import FLAT, runs

__all__ = ["SOURCE", "Contribution", "MixedSource", "MixedUnit"]

SOURCE = "__source__"
_SHIFT = 48  # bits of a shard's number; the bits above are the dataset's number
_SHARD = (1 << _SHIFT) - 1

Ints = NDArray[np.int64]


class MixedSource:
    """The frames of all datasets; the upper bits of a shard's number say of which."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def fetch_ahead(self, frames: Sequence[FrameId]) -> None:
        for number, source in enumerate(self._sources):
            mine = [(s & _SHARD, frame) for s, frame in frames if s >> _SHIFT == number]
            if mine:
                source.fetch_ahead(mine)

    def counters(self) -> dict[str, Any]:
        """The sums of the counters of all datasets."""
        found: dict[str, Any] = {}
        for source in self._sources:
            for name, count in source.counters().items():
                known = found.get(name)
                found[name] = known + count if isinstance(known, int) and isinstance(count, int) else count
        return found

    def memory(self) -> dict[str, int]:
        """The sums of what the readers of all datasets hold."""
        found: Counter[str] = Counter()
        # Subsets of one dataset share its reader.
        for source in {id(getattr(source, "reader", source)): source for source in self._sources}.values():
            found.update(source.memory())
        return dict(found)

    def limit_idle(self, frames: int, batches: int) -> tuple[int, int]:
        """Let at most so many bytes of buffers of all datasets wait to be used again."""
        left_frames, left_batches = frames, batches
        for source in self._sources:
            some, more = source.limit_idle(left_frames, left_batches)
            left_frames, left_batches = max(0, left_frames - some), max(0, left_batches - more)
        return frames - left_frames, batches - left_batches

    def fetch(self, shard: int, frame: int) -> tuple[int, Any]:
        number, shard = divmod(shard, 1 << _SHIFT)
        return number, self._sources[number].fetch(shard, frame)

    def keeps(self, shard: int) -> bool:
        return self._sources[shard >> _SHIFT].keeps(shard & _SHARD)

    def unchanged(self, frames: Sequence[FrameId]) -> list[FrameId]:
        """Those of these frames that are as they were, of all datasets."""
        found: list[FrameId] = []
        for number, source in enumerate(self._sources):
            mine = [(shard & _SHARD, frame) for shard, frame in frames if shard >> _SHIFT == number]
            found += [(shard + (number << _SHIFT), frame) for shard, frame in source.unchanged(mine)]
        return found

    def check_again(self) -> None:
        for source in self._sources:
            source.check_again()

    def recycle(self, buffer: tuple[int, Any]) -> None:
        self._sources[buffer[0]].recycle(buffer[1])

    def name(self, shard: int, frame: int) -> str:
        number, shard = divmod(shard, 1 << _SHIFT)
        return self._sources[number].name(shard, frame)


class Contribution:
    """What one dataset gives to some batches.

    Args:
        number: Of the dataset.
        maker: Of its batches.
        rows: The numbers of its rows in all batches together, int64 [n].
        counts: How many of them are in each batch.
        units: The work for them.
    """

    def __init__(
        self, number: int, maker: BatchMaker, rows: Ints, counts: list[int], units: list[Unit]
    ) -> None:
        self.number, self.maker, self.rows, self.counts, self.units = number, maker, rows, counts, units

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

    Args:
        sizes: The samples of each batch.
        source: The number of each sample's dataset, int64 [n].
        given: What each dataset gives.
        tensors: A batch is one tensor; else a list of samples, and the error of the one behind them or None.
        cut: Makes `parts`.
        grows: See `Unit`.
    """

    direct = False
    unverified: Sequence[FrameId] = ()

    def __init__(
        self,
        sizes: list[int],
        source: Ints,
        given: list[Contribution],
        tensors: bool,
        cut: Callable[[bool], Sequence[Unit]],
        grows: int,
    ) -> None:
        self.sizes, self._source, self._given, self.parts, self.grows = sizes, source, given, cut, grows
        self._tensors = tensors
        self.needs = _once(need for part in given for need in part.needs())
        self.volume = sum(unit.volume for part in given for unit in part.units)

    def prepare(self) -> None:
        """Nothing: a thread builds it all."""

    def build(self, frames: Mapping[FrameId, Any]) -> Iterator[Any]:
        """The batches: rows of tokens and their sources, or a list of samples and an error."""
        built = [part.build(frames) for part in self._given]
        done = [0] * len(built)
        begin = 0
        for number, size in enumerate(self.sizes):
            columns: dict[str, NDArray[Any]] = {}
            samples: list[Any] = [] if self._tensors else [None] * size
            end, error = size, None  # type: int, Exception | None
            for which, part in enumerate(self._given):
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
                    found, failure = part.maker.singles(some)
                    made, places = list(part.maker.items(found)), rows.tolist()
                    for row, sample in zip(places, made, strict=False):
                        samples[row] = _marked(sample, part.number)
                    if failure is not None and places[len(made)] < end:
                        end, error = places[len(made)], failure
            source = self._source[begin : begin + size]
            flat = runs(columns["position_ids"]) if "position_ids" in columns else {}
            yield columns | flat | {SOURCE: source} if self._tensors else (samples[:end], error)
            begin += size
        for rest in built:
            next(rest, None)  # after its last batch a unit looks at the files that it was read from


def _once(needs: Iterable[Need]) -> list[Need]:
    """Each frame once: a dataset gives several units, and a frame that two of them need stays for both."""
    found: dict[FrameId, Need] = {}
    for need in needs:
        before = found.get(need.frame)
        found[need.frame] = need if before is None else before._replace(reads=before.reads + need.reads)
    return list(found.values())


def _marked(sample: Any, number: int) -> Any:
    """The sample with its source, if it is a dict; what a transform made of it is the user's."""
    return sample | {SOURCE: number} if isinstance(sample, dict) else sample

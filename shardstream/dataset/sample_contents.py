"""What is read of a StreamingDataset: all samples of a packed dataset, or a subset of them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.collating import in_data_loader
from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.opening import Opening
from shardstream.dataset.requests import Request, UnitOptions
from shardstream.dataset.sample_batches import SampleMaker
from shardstream.dataset.selected import SelectedContents
from shardstream.decode.modes import Decode, viewless
from shardstream.errors import OptionError
from shardstream.format.shards import shard_values
from shardstream.format.shown import counted
from shardstream.order.lanes import Order, in_order
from shardstream.order.shuffle import Shuffle
from shardstream.read.reader import DatasetReader
from shardstream.read.samples.plan import RawBatch, SamplePlan, SampleUnit
from shardstream.read.samples.source import SampleSource
from shardstream.read.samples.zero_copy import ZeroCopySource

__all__ = ["SampleContents"]

Ints = NDArray[np.int64]
_UNIT = 2 << 20  # bytes of samples that one thread builds at a time
_DIRECT = 16 << 20  # and that the consumer builds, a batch at a time
_PLAN = 4096  # samples


class SampleContents(SelectedContents[SampleSource]):
    """The samples of a packed dataset.

    Args:
        opening, shuffle, rank, function: See `StoredContents`.
        fields: The fields that are read, None for all.
        decode: See `StreamingDataset`.
    """

    _maker: SampleMaker

    def __init__(
        self,
        opening: Opening,
        shuffle: Shuffle | None,
        rank: DatasetRank,
        function: Callable[..., Any] | None,
        fields: tuple[str, ...] | None,
        decode: Decode,
    ) -> None:
        super().__init__(opening, shuffle, rank, function)
        self.fields, self.decode = fields, decode
        self.fit()

    def fit(self) -> None:
        """Take over what the manifest says, and make the selection of its samples."""
        known = [info.name for info in self.manifest.fields]
        missing = [name for name in self.fields or () if name not in known]
        if missing:
            raise OptionError(f"{self.url} has no field {missing[0]!r}; it has {sorted(known)}")
        self._maker = self._make_maker()
        self._select()

    def _make_maker(self) -> SampleMaker:
        return SampleMaker(self.url, self.manifest, self.fields, self.decode, self.transform)

    @property
    def total(self) -> int:
        """The samples of all ranks."""
        return self.chosen_samples

    @property
    def planned_at_once(self) -> int:
        """How many samples are best planned at once."""
        return _PLAN

    def order(self, epoch: int, lanes: int | None = None) -> Order:
        """The order of one epoch, in so many lanes or in the dataset's own number."""
        reader, selection, lanes = self.reader, self._selection, lanes or self.lanes
        if selection is None:
            sizes = shard_values(self.manifest.shards, "samples")
            return Order(
                sizes,
                lambda shard: reader.index(shard).frame_first,
                self.shuffle,
                epoch,
                lanes,
                recent=reader.windows,
            )
        return Order(
            selection.counts,
            lambda shard: selection.frame_first(shard, reader.index(shard).frame_first),
            self.shuffle,
            epoch,
            lanes,
            selection.chosen,
            reader.windows,
        )

    def decoding(self, decode: Decode) -> SampleContents:
        """The same samples, with another `decode`. The reader is shared."""
        maker = SampleMaker(self.url, self.manifest, self.fields, decode, self.transform)
        found = copy.copy(self)
        vars(found).update(decode=decode, _maker=maker, _source=None)
        return found

    def without_views(self) -> SampleContents:
        """The same with bytes where values are views of memory."""
        return self.decoding(viewless(self.decode)) if self._maker.views else self

    def _open_source(self, reader: DatasetReader) -> SampleSource:
        # Memory that batches have views of must not be used again as long as there is a view.
        return (ZeroCopySource if self._maker.views else SampleSource)(reader, self.fields)

    def frames_of(self, shard: int, numbers: Ints) -> Ints:
        """The frames that these samples lie in."""
        first = np.asarray(self.reader.index(shard).frame_first).astype(np.int64)
        return in_order(np.searchsorted(first, numbers, side="right") - 1)

    def units(self, order: Order, requests: Iterable[Request], options: UnitOptions) -> Iterator[SampleUnit]:
        """The work for all requests; what is planned at once is then cut for the threads."""
        maker = self._maker
        cheap = maker.cheap and not options.collates
        direct = options.direct and cheap
        # What is decoded or transformed may be many times larger: each batch is a unit.
        most = _DIRECT if direct else _UNIT if cheap else 1
        # Images and arrays go straight into the batch. Else there are samples, and the batch made of them.
        grows = 0 if cheap else 1 if maker.straight and not options.collates else 2
        for request, shards, numbers in self.located(order, requests):
            plan = SamplePlan(self.source, shards, numbers, maker.random(order.epoch, request.positions))
            plan.generators = self.transform.generators(order.epoch, options.source, request.positions)
            yield from plan.units(request.sizes, most, direct, grows)

    def item(self, number: int) -> Any:
        """Sample `number` in the natural order, of all ranks' samples: decoded and transformed."""
        if self._maker.views and in_data_loader(sys._getframe()):  # noqa: SLF001 - it gives no other sign
            return self.without_views().item(number)
        shard, sample = self.place_of_sample(number)
        key, stored = self.reader.sample(shard, sample)
        columns: dict[str, list[memoryview | None]] = {
            name: [memoryview(data)]
            for name, data in stored.items()
            if self.fields is None or name in self.fields
        }
        columns |= {name: [None] for name in self._maker.pictures if name not in columns}
        numbers = np.array([number], np.int64)
        random = self._maker.random(0, numbers)
        generators = self.transform.generators(0, 0, numbers, items=True)
        raw = RawBatch([key], columns, (), np.array([shard], np.int64), random, generators)
        return self._maker.listed(raw)[0]

    def described(self) -> dict[str, str]:
        """What a person wants to know of it."""
        known, selection = self.opening.known, self._selection
        whole = {} if known is None else {"samples": counted(known.samples, "sample")}
        if selection is not None:
            of = f"{selection.total} of {known.samples}" if known is not None else f"{selection.total}"
            whole = {"samples": f"subset of {of} samples"}
        names = self.fields
        if names is None and known is not None:
            names = tuple(info.name for info in known.fields)
        fields = {} if names is None else {"fields": f"fields={list(names)}"}
        return self._described(whole, fields)

"""StreamingDataset: the samples of a packed dataset, in an order that any rank can compute."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.dataset.base import Cache, OrderedDataset, Request
from shardstream.dataset.subset import Columns, select
from shardstream.dataset.workers import WorkerCursor
from shardstream.decode.crops import draws
from shardstream.decode.images import Images
from shardstream.decode.registry import decode_values, extension, find
from shardstream.errors import OptionError, noted
from shardstream.order.lanes import Order, in_order
from shardstream.order.selection import Selection
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.read.batch import Batch, Ragged, column
from shardstream.read.batch import collate as default_collate
from shardstream.read.samples import RawBatch, SamplePlan, SampleSource, SampleUnit

__all__ = ["StreamingDataset"]

Sample = dict[str, Any]
_UNIT = 2 << 20  # bytes of samples that one thread builds at a time
_DIRECT = 16 << 20  # and that the consumer builds, a batch at a time
_PLAN = 4096  # samples
_QUICK = {"txt", "text", "cls", "cls2", "json"}  # fields whose decoding costs less than a change of threads


class StreamingDataset(OrderedDataset):
    """The samples of the dataset at `url`, as dicts {"__key__": str, field: value}.

    Iterating gives this rank's samples of one epoch; iterating again is the next epoch. In the
    worker processes of a torch DataLoader each sample comes from exactly one worker, and epochs go on
    in the same way; how far workers came only torchdata's StatefulDataLoader can tell.

    fields: the fields to read, all by default.
    decode: False leaves the fields bytes; `decode.images.Train` or `Evaluate` makes "image" of the image's
        field, a tensor of one size for all samples, and decodes the other fields as True does.
    shuffle: False for the natural order, True for Shuffle(), or a Shuffle.
    topology: "auto" asks torch.distributed or the launcher for this process's rank.
    transform: called with each decoded sample, in background threads; what it raises is raised where
        the dataset is iterated, with a note that names the sample.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        fields: list[str] | tuple[str, ...] | None = None,
        decode: bool | Images = True,
        shuffle: bool | Shuffle = False,
        cache: Cache | str | os.PathLike[str] | None = None,
        topology: Ranks | str = "auto",
        transform: Callable[[Sample], Any] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(url, shuffle, cache, topology, storage_options)
        self.decode, self.transform = decode, transform
        self._selection: Selection | None = None
        known = {info.name: info for info in self.manifest.fields}
        if isinstance(fields, str):
            raise OptionError(f"fields={fields!r} must be a list of names, such as [{fields!r}]")
        self.fields = None if fields is None else tuple(fields)
        unknown = [name for name in self.fields or () if name not in known]
        if unknown:
            raise OptionError(f"{self.url} has no field {unknown[0]!r}; it has {sorted(known)}")
        self._kinds = {name: (info.codec, info.dtype) for name, info in known.items()}
        self._pictures: tuple[str, ...] = ()
        if isinstance(decode, Images):
            wanted = known if self.fields is None else self.fields
            self._pictures = decode.choose({name: self._kinds[name][0] for name in wanted})

    @property
    def total(self) -> int:
        """The samples of all ranks."""
        return self.manifest.samples if self._selection is None else self._selection.total

    @property
    def ahead(self) -> int:
        """How many samples are best planned at once."""
        return _PLAN

    def order(self, epoch: int, lanes: int | None = None) -> Order:
        """The order of one epoch, in so many lanes or in the dataset's own number."""
        reader, selection, lanes = self.reader, self._selection, lanes or self.lanes
        if selection is None:
            sizes = [shard.samples for shard in self.manifest.shards]
            return Order(sizes, lambda shard: reader.index(shard).frame_first, self.shuffle, epoch, lanes)
        return Order(
            selection.counts,
            lambda shard: selection.frame_first(shard, reader.index(shard).frame_first),
            self.shuffle,
            epoch,
            lanes,
            selection.kept,
        )

    def subset(
        self,
        keys: Iterable[str] | None = None,
        numbers: ArrayLike | None = None,
        where: Callable[[Columns], ArrayLike] | None = None,
    ) -> StreamingDataset:
        """A dataset of those samples alone: with these keys, these numbers in the natural order, or where
        a predicate over the columns of a shard's index gives True (see `Columns`; it gives bool [n]).

        The order is made of the samples that are kept. `keys` and `where` read all indexes once; frames
        and shards of which nothing is kept are never read. States are of this selection alone.
        """
        found = copy.copy(self)
        vars(found).update(
            _reader=self._reader,
            _lanes=None if self.shuffle is None else self.shuffle.lanes,
            _cursor=WorkerCursor(),
            _selection=select(self.reader, self._selection, keys, numbers, where),
        )
        return found

    def identity(self) -> dict[str, Any]:
        """What a state must agree with; the fingerprint covers the selection."""
        mine = super().identity()
        if self._selection is not None:
            mine["fingerprint"] += f"/subset-{self._selection.digest}"
        return mine

    def _open_source(self) -> SampleSource:
        return SampleSource(self.reader, self.fields)

    def frames_of(self, shard: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames that these samples lie in."""
        first = np.asarray(self.reader.index(shard).frame_first).astype(np.int64)
        return in_order(np.searchsorted(first, numbers, side="right") - 1)

    def units(self, order: Order, requests: Iterable[Request], direct: bool) -> Iterator[SampleUnit]:
        """The work for all requests; what is planned at once is then cut for the threads."""
        quick = direct and self._quick
        # Of images each batch is a unit: decoded they are many times larger.
        most = _DIRECT if quick else 1 if self._pictures else _UNIT
        for request, shards, numbers in self.located(order, requests):
            drawn = draws(order.epoch, request.positions) if self._pictures else None
            plan = SamplePlan(self.source, shards, numbers, drawn)
            yield from plan.units(request.sizes, most, quick)

    @property
    def _quick(self) -> bool:
        """Whether making a batch is little more than copying bytes."""
        names = self._kinds if self.fields is None else self.fields
        kinds = (self._kinds[name][0] or name for name in names)
        quick = not self.decode or all(extension(kind) in _QUICK for kind in kinds)
        return quick and self.transform is None

    def collated(self, collate: Callable[[list[Any]], Any] | None) -> Callable[[RawBatch], Any]:
        """The `finish` that decodes field by field, or where there is need for it sample by sample."""
        if collate is None and self.transform is None:
            return self._columns
        if collate is list:
            return self.listed
        join = default_collate if collate is None else self.noting(collate)
        return lambda raw: join(self.listed(raw))

    def _columns(self, raw: RawBatch) -> Batch:
        batch = Batch(__key__=raw.keys, **self._images(raw))
        for name, views in raw.fields.items():
            if name in self._pictures:
                continue
            codec, dtype = self._kinds[name]
            if not self.decode or find(name, dtype, codec) is None:
                batch[name] = Ragged.gather(views)
            else:
                batch[name] = column(decode_values(name, views, raw.keys, dtype=dtype, codec=codec))
        return batch

    def _images(self, raw: RawBatch) -> dict[str, Any]:
        """The decoded images of a batch, where they are asked for."""
        if not isinstance(self.decode, Images):
            return {}
        assert raw.draws is not None
        assert raw.shards is not None
        columns = {name: raw.fields[name] for name in self._pictures}
        shards = self.manifest.shards
        urls = [shards[number].url for number in raw.shards.tolist()]
        return self.decode.decode(columns, raw.keys, urls, raw.draws)

    def listed(self, items: RawBatch) -> list[Any]:
        """The decoded and transformed samples of a batch."""
        made = self._images(items)
        names: list[str] = ["__key__", *made]
        columns: list[list[Any]] = [items.keys, *map(list, made.values())]
        for name, views in items.fields.items():
            if name in self._pictures:
                continue
            codec, dtype = self._kinds[name]
            names.append(name)
            if self.decode:
                columns.append(decode_values(name, views, items.keys, dtype=dtype, codec=codec))
            else:
                columns.append([None if view is None else bytes(view) for view in views])
        samples: list[Any] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        for name in items.gaps:
            if name in self._pictures:
                continue
            for sample, view in zip(samples, items.fields[name], strict=True):
                if view is None:
                    del sample[name]
        return samples if self.transform is None else [self._transformed(sample) for sample in samples]

    def _transformed(self, sample: Sample) -> Any:
        assert self.transform is not None
        key = sample["__key__"]
        with noted(f"in the transform of sample {key!r} of {self.url}"):
            return self.transform(sample)

    def items(self, batch: Any) -> Iterable[Any]:
        """The samples of a batch that was left a list."""
        return batch  # type: ignore[no-any-return]

    def _build(self, key: str, fields: dict[str, bytes], shard: int, number: int) -> Any:
        """The decoded and transformed sample of a key and its fields' bytes."""
        columns: dict[str, list[memoryview | None]] = {
            name: [memoryview(data)] for name, data in fields.items()
        }
        columns |= {name: [None] for name in self._pictures if name not in columns}
        numbers = draws(0, np.array([number], np.int64))
        return self.listed(RawBatch([key], columns, (), np.array([shard], np.int64), numbers))[0]

    def __getitem__(self, number: int) -> Any:
        """Sample `number` in the natural order, of all ranks' samples."""
        total = self.total
        if not -total <= number < total:
            raise IndexError(f"sample {number} of {self.url}, which has {total}")
        shard, sample = self._place(number % total)
        key, fields = self.reader.sample(shard, sample)
        wanted = {n: data for n, data in fields.items() if self.fields is None or n in self.fields}
        return self._build(key, wanted, shard, number % total)

    def _place(self, number: int) -> tuple[int, int]:
        if self._selection is None:
            return self.reader.locate(number)
        shards, samples = self._selection.locate(np.array([number], np.int64))
        kept = self._selection.kept(int(shards[0]))
        return int(shards[0]), int(samples[0] if kept is None else kept[samples[0]])

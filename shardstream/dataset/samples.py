"""StreamingDataset: the samples of a packed dataset, in an order that any rank can compute."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.dataset.base import Cache, OrderedDataset, Request, in_order
from shardstream.decode.registry import decode_field
from shardstream.errors import OptionError
from shardstream.order.lanes import Order
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.read.batch import collate as default_collate
from shardstream.read.samples import RawSample, SampleSource, SampleUnit

__all__ = ["StreamingDataset"]

Sample = dict[str, Any]
_UNIT = 2 << 20  # bytes of samples that one thread builds at a time


class StreamingDataset(OrderedDataset):
    """The samples of the dataset at `url`, as dicts {"__key__": str, field: value}.

    Iterating gives this rank's samples of one epoch; iterating again is the next epoch. In the
    worker processes of a torch DataLoader each sample comes from exactly one worker; there, call
    `set_epoch` on the dataset before each epoch, since workers do not tell how far they came.

    fields: the fields to read, all by default.  decode: False leaves the fields bytes.
    shuffle: False for the natural order, True for Shuffle(), or a Shuffle.
    topology: "auto" asks torch.distributed or the launcher for this process's rank.
    transform: called with each decoded sample, in background threads.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        fields: list[str] | tuple[str, ...] | None = None,
        decode: bool = True,
        shuffle: bool | Shuffle = False,
        cache: Cache | str | os.PathLike[str] | None = None,
        topology: Ranks | str = "auto",
        transform: Callable[[Sample], Any] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(url, shuffle, cache, topology, storage_options)
        self.decode, self.transform = decode, transform
        known = {info.name: info for info in self.manifest.fields}
        if isinstance(fields, str):
            raise OptionError(f"fields={fields!r} must be a list of names, such as [{fields!r}]")
        self.fields = None if fields is None else tuple(fields)
        unknown = [name for name in self.fields or () if name not in known]
        if unknown:
            raise OptionError(f"{self.url} has no field {unknown[0]!r}; it has {sorted(known)}")
        self._kinds = {name: (info.codec, info.dtype) for name, info in known.items()}

    @property
    def total(self) -> int:
        """The samples of all ranks."""
        return self.manifest.samples

    @property
    def ahead(self) -> int:
        """How many samples are best planned at once: some MiB."""
        raw = sum(shard.raw_bytes for shard in self.manifest.shards)
        return max(1, min(1024, _UNIT * self.total // max(1, raw)))

    def order(self, epoch: int) -> Order:
        """The order of one epoch."""
        sizes = [shard.samples for shard in self.manifest.shards]
        reader = self.reader
        return Order(sizes, lambda shard: reader.index(shard).frame_first, self.shuffle, epoch, self.lanes)

    def _open_source(self) -> SampleSource:
        return SampleSource(self.reader, self.fields)

    def frames_of(self, shard: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames that these samples lie in."""
        first = np.asarray(self.reader.index(shard).frame_first).astype(np.int64)
        return in_order(np.searchsorted(first, numbers, side="right") - 1)

    def units(self, order: Order, requests: Iterable[Request], direct: bool) -> Iterator[SampleUnit]:
        """The work for all requests; cutting and decoding samples is always for threads."""
        for request in requests:
            yield SampleUnit(self.source, *order.locate(request.positions), request.sizes, self._build)

    def collated(self, collate: Callable[[list[Any]], Any] | None) -> Callable[[Any], Any]:
        """The `finish` that collates samples."""
        return default_collate if collate is None else collate

    def items(self, batch: Any) -> Iterable[Any]:
        """The samples of a batch that was left a list."""
        return batch  # type: ignore[no-any-return]

    def _build(self, raw: RawSample) -> Any:
        """The decoded and transformed sample of a key and its fields' bytes."""
        key, fields = raw
        sample: Sample = {"__key__": key}
        for name, data in fields.items():
            if self.decode:
                codec, dtype = self._kinds[name]
                sample[name] = decode_field(name, data, dtype=dtype, codec=codec, key=key)
            else:
                sample[name] = data
        return sample if self.transform is None else self.transform(sample)

    def __getitem__(self, number: int) -> Any:
        """Sample `number` in the natural order, of all ranks' samples."""
        total = self.total
        if not -total <= number < total:
            raise IndexError(f"sample {number} of {self.url}, which has {total}")
        key, fields = self.reader.sample(*self.reader.locate(number % total))
        wanted = {n: data for n, data in fields.items() if self.fields is None or n in self.fields}
        return self._build((key, wanted))

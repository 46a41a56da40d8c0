"""StreamingDataset: the samples of a packed dataset, in an order that any rank can compute."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

from shardstream.dataset.argument_errors import unexpected
from shardstream.dataset.arguments import (
    CacheLike,
    Location,
    Sample,
    TopologyLike,
    cache_of,
    shuffle_of,
)
from shardstream.dataset.choosing import ChoosableDataset
from shardstream.dataset.dataset_rank import DatasetRank
from shardstream.dataset.opening import Opening
from shardstream.dataset.sample_contents import SampleContents
from shardstream.decode.modes import Decode, frozen
from shardstream.errors import OptionError
from shardstream.format.manifest import Manifest
from shardstream.order.shuffle import Shuffle

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Sample)
    R = TypeVar("R")
else:
    from typing import TypeVar

    T, R = TypeVar("T"), TypeVar("R")

__all__ = ["StreamingDataset"]

_OPTIONS = ("fields", "decode", "shuffle", "cache", "topology", "transform", "storage_options")


class StreamingDataset(ChoosableDataset[T]):
    """The samples of the dataset at `url`, as dicts `{"__key__": str, field: value}`.

    Iterating gives this rank's samples of one epoch; iterating again is the next epoch. An iterator that
    gave at most one sample and was closed or dropped, as `next(iter(ds))`, does not count. In the
    worker processes of a torch DataLoader each sample comes from exactly one worker, and epochs go on
    in the same way, but each iteration counts; how far workers came only torchdata's StatefulDataLoader
    can tell. `len(ds)` is the number of this rank's samples in an epoch; `ds[i]` is sample i of all ranks'
    samples.

    Args:
        url: A local path, or the URL of a store.
        fields: The names of the fields to read; all by default.
        decode: True decodes each field by its extension. False leaves the fields bytes. `images.Train` or
            `images.Evaluate` makes "image" of the image's field, a tensor of one size for all samples, and
            decodes the other fields as True does. Or a mode for each field, such as
            {"jpg": images.Train(224), "mask.png": "stored"}: True, False, `images.Train`, `images.Evaluate`,
            `images.Mask`, which is cut as an image is, `images.Whole`, which is True with options, or
            "stored", which gives the values of an image as they are in the file, or "view". Each field keeps
            its name.
            The key "image" stands for the image's field. Fields that are not named are decoded as True does.
            Except by "stored", images are turned as their EXIF orientation says. "view", for a field or for
            all, gives the bytes without a copy, as a read-only memoryview. It stays valid as long as you
            have it. If the shard is a file on this machine and not compressed, it shows the file itself.
            A DataLoader gets bytes in place of views.
        shuffle: False for the natural order, True for Shuffle(), or a Shuffle.
        cache: A Cache, or the path of its folder. By default bytes stay in memory alone.
        topology: The place among the data-parallel ranks. "auto" asks torch.distributed or the launcher, when
            the dataset is first used.
        transform: Called with each decoded sample, in background threads. What it raises is raised where the
            dataset is iterated, with a note that names the sample. If it has a parameter named `rng`, it is
            given a numpy Generator: its draws depend on the shuffle's seed, the epoch and the sample's
            position in the order, and on nothing else. See `seeded` for a transform that draws from global
            generators.
        storage_options: Of the store, as fsspec takes them.

    Raises:
        OptionError: An argument cannot be, or the dataset does not have such fields.
        StorageError: The store does not answer, or has no dataset there.
        CorruptionError: The manifest is damaged.
    """

    _contents: SampleContents

    @overload
    def __init__(
        self: StreamingDataset[Sample],
        url: Location,
        fields: Sequence[str] | None = None,
        decode: Decode = True,
        shuffle: bool | Shuffle = False,
        cache: CacheLike = None,
        topology: TopologyLike = "auto",
        transform: None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: StreamingDataset[R],
        url: Location,
        fields: Sequence[str] | None = None,
        decode: Decode = True,
        shuffle: bool | Shuffle = False,
        cache: CacheLike = None,
        topology: TopologyLike = "auto",
        *,
        transform: Callable[..., R],
        storage_options: dict[str, Any] | None = None,
    ) -> None: ...
    def __init__(
        self,
        url: Location,
        fields: Sequence[str] | None = None,
        decode: Decode = True,
        shuffle: bool | Shuffle = False,
        cache: CacheLike = None,
        topology: TopologyLike = "auto",
        transform: Callable[..., Any] | None = None,
        storage_options: dict[str, Any] | None = None,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise unexpected("StreamingDataset", unknown, _OPTIONS)
        order = shuffle_of(shuffle)
        rank = DatasetRank(topology)
        opening = Opening(os.fspath(url), storage_options, cache_of(cache), order, rank)
        if isinstance(fields, str):
            raise OptionError(f"fields={fields!r} must be a list of names, such as [{fields!r}]")
        names = None if fields is None else tuple(fields)
        super().__init__(SampleContents(opening, order, rank, transform, names, frozen(decode)))

    @property
    def manifest(self) -> Manifest:
        """What the dataset consists of: its fields, its shards and their sizes."""
        return self._contents.manifest

    @property
    def fields(self) -> tuple[str, ...] | None:
        """The names of the fields that are read; None for all."""
        return self._contents.fields

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; field `cls` has their numbers. Empty if it was packed without."""
        return tuple(self.manifest.provenance.get("classes", ()))

    @property
    def decode(self) -> Decode:
        """How fields are decoded."""
        return self._contents.decode

    @property
    def transform(self) -> Callable[..., Any] | None:
        """What is called with each decoded sample; another one takes effect with the next iteration."""
        return self._contents.transform.function

    @transform.setter
    def transform(self, function: Callable[..., Any] | None) -> None:
        self._contents.set_transform(function)

    def __getitem__(self, number: int) -> T:
        """Sample `number` in the natural order, of all ranks' samples: 0 to `total` - 1."""
        found: T = self._contents.item(self._numbered(number))
        return found

"""What a rank reads: the dataset, the order and the batches that probe, bench and advise ask about."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from shardstream.dataset import StreamingDataset, TokenDataset
from shardstream.dataset.arguments import at_least_one
from shardstream.distributed import Topology
from shardstream.errors import OptionError
from shardstream.loader import StreamingLoader
from shardstream.order.shuffle import Shuffle
from shardstream.read.reader import DatasetReader
from shardstream.storage.cache.options import Cache
from shardstream.storage.store import absolute

__all__ = ["SEQ_LEN", "Work"]

SEQ_LEN = 2048  # of a dataset of tokens, unless it is given


@dataclass(frozen=True)
class Work:
    """How a job reads a dataset; picklable, for processes that read as its ranks do.

    Args:
        url: The dataset.
        batch: Samples of a batch of one rank.
        seq_len: Of a dataset of tokens; None is 2048.
        image_size: Images are cropped to this size, as `images.Train(size)` does; None leaves them whole.
        decode: Whether fields are decoded.
        seed: Of the shuffle; None for the natural order.
        lanes, window: Of the shuffle; None for their defaults.
        prefetch: Bytes of look-ahead; None for the loader's default.
        threads: Of the loader; None for its default.
        storage_options: Of the store.

    Raises:
        OptionError: A value cannot be.
    """

    url: str
    batch: int = 32
    seq_len: int | None = None
    image_size: int | None = None
    decode: bool = True
    seed: int | None = 0
    lanes: int | None = None
    window: int | None = None
    prefetch: int | None = None
    threads: int | None = None
    storage_options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", absolute(os.fspath(self.url)))
        for name in ("batch", "seq_len", "image_size", "lanes", "window", "prefetch", "threads"):
            if getattr(self, name) is not None:
                at_least_one(name, getattr(self, name))
        if self.image_size is not None and not self.decode:
            raise OptionError("image_size needs decode: an image that is not decoded has no size")

    def resolved(self, kind: str) -> Work:
        """The same with the options that a dataset of this kind takes: "samples" or "tokens".

        Raises:
            OptionError: An option does not go with it.
        """
        if kind == "tokens":
            if self.image_size is not None:
                raise OptionError("image_size: this is a dataset of tokens, which has no images")
            return replace(self, seq_len=self.seq_len or SEQ_LEN)
        if self.seq_len is not None:
            raise OptionError("seq_len: this is a dataset of samples; it goes with tokens")
        return self

    def opened(self) -> DatasetReader:
        """A reader without a cache; see `DatasetReader.open`."""
        return DatasetReader.open(self.url, self.storage_options)

    @property
    def shuffle(self) -> Shuffle | None:
        """The shuffle; None for the natural order."""
        if self.seed is None:
            return None
        return Shuffle(self.seed, self.lanes, Shuffle.window if self.window is None else self.window)

    def dataset(self, cache: Cache | None = None, rank: int = 0, world: int = 1) -> Any:
        """The dataset of one data-parallel rank.

        Args:
            cache: Where bytes stay; None for memory alone.
            rank: The rank, from 0.
            world: How many ranks there are.
        """
        common: dict[str, Any] = {
            "shuffle": self.shuffle or False,
            "cache": cache,
            "topology": Topology(rank, world),
            "storage_options": self.storage_options,
        }
        if self.seq_len is not None:
            return TokenDataset(self.url, self.seq_len, **common)
        return StreamingDataset(self.url, decode=self._mode(), **common)

    def _mode(self) -> Any:
        if self.image_size is None:
            return self.decode
        from shardstream.decode.images import Train

        return Train(self.image_size)

    def loader(self, dataset: Any) -> StreamingLoader[Any]:
        """The loader of a job over a dataset, as a user would make it."""
        options: dict[str, Any] = {"threads": self.threads}
        if self.prefetch is not None:
            options["prefetch"] = self.prefetch
        return StreamingLoader(dataset, self.batch, last="short", **options)

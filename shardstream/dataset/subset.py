"""Subsets of a dataset: by key, by number, or by a predicate over what the indexes say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.errors import OptionError
from shardstream.format.index import ShardIndex
from shardstream.order.lanes import groups
from shardstream.order.selection import Selection
from shardstream.read.reader import DatasetReader

__all__ = ["Columns", "select"]

Ints = NDArray[np.int64]
Predicate = Callable[["Columns"], ArrayLike]
_READERS = 16
_ITEMSIZE = {"uint16": 2, "uint32": 4}


class Columns:
    """What the index says of the n samples of one shard, as arrays [n].

    shard: the number of the shard.  number: int64, the samples' numbers in the dataset.
    key: str.  size: field -> int64, its bytes, -1 where a sample lacks it.  has: field -> bool.
    tokens: int64, the tokens of a sample of a token dataset, else 0.
    """

    def __init__(self, reader: DatasetReader, shard: int, index: ShardIndex, first: int) -> None:
        self.shard = shard
        self._index, self._first, self._fields = index, first, reader.manifest.fields

    @cached_property
    def number(self) -> Ints:
        """The numbers of the samples in the dataset."""
        return np.arange(self._first, self._first + self._index.samples, dtype=np.int64)

    @cached_property
    def key(self) -> NDArray[np.str_]:
        """The keys."""
        return np.array(self._index.keys_list(0, self._index.samples), np.str_)

    @cached_property
    def size(self) -> Mapping[str, Ints]:
        """The bytes of each field."""
        sizes = np.asarray(self._index.field_size).astype(np.int64)
        return {field.name: sizes[:, column] for column, field in enumerate(self._fields)}

    @cached_property
    def has(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples have each field."""
        return {name: sizes >= 0 for name, sizes in self.size.items()}

    @cached_property
    def tokens(self) -> Ints:
        """The tokens of each sample."""
        found = np.zeros(self._index.samples, np.int64)
        for field in self._fields:
            if field.dtype is not None:
                found += np.maximum(self.size[field.name], 0) // _ITEMSIZE[field.dtype]
        return found


def select(
    reader: DatasetReader,
    before: Selection | None,
    keys: Iterable[str] | None,
    numbers: ArrayLike | None,
    where: Predicate | None,
) -> Selection:
    """The samples of `before`, or of the whole dataset, that the one argument which is given names."""
    if sum(option is not None for option in (keys, numbers, where)) != 1:
        raise OptionError("subset takes one of keys, numbers and where")
    sizes = np.array([shard.samples for shard in reader.manifest.shards], np.int64)
    base = before or Selection.everything(sizes)
    if numbers is not None:
        return _numbered(base, sizes, numbers)
    if where is not None:
        return Selection(sizes, _matching(reader, base, sizes, _checked(where)))
    return _with_keys(reader, base, sizes, keys)


def _numbered(base: Selection, sizes: Ints, numbers: ArrayLike) -> Selection:
    wanted = np.asarray(numbers)
    if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise OptionError(
            f"numbers must be whole numbers in one dimension, not {wanted.dtype} {wanted.shape}"
        )
    unique = np.unique(wanted.astype(np.int64))
    wrong = unique[(unique < 0) | (unique >= base.total)]
    if wrong.size:
        raise OptionError(f"numbers has {wrong[0]}, the dataset has {base.total} samples, from 0")
    shards, inside = base.locate(unique)

    def chosen() -> Iterator[tuple[int, Ints]]:
        for shard, rows in groups(shards):
            kept = base.kept(shard)
            yield shard, inside[rows] if kept is None else kept[inside[rows]]

    return Selection(sizes, chosen())


def _with_keys(reader: DatasetReader, base: Selection, sizes: Ints, keys: Any) -> Selection:
    if isinstance(keys, (str, bytes)):
        raise OptionError(f"keys={keys!r} must be a list of keys, such as [{keys!r}]")
    wanted = set(keys)
    missing = set(wanted)
    of_shard: list[str] = []

    def listed(columns: Columns) -> NDArray[np.bool_]:
        of_shard[:] = columns.key.tolist()
        return np.fromiter((key in wanted for key in of_shard), np.bool_, len(of_shard))

    def matching() -> Iterator[tuple[int, Ints]]:
        for shard, kept in _matching(reader, base, sizes, listed):
            missing.difference_update(of_shard[number] for number in kept.tolist())
            yield shard, kept

    found = Selection(sizes, matching())
    if missing:
        raise OptionError(
            f"{len(missing)} of the keys are not in {reader.url}, such as {min(missing, key=str)!r}"
        )
    return found


def _checked(where: Predicate) -> Callable[[Columns], NDArray[np.bool_]]:
    def checked(columns: Columns) -> NDArray[np.bool_]:
        mask = np.asarray(where(columns))
        if mask.dtype != np.bool_ or mask.shape != columns.number.shape:
            raise OptionError(
                f"where gave {mask.dtype} of shape {mask.shape} for shard {columns.shard}; "
                f"it must give bool of shape {columns.number.shape}"
            )
        return mask

    return checked


def _matching(
    reader: DatasetReader, base: Selection, sizes: Ints, matches: Callable[[Columns], NDArray[np.bool_]]
) -> Iterator[tuple[int, Ints]]:
    """The kept samples of each shard that match; indexes are read ahead by threads, and not held."""
    firsts = (np.cumsum(sizes) - sizes).tolist()
    shards = iter(base.shards())
    with ThreadPoolExecutor(_READERS, "shardstream-index") as pool:
        while some := list(islice(shards, 4 * _READERS)):
            for shard, index in zip(some, pool.map(reader.read_index, some), strict=True):
                found = np.flatnonzero(matches(Columns(reader, shard, index, firsts[shard])))
                kept = base.kept(shard)
                yield shard, found if kept is None else np.intersect1d(found, kept, assume_unique=True)

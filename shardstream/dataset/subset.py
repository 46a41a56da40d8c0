"""Subsets of a dataset: by key, by number, or by a predicate over the columns of the indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.dataset.columns import Columns
from shardstream.errors import OptionError
from shardstream.format.shards import shard_values
from shardstream.order.lanes import groups
from shardstream.order.selection import Selection
from shardstream.read.reader import DatasetReader

__all__ = ["Choice", "Columns", "select"]

Ints = NDArray[np.int64]
Predicate = Callable[["Columns"], ArrayLike]
_READERS = 16


class Choice(NamedTuple):
    """What a subset is made by: one of these, the others are None."""

    keys: Iterable[str] | None
    numbers: ArrayLike | None
    where: Predicate | None


def select(reader: DatasetReader, before: Selection | None, choice: Choice) -> Selection:
    """The samples of `before`, or of the whole dataset, that a choice names.

    Raises:
        OptionError: The choice cannot be, or it leaves nothing: an epoch would have no batch.
    """
    found = _chosen(reader, before, choice)
    if not found.total:
        names = zip(choice._fields, choice, strict=True)
        name = next(name for name, value in names if value is not None)
        of = reader.manifest.samples if before is None else before.total
        raise OptionError(f"{name}= chooses none of the {of} samples of {reader.url}; choose at least one")
    return found


def _chosen(reader: DatasetReader, before: Selection | None, choice: Choice) -> Selection:
    if sum(option is not None for option in choice) != 1:
        raise OptionError("subset takes one of keys, numbers and where")
    keys, numbers, where = choice
    sizes = np.array(shard_values(reader.manifest.shards, "samples"), np.int64)
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
            numbers = base.chosen(shard)
            yield shard, inside[rows] if numbers is None else numbers[inside[rows]]

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
        for shard, chosen in _matching(reader, base, sizes, listed):
            missing.difference_update(of_shard[number] for number in chosen.tolist())
            yield shard, chosen

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
            told = ", such as c[...] == True for a column of bools with missing values"
            raise OptionError(
                f"where gave {mask.dtype} of shape {mask.shape} for shard {columns.shard}; "
                f"it must give bool of shape {columns.number.shape}{told if mask.dtype == object else ''}"
            )
        return mask

    return checked


def _matching(
    reader: DatasetReader, base: Selection, sizes: Ints, matches: Callable[[Columns], NDArray[np.bool_]]
) -> Iterator[tuple[int, Ints]]:
    """The samples of `base` in each shard that match. Threads read indexes ahead, and they do not stay."""
    firsts = (np.cumsum(sizes) - sizes).tolist()
    shards = iter(base.shards())
    asked: set[str] = set()  # the columns of values that were asked for so far

    def read(shard: int) -> Columns:
        return Columns(reader, shard, firsts[shard], asked)

    with ThreadPoolExecutor(_READERS, "shardstream-index") as pool:
        ahead = 1  # what the first shard is asked for is read ahead of the others
        while some := list(islice(shards, ahead)):
            ahead = 4 * _READERS
            for shard, columns in zip(some, pool.map(read, some), strict=True):
                found = np.flatnonzero(matches(columns))
                chosen = base.chosen(shard)
                yield shard, found if chosen is None else np.intersect1d(found, chosen, assume_unique=True)

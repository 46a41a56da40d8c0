"""Datasets of the package `datasets` of Hugging Face that a program has in memory: their rows as samples.

A row becomes the sample that the same row of a saved folder would be. Source: arrow_dataset.py,
iterable_dataset.py and features/features.py of the package `datasets`, which is never imported here.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shardstream.errors import OptionError
from shardstream.format.names import unescape_key
from shardstream.packing.sources.base import FileSpan, Reject
from shardstream.packing.sources.rows import KEYS, Kind, Rows

__all__ = ["is_hf_dataset", "refuse_hf_dict", "rows_of"]

_MEDIA = ("Image", "Audio", "Video", "Pdf")
_WHERE = FileSpan("", 0, 0, 0, "")


def _is_of(given: object, *names: str) -> bool:
    classes = type(given).__mro__
    return any(each.__module__.partition(".")[0] == "datasets" and each.__name__ in names for each in classes)


def is_hf_dataset(given: object) -> bool:
    """Whether it is a Dataset or an IterableDataset whose columns are not fields of samples already."""
    if not _is_of(given, "Dataset", "IterableDataset"):
        return False
    names = getattr(given, "column_names", None)
    if names is None and isinstance(given, Iterable):  # as behind a map(): its rows know them
        row = next(iter(given), None)
        names = row if isinstance(row, Mapping) else ()
    return not {"__key__", "txt"} & set(names or ())


def refuse_hf_dict(given: object) -> None:
    """Raise OptionError for a dict of datasets: a packed dataset has no splits."""
    if _is_of(given, "DatasetDict", "IterableDatasetDict"):
        names = list(given) if isinstance(given, Mapping) else []
        first = names[0] if names else "train"
        raise OptionError(
            f"this is a {type(given).__name__} with the splits {', '.join(map(repr, names))}: pack each of "
            f"them to a place of its own, as in ss.pack(splits[{first!r}], 'corpus/{first}')"
        )


def rows_of(
    dataset: Any,
    text_key: str,
    column: Mapping[str, str] | None,
    key: str | None,
    keep: Sequence[str] | str | None,
) -> Iterator[Mapping[str, Any] | Reject]:
    """The samples of a dataset of Hugging Face.

    Args:
        dataset: A Dataset or an IterableDataset. Media are taken as the bytes that they are.
        text_key: See `pack`, as for the next three.
        column: See `pack`.
        key: See `pack`.
        keep: See `pack`.

    Raises:
        SourceError: A column that was asked for is not there, or no column can be a field.
        OptionError: The rows are made by a transform, or the kinds of the columns are not known.
    """
    dataset, kinds = _undecoded(_shown(dataset))
    rows: Iterable[Mapping[str, Any]] = dataset
    if not kinds:  # an iterable whose columns are not known before it is read
        found = iter(dataset)
        first = list(itertools.islice(found, 1))
        unknown = [name for row in first for name, value in row.items() if value is None]
        if unknown:
            raise OptionError(
                f"the dataset does not know its columns, and the first row has no value of {unknown[0]!r}: "
                "give `features` to its map(), so that each column has one kind"
            )
        kinds = {name: _kind_of_value(value) for row in first for name, value in row.items()}
        rows = itertools.chain(first, found)
    names = None if keep is None else (keep,) if isinstance(keep, str) else tuple(keep)
    columns = None if column is None else tuple(column.items())
    maker = Rows(text_key, names, columns, key).of_table(kinds, "the dataset")
    numbered = key == "none" or (key is None and not set(KEYS) & kinds.keys())
    return _samples(rows, maker, numbered)


def _samples(
    rows: Iterable[Mapping[str, Any]], maker: Rows, numbered: bool
) -> Iterator[Mapping[str, Any] | Reject]:
    for number, row in enumerate(rows):
        made = maker.sample(row, _WHERE, number, f"row {number}")
        if isinstance(made, Reject):
            yield made
        else:
            yield made.fields if numbered else {"__key__": unescape_key(made.key), **made.fields}


def _shown(dataset: Any) -> Any:
    """The dataset with the columns alone that its format lets a program see."""
    form = getattr(dataset, "format", None)
    if not isinstance(form, Mapping):
        return dataset
    if form["type"] == "custom":
        raise OptionError(
            "the dataset has a transform, which makes its rows when they are read: pack samples that you "
            "make of its rows, or the rows without it, with ss.pack(dataset.with_format(None), DEST)"
        )
    hidden = not form["output_all_columns"] and form["columns"] != dataset.column_names
    return dataset.select_columns(list(form["columns"])) if hidden else dataset


def _undecoded(dataset: Any) -> tuple[Any, dict[str, Kind]]:
    """The dataset with media as bytes and all else as values of Python; and the kinds of its columns."""
    features = getattr(dataset, "features", None) or {}
    kinds: dict[str, Kind] = {}
    dataset = dataset.with_format(None)
    for name, feature in features.items():
        kinds[name] = _kind(feature)
        plain = copy.deepcopy(feature)
        media = list(_media(plain))
        for each in media:
            each.decode = False
        if media:
            dataset = dataset.cast_column(name, plain)
    return dataset, kinds


def _media(feature: Any) -> Iterator[Any]:
    """The features of media in this one, which may be a list or an object of others."""
    if type(feature).__name__ in _MEDIA:
        yield feature
    elif isinstance(feature, Mapping):
        for each in feature.values():
            yield from _media(each)
    elif isinstance(feature, (list, tuple)):
        for each in feature:
            yield from _media(each)
    elif hasattr(feature, "feature"):
        yield from _media(feature.feature)


def _kind(feature: Any) -> Kind:
    if type(feature).__name__ in _MEDIA:
        return "bytes"
    dtype = getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else None
    if dtype in ("string", "large_string"):
        return "text"
    return "bytes" if dtype in ("binary", "large_binary") else "other"


def _kind_of_value(value: object) -> Kind:
    if isinstance(value, str):
        return "text"
    media = isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes)
    return "bytes" if media or isinstance(value, bytes) else "other"

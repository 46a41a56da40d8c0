"""What may be wrong with the shards of a manifest."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from shardstream.format.names import shorten
from shardstream.format.shard_info import are_plain, index_of, is_inside
from shardstream.format.shards import DIGITS, NO_HEAD, Shards

__all__ = ["shards_problem"]

_MOST = 1 << 62  # a size is less


def shards_problem(shards: Shards, fields: Iterable[str], external: bool) -> str | None:
    """What is wrong with the shards of a manifest with these fields, or None."""
    for values in shards.numbers.values():
        if len(values) and (min(values) < 0 or max(values) >= _MOST):
            at = next(at for at, value in enumerate(values) if not 0 <= value < _MOST)
            return f"shard {_named(shards, at)} has a size out of range"
    if sum(shards.values("samples")) >= _MOST:
        return "the shards have more samples than can be counted"
    more = list(map(operator.gt, shards.values("frames"), shards.values("samples")))
    if any(more):
        return f"shard {_named(shards, more.index(True))} has more frames than samples"
    return _layout(shards, set(fields)) or _heads(shards) or _urls(shards, external)


def _layout(shards: Shards, fields: set[str]) -> str | None:
    for number, layout in enumerate(shards.layouts):
        wrong = None
        if len(set(layout.fields)) != len(layout.fields) or not set(layout.fields) <= fields:
            wrong = "has columns that are not fields"
        elif len({column.name for column in layout.columns}) != len(layout.columns):
            wrong = "has a column of values twice"
        if wrong and number in shards.layout:
            return f"shard {_named(shards, shards.layout.index(number))} {wrong}"
    return None


def _heads(shards: Shards) -> str | None:
    digits = shards.checksums["index_head_checksum"]
    valued = [bool(layout.columns) for layout in shards.layouts]
    if not any(valued) and not digits and not any(shards.values("index_head")):
        return None
    columns = (shards.values(name) for name in ("index_head", "index_bytes", "samples"))
    for at, (head, size, samples, number) in enumerate(zip(*columns, shards.layout, strict=True)):
        checked = digits[DIGITS * at : DIGITS * (at + 1)] not in ("", NO_HEAD)
        if (head > 0, checked) != (valued[number],) * 2 or head > size:
            return f"shard {_named(shards, at)} has columns of values without the size of its index"
        if any(not 0 <= column.missing <= samples for column in shards.layouts[number].columns):
            return f"shard {_named(shards, at)} has a column that more samples lack than there are"
    return None


def _urls(shards: Shards, external: bool) -> str | None:
    for url in shards.urls if external or not are_plain(shards.urls) else ():
        if not (external or is_inside(url)):
            return f"{shorten(url)!r} leaves the dataset's root"
        if external and url.startswith(("pipe:", "-")):
            return f"{shorten(url)!r} is not a URL that data may come from"
    if shards.index_urls is None and not external:
        return None  # the names of the indexes are those of the shards
    for url in map(index_of, shards.urls) if shards.index_urls is None else shards.index_urls:
        if not is_inside(url):
            return f"{shorten(url)!r} leaves the dataset's root"
    return None


def _named(shards: Shards, at: int) -> str:
    return repr(shorten(shards.urls[at]))

"""What the arguments of datasets and loaders may be."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology
from shardstream.storage.cache.options import Cache

__all__ = [
    "CacheLike",
    "Engine",
    "Last",
    "Location",
    "Sample",
    "Stop",
    "TokenDtype",
    "TopologyLike",
    "at_least_one",
    "cache_of",
    "check_choice",
    "shuffle_of",
]

Location = str | os.PathLike[str]
Sample = dict[str, Any]
CacheLike = Cache | Location | None
TopologyLike = Topology | Literal["auto"]
Last = Literal["drop", "pad", "short"]
Engine = Literal["thread", "process"]
Stop = Literal["first", "all", "never"]
TokenDtype = Literal["int64", "int32", "uint16"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise OptionError unless `value` is one of a Literal's choices."""
    known = get_args(choices)
    if value not in known:
        *most, last = map(repr, known)
        raise OptionError(f"{name}={value!r} must be {', '.join(most)} or {last}")


def at_least_one(name: str, value: object) -> int:
    """`value` as an int; OptionError unless it is positive."""
    return whole_number(name, value, 1)


def shuffle_of(value: bool | Shuffle) -> Shuffle | None:
    """False: no shuffle, None.  True: Shuffle()."""
    if isinstance(value, bool):
        return Shuffle() if value else None
    if isinstance(value, Shuffle):
        return value
    raise OptionError(f"shuffle={value!r} must be True, False or a Shuffle")


def cache_of(value: CacheLike) -> Cache:
    """A path: a cache there.  None: one in memory alone."""
    if value is None or isinstance(value, Cache):
        return value or Cache()
    if isinstance(value, (str, os.PathLike)):
        return Cache(value)
    raise OptionError(f"cache={value!r} must be a Cache, a path or None")

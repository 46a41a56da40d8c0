"""What the arguments of all datasets may be given as."""

from __future__ import annotations

import os

from shardstream.distributed import Topology
from shardstream.errors import OptionError
from shardstream.order.shuffle import Shuffle
from shardstream.order.topology import Topology as Ranks
from shardstream.storage.cache import Cache

__all__ = ["cache_of", "shuffle_of", "topology_of"]


def shuffle_of(value: bool | Shuffle) -> Shuffle | None:
    """False: no shuffle, None.  True: Shuffle()."""
    if isinstance(value, bool):
        return Shuffle() if value else None
    if isinstance(value, Shuffle):
        return value
    raise OptionError(f"shuffle={value!r} must be True, False or a Shuffle")


def cache_of(value: Cache | str | os.PathLike[str] | None) -> Cache:
    """A path: a cache there.  None: one in memory alone."""
    if value is None or isinstance(value, Cache):
        return value or Cache()
    if isinstance(value, (str, os.PathLike)):
        return Cache(value)
    raise OptionError(f"cache={value!r} must be a Cache, a path or None")


def topology_of(value: Ranks | str) -> Ranks:
    """ "auto": what torch.distributed or the launcher says."""
    if isinstance(value, Ranks):
        return value
    if value == "auto":
        return Topology.detect()
    raise OptionError(f"topology={value!r} must be a Topology or 'auto'")

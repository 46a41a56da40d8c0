"""Megatron's and NeMo's ranks from the sizes of their parallel dimensions alone."""

from __future__ import annotations

import math

from shardstream.errors import OptionError
from shardstream.order.topology import Topology

__all__ = ["topology"]


def topology(
    rank: int, world_size: int, *, tp: int = 1, cp: int = 1, pp: int = 1, order: str = "tp-cp-ep-dp-pp"
) -> Topology:
    """The place of a global rank among the data-parallel ranks.

    Ranks that differ in tp, cp or pp alone share their data. `order` is Megatron's: the first
    dimension varies fastest from rank to rank. Expert parallelism has no size here: where samples
    are concerned its ranks are data-parallel ranks.
    """
    sizes = {"tp": tp, "cp": cp, "pp": pp}
    for name, size in {**sizes, "world_size": world_size}.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(f"{name}={size!r} must be an int, at least 1")
    model = math.prod(sizes.values())
    if world_size % model:
        raise OptionError(f"world_size={world_size} is no multiple of tp x cp x pp = {model}")
    if not 0 <= rank < world_size:
        raise OptionError(f"rank={rank} must be at least 0 and less than world_size={world_size}")
    sizes |= {"ep": 1, "dp": world_size // model}
    names = order.split("-")
    unknown = [name for name in names if name not in sizes]
    missing = [name for name in ("dp", *sizes) if name not in names and (name == "dp" or sizes[name] > 1)]
    if unknown or missing or len(set(names)) < len(names):
        raise OptionError(f"order={order!r} must name each of tp, cp, ep, dp and pp once, joined by '-'")
    stride = math.prod(sizes[name] for name in names[: names.index("dp")])
    return Topology(rank // stride % sizes["dp"], sizes["dp"])

"""Who shares data with whom: the arithmetic of data-parallel ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardstream.errors import OptionError

__all__ = ["MEGATRON_ORDER", "Topology", "batches", "data_rank", "product", "rank_samples"]

MEGATRON_ORDER = "tp-cp-ep-dp-pp"


@dataclass(frozen=True)
class Topology:
    """The place of this process among the data-parallel ranks.

    Ranks that must see the same data (tensor, pipeline, context parallel) share one `dp_rank`.
    """

    dp_rank: int = 0
    dp_size: int = 1

    def __post_init__(self) -> None:
        for name in ("dp_rank", "dp_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise OptionError(f"{name}={value!r} must be an int")
        if self.dp_size < 1:
            raise OptionError(f"dp_size={self.dp_size} must be at least 1")
        if not 0 <= self.dp_rank < self.dp_size:
            raise OptionError(
                f"dp_rank={self.dp_rank} must be at least 0 and less than dp_size={self.dp_size}"
            )

    def first(self, position: int) -> int:
        """The first global position at or after `position` that this rank owns."""
        return position + (self.dp_rank - position) % self.dp_size


def data_rank(rank: int, sizes: dict[str, int], order: str = MEGATRON_ORDER) -> int:
    """The data-parallel rank of process `rank`, in a grid of the sizes of "tp", "cp", "dp" and "pp".

    In `order` the first dimension varies fastest, as in Megatron's `initialize_model_parallel`
    (megatron/core/parallel_state.py), whose default it is: rank = tp + TP (cp + CP (dp + DP pp)).
    Expert parallelism cuts the same processes in another way and moves no data, so "ep" counts for nothing.
    """
    names = [name for name in order.split("-") if name != "ep"]
    if sorted(names) != sorted(sizes):
        raise OptionError(
            f"order={order!r} must name each of {sorted(sizes)} once, such as {MEGATRON_ORDER!r}"
        )
    step = product({name: sizes[name] for name in names[: names.index("dp")]})
    return rank // step % sizes["dp"]


def product(sizes: dict[str, int]) -> int:
    """How many processes a grid of these sizes has."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(f"{name}={size!r} must be an int, at least 1")
    return math.prod(sizes.values())


def rank_samples(total: int, rank: int, size: int, start: int = 0) -> int:
    """How many of the positions start .. total - 1 are `rank` modulo `size`."""
    first = start + (rank - start) % size
    return max(0, -((first - total) // size))


def batches(total: int, global_batch: int, last: str, start: int = 0) -> int:
    """How many global batches the positions start .. total - 1 give, the same on every rank."""
    left = max(0, total - start)
    return left // global_batch if last == "drop" else -(-left // global_batch)

"""Who shares data with whom: the arithmetic of data-parallel ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number

__all__ = ["MEGATRON_ORDER", "Topology", "batches", "data_rank", "product", "rank_samples"]

MEGATRON_ORDER = "tp-cp-ep-dp-pp"


@dataclass(frozen=True)
class Topology:
    """The place of this process among the data-parallel ranks.

    Ranks that must see the same data (tensor, pipeline, context parallel) have the same `dp_rank`.

    Args:
        dp_rank: The data-parallel rank, 0 to dp_size - 1.
        dp_size: How many data-parallel ranks there are, at least 1.

    Raises:
        OptionError: A value is out of range.
    """

    dp_rank: int = 0
    dp_size: int = 1

    def __post_init__(self) -> None:
        for name in ("dp_rank", "dp_size"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
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
    """The data-parallel rank of one process in a grid of processes.

    The rule is that of Megatron's `initialize_model_parallel` (megatron/core/parallel_state.py). With its
    default order it says: rank = tp + TP (cp + CP (dp + DP pp)).

    Args:
        rank: The number of the process.
        sizes: The sizes of the dimensions "tp", "cp", "dp" and "pp".
        order: The names of the dimensions, joined by "-"; the first one varies fastest. "ep" is ignored:
            expert parallelism groups the same processes in another way, and moves no data.

    Raises:
        OptionError: `order` does not name each dimension once.
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
    return math.prod(whole_number(name, size, 1) for name, size in sizes.items())


def rank_samples(total: int, rank: int, size: int, start: int = 0) -> int:
    """How many of the positions from `start` to `total - 1` are equal to `rank` modulo `size`."""
    first = start + (rank - start) % size
    return max(0, -((first - total) // size))


def batches(total: int, global_batch: int, last: str, start: int = 0) -> int:
    """How many global batches the positions from `start` to `total - 1` give.

    Args:
        total: How many positions the epoch has.
        global_batch: How many positions a batch takes, over all ranks.
        last: "drop" leaves a last, smaller batch out. Any other value counts it.
        start: The first position.
    """
    left = max(0, total - start)
    return left // global_batch if last == "drop" else -(-left // global_batch)

"""The names of shards."""

from __future__ import annotations

import re

__all__ = ["SHARD", "tag_of", "task_shard"]

# A number has six digits or more: `06d` writes the millionth shard with seven.
SHARD = re.compile(r"shard-(\d{6,})(-\d+)?(\.[0-9a-f]{8})?\.(tar|tar\.zst|index)\Z")


def task_shard(name: str) -> int | None:
    """The number in the name of a shard or of an index, which its task gave it; None for another object."""
    match = SHARD.match(name)
    return None if match is None else int(match[1])


def tag_of(plan: str) -> str:
    """What stands in the names of the shards of a plan, if they may not be those of another plan."""
    return f".{plan[:8]}"

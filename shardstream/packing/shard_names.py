"""The names of shards."""

from __future__ import annotations

import re

__all__ = ["SHARD", "tag_of"]

# A number has six digits or more: `06d` writes the millionth shard with seven.
SHARD = re.compile(r"shard-(\d{6,})(-\d+)?(\.[0-9a-f]{8})?\.(tar|tar\.zst|index)\Z")


def tag_of(plan: str) -> str:
    """What stands in the names of the shards of a plan, if they may not be those of another plan."""
    return f".{plan[:8]}"

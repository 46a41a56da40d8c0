"""The counters of a loader. A new counter is one line here, and a call of `add` or `set` at its place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Stats"]


@dataclass
class Stats:
    """Counters of one loader over its life.

    If two threads add at the same moment, one addition may be lost. A lock would cost more than exact numbers
    are worth.

    Attributes:
        batches: How many batches were delivered.
        samples: How many samples were delivered.
        frames: How many frames were fetched and decompressed.
        decompressed_bytes: The bytes of these frames after decompression.
        wait_seconds: How long the consumer waited.
        fetch_seconds: The time of all threads that fetch and decompress frames.
        build_seconds: The time of all threads that build batches.
        queue_depth: How many units of work were ready at the last wait.
        damaged: How many damaged images were masked.
        tolerated: How many JPEGs with errors were decoded by Pillow, since libjpeg-turbo warned of them.
        tiers: The counters of the storage, such as the bytes from each tier, by name.
        memory: The bytes in use, by the name of the budget and of what uses them.
    """

    batches: int = 0
    samples: int = 0
    frames: int = 0
    decompressed_bytes: int = 0
    wait_seconds: float = 0.0
    fetch_seconds: float = 0.0
    build_seconds: float = 0.0
    queue_depth: int = 0
    damaged: int = 0
    tolerated: int = 0
    tiers: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, **amounts: float) -> None:
        """Add to counters, by their names."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)

    def set(self, **values: Any) -> None:
        """Set counters that are no sums, by their names."""
        for name, value in values.items():
            setattr(self, name, value)

    def continue_with(self, before: Stats, counts: dict[str, Any], wait_seconds: float) -> None:
        """Take over the counters of another process.

        Args:
            before: The counters here when the other process began.
            counts: The counters there, by name.
            wait_seconds: How long the consumer here waited. The waiting of the other process does not count.
        """
        for name, value in counts.items():
            setattr(self, name, value if isinstance(value, dict) else getattr(before, name) + value)
        self.wait_seconds = wait_seconds

    def as_dict(self) -> dict[str, Any]:
        """All counters by name, with those of `tiers` among them. "bytes_read" is "decompressed_bytes"."""
        counts: dict[str, Any] = dataclasses.asdict(self)
        tiers: dict[str, Any] = counts.pop("tiers")
        return counts | {"bytes_read": self.decompressed_bytes} | tiers

"""Progress: what a pack reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a pack is. Bytes are input bytes; seconds since it began."""

    done_bytes: int
    total_bytes: int
    samples: int
    rejected: int
    done_tasks: int
    total_tasks: int
    seconds: float

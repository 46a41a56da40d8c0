"""Memory in steps: what reads, checksums and writes do one after another is done while the cache has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["steps"]

_STEP = 1 << 20  # bytes: half of what the cache of one processor has


def steps(parts: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The same memory in steps of 1 MiB, the last one shorter."""
    step: list[memoryview] = []
    room = _STEP
    for part in parts:
        first = 0
        while first < len(part):
            step.append(part[first : first + room])
            first, room = first + len(step[-1]), room - len(step[-1])
            if not room:
                yield step
                step, room = [], _STEP
    if step:
        yield step

"""A job, its facts and what is predicted of it; and the settings that follow from the numbers."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from shardstream.observe.advise_facts import Facts
from shardstream.observe.advise_model import Job, Prediction, little, shard_bytes

__all__ = ["PREFETCH", "Plan", "memory_here"]

PREFETCH = 256 << 20  # bytes: the loader's default
_RAM = 1 << 30  # bytes: the cache's default
_LOOK_AHEAD = 2  # times what has to be on its way
_OF_MEMORY = 0.25  # the part of a machine's memory that look-ahead and caches of all ranks may take
_MOST_THREADS = 16
_LEAST_FRAME, _MOST_FRAME = 1 << 20, 8 << 20  # bytes


def memory_here() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _power(value: float) -> int:
    """The least power of two that is not below."""
    return 1 << max(0, math.ceil(math.log2(max(1.0, value))))


def _shown(value: int) -> str:
    """A power of two as the options write it: "512MiB"."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value // size}{unit}"
    return str(value)


@dataclass(frozen=True)
class Plan:
    """A job, its facts and what is predicted of it.

    Args:
        facts: Of the dataset and the machine.
        job: How the data is read.
        prediction: What the model says of these.
        world: All ranks.
        share: How many of them get the same batches.
        epochs: How many are read.
        nodes: Machines.
        memory, memory_given: Bytes of a machine, and whether the user said so.
        disk: Bytes of a cache on a disk of each machine, or None.
        model: Bytes of the weights, or None.
        image_size: Pixels of a side of an image in a batch, or None.
    """

    facts: Facts
    job: Job
    prediction: Prediction
    world: int
    share: int
    epochs: int
    nodes: int
    memory: int
    memory_given: bool
    disk: int | None
    model: int | None
    image_size: int | None

    @property
    def wait_share(self) -> float:
        """The part of the time that a job with a step waits."""
        return max(0.0, 1 - self.prediction.rate_without_step / self.job.demand)

    @property
    def rank_bytes(self) -> float:
        """Bytes per second that a rank asks the store for; without a step, what it can get."""
        rate = self.job.demand if self.job.step else self.prediction.rate
        return rate / self.job.here * self.facts.data.stored * self.prediction.amplification

    def settings(self) -> dict[str, Any]:
        """The arguments that follow from the numbers. Defaults are never lowered."""
        data, machine, job = self.facts.data, self.facts.machine, self.job
        size = machine.request
        flight = little(self.rank_bytes, size, machine.request_seconds(size))
        most = self.memory * _OF_MEMORY / job.here
        ahead = _bounded(
            PREFETCH, _LOOK_AHEAD * flight * max(data.raw_frame, size * data.raw / data.stored), most
        )
        frame = min(_MOST_FRAME, max(_LEAST_FRAME, _power(machine.base * machine.stream / 2)))
        return {
            "prefetch": _shown(PREFETCH if data.local else ahead),
            "threads": max(1, min(_MOST_THREADS, math.ceil(machine.cores))),
            "ram": _shown(_bounded(_RAM, 2 * self.prediction.open_bytes, most)),
            "shard_size": _shown(shard_bytes(data.bytes, job.world)),
            "frame_size": _shown(_LEAST_FRAME if data.local else frame),
        }


def _bounded(default: int, wanted: float, most: float) -> int:
    """A power of two, at least the default; at most `most`, if that is more than the default."""
    found = max(default, _power(wanted))
    while found > default and found > most:
        found //= 2
    return found

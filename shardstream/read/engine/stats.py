"""The counters of a loader. A new counter is one line here, and a call of `add` or `set` at its place.

What is counted here is also counted for the whole process, where other processes see it: see `counters`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from shardstream.counters.layout import COUNTERS, slot, stage
from shardstream.counters.recorder import Recorder, add
from shardstream.counters.snapshots import histogram_of

__all__ = ["STAGES", "Stats"]

# The stages of a loader's work. Those from "batch" on may be another process's.
STAGES = ("wait", "step", "batch", "fetch", "request", "disk", "decompress", "decode", "transform")
_SLOTS = {each.name: slot(each.name) for each in COUNTERS if each.group == "loader"}
_WAIT = stage("wait")


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
        frame_wait_seconds: How long these threads waited for frames, beside that.
        queue_depth: How many units of work were ready at the last wait.
        damaged: How many damaged images were masked.
        tolerated: How many JPEGs with errors were decoded by Pillow, since libjpeg-turbo warned of them.
        tiers: The counters of the storage, such as the bytes from each tier, by name.
        memory: The bytes in use, by the name of the budget and of what uses them.
        delivers: Whether batches go from here to the consumer, and not to another process that counts them.
        recorder: How long the stages took.
    """

    batches: int = 0
    samples: int = 0
    frames: int = 0
    decompressed_bytes: int = 0
    wait_seconds: float = 0.0
    fetch_seconds: float = 0.0
    build_seconds: float = 0.0
    frame_wait_seconds: float = 0.0
    queue_depth: int = 0
    damaged: int = 0
    tolerated: int = 0
    tiers: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    delivers: bool = True
    recorder: Recorder = field(default_factory=Recorder, repr=False, compare=False)
    _told: tuple[int, int] = (0, 0)  # batches and samples that the process has counted
    _held: dict[int, float] = field(default_factory=dict)  # by slot: the part of the process's number
    _process: int = 0  # in which it is

    def add(self, **amounts: float) -> None:
        """Add to counters, by their names."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)
            if name in _SLOTS and name not in ("batches", "samples"):
                add(_SLOTS[name], amount)

    def set(self, **values: Any) -> None:
        """Set counters that are no sums, by their names."""
        for name, value in values.items():
            setattr(self, name, value)

    def waited(self, started: float, ended: float) -> None:
        """The consumer waited between these times of `time.monotonic`."""
        self.wait_seconds += ended - started
        if self.delivers:
            self.recorder.span(_WAIT, started, ended)

    def tell_process(self) -> None:
        """Count for the process what was delivered here since the last call."""
        if self.delivers:
            batches, samples = self._told
            self._told = self.batches, self.samples
            add(_SLOTS["batches"], self.batches - batches)
            add(_SLOTS["samples"], self.samples - samples)

    def hold(self, memory: dict[str, dict[str, int]], queue_depth: int) -> None:
        """Say what is in memory now, by budget and holder, and how many units of work are ready."""
        self.memory, self.queue_depth = memory, queue_depth
        held: dict[int, float] = {_SLOTS["queue_depth"]: queue_depth}
        for name, holders in memory.items():
            limit = holders.get("limit", 0)
            held[_SLOTS[f"{name}_limit_bytes"]] = limit
            held[_SLOTS[f"{name}_used_bytes"]] = sum(holders.values()) - limit
        self._hold(held)

    def let_go(self) -> None:
        """Take what is in memory, and what is ready, off the numbers of the process: the iteration ended."""
        self._hold(dict.fromkeys(self._held, 0))

    def _hold(self, held: dict[int, float]) -> None:
        """Set the part of this loader in numbers of the process, which are sums over its loaders."""
        process = os.getpid()
        before = self._held if self._process == process else {}  # a fork counts from zero
        self._held, self._process = held, process
        for number, value in held.items():
            if change := value - before.get(number, 0):
                add(number, change)

    def counts(self) -> dict[str, Any]:
        """The counters by name, for another process."""
        return {name: value for name, value in vars(self).items() if name not in _OWN}

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
        self.tell_process()

    def as_dict(self) -> dict[str, Any]:
        """All counters by name, with those of `tiers` among them. "bytes_read" is "decompressed_bytes".

        "stages" has for each of `STAGES` how many events it had, their seconds, and percentiles.
        """
        stages = {name: histogram_of(self.recorder, stage(name)).as_dict() for name in STAGES}
        return self.counts() | {"bytes_read": self.decompressed_bytes, "stages": stages} | self.tiers


_OWN = ("tiers", "delivers", "recorder", "_told", "_held", "_process")

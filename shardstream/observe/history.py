"""The last seconds of all processes: rates are differences of two snapshots."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from shardstream.counters.bottleneck import bottleneck
from shardstream.counters.layout import COUNTERS
from shardstream.counters.snapshots import Histogram, Snapshot
from shardstream.observe.metrics import waiting_seconds
from shardstream.observe.process_state import resident_bytes, system_state
from shardstream.observe.rows import Row

__all__ = ["History", "Process"]

_SUMS = [counter.name for counter in COUNTERS if counter.kind == "sum"]
# Names for people: what they can do something about.
_NAMES = {"request": "store", "step": "the loop", "batch": "collate"}
_LONG = 3.0  # seconds after which a wait, or that nothing is counted, is worth a word
_USUAL = 3  # a process that counts nothing is in trouble after so many times its longest usual step
_STEPS = ("step", "task", "save")
_STEADY = {"loader", "pack", "warm"}  # who does none of these pauses as long as it likes
_SHOWN_AFTER = 10.0  # seconds for which a process that has ended is still shown


@dataclass(frozen=True)
class _Mark:
    """What is kept of a snapshot."""

    time: float
    values: dict[str, float]
    seconds: dict[str, float]  # of each stage
    counts: dict[str, int]  # of each stage
    waits: Histogram
    waited: float  # seconds in all, with the wait that has not ended


@dataclass
class Process:
    """What is known of one process.

    Attributes:
        latest: Its last snapshot.
        state: "" if it works; else why it does not.
        resident: Bytes of its memory; None if unknown.
        marks: Some of the last seconds, the oldest first.
        changed: When its numbers changed last, in seconds of the monotonic clock.
        ended: When it was seen to have ended; None if it has not.
    """

    latest: Snapshot
    changed: float
    state: str = ""
    resident: int | None = None
    ended: float | None = None
    marks: deque[_Mark] = field(default_factory=deque)

    @property
    def seconds(self) -> float:
        """Over how many seconds the rates are; 0.0 if there is one snapshot alone."""
        return self.marks[-1].time - self.marks[0].time

    def rate(self, counter: str) -> float | None:
        """How much a counter grew a second; None if that is not known yet."""
        if not self.seconds or self.ended is not None:
            return None
        return max(0.0, self.marks[-1].values[counter] - self.marks[0].values[counter]) / self.seconds

    def row(self) -> Row:
        """The row of a process that loads."""
        header, values = self.latest.header, self.latest.values
        known = self.seconds > 0 and self.ended is None
        first, last = self.marks[0], self.marks[-1]
        waits, batches = last.waits.since(first.waits), int(last.values["batches"] - first.values["batches"])
        store, disk, ram = (self.rate(f"{tier}_bytes") for tier in ("remote", "disk", "ram"))
        moved = (store or 0) + (disk or 0) + (ram or 0)
        return Row(
            pid=header.pid,
            job=header.job,
            rank=header.rank if header.rank >= 0 else None,
            what=header.what,
            state=self.state,
            samples=self.rate("samples"),
            batches=self.rate("batches"),
            wait=min(1.0, max(0.0, last.waited - first.waited) / self.seconds) if known else None,
            p50=_percentile(waits, batches, 50) if known else None,
            p99=_percentile(waits, batches, 99) if known else None,
            store=store,
            disk=disk,
            ram=ram,
            hits=1 - (store or 0) / moved if moved else None,
            held_up=self._held_up() if known else "",
            queue=None if self.ended is not None else int(values["queue_depth"]),
            retries=int(values["retries"]),
            memory=None
            if self.ended is not None
            else int(values["ram_used_bytes"] + values["prefetch_used_bytes"]),
            resident=self.resident,
        )

    def _held_up(self) -> str:
        """The stage that holds up the loop in these seconds."""
        first, last, latest = self.marks[0], self.marks[-1], self.latest
        stages = {
            name: Histogram(name, each.unit, 0, max(0.0, last.seconds[name] - first.seconds[name]), ())
            for name, each in latest.stages.items()
        }
        values = {name: value - first.values[name] for name, value in last.values.items()}
        found = bottleneck(Snapshot(latest.path, latest.header, latest.alive, values, stages))
        return _NAMES.get(found, found)


class History:
    """Snapshots of the last seconds, of all processes.

    Args:
        window: Over how many seconds rates are taken.
    """

    def __init__(self, window: float = 10.0) -> None:
        self._window = window
        self._processes: dict[tuple[int, int, str], Process] = {}

    def update(self, snapshots: Iterable[Snapshot], now: float | None = None) -> list[Process]:
        """Take over new snapshots.

        Args:
            snapshots: Those of all processes.
            now: When they were made, in seconds of `time.monotonic`.

        Returns:
            All processes, also those that ended in the last seconds.
        """
        now = time.monotonic() if now is None else now
        seen = set()
        for snapshot in snapshots:
            header = snapshot.header
            key = header.pid, header.start, header.host
            seen.add(key)
            process = self._processes.get(key)
            if process is None:
                process = self._processes[key] = Process(snapshot, changed=now)
            self._take(process, snapshot, now)
        for key, process in list(self._processes.items()):
            if key in seen:
                continue
            if process.ended is None:
                process.ended, process.state, process.resident = now, "ended", None
            elif now - process.ended > _SHOWN_AFTER:
                del self._processes[key]
        return list(self._processes.values())

    def _take(self, process: Process, snapshot: Snapshot, now: float) -> None:
        mark = _Mark(
            now,
            snapshot.values,
            {name: histogram.sum for name, histogram in snapshot.stages.items()},
            {name: histogram.count for name, histogram in snapshot.stages.items()},
            snapshot.stages["wait"],
            snapshot.stages["wait"].sum + waiting_seconds(snapshot, now),
        )
        if process.marks and _has_changed(process.marks[-1], mark):
            process.changed = now
        process.latest, process.ended, process.resident = snapshot, None, resident_bytes(snapshot)
        process.state = _state(snapshot, now, now - process.changed)
        process.marks.append(mark)
        while len(process.marks) > 2 and process.marks[1].time <= now - self._window:
            process.marks.popleft()


def _percentile(waits: Histogram, batches: int, percent: float) -> float | None:
    """The percentile over all batches, also those that were there and so have no wait; None without any."""
    count = max(batches, waits.count)
    if not count:
        return None
    above = count * percent / 100 - (count - waits.count)
    return waits.percentile(100 * above / waits.count) if above > 0 else 0.0


def _has_changed(before: _Mark, now: _Mark) -> bool:
    return before.counts != now.counts or any(before.values[name] != now.values[name] for name in _SUMS)


def _state(snapshot: Snapshot, now: float, idle: float) -> str:
    if stopped := system_state(snapshot):
        return f"{stopped}, no progress {idle:.0f} s"
    if (waiting := waiting_seconds(snapshot, now)) >= _LONG:
        return f"waits for data {waiting:.0f} s"
    return f"no progress {idle:.0f} s" if idle > _patience(snapshot) else ""


def _patience(snapshot: Snapshot) -> float:
    """After how many seconds without progress a process is in trouble."""
    if not snapshot.header.activities & _STEADY:
        return math.inf
    return max(_LONG, _USUAL * max(snapshot.stages[name].percentile(99) for name in _STEPS))

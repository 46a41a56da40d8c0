"""A trace of what the threads of this process do: which stage, when, for which batch."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from shardstream.counters.layout import STAGES, stage
from shardstream.counters.recorder import Link, listen
from shardstream.errors import OptionError, StateError
from shardstream.observe.trace_file import Clocks, Lane, Slice, encoded

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Trace", "trace"]

_EVENTS = 1 << 16  # of a thread: the last ones
_ENDED = 1 << 20  # of all threads that have ended: the last threads

_Event = tuple[int, float, float, int, Link | None]


class _Ring:
    """The last events of one thread, which alone adds to them."""

    def __init__(self) -> None:
        self.owner = threading.current_thread()
        self.name, self.thread = self.owner.name, threading.get_native_id()
        self.events: deque[_Event] = deque(maxlen=_EVENTS)
        self.seen = 0

    def copy(self) -> list[_Event]:
        """The events so far. The thread may be in the middle of adding one."""
        while True:
            with suppress(RuntimeError):  # one came during the copy
                return list(self.events)


class Trace:
    """A trace that has begun; see `trace`. It is also a context manager, which stops it.

    Attributes:
        path: Of the file.
        dropped: How many events were dropped, since there were too many. Known when it has stopped.
        waits, steps: (begin, end) of each wait of a loop for its batch, and of each step with one; steps
            shorter than 1 ms are one. In seconds since the trace began, rising. Known when it has stopped.
    """

    def __init__(self, path: str, seconds: float | None) -> None:
        self.path, self.dropped = path, 0
        self.waits: list[tuple[float, float]] = []
        self.steps: list[tuple[float, float]] = []
        self._began = time.monotonic()
        self._rings: list[_Ring] = []
        self._own = threading.local()
        self._lock, self._taking = threading.Lock(), threading.Lock()
        self._running, self._pid = True, os.getpid()
        self._timer: threading.Timer | None = None
        if seconds is not None:
            self._timer = threading.Timer(seconds, self.stop)
            self._timer.name, self._timer.daemon = "shardstream-trace", True

    def begin(self) -> None:
        """Begin. It is called once."""
        listen(self._note)
        if self._timer is not None:
            self._timer.start()

    def _note(self, number: int, started: float, ended: float, count: int, link: Link | None) -> None:
        ring: _Ring | None = getattr(self._own, "ring", None)
        if ring is None:
            ring = self._own.ring = _Ring()
            self._take(ring)
        ring.seen += 1
        ring.events.append((number, started, ended, count, link))

    def _take(self, ring: _Ring) -> None:
        """Take the ring of a thread that is new, and drop the oldest ones of those that have ended."""
        with self._taking:
            kept = [ring]
            room = _ENDED
            for each in reversed(self._rings):
                if not each.owner.is_alive():
                    room -= len(each.events)
                    if room < 0:
                        self.dropped += each.seen
                        continue
                kept.append(each)
            self._rings = kept[::-1]

    @property
    def running(self) -> bool:
        """Whether events are still taken."""
        return self._running and self._pid == os.getpid()

    def stop(self) -> None:
        """Stop, and write the file; once is enough. A child that was forked writes nothing.

        Raises:
            OSError: The file cannot be written.
        """
        if self._pid != os.getpid():  # it is the parent's, as is who holds the lock
            return
        with self._lock:
            if not self._running:
                return
            self._running = False
            _forget(self)
            if self._timer is not None and self._timer is not threading.current_thread():
                self._timer.cancel()
            self._write()

    def _write(self) -> None:
        clocks = Clocks(time.time_ns(), time.monotonic_ns())
        with self._taking:
            rings, self._rings = self._rings, []
        copies = []
        for ring in rings:
            seen = ring.seen
            copies.append((ring, events := ring.copy()))
            self.dropped += max(0, seen - len(events))
        self.waits, self.steps = (self._spans(copies, name) for name in ("wait", "step"))
        lanes = _lanes(copies, clocks.realtime - clocks.monotonic)
        program = os.path.basename(sys.argv[0]) if sys.argv else "python"
        temporary = f"{self.path}.tmp-{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                file.writelines(encoded(os.getpid(), program or "python", clocks, lanes))
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _spans(self, rings: Sequence[tuple[_Ring, list[_Event]]], name: str) -> list[tuple[float, float]]:
        """(begin, end) of all events of a stage."""
        number = stage(name)
        return sorted(
            (event[1] - self._began, event[2] - self._began)
            for _, events in rings
            for event in events
            if event[0] == number
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


_current: Trace | None = None
_starting = threading.Lock()


def trace(path: str | os.PathLike[str], seconds: float | None = None) -> Trace:
    """Record what the threads of this process do, in a file for https://ui.perfetto.dev.

    Each thread has a line, with a slice for each stage of the work: wait, step, batch, fetch, request, and so
    on. Arrows go from a frame to the batches that are made of it, and to the training step that uses them.
    The times are on the clock of torch.profiler. What another process does, such as that of
    `engine="process"`, is not in it. Steps shorter than 1 ms are drawn together.

    Example:
        ``with ss.observe.trace("run.pftrace"): train(steps=100)``

    Args:
        path: Of the file, such as "run.pftrace". It is written when the trace stops.
        seconds: How long to record, from now on. None: until `stop`, the end of the `with`, or the end of the
            program.

    Returns:
        The trace, which runs.

    Raises:
        OptionError: The folder of the file is missing, or `seconds` is no time.
        StateError: Another trace of this process is running.
    """
    global _current
    path = os.path.abspath(os.fspath(path))
    if not os.path.isdir(os.path.dirname(path)):
        raise OptionError(f"trace: {path}: there is no such folder; make it first")
    if seconds is not None and not 0 < seconds < threading.TIMEOUT_MAX:
        raise OptionError(f"trace: seconds={seconds!r} must be greater than 0")
    with _starting:
        if _current is not None:
            raise StateError(f"a trace is running already, for {_current.path}: stop it first")
        _current = found = Trace(path, seconds)
        found.begin()
    return found


def _forget(ended: Trace) -> None:
    global _current
    listen(None)
    if _current is ended:
        _current = None


def _lanes(rings: Sequence[tuple[_Ring, list[_Event]]], offset: int) -> list[Lane]:
    """The lines of a trace. Threads of one name that were not there at the same time share one.

    Args:
        rings: Of the threads, with their events.
        offset: Nanoseconds from the monotonic clock to real time.
    """
    lanes: list[Lane] = []
    givers: dict[object, list[tuple[int, Slice]]] = defaultdict(list)  # by key: when it was there, and what
    takers: list[tuple[object, Slice]] = []
    free: dict[str, list[tuple[int, Lane]]] = defaultdict(list)  # by name: the end of each line
    there = [(min(event[1] for event in events), ring, events) for ring, events in rings if events]
    for _, ring, events in sorted(there, key=lambda each: each[0]):
        slices = []
        for number, started, ended, count, link in events:
            begin, end = int(started * 1e9) + offset, int(ended * 1e9) + offset
            slices.append(made := Slice(STAGES[number].name, begin, max(begin, end), count))
            takers += [(key, made) for key in (link[0] if link is not None else ())]
            for key in link[1] if link is not None else ():
                givers[key].append((end, made))
        first = min(each.start for each in slices)
        fits = next((pair for pair in free[ring.name] if pair[0] <= first), None)
        if fits is None:
            lanes.append(lane := Lane(ring.name, ring.thread, slices))
        else:
            free[ring.name].remove(fits)
            lane = fits[1]
            lane.slices += slices
        free[ring.name].append((max(each.end for each in slices), lane))
    _draw_flows(givers, takers)
    return lanes


def _draw_flows(givers: dict[object, list[tuple[int, Slice]]], takers: list[tuple[object, Slice]]) -> None:
    """Number the arrows from each slice to those that take what it gave last, before they ended."""
    number = 0
    for known in givers.values():
        known.sort(key=lambda pair: pair[0])
    numbered: dict[tuple[object, int], int] = {}
    for key, taker in sorted(takers, key=lambda pair: pair[1].start):
        known = givers.get(key, [])
        at = bisect_right(known, taker.end, key=lambda pair: pair[0]) - 1
        if at < 0 or known[at][1] is taker:
            continue
        if (key, at) not in numbered:
            number += 1
            numbered[key, at] = number
            known[at][1].flows.append(number)
        taker.flows.append(numbered[key, at])


def _at_exit() -> None:
    if _current is not None:
        _current.stop()


def _after_fork() -> None:
    """The trace is the parent's."""
    global _current, _starting
    _current, _starting = None, threading.Lock()
    listen(None)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""The thread that uploads segments, oldest first, as long as it takes."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time

from shardstream.counters.layout import slot
from shardstream.counters.recorder import add
from shardstream.logs.objects import Objects
from shardstream.logs.segments import Segment
from shardstream.logs.spool import Spool

__all__ = ["Uploader"]

log = logging.getLogger("shardstream.logs")

_SHIPPED = slot("log_shipped")
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between rounds that fail
_COUNTED = (
    1.0  # seconds after which new rows are counted for the process at the latest: `top` shows their rate
)


class Uploader:
    """Uploads the segments of a spool in a thread, until it is told to end.

    Args:
        spool: Where the segments are.
        objects: What they become.
        where: The log, for messages.
        seconds: How old a row may be before its segment is sealed.

    Attributes:
        uploaded: How many segments have been uploaded.
        error: What the last failure was; "" if the last round was a success.
    """

    def __init__(self, spool: Spool, objects: Objects, where: str, seconds: float) -> None:
        self._spool, self._objects = spool, objects
        self._where, self._seconds = where, seconds
        self._ending = self._given_up = self._warned = self._told = self._checked = False
        self._hurried = False
        self._failures = 0
        self._adopted = -float("inf")
        self.uploaded = 0
        self.error = ""
        self._thread = threading.Thread(target=self._run, name="shardstream-log", daemon=True)

    def start(self) -> None:
        """Begin. It is called once."""
        self._thread.start()

    def end(self) -> None:
        """Upload what there is, and then end; returns at once."""
        self._ending = True
        self._spool.wakeups.put(None)

    def hurry(self) -> None:
        """Somebody waits: try again soon, even if the last round has failed; returns at once."""
        self._hurried = True
        self._spool.wakeups.put(None)

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Wait for the end, for so many seconds at most; whether everything is uploaded.

        After that, it does not try again: what is left is for the next process.
        """
        self._thread.join(max(0.0, timeout))
        self._given_up = True
        self._spool.wakeups.put(None)
        return self.ended and not self.error

    def _run(self) -> None:
        while not self._given_up:
            ending = self._ending
            done = self._round(ending)
            self._spool.tell_process()
            if done and ending:
                break
            if self._failures:
                self._pause(ending)
            else:
                self._wait(min(_COUNTED, max(0.01, self._seconds - self._spool.age())))
        if self._ending:
            self._spool.close()

    def _wait(self, seconds: float) -> None:
        """Until a segment is sealed, the current one is due, or somebody waits."""
        with contextlib.suppress(queue.Empty):
            self._spool.wakeups.get(timeout=seconds)
            while True:
                self._spool.wakeups.get_nowait()

    def _pause(self, ending: bool) -> None:
        """Until it is time to try again. New segments do not shorten that: there may be many a second."""
        now = time.monotonic()
        # The exponent is bounded: 2.0 ** 1024 is an OverflowError.
        until = now + min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(self._failures - 1, 5))
        while not self._given_up and self._ending == ending:
            left = (now + _SHORTEST_PAUSE if self._hurried else until) - time.monotonic()
            if left <= 0:
                break
            self._wait(min(_COUNTED, left))
            self._spool.tell_process()

    def _round(self, ending: bool) -> bool:
        segment: Segment | None = None
        self._hurried = False
        try:
            if self._spool.trouble and not self._told:
                self._told = True
                log.warning("%s", self._spool.trouble)
            if ending or time.monotonic() - self._adopted >= self._seconds:
                self._adopted = time.monotonic()
                self._spool.adopt()
            if not self._checked:
                self._objects.check()
                self._checked = True
            # While the store takes nothing, a segment grows to its full size.
            if ending or (not self._failures and self._spool.age() >= self._seconds):
                self._spool.seal()
            while not self._given_up:
                segment = self._spool.next()
                if segment is not None:
                    self._objects.write(segment)
                    self._spool.done(segment)
                    self.uploaded += 1
                    add(_SHIPPED, segment.rows)
                elif ending and self._spool.unsaid:
                    self._spool.seal()
                else:
                    break
        except Exception as error:  # noqa: BLE001 - stores raise what they like, and the thread has to go on
            if segment is not None:
                segment.busy = False
            self._failures += 1
            self.error = f"{type(error).__name__}: {error}"
            if not self._warned and not self._given_up:
                self._warned = True
                log.warning(
                    "%s: rows of the log stay on this machine, and are tried again: %s",
                    self._where,
                    self.error,
                )
            return False
        self._failures, self.error = 0, ""
        return True

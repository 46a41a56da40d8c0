"""The way of a log's rows in one process: into the spool, to the store and to the sinks."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from shardstream.counters.page import begin
from shardstream.logs.feeding import Feed
from shardstream.logs.objects import Objects
from shardstream.logs.segments import Segment
from shardstream.logs.sinks import Sink
from shardstream.logs.spool import MOST, Spool
from shardstream.logs.uploader import Uploader

__all__ = ["Stream"]

log = logging.getLogger("shardstream.logs")


class Stream:
    """Takes rows from any thread. Its own threads do the rest.

    Args:
        spool: Where rows lie until they are uploaded.
        objects: What they become.
        where: The log, for messages.
        seconds: How old a row may be before it is uploaded.
        sinks: What gets the rows, too.
        timeout: Seconds that the end of the program waits.
    """

    def __init__(
        self,
        spool: Spool,
        objects: Objects,
        where: str,
        seconds: float,
        sinks: Sequence[Sink],
        timeout: float,
    ) -> None:
        self.spool = spool
        self._objects, self.where, self._seconds, self._timeout = objects, where, seconds, timeout
        self._starting = threading.Lock()
        self._uploader: Uploader | None = None
        self._feeds = [Feed(sink) for sink in sinks]
        self._of_parent: list[Feed] = []
        self._start()
        for feed in self._feeds:
            feed.start()
        for each in list(_streams.values()):
            if each.ended:
                _streams.pop(id(each), None)
        _streams[id(self)] = self

    def put(self, line: bytes) -> None:
        """Take a row: a whole line."""
        self.spool.append(line)
        for feed in self._feeds:
            feed.put(line)
        if self._uploader is None:  # a fork of the process that made the log
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._uploader is None:
                begin("logs", self.where)
                uploader = Uploader(self.spool, self._objects, self.where, self._seconds)
                # There may be no more threads, as at the end of a program: then the next one uploads.
                with contextlib.suppress(RuntimeError):
                    uploader.start()
                    self._uploader = uploader

    def flush(self, timeout: float) -> bool:
        """Wait until the rows so far are uploaded; whether they are."""
        deadline = time.monotonic() + timeout
        dropped, uploader = self.spool.dropped, self._uploader
        waiting = self.spool.waiting()
        # Each segment is an open file: while the store takes none, a flush for each row does not make more.
        if waiting and ((uploader is not None and uploader.error) or len(waiting) >= MOST):
            if uploader is not None:
                uploader.hurry()
            if not all(_finished(waiting, deadline)):
                return False
        self.spool.seal()
        waiting = self.spool.waiting()
        if uploader is not None:
            uploader.hurry()
        return all(_finished(waiting, deadline)) and self.spool.dropped == dropped

    def leave(self) -> None:
        """Upload what there is, give it to the sinks, and end; returns at once."""
        for each in (self._uploader, *self._feeds):
            if each is not None:
                each.end()

    def end(self, timeout: float) -> bool:
        """The same, but wait; whether the store and the sinks have taken all rows.

        Rows that come later are for the next process.
        """
        deadline = time.monotonic() + timeout
        self.leave()
        threads = [each for each in (self._uploader, *self._feeds) if each is not None]
        ended = [each.join(deadline - time.monotonic()) for each in threads]
        _streams.pop(id(self), None)
        return self._left() == 0 and all(ended) and self.spool.dropped == self.spool.cut

    def interrupted(self) -> None:
        """Wait no longer, and say what is left."""
        _streams.pop(id(self), None)
        self._left()

    def _left(self) -> int:
        """Leave the rows that are not uploaded to the next process, and say so; how many these are."""
        self.spool.close()  # so that others may upload them before this process has ended
        left: int = self.stats()["waiting"]["rows"]
        if left:
            log.warning(
                "%s: %d rows are not uploaded. The next ss.Log of this URL on this machine uploads them",
                self.where, left,
            )  # fmt: skip
        return left

    @property
    def ended(self) -> bool:
        """Whether its threads have ended, so that there is nothing to wait for."""
        return all(each is not None and each.ended for each in (self._uploader, *self._feeds))

    def stats(self) -> dict[str, Any]:
        """What was counted."""
        spool, uploader = self.spool, self._uploader
        waiting = spool.waiting()
        return {
            "rows": spool.rows,
            "dropped": spool.dropped,
            "waiting": {"segments": len(waiting), "rows": spool.left + sum(s.rows for s in waiting)},
            "uploaded_segments": 0 if uploader is None else uploader.uploaded,
            "error": "" if uploader is None else uploader.error,
            "sinks": [feed.stats() for feed in self._feeds],
        }

    def after_fork(self) -> None:
        """Begin anew in a forked process, with a segment of its own; the sinks are the parent's."""
        self._starting = threading.Lock()
        # The sinks stay alive: their destructors would end what is the parent's.
        self._of_parent += self._feeds
        self._uploader, self._feeds = None, []
        self.spool.after_fork()


def _finished(segments: Sequence[Segment], deadline: float) -> list[bool]:
    """Waits for segments until then; which of them are uploaded or dropped."""
    return [segment.finished.wait(max(0.0, deadline - time.monotonic())) for segment in segments]


_streams: dict[int, Stream] = {}


def _at_exit() -> None:
    limits = [(stream, time.monotonic() + stream._timeout) for stream in _streams.values()]  # noqa: SLF001
    try:
        for stream, _ in limits:
            stream.leave()
        for stream, deadline in limits:
            stream.end(deadline - time.monotonic())
    except KeyboardInterrupt:  # the user does not want to wait
        for stream in list(_streams.values()):
            stream.interrupted()


def _after_fork() -> None:
    for stream in _streams.values():
        stream.after_fork()


# It runs before the one of the storage layer, which ends all requests: that was registered earlier.
atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)

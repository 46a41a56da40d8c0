"""A thread for each sink: it gives rows to the sink, however long that takes, and nobody waits for it."""

from __future__ import annotations

import logging
import threading
from collections import deque

from shardstream.logs.rows import decode
from shardstream.logs.sinks import RowsError, Sink

__all__ = ["Feed"]

log = logging.getLogger("shardstream.logs")

_EVERY = 1.0  # seconds between two writes: to wake a thread for each row would cost the caller time
_MOST = 256  # rows of one write: as dicts they take several times the memory
_LIMIT = 8 << 20  # bytes of rows that wait for a sink; beyond that, it does not get the oldest


class Feed:
    """Rows on their way to a sink.

    Args:
        sink: What takes them.

    Attributes:
        rows: How many rows the sink has taken.
        failed: How many rows it has raised an error for.
        dropped: How many rows it did not get, because it was too slow.
    """

    def __init__(self, sink: Sink) -> None:
        self.name = type(sink).__name__
        self._sink = sink
        self._lock = threading.RLock()  # a signal handler may add a row while this thread adds one
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._ending = threading.Event()
        self._warned: set[str] = set()
        self.rows = self.failed = self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="shardstream-log-sink", daemon=True)

    def start(self) -> None:
        """Begin. It is called once."""
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Add a row."""
        with self._lock:
            self._lines.append(line)
            self._bytes += len(line)
            while self._bytes > _LIMIT and self._lines:
                self._bytes -= len(self._lines.popleft())
                self.dropped += 1

    def end(self) -> None:
        """Give the sink what there is, and close it; returns at once."""
        self._ending.set()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Wait for that, for so many seconds at most; whether the sink has got every row."""
        self._thread.join(max(0.0, timeout))
        return self.ended and not self.dropped and not self.failed

    def _run(self) -> None:
        last = False
        while not last:
            last = self._ending.wait(_EVERY)
            while lines := self._taken():
                self._give(lines)
                if self.dropped:
                    self._warn("is too slow, and does not get all rows")
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001 - a sink raises what it likes
            self._warn(f"raised {type(error).__name__} when it was closed: {error}")

    def _taken(self) -> list[bytes]:
        with self._lock:
            lines = [self._lines.popleft() for _ in range(min(_MOST, len(self._lines)))]
            # Counted anew at times: a signal handler that adds a row may disturb a count.
            self._bytes = self._bytes - sum(map(len, lines)) if self._lines else 0
        return lines

    def _give(self, lines: list[bytes]) -> None:
        rows = []
        for line in lines:
            try:
                rows.append(decode(line))
            except Exception as error:  # noqa: BLE001 - the thread has to go on
                self.failed += 1
                self._warn(f"does not get a row that cannot be read: {error}")
        try:
            if rows:
                self._sink.write(rows)
            self.rows += len(rows)
        except RowsError as error:
            self.failed += error.rows
            self.rows += len(rows) - error.rows
            self._warn(f"raised {error}")
        except Exception as error:  # noqa: BLE001 - a sink raises what it likes
            self.failed += len(rows)
            self._warn(f"raised {type(error).__name__}: {error}")

    def _warn(self, what: str) -> None:
        kind = what.partition(":")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("the sink %s %s. The log itself has the rows", self.name, what)

    def stats(self) -> dict[str, object]:
        """What was counted, as numbers."""
        return {"sink": self.name, "rows": self.rows, "failed": self.failed, "dropped": self.dropped}

"""The numbers of a long operation, which it reports while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from shardstream.errors import OptionError

__all__ = ["Bytes", "Progress", "Report", "Reporter", "checked"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an operation is. A number that an operation does not know is 0.

    Args:
        done_bytes, total_bytes: of the input (pack, index), of the shards (verify), of the blocks that
            are wanted (warm, whose total is an estimate until all indexes are read), or of the files
            (weights and checkpoints).
        found_bytes: the part of `done_bytes` that was there before, as when a pack is continued.
        samples, total_samples: packed, indexed, checked or exported, and of all.
        rejected: samples that a pack left out.
        done_tasks, total_tasks: tasks of a pack, archives of an index, shards of a dataset.
        nodes: machines that can take tasks of a pack now.
        retried: how often a task of a pack was given to a worker again, second attempts at slow ones among
            them.
        lost: workers of a pack that died at work, those of lost machines among them.
        seconds: since the operation began.
    """

    done_bytes: int = 0
    total_bytes: int = 0
    found_bytes: int = 0
    samples: int = 0
    total_samples: int = 0
    rejected: int = 0
    done_tasks: int = 0
    total_tasks: int = 0
    nodes: int = 0
    retried: int = 0
    lost: int = 0
    seconds: float = 0.0

    @property
    def bytes_per_second(self) -> float:
        """The rate so far, without the bytes that were there before."""
        return (self.done_bytes - self.found_bytes) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """The seconds that the remaining bytes take at this rate; 0 while there is no rate."""
        rate = self.bytes_per_second
        return max(0, self.total_bytes - self.done_bytes) / rate if rate else 0.0


# What users may give as `progress`: a function, or True for a bar.
Report = Callable[[Progress], None] | bool | None


def checked(report: Report) -> Report:
    """What the user gave as `progress`.

    Raises:
        OptionError: It is something else.
    """
    if report is None or isinstance(report, bool) or callable(report):
        return report
    raise OptionError(f"progress={report!r} must be True, False or a function")


class Reporter:
    """Gives a callback the progress, with the seconds since this was made; None is no callback."""

    def __init__(self, callback: Report) -> None:
        given = checked(callback)
        self._callback = None if given is None or isinstance(given, bool) else given
        self._started = time.monotonic()

    def __call__(self, **numbers: int) -> None:
        """Report these fields of a Progress."""
        if self._callback is not None:
            self._callback(Progress(seconds=time.monotonic() - self._started, **numbers))


class Bytes:
    """Adds up the bytes that many threads have done, and reports them, one thread at a time.

    Args:
        report: What the user gave as `progress`.
        total: The bytes of the whole work.
    """

    def __init__(self, report: Report, total: int) -> None:
        self._tell, self._total, self._done = Reporter(report), total, 0
        self._lock = threading.Lock()
        self.add(0)

    def add(self, count: int) -> None:
        """Report that so many more bytes are done."""
        with self._lock:
            self._done += count
            self._tell(done_bytes=self._done, total_bytes=self._total)

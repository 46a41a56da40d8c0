"""What a probe may still take: seconds and bytes, and a note of what was left out for it."""

from __future__ import annotations

import threading
import time

__all__ = ["Limits"]


class Limits:
    """Seconds and bytes that may be used; for many threads.

    Args:
        seconds: From now on.
        size: Bytes.

    Attributes:
        size: All bytes, at the beginning.
        cut: What was left out or ended early, and why.
    """

    def __init__(self, seconds: float, size: int) -> None:
        self.started = time.monotonic()
        self.size = size
        self._end, self._left = self.started + seconds, size
        self._lock = threading.Lock()
        self._above: list[Limits] = []
        self.cut: list[str] = []

    def part(self, seconds: float, size: float) -> Limits:
        """Limits of a part of the work, which count here, too.

        Args:
            seconds: The part takes at most so many.
            size: The part takes at most this share of all bytes.
        """
        found = Limits(max(0.0, min(seconds, self.seconds_left)), min(int(self.size * size), self._left))
        found._above, found.cut = [self, *self._above], self.cut
        return found

    @property
    def seconds_left(self) -> float:
        """The seconds that are left; at least 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def elapsed(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self.started

    @property
    def bytes_left(self) -> int:
        """The bytes that are left."""
        return self._left

    @property
    def used(self) -> int:
        """The bytes that were taken."""
        return self.size - self._left

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end

    def take(self, size: int) -> bool:
        """Take bytes; False, and nothing is taken, if they are not left or the time is over."""
        if self.over:
            return False
        with self._lock:
            if self._left < size:
                return False
            self._left -= size
        for limits in self._above:
            limits.count(size)
        return True

    def count(self, size: int) -> None:
        """Count bytes that were taken in any case."""
        with self._lock:
            self._left -= size

    def note(self, text: str) -> None:
        """Say that something was left out."""
        if text not in self.cut:
            self.cut.append(text)

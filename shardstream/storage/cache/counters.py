"""What one reader has read: the bytes by tier, and the requests that it took."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from shardstream.counters.layout import slot
from shardstream.counters.recorder import add

__all__ = ["ReadCounters"]

_RAM_HITS, _RAM_BYTES = slot("ram_hits"), slot("ram_bytes")
_DISK_HITS, _DISK_BYTES = slot("disk_hits"), slot("disk_bytes")
_MISSES, _REFETCHES = slot("misses"), slot("refetches")
_LEAST = 256 << 10  # bytes; a smaller range tells how long the store takes to answer, and no rate
_FADES = 0.9  # the weight of what came before, with each range that comes


@dataclass
class ReadCounters:
    """Counts what one reader has read; may be used by many threads.

    Attributes:
        ram_bytes: Bytes of blocks that came from the RAM tier.
        disk_bytes: Bytes of blocks that came from the SSD tier.
        remote_bytes: Bytes that came from the store.
        requests: Ranges that were read from the store.
        refetches: Blocks that were damaged, on the SSD or on their way, and were asked for once more.
    """

    ram_bytes: int = 0
    disk_bytes: int = 0
    remote_bytes: int = 0
    requests: int = 0
    refetches: int = 0
    _streams: tuple[float, float] = field(default=(0.0, 0.0), repr=False, compare=False)  # bytes, seconds
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def as_dict(self) -> dict[str, int]:
        """All of them by name, as `stats()` shows them."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def from_memory(self, size: int) -> None:
        """The RAM tier gave a block."""
        with self._lock:
            self.ram_bytes += size
        add(_RAM_HITS)
        add(_RAM_BYTES, size)

    def from_disk(self, size: int) -> None:
        """The SSD tier gave a block."""
        with self._lock:
            self.disk_bytes += size
        add(_DISK_HITS)
        add(_DISK_BYTES, size)

    def from_store(self, size: int, seconds: float = 0.0) -> None:
        """The store gave a range in so many seconds."""
        with self._lock:
            self.requests += 1
            self.remote_bytes += size
            if size >= _LEAST and seconds > 0:
                bytes_before, seconds_before = self._streams
                self._streams = _FADES * bytes_before + size, _FADES * seconds_before + seconds
        add(_MISSES)

    @property
    def stream_rate(self) -> float:
        """Bytes per second of the ranges that came lately, each alone; infinite if none was timed."""
        size, seconds = self._streams
        return size / seconds if seconds else math.inf

    def damaged(self) -> None:
        """The SSD tier or the store gave a damaged block."""
        with self._lock:
            self.refetches += 1
        add(_REFETCHES)

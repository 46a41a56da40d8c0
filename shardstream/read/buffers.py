"""Memory that is used again: a list of free items, views that give memory back, and a pool of buffers.

New memory costs a page fault for each 4 KiB. So frames and batches give their buffers back when they are
done.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstream.memory import when_dropped

__all__ = ["Buffer", "BufferPool", "FreeList", "lease", "rounded"]

Buffer = NDArray[np.uint8]
T = TypeVar("T")
_PAGE = 1 << 12
_MAPPED = 1 << 16  # bytes from which on a buffer is a mapping of its own
_SLACK = 4  # a buffer fits if it is larger than needed by at most 1/4


class FreeList(Generic[T]):
    """Items that wait to be used again, found by their capacity; for one thread at a time.

    If there are too many, items of the capacity that was given back longest ago are dropped first. The newest
    item stays, even if it is larger than the limit.

    Args:
        limit: How many bytes the items may have together.
        most: How many items there may be, or None for any number.
        fits: From a size to the largest capacity that is used for it, both in bytes.

    Attributes:
        size: The bytes of all items.
    """

    def __init__(
        self,
        limit: int = 0,
        most: int | None = None,
        fits: Callable[[int], int] = lambda size: size + size // _SLACK + _PAGE,
    ) -> None:
        self.limit, self._most, self._fits = limit, most, fits
        self._items: dict[int, list[T]] = {}
        self._capacities: list[int] = []  # sorted
        self._count = self.size = 0

    def take(self, size: int) -> T | None:
        """An item of at least `size` bytes and at most `fits(size)`; None if there is no such item."""
        place = bisect_left(self._capacities, size)
        if place == len(self._capacities) or self._capacities[place] > self._fits(size):
            return None
        return self._pop(self._capacities[place])

    def give_back(self, item: T, capacity: int) -> list[T]:
        """Add an item of `capacity` bytes; returns the items that are dropped for it."""
        items = self._items.pop(capacity, None)
        if items is None:
            items = []
            insort(self._capacities, capacity)
        items.append(item)
        self._items[capacity] = items  # at the end of the dict, since this capacity was used last
        self._count += 1
        self.size += capacity
        return self.trim()

    def trim(self) -> list[T]:
        """Drop items until the limits hold; returns the items that are dropped."""
        dropped: list[T] = []
        while self._count > 1 and (
            self.size > self.limit or (self._most is not None and self._count > self._most)
        ):
            dropped.append(self._pop(next(iter(self._items)), 0))
        return dropped

    def _pop(self, capacity: int, place: int = -1) -> T:
        items = self._items[capacity]
        item = items.pop(place)
        if not items:
            del self._items[capacity]
            self._capacities.remove(capacity)
        self._count -= 1
        self.size -= capacity
        return item


class _Lease(np.ndarray):
    """An array that numpy makes the base of all views of it, so that it dies after the last view."""


def lease(buffer: Buffer, end: Callable[[], object]) -> Buffer:
    """A view of a buffer that tells when it is no longer used.

    Args:
        buffer: The memory.
        end: Called when the view, and every view made from it, is gone. It may be called in any thread and at
            any moment, so it must not take a lock.
    """
    owner = buffer.view(_Lease)
    when_dropped(owner, end)
    # Not np.asarray(owner): numpy would make the buffer the base of its views, and forget the owner.
    return np.asarray(owner[:])


def rounded(size: int) -> int:
    """A capacity for `size` bytes. It is a little larger, so that the buffer also fits similar sizes."""
    step = max(_PAGE, 1 << max(0, size.bit_length() - 5))
    return max(1, -(-size // step)) * step


def _fresh(capacity: int) -> Buffer:
    """A new buffer, its content undefined.

    A large one is a mapping of its own, which the system has back as soon as nobody uses it. The allocator
    has an arena for each of several threads. A buffer that one thread has dropped would stay in its arena,
    while another thread takes new memory for the next one.
    """
    if capacity >= _MAPPED:
        try:
            return np.frombuffer(mmap.mmap(-1, capacity, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        except OSError:  # too many mappings
            pass
    return np.empty(capacity, np.uint8)


class BufferPool:
    """Buffers that are used again, for many threads.

    At first only one buffer may wait to be used again. `limit_to` allows more.
    """

    def __init__(self) -> None:
        self._free: FreeList[Buffer] = FreeList()
        self._lock = threading.Lock()
        # A lease may end at any moment. To append to a deque is atomic, and takes no lock.
        self._ended: deque[Buffer] = deque()

    def take(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes with undefined content, until it is given back."""
        with self._lock:
            self._collect()
            found = self._free.take(size)
        return _fresh(rounded(size)) if found is None else found

    def give_back(self, buffer: Buffer) -> None:
        """Let a buffer that `take` returned be used again. Nobody may use it any more."""
        with self._lock:
            self._free.give_back(buffer, len(buffer))

    def lease(self, size: int) -> Buffer:
        """`size` bytes with undefined content, which are given back when the last view of them is gone."""
        return self.leased(self.take(size))[:size]

    def leased(self, buffer: Buffer) -> Buffer:
        """A view of a buffer that `take` returned. The buffer is given back when the last view is gone."""
        ended = self._ended
        return lease(buffer, lambda: ended.append(buffer))

    def limit_to(self, limit: int) -> int:
        """Let at most `limit` bytes wait to be used again; returns how many wait now."""
        with self._lock:
            self._free.limit = limit
            self._collect()
            self._free.trim()
            return self._free.size

    @property
    def idle(self) -> int:
        """The bytes that wait to be used again."""
        with self._lock:
            self._collect()
            return self._free.size

    def _collect(self) -> None:
        while self._ended:
            buffer = self._ended.popleft()
            self._free.give_back(buffer, len(buffer))

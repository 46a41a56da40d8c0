"""A budget of memory that several holders share; and values used last, whose bytes count in a budget."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["Holder", "MemoryBudget", "RecentValues", "when_dropped"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def when_dropped(owner: object, call: Callable[..., object], *arguments: Any) -> None:
    """Call a function when an object is dropped. It is not called at the end of the interpreter.

    At the end threads may still use what the function would end.

    Args:
        owner: The object.
        call: The function. Neither it nor its arguments may refer to the object.
        arguments: Of the function.
    """
    weakref.finalize(owner, call, *arguments).atexit = False


class MemoryBudget:
    """Bytes that several holders share; for many threads.

    One holder may be elastic: it frees memory as soon as the others need it. Each of the others limits itself
    to its own part.

    Args:
        limit: How many bytes there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._bytes: dict[str, int] = {}
        self._dropped: deque[tuple[str, list[int]]] = deque()
        self._lock = threading.Lock()
        self._shrink: Callable[[], Callable[[int], object] | None] = lambda: None

    def holder(self, name: str) -> Holder:
        """A new holder. The bytes of holders with the same name add up."""
        with self._lock:
            self._bytes.setdefault(name, 0)
        return Holder(self, name)

    def recent_values(
        self, name: str, size: Callable[[V], int], share: float, least: int = 0
    ) -> RecentValues[K, V]:
        """A store of values used last, which takes at most a part of the budget.

        Args:
            name: The name under which its bytes count.
            size: From a value to its bytes.
            share: Which part of the limit all values may take, 0 to 1.
            least: How many bytes they may take even if the limit is smaller.
        """
        return RecentValues(size, max(least, int(self.limit * share)), self.holder(name))

    def shrink_first(self, method: Callable[[int], object]) -> None:
        """Set the method that frees memory if there is too little.

        Args:
            method: A bound method, which gets the number of bytes to free. The reference to it is weak. Of
                the holders of this budget it may only call its own, and only by `Holder.count`.
        """
        self._shrink = weakref.WeakMethod(method)

    def by_name(self) -> dict[str, int]:
        """The bytes of all holders, by name."""
        with self._lock:
            self._settle()
            return dict(self._bytes)

    def bytes_of(self, name: str) -> int:
        """The bytes of all holders with a name."""
        with self._lock:
            self._settle()
            return self._bytes.get(name, 0)

    @property
    def free(self) -> int:
        """How many bytes are left; negative if the holders have more than the limit."""
        with self._lock:
            self._settle()
            return self.limit - sum(self._bytes.values())

    def count(self, name: str, size: int) -> None:
        """Add bytes to a name; a negative `size` takes them away."""
        with self._lock:
            self._settle()
            self._bytes[name] += size

    def forget(self, name: str, total: list[int]) -> None:
        """Say that a holder was dropped, so that its `total[0]` bytes do not count any more.

        Negative bytes count from then on: they are of what is left of something that was dropped.
        """
        # The garbage collector may call this at any moment. So it takes no lock, and is one atomic step.
        self._dropped.append((name, total))

    def _settle(self) -> None:
        while self._dropped:
            name, total = self._dropped.popleft()
            self._bytes[name] -= total[0]

    def make_room(self) -> None:
        """Let the elastic holder free memory until the limit holds."""
        missing = -self.free
        shrink = self._shrink() if missing > 0 else None
        if shrink is not None:
            shrink(missing)


class Holder:
    """Counts the bytes of one holder. When it is dropped, they do not count any more.

    Args:
        budget: Where the bytes count.
        name: The name under which they count.
    """

    def __init__(self, budget: MemoryBudget, name: str) -> None:
        self.budget = budget
        self._name = name
        self._total = [0]
        when_dropped(self, budget.forget, name, self._total)

    @property
    def total(self) -> int:
        """The bytes of this holder."""
        return self._total[0]

    def count(self, size: int) -> None:
        """Add bytes; a negative `size` takes them away. Only one call at a time for each holder."""
        self._total[0] += size
        self.budget.count(self._name, size)

    def add(self, size: int) -> None:
        """Add bytes as `count` does, and let the elastic holder free memory for them."""
        self.count(size)
        if size > 0:
            self.budget.make_room()


class RecentValues(Generic[K, V]):
    """Values by key, of which the least recently used are dropped first; for many threads.

    The newest value stays, even if it is larger than the limit.

    Args:
        size: From a value to its bytes.
        limit: How many bytes all values may have.
        holder: Where their bytes count, or None.
    """

    def __init__(self, size: Callable[[V], int], limit: int, holder: Holder | None = None) -> None:
        self.limit = limit
        self._size, self._holder = size, holder
        self._values: OrderedDict[K, V] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value of a key, or None. The value becomes the one used last."""
        # No lock, which would take longer than the rest: each step is atomic.
        try:
            value = self._values[key]
            self._values.move_to_end(key)
        except KeyError:  # also if another thread drops it between the two steps
            return None
        return value

    def peek(self, key: K) -> V | None:
        """The value of a key, or None. The order of use does not change, and no lock is taken."""
        return self._values.get(key)

    def put(self, key: K, value: V) -> V:
        """Store a value, unless the key has one; returns the value of the key."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                return found
            self._values[key] = value
            added = self._size(value)
            self._total += added
            while self._total > self.limit and len(self._values) > 1:
                dropped = self._size(self._values.popitem(last=False)[1])
                self._total -= dropped
                added -= dropped
            if self._holder is not None:
                self._holder.count(added)
        if self._holder is not None:
            self._holder.budget.make_room()
        return value

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._values.clear()
            if self._holder is not None:
                self._holder.count(-self._total)
            self._total = 0

"""Virtual time, the cores of nodes, and a network whose links are shared max-min fairly."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Clock", "Cores", "Network", "Transfer", "fair_rates"]

UNLIMITED = 1e12  # bytes per second
_FEW = 8  # cores
_SLICE = 0.005  # seconds: Python's switch interval, and about that of Linux
Floats = NDArray[np.float64]
Call = Callable[[], object]


class Clock:
    """Virtual time: calls in the order of their times, those of one time in the order in which they came."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()

    def at(self, when: float, call: Call) -> None:
        """Call a function at a time, which is not in the past."""
        heapq.heappush(self._calls, (max(when, self.now), next(self._numbers), call))

    def after(self, seconds: float, call: Call) -> None:
        """Call a function after so many seconds."""
        self.at(self.now + seconds, call)

    def run(self, until: Callable[[], bool]) -> None:
        """Make all calls until `until()` is true. RuntimeError if none is left before that."""
        while not until():
            if not self._calls:
                raise RuntimeError(f"at {self.now:.3f} s everybody waits, and nothing is going to happen")
            self.now, _, call = heapq.heappop(self._calls)
            call()


class Cores:
    """The cores of one node, in turns: work that takes longer than a slice goes to the end of the queue.

    Of many cores one is nearly always free. There, work is not cut into slices.

    Args:
        clock: The time.
        count: How many cores there are.

    Attributes:
        busy: Seconds of cores that were used.
    """

    def __init__(self, clock: Clock, count: int) -> None:
        self._clock, self._free = clock, [0.0] * count
        self._slice = _SLICE if count <= _FEW else math.inf
        self.busy = 0.0

    def work(self, seconds: float, done: Call) -> None:
        """Use a core for so many seconds, and call `done` at the end."""
        if seconds <= 0:
            self._clock.after(0.0, done)
            return
        now = min(seconds, self._slice)
        begin = max(self._clock.now, self._free[0])
        heapq.heapreplace(self._free, begin + now)
        self.busy += now
        self._clock.at(begin + now, done if seconds <= now else lambda: self.work(seconds - now, done))


def fair_rates(counts: NDArray[np.int64], node_rate: float, store_rate: float, stream: float) -> Floats:
    """Max-min fair rates of transfers from one store to nodes.

    Each transfer has three limits: its own, its node's link, which it shares with the others of the node, and
    the link of the store, which all share. All transfers of a node have the same rate: nothing tells them
    apart.

    Args:
        counts: How many transfers run to each node, [nodes].
        node_rate: Bytes per second of a node's link.
        store_rate: Bytes per second of the store's link.
        stream: Bytes per second of one transfer at most.

    Returns:
        Bytes per second of each transfer of a node, [nodes]; 0 for nodes without any.
    """
    busy = counts > 0
    alone = np.where(busy, np.minimum(stream, node_rate / np.maximum(counts, 1)), 0.0)
    if float(counts @ alone) <= store_rate:
        return alone
    # The level to which water rises: transfers that their own limits hold below it leave room to the others.
    order = np.argsort(alone)
    limits, many = alone[order], counts[order]
    before = np.cumsum(limits * many) - limits * many
    behind = np.cumsum(many[::-1])[::-1]
    levels = (store_rate - before) / np.maximum(behind, 1)
    level = levels[np.argmax(limits >= levels)]
    found: Floats = np.minimum(alone, level)
    return found


class Transfer:
    """Bytes on their way to a node; `done` is called when the last one has come, unless it was given up."""

    __slots__ = ("alive", "done", "end", "node")

    def __init__(self, node: int, end: float, done: Call) -> None:
        self.node, self.end, self.done, self.alive = node, end, done, True


class Network:
    """One store, and the links of nodes to it.

    All transfers of a node have the same rate. So a node has one number, the bytes that each of its transfers
    has got so far (`_got`); a transfer ends when this number has grown by its size.

    Args:
        clock: The time.
        nodes: How many nodes there are.
        node_rate, store_rate, stream: See `fair_rates`.
        grain: Seconds between two looks at the network, at least: an end or a begin of a transfer is seen at
            most so much too late. 0 is exact, and takes longer.

    Attributes:
        bytes: All bytes that came.
        most: The most transfers at a time.
    """

    def __init__(
        self,
        clock: Clock,
        nodes: int,
        node_rate: float = UNLIMITED,
        store_rate: float = UNLIMITED,
        stream: float = UNLIMITED,
        grain: float = 0.0,
    ) -> None:
        self._clock, self._limits, self._grain = clock, (node_rate, store_rate, stream), grain
        self._counts = np.zeros(nodes, np.int64)
        self._got, self._rates = np.zeros(nodes), np.zeros(nodes)
        self._next = np.full(nodes, math.inf)  # the number at which the next transfer of a node ends
        self._heaps: list[list[tuple[float, int, Transfer]]] = [[] for _ in range(nodes)]
        self._numbers = itertools.count()
        self._seen, self._due = 0.0, math.inf
        self.bytes, self.most = 0.0, 0

    def start(self, node: int, size: int, done: Call) -> Transfer:
        """Send so many bytes to a node."""
        self._advance()
        found = Transfer(node, float(self._got[node]) + size, done)
        heapq.heappush(self._heaps[node], (found.end, next(self._numbers), found))
        self._next[node] = min(float(self._next[node]), found.end)
        self._counts[node] += 1
        self.bytes += size
        self._look_at(self._clock.now if not self._grain else self._seen_next())
        return found

    def give_up(self, transfer: Transfer) -> None:
        """End a transfer before its end; one that has ended stays so."""
        if transfer.alive:
            transfer.alive = False
            self._advance()
            self.bytes -= max(0.0, transfer.end - float(self._got[transfer.node]))
            self._counts[transfer.node] -= 1
            self._look_at(self._clock.now if not self._grain else self._seen_next())

    def _seen_next(self) -> float:
        return math.floor(self._clock.now / self._grain + 1) * self._grain

    def _advance(self) -> None:
        passed = self._clock.now - self._seen
        if passed > 0:
            self._got += self._rates * passed
            self._seen = self._clock.now

    def _look_at(self, when: float) -> None:
        """Look at the network at a time, unless it is looked at before that."""
        if when < self._due:
            self._due = when
            self._clock.at(when, lambda: self._look(when))

    def _look(self, when: float) -> None:
        if when != self._due:
            return  # there was a look before that
        self._due = math.inf
        self._advance()
        ended: list[Transfer] = []
        # Rounding: what comes within a nanosecond has come.
        came = self._got + 1e-3 + 1e-9 * self._rates
        for node in np.flatnonzero(self._next <= came).tolist():
            heap, got = self._heaps[node], float(came[node])
            while heap and (heap[0][0] <= got or not heap[0][2].alive):
                found = heapq.heappop(heap)[2]
                if found.alive:
                    found.alive = False
                    self._counts[node] -= 1
                    ended.append(found)
            self._next[node] = heap[0][0] if heap else math.inf
        self.most = max(self.most, int(self._counts.sum()))
        self._rates = fair_rates(self._counts, *self._limits)
        for found in ended:
            found.done()
        moving = self._rates > 0
        if moving.any():
            left = (self._next[moving] - self._got[moving]) / self._rates[moving]
            soonest = self._clock.now + max(0.0, float(left.min()))
            if self._grain:
                soonest = max(math.ceil(soonest / self._grain) * self._grain, self._seen_next())
            self._look_at(soonest)

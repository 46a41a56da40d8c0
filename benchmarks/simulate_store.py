"""A store as `simulate` has it: how long answers take, how many it gives, and a client with our own rules.

The pauses before another try (`pause_after`), when a slow read is sent twice (`HedgePolicy`) and how many
requests are worth it (`AdaptiveLimit`) are the package's own code, in virtual time.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.simulate_network import Clock, Network, Transfer
from shardstream.storage.options import RequestOptions
from shardstream.storage.transport.concurrency import AdaptiveLimit
from shardstream.storage.transport.hedging import HedgePolicy
from shardstream.storage.transport.retry import pause_after

__all__ = ["Answers", "Client", "Counts", "Prefixes"]


@dataclass(frozen=True)
class Answers:
    """How long a store takes until the first byte of an answer.

    Args:
        points: (share, seconds), rising: so large a share of the answers comes within so many seconds.
            Between two points it is linear.
        connect: Seconds until a new connection can be used.
        refused: The share of requests that are answered with 503, by chance.
    """

    points: tuple[tuple[float, float], ...]
    connect: float
    refused: float = 0.0

    @classmethod
    def by_percentiles(
        cls, p50: float, p95: float, p99: float, connect: float, refused: float = 0.0
    ) -> Answers:
        """The answers of a store of which these percentiles are known, as `shardstream probe` gives them.

        Below the median it is the median. Above p99 the tail goes on as between p95 and p99, exponentially,
        to the slowest of 10,000.
        """
        decade = (p99 - p95) * math.log(10) / math.log(5)  # from p95 to p99 it is a factor of 5
        tail = (0.95, p95), (0.99, p99), (0.999, p99 + decade), (0.9999, p99 + 2 * decade)
        return cls(((0.0, p50), (0.5, p50), *tail, (1.0, p99 + 2 * decade)), connect, refused)

    @classmethod
    def seen(cls, seconds: Sequence[float], connect: float, refused: float = 0.0) -> Answers:
        """The answers of a store that gave some in so many seconds each."""
        found = sorted(seconds)
        last = max(1, len(found) - 1)
        return cls(tuple((number / last, one) for number, one in enumerate(found)), connect, refused)

    def draw(self, drawn: random.Random) -> float:
        """Seconds of one answer."""
        share = drawn.random()
        at = bisect.bisect_right(self.points, (share, math.inf))
        if at == len(self.points):
            return self.points[-1][1]
        (low, least), (high, most) = self.points[at - 1], self.points[at]
        return least + (share - low) / (high - low) * (most - least)

    def at(self, share: float) -> float:
        """The seconds within which a share of the answers comes."""
        return next(seconds for known, seconds in self.points if known >= share)


class Prefixes:
    """How many requests each part of a store's names answers per second; those beyond get 503.

    Args:
        clock: The time.
        count: How many parts the shards lie in, evenly, one behind another.
        per_second: Requests per second of each; what was not used within a second is lost.
    """

    def __init__(self, clock: Clock, count: int, per_second: float) -> None:
        self._clock, self._most = clock, per_second
        self._left = [per_second] * count
        self._at = [0.0] * count
        self.asked: list[dict[int, int]] = [{} for _ in range(count)]  # requests by second

    def take(self, prefix: int) -> bool:
        """Whether a request is answered."""
        now = self._clock.now
        second = self.asked[prefix]
        second[int(now)] = second.get(int(now), 0) + 1
        left = min(self._most, self._left[prefix] + (now - self._at[prefix]) * self._most)
        self._at[prefix] = now
        self._left[prefix] = left - (left >= 1)
        return left >= 1

    @property
    def busiest(self) -> int:
        """The most requests that one part was asked for within a second."""
        return max((max(each.values(), default=0) for each in self.asked), default=0)


@dataclass
class Counts:
    """What all ranks have asked for."""

    requests: int = 0  # tries, hedges included
    refused: int = 0
    hedges: int = 0
    failed: int = 0
    connections: int = 0
    ranges: dict[str, int] = field(default_factory=dict)  # first tries, by what they are for


class Client:
    """The requests of one rank: its connections, tries again, second requests, and the limit it learns.

    Args:
        clock, network, prefixes: Which all ranks share.
        node: Of the rank.
        answers: Of the store.
        options: How often requests are tried.
        drawn: For latencies and refusals.
        counts: Which all ranks share.
    """

    def __init__(
        self,
        clock: Clock,
        network: Network,
        prefixes: Prefixes,
        node: int,
        answers: Answers,
        options: RequestOptions,
        drawn: random.Random,
        counts: Counts,
    ) -> None:
        self._clock, self._network, self._prefixes, self._node = clock, network, prefixes, node
        self._answers, self._options, self._drawn, self._counts = answers, options, drawn, counts
        self.limit, self._hedges = AdaptiveLimit(lambda: clock.now), HedgePolicy()
        self._idle = 0  # connections
        self._waiting: deque[Callable[[], None]] = deque()  # for a connection

    def get(self, size: int, prefix: int, what: str, done: Callable[[], object]) -> None:
        """Ask for bytes; `done` is called when they are there."""
        self._counts.ranges[what] = self._counts.ranges.get(what, 0) + 1
        self._try(size, prefix, done, self._clock.now, 1)

    def warm_up(self, prefix: int) -> None:
        """Open a connection by asking for one byte. No limit learns from it."""
        self._send(1, prefix, lambda answered: None)

    def _try(self, size: int, prefix: int, done: Callable[[], object], began: float, attempt: int) -> None:
        sent, over = self._clock.now, False
        tries: list[_Sent] = []

        def ended(answered: bool) -> None:
            nonlocal over
            self.limit.end(size if answered else 0)
            if not answered:
                self.limit.slow_down()
            if over:
                return
            if not answered and any(not one.ended for one in tries):
                return  # the other one may still be answered
            over = True
            for one in tries:
                if not one.ended:
                    one.give_up()
                    self.limit.end(0)
            if answered:
                if self._options.retry.hedge:
                    self._hedges.took(size, self._clock.now - sent)
                done()
                return
            elapsed = self._clock.now - began
            if attempt >= self._options.retry.attempts:
                self._counts.failed += 1  # the job ends here
            pause = pause_after(self._options, attempt, elapsed, None)
            self._clock.after(pause, lambda: self._try(size, prefix, done, began, attempt + 1))

        def send() -> None:
            self.limit.start()
            tries.append(self._send(size, prefix, ended))

        def again() -> None:
            if not over and self._hedges.take():
                self._counts.hedges += 1
                send()

        send()
        if self._options.retry.hedge and (late := self._hedges.delay(size)) is not None:
            self._clock.after(late, again)

    def _send(self, size: int, prefix: int, ended: Callable[[bool], None]) -> _Sent:
        self._counts.requests += 1
        sent = _Sent(self, size, prefix, ended)
        if self._idle:
            self._idle -= 1
            sent.begin()
            return sent
        # A new connection; if another one becomes free meanwhile, that is taken.
        self._counts.connections += 1
        self._waiting.append(sent.begin)
        self._clock.after(self._answers.connect, self._free)
        return sent

    def _free(self) -> None:
        """A connection can be used."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._idle += 1


class _Sent:
    """One request on its way."""

    def __init__(self, client: Client, size: int, prefix: int, ended: Callable[[bool], None]) -> None:
        self._client, self._size, self._prefix, self._then = client, size, prefix, ended
        self._transfer: Transfer | None = None
        self.ended = self._given_up = False

    def begin(self) -> None:
        client = self._client
        if self._given_up:
            client._free()
            return
        client._clock.after(client._answers.draw(client._drawn), self._answer)

    def _answer(self) -> None:
        client = self._client
        taken = client._prefixes.take(self._prefix)
        if self._given_up:
            return
        refused = client._answers.refused
        if not taken or (refused and client._drawn.random() < refused):
            client._counts.refused += 1
            self._end(False)
        else:
            self._transfer = client._network.start(client._node, self._size, lambda: self._end(True))

    def _end(self, answered: bool) -> None:
        self.ended = True
        self._client._free()
        then, self._then = self._then, _nothing  # no circle stays: nobody collects
        then(answered)

    def give_up(self) -> None:
        """It is not needed any more; its connection is closed."""
        self._given_up = self.ended = True
        self._then = _nothing
        if self._transfer is not None:
            self._client._network.give_up(self._transfer)


def _nothing(answered: bool) -> None: ...

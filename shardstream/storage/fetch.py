"""Fetching: ranges ahead of their use, and each block once."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np

from shardstream.errors import CorruptionError, ShardstreamError, StorageError
from shardstream.storage.blocks import Block
from shardstream.storage.cache import Tiers
from shardstream.storage.claims import Claim
from shardstream.storage.crew import Crew
from shardstream.storage.flights import Flight, Want, ranges
from shardstream.storage.stores import Data
from shardstream.storage.waits import current

__all__ = ["Fetcher"]

_FIRST, _LARGEST = 2 << 20, 8 << 20  # bytes of a range: small at first, so that all blocks come soon
_GROWTH = 16  # a range is at most this part of what was asked for in this epoch
_AHEAD = 1 << 30  # bytes of fetched blocks that wait to be asked for, or a larger RAM tier's
_SPARE = 256 << 20  # so many beside an SSD tier, or without any: only what is needed soon is fetched
_THREADS = 64
_HEAD_START = 1.0  # seconds at most that the first frames of an epoch have the connections for themselves
_DEADLINE = 600.0  # seconds to wait for a fetch of another thread
_PATIENCE = 60.0  # seconds to wait for a fetch of another process, before fetching here, too
_POLLS = (0.002, 0.05)  # seconds between looks at another process's claim, growing


class Fetcher:
    """Gives blocks from the tiers or the store; may be used by many threads.

    load: (url, start, size) -> exactly those bytes, or StorageError.
    """

    def __init__(self, load: Callable[[str, int, int], Data], tiers: Tiers) -> None:
        self._load, self.tiers = load, tiers
        self._crew = Crew(_THREADS)
        # One, so that what is expected first is sent for first, on connections that are free.
        self._planner = Crew(1)
        self._lock = threading.Lock()
        self._flights: dict[Block, Flight] = {}
        self._landed: OrderedDict[Block, Data] = OrderedDict()  # fetched ahead, not yet asked for
        self._ahead = max(_AHEAD, 0 if tiers.memory is None else tiers.memory.limit)
        self._plans = 0  # begun or waiting
        self._begins = False  # the next frames are the first of an epoch
        self._first: list[Future[Data | None]] = []  # these, while nothing else is sent for
        self._given: set[Block] = set()  # meanwhile, to those who were sooner
        self._taken: dict[str, set[int]] = {}  # frames given, or held to be given, by group
        self._waiting: dict[Block, int] = {}  # fetched long before it is needed; only the SSD tier has it
        self._waiting_bytes = 0
        self._landed_bytes = self._later = 0  # bytes; those on their way long before they are needed
        self._asked = 0  # bytes, in this epoch
        self.requests = self.remote_bytes = self.refetches = 0

    def pace(self, most: Callable[[], int]) -> None:
        """Let `most` say, again and again, how many ranges are fetched ahead at once."""
        self._crew.most = most

    def get(self, want: Want) -> Data:
        """The bytes of a block, checked: of a flight, of the nearest tier, or of the store."""
        data = self._get(want)
        self._take(want.block)
        self._asked += len(data)
        return data

    def _get(self, want: Want) -> Data:
        while True:
            with self._lock:
                self._waiting_bytes -= self._waiting.pop(want.block, 0)
                landed = self._pick_up(want.block)
                if landed is not None:
                    self._note(want.block)
                    return landed
                flight = self._flights.get(want.block)
                mine = flight is None
                if flight is None:
                    flight = self._flights[want.block] = Flight(want)
            if mine:
                return self._fly(flight)
            try:
                data = current().result(flight.followed(), _DEADLINE)
            except CancelledError as error:
                raise StorageError(f"{want.url}: given up: the iterator that it was for has ended") from error
            except FutureTimeout as error:
                if flight.future.done():
                    raise
                raise StorageError(f"{want.url}: not read after {_DEADLINE:.0f} s") from error
            if data is not None:
                with self._lock:
                    self._pick_up(want.block)
                    self._note(want.block)
                return data

    def _note(self, block: Block) -> None:
        """A block was given to somebody: plans that were made before are not to fetch it again."""
        if self._plans:
            self._given.add(block)

    def ahead(self, wants: Iterable[Want], first: bool = False) -> None:
        """Fetch these blocks, which will be asked for in this order; returns at once.

        Neighbours in one object come in one range. Errors are raised by `get`.
        first: they do not wait until the first frames of an epoch have come.
        """
        with self._lock:
            self._plans += 1
        self._planner.submit(lambda: self._plan(wants, first))

    @property
    def room(self) -> int:
        """The bytes of a range in which blocks may be fetched that are needed later."""
        if self._begins:
            return 0
        memory, disk, most = self.tiers.memory, self.tiers.disk, self._most
        if disk is None:  # the RAM tier holds the same bytes, so that they cost no more than it may
            free = (_SPARE if memory is None else memory.limit) - self._landed_bytes
        else:
            free = disk.room(self._waiting_bytes) if self._landed_bytes < _SPARE else 0
        return most if free - self._later >= most else 0

    def _take(self, block: Block) -> None:
        number = block.name.partition(".")[0]
        if number.isdigit():
            with self._lock:
                self._taken.setdefault(block.group, set()).add(int(number))

    def taken(self, group: str) -> list[int]:
        """The frames of a group that were given, or are in memory to be given, since `restart`."""
        with self._lock:
            return list(self._taken.get(group, ()))

    def restart(self) -> None:
        """An epoch begins: all may be asked for again, what was fetched long ahead so far perhaps never."""
        with self._lock:
            self._taken.clear()
            self._waiting.clear()
            self._waiting_bytes = 0
        self._begins, self._asked = True, 0

    @property
    def _most(self) -> int:
        return min(max(_FIRST, self._asked // _GROWTH), _LARGEST)

    def ranges(self, wants: Sequence[Want]) -> list[list[Want]]:
        """Neighbours in one object together, what is needed first at first: what `store` takes."""
        flights = ranges([Flight(want) for want in wants], _LARGEST)
        return [[flight.want for flight in run] for run in flights]

    def store(self, wants: Sequence[Want], wait: float) -> list[tuple[Want, ShardstreamError]]:
        """Fetch one of the `ranges` into the tiers, but for what other processes fetch; returns what failed.

        wait: seconds to wait until the SSD tier can take a block.
        """
        flights, failed = [Flight(want) for want in wants], []
        self._range(flights, wait)
        for flight in flights:
            error = flight.future.exception(0)
            if isinstance(error, ShardstreamError):
                failed.append((flight.want, error))
            elif error is not None:
                raise error
            with self._lock:
                self._pick_up(flight.want.block)
        return failed

    def _pick_up(self, block: Block) -> Data | None:
        data = self._landed.pop(block, None)
        if data is not None:
            self._landed_bytes -= len(data)
        return data

    def _fly(self, flight: Flight) -> Data:
        """Fetch one block in this thread."""
        try:
            data = self.tiers.find(flight.want.block)
            if data is None:
                data = self._fetch(flight.want)
        except BaseException as error:
            self._land(flight, _told(error), ahead=False)
            raise
        self._land(flight, data, hold=False, ahead=False)
        return data

    def _fetch(self, want: Want) -> Data:
        claim = self._claim(want.block)
        try:
            # Another process may have fetched it while this one waited.
            data = None if claim is None else self.tiers.find(want.block)
            if data is None:
                data = self._accept(want, self._read(want.url, want.start, want.size))
                self.tiers.keep(want.block, data, claim)
                claim = None
            return data
        finally:
            _release(claim)

    def _claim(self, block: Block) -> Claim | None:
        """The right to fetch a block, as soon as no other process holds it; None without an SSD tier."""
        disk = self.tiers.disk
        if disk is None:
            return None
        deadline, pause, poll = time.monotonic() + _PATIENCE, threading.Event(), _POLLS[0]
        while (claim := disk.claim(block)) is None and time.monotonic() < deadline and not current().over:
            pause.wait(poll)  # locks of other processes can only be polled
            poll = min(2 * poll, _POLLS[1])
        return claim

    def _read(self, url: str, start: int, size: int) -> Data:
        data = self._load(url, start, size)
        with self._lock:
            self.requests += 1
            self.remote_bytes += size
        return data

    def _accept(self, want: Want, stored: Data) -> Data:
        """What is kept of stored bytes; if they were damaged on the way, they are fetched once more."""
        try:
            return want.accept(stored)
        except CorruptionError:
            with self._lock:
                self.refetches += 1
            return want.accept(self._read(want.url, want.start, want.size))

    def _plan(self, wants: Iterable[Want], first: bool) -> None:
        """Cut what is not here yet into ranges, in the order of need, and send for them."""
        fresh: list[Flight] = []
        if not first:
            # The first batch is not to share the connections with what is needed later.
            wait(self._first, _HEAD_START)
            self._first = []
        # An index that cannot be read: whoever asks for its frames is told.
        with contextlib.suppress(ShardstreamError):
            for want in wants:
                with self._lock:
                    if any(want.block in known for known in (self._flights, self._landed, self._given)):
                        continue
                    flight = self._flights[want.block] = Flight(want)
                    self._later += 0 if want.soon else want.size
                # Looked for only now: whoever had it fetched meanwhile would else not be seen.
                if self.tiers.has(want.block):
                    self._land(flight, None)
                else:
                    fresh.append(flight)
        for flights in ranges(fresh, self._most):
            self._crew.submit(functools.partial(self._range, flights))
        if self._begins and not first:
            self._begins, self._first = False, [flight.future for flight in fresh]
        with self._lock:
            self._plans -= 1
            if not self._plans:
                self._given.clear()

    def _range(self, flights: list[Flight], wait: float = 0.0) -> None:
        """Fetch blocks of one object, except those that another process is fetching; nothing is raised."""
        if current().over:
            for flight in flights:
                self._land(flight, None)
            return
        disk = self.tiers.disk
        mine: list[tuple[Flight, Claim | None]] = []
        for flight in flights:
            claim = None if disk is None else disk.claim(flight.want.block)
            if disk is not None and (claim is None or disk.has(flight.want.block)):
                _release(claim)
                self._land(flight, None)
            else:
                mine.append((flight, claim))
        claims = dict(mine)
        for run in ranges([flight for flight, _ in mine], _LARGEST):
            first, last = run[0].want, run[-1].want
            try:
                stored = memoryview(self._read(first.url, first.start, last.start + last.size - first.start))
            except BaseException as error:  # noqa: BLE001  # whoever waits for the blocks is told
                for flight in run:
                    _release(claims[flight])
                    self._land(flight, _told(error))
                continue
            for flight in run:
                want = flight.want
                at = want.start - first.start
                try:
                    # Of several, a copy: a view would hold the whole range for as long as the block is kept.
                    part = stored if len(run) == 1 else _copy(stored[at : at + want.size])
                    data = self._accept(want, part)
                except BaseException as error:  # noqa: BLE001
                    _release(claims[flight])
                    self._land(flight, _told(error))
                else:
                    if want.soon:
                        self._take(want.block)
                    kept = self.tiers.keep(want.block, data, claims[flight], wait)
                    self._land(flight, data, hold=want.soon or not kept)
                    if kept and not want.soon:
                        with self._lock:
                            self._waiting_bytes += want.size - self._waiting.get(want.block, 0)
                            self._waiting[want.block] = want.size

    def _land(
        self, flight: Flight, result: Data | BaseException | None, hold: bool = True, ahead: bool = True
    ) -> None:
        """The flight is over: tell who waits for it, and hold the bytes until they are asked for."""
        block = flight.want.block
        with self._lock:
            if self._flights.get(block) is flight:
                del self._flights[block]
                if ahead:
                    self._later -= 0 if flight.want.soon else flight.want.size
                elif isinstance(result, (bytes, memoryview)):
                    self._note(block)
            if hold and isinstance(result, (bytes, memoryview)):
                self._pick_up(block)
                self._landed[block] = result
                self._landed_bytes += len(result)
                while self._landed_bytes > self._ahead:
                    self._pick_up(next(iter(self._landed)))
        if isinstance(result, BaseException):
            flight.future.set_exception(result)
        else:
            flight.future.set_result(result)


def _copy(data: memoryview) -> memoryview:
    """A copy, made without the GIL; tiers share it with everybody, so that nobody may write to it."""
    return np.frombuffer(data, np.uint8).copy().data.toreadonly()


def _told(error: BaseException) -> BaseException | None:
    """What those hear who wait for a block that this thread could not get."""
    return None if current().over else error  # other iterators are to look again


def _release(claim: Claim | None) -> None:
    if claim is not None:
        claim.release()

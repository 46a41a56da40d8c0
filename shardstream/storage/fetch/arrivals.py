"""Each block once among the threads of a reader: on its way, or here and not asked for yet."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from shardstream.storage.cache.blocks import Block
from shardstream.storage.cache.tiers import Tiers
from shardstream.storage.fetch.ahead import FetchedAhead
from shardstream.storage.fetch.in_flight import BlockRequest, InFlight
from shardstream.storage.transport.backends import Data

__all__ = ["Arrivals"]


class Arrivals:
    """Says of each block whether it is on its way or here; may be used by many threads.

    A block that is here and is then asked for moves to the RAM tier.

    Attributes:
        ahead: The blocks that are here.
    """

    def __init__(self, tiers: Tiers) -> None:
        self.ahead = FetchedAhead(tiers)
        self._tiers = tiers
        self._lock = threading.Lock()
        self._in_flight: dict[Block, InFlight] = {}
        self._plans = 0  # that were announced and are not finished
        self._given: set[Block] = set()  # in the meantime

    def ask(self, request: BlockRequest) -> tuple[Data | InFlight, bool]:
        """A block that is here, or the block on its way; and whether this thread is to fetch it."""
        block = request.block
        with self._lock:
            self.ahead.drop_on_disk(block)
            data = self.ahead.get(block)
            if data is not None:
                return data, False
            found = self._in_flight.get(block)
            if found is not None:
                return found, False
            found = self._in_flight[block] = InFlight(request)
            return found, True

    def given(self, block: Block) -> None:
        """A block was given to a thread that asked for it."""
        data = self.ahead.get(block)
        if data is not None:
            # It moves before it goes: a thread that asks for it now is to find it in one of the two places.
            self._tiers.remember(block, data)
        with self._lock:
            self.ahead.drop(block)
            self._note(block)

    def _note(self, block: Block) -> None:
        if self._plans:
            self._given.add(block)

    @contextlib.contextmanager
    def making_plan(self) -> Iterator[None]:
        """Make a plan that was announced: blocks that were given in the meantime are not sent for."""
        try:
            yield
        finally:
            with self._lock:
                self._plans -= 1
                if not self._plans:
                    self._given.clear()

    def announce_plan(self) -> None:
        """Announce a plan."""
        with self._lock:
            self._plans += 1

    def send(self, request: BlockRequest) -> InFlight | None:
        """A block that is to be fetched ahead; None if it is on its way, is here, or was given by now."""
        block = request.block
        with self._lock:
            if block in self._in_flight or block in self.ahead or block in self._given:
                return None
            found = self._in_flight[block] = InFlight(request)
            self.ahead.sent(request)
            return found

    def end(self, in_flight: InFlight, result: Data | BaseException | None) -> None:
        """A block that a thread has fetched for itself is not on its way any more: tell the other threads."""
        with self._lock:
            self._in_flight.pop(in_flight.request.block, None)
            if isinstance(result, (bytes, memoryview)):
                self._note(in_flight.request.block)
        in_flight.end(result)

    def end_ahead(
        self, in_flight: InFlight, result: Data | BaseException | None, on_disk: bool = False
    ) -> None:
        """A block that was sent for is not on its way any more: tell the threads that wait for it.

        Args:
            in_flight: The block.
            result: Its bytes, which are now here; an error; or None if it was not fetched.
            on_disk: Whether the SSD tier takes it.
        """
        request, arrived = in_flight.request, isinstance(result, (bytes, memoryview))
        give_way: list[tuple[Block, Data]] = []
        with self._lock:
            self._in_flight.pop(request.block, None)
            self.ahead.ended(request)
            if isinstance(result, (bytes, memoryview)):
                if request.soon or not on_disk:
                    give_way = self.ahead.add(request, result)
                else:
                    self.ahead.add_on_disk(request)
                    give_way = [(request.block, result)]
        in_flight.end(result)
        for block, data in give_way:
            self._tiers.remember(block, data)
        if arrived:
            self._tiers.budget.make_room()

    def restart(self) -> None:
        """An epoch begins: all blocks may be asked for again."""
        with self._lock:
            self.ahead.restart()

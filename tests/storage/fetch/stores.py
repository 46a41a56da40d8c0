"""What the tests of fetching share: a store of blocks that is slow, fails or damages."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

from shardstream.errors import CorruptionError, StorageError
from shardstream.storage.cache.blocks import Block
from shardstream.storage.fetch.in_flight import BlockRequest

GROUP = "ab" * 16
SIZE = 1000


class SlowStore:
    """An object of many blocks; loads take a while, and may fail or flip a bit."""

    def __init__(self, blocks: int = 64, delay: float = 0.0) -> None:
        self.data = random.Random(0).randbytes(blocks * SIZE)
        self.delay = delay
        self.loads: list[tuple[int, int]] = []
        self.times: Counter[int] = Counter()
        self.fail: set[int] = set()  # blocks that cannot be read
        self.flip: Counter[int] = Counter()  # blocks that come damaged, so many times
        self._lock = threading.Lock()

    def load(self, url: str, start: int, size: int) -> bytes:
        time.sleep(self.delay)
        data = bytearray(self.data[start : start + size])
        with self._lock:
            self.loads.append((start, size))
            for number in range(start // SIZE, (start + size) // SIZE):
                self.times[number] += 1
                if number in self.fail:
                    raise StorageError(f"{url}: gone")
                if self.flip[number] > 0:
                    self.flip[number] -= 1
                    data[number * SIZE - start] ^= 1
        return bytes(data)

    def part(self, number: int) -> bytes:
        return self.data[number * SIZE : (number + 1) * SIZE]

    def request(self, number: int) -> BlockRequest:
        def accept(stored: bytes) -> bytes:
            if stored != self.part(number):
                raise CorruptionError(f"shard, frame {number}: damaged")
            return stored

        return BlockRequest(Block(GROUP, str(number), SIZE), "shard", number * SIZE, SIZE, accept)


def quiet() -> None:
    """Wait until no thread of ours is at work."""
    deadline = time.monotonic() + 90
    while any(thread.name.startswith("shardstream") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.002)

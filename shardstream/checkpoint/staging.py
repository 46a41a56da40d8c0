"""Memory that tensors are copied into. Its blocks are kept: fresh memory costs several times as much."""

from __future__ import annotations

import contextlib
import mmap
import sys
import threading
from collections.abc import Callable

from shardstream.checkpoint.layout import BLOCK

__all__ = ["BlockPool", "allocated"]


def allocated(size: int) -> memoryview:
    """Memory of pages that cost nothing until they are written to. It is pinned in a process that uses CUDA.

    A GPU copies into pinned memory several times as fast.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # no more memory can be pinned
            found: memoryview = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().data
            return found
    return memoryview(mmap.mmap(-1, size))


class BlockPool:
    """Blocks of 8 MiB, at most so many bytes in all; for many threads.

    Args:
        limit: Bytes; at least one block is there.
        allocate: From a size to writable memory.
    """

    def __init__(self, limit: int, allocate: Callable[[int], memoryview] = allocated) -> None:
        self._count = max(1, limit // BLOCK)
        self._allocate = allocate
        self._free: list[memoryview] = []
        self._made = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """Bytes that all blocks have at most."""
        return self._count * BLOCK

    @property
    def held(self) -> int:
        """Bytes of the blocks that were made; they are kept."""
        return self._made * BLOCK

    def take(self, stopped: Callable[[], bool] = lambda: False) -> memoryview | None:
        """A block; waits until one is free.

        Args:
            stopped: Asked when blocks come back: whether to give up. `wake` makes a waiting thread ask.

        Returns:
            Memory of 8 MiB; None if it was given up.
        """
        with self._changed:
            while not stopped():
                if self._free:
                    return self._free.pop()  # the one used last, whose pages are there
                if self._made < self._count:
                    self._made += 1
                    break
                self._changed.wait()
            else:
                return None
        try:
            return self._allocate(BLOCK)
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise

    @property
    def empty(self) -> bool:
        """Whether `take` would wait."""
        with self._changed:
            return not self._free and self._made >= self._count

    def give(self, block: memoryview) -> None:
        """Give back a block that was taken."""
        with self._changed:
            self._free.append(block)
            self._changed.notify()

    def wake(self) -> None:
        """Make waiting threads ask whether to give up."""
        with self._changed:
            self._changed.notify_all()

    def drop(self) -> None:
        """Free the memory of all blocks that are not in use."""
        with self._changed:
            self._made -= len(self._free)
            self._free.clear()
            self._changed.notify_all()

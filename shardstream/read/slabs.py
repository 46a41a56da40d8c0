"""Memory for batches."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

__all__ = ["Slabs"]

_IDLE = 8  # slabs that wait to be used again


class Slabs:
    """Memory for batches, used again as soon as no batch refers to it any more."""

    class _Owner(np.ndarray):
        """An array that numpy keeps as the base of its views, so that its end can be seen."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes, their content undefined."""
        raw = None
        while self._free and (raw is None or len(raw) < size):
            raw = self._free.pop()  # smaller ones are of the first, short units: let them go
        if raw is None or len(raw) < size:
            raw = np.empty(size, np.uint8)
        owner = raw.view(self._Owner)
        weakref.finalize(owner, self._give_back, raw).atexit = False
        return np.asarray(owner[:size])

    def _give_back(self, raw: NDArray[np.uint8]) -> None:
        if len(self._free) < _IDLE:
            self._free.append(raw)

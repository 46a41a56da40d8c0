"""How many bytes of memory values take, roughly. Batches that were built are counted by it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

__all__ = ["Sizes", "memory_of"]

_RECENT = 32  # batches whose sizes are remembered
_SOMETIMES = 8  # of small batches, one in this many is measured
_MOST = 20_000  # values that are looked at in one batch
_FEW = 32  # values that are looked at in a list of numbers or texts
_PLAIN = (str, bytes, int, float, bool, type(None))


class Sizes:
    """The bytes of the last batches, and what the next batch may have.

    Threads may lose a size to each other: these are estimates.
    """

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._seen = 0

    @property
    def expected(self) -> int | None:
        """The bytes that the next batch may have: those of the largest of the last batches. None at first."""
        return max(tuple(self._recent), default=None)

    def of(self, batch: Any, least: int) -> int:
        """The bytes of a batch. If all batches are smaller than `least` bytes, only some are measured."""
        expected = self.expected
        self._seen += 1
        if expected is not None and expected < least and self._seen % _SOMETIMES:
            return expected
        found = memory_of(batch)
        self._recent.append(found)
        return found


def memory_of(value: Any) -> int:
    """The bytes of this machine's memory that a value takes. Memory that is shared is counted once."""
    total, left, seen = 0, [value], set[int]()
    for _ in range(_MOST):
        if not left:
            break
        one = left.pop()
        if isinstance(one, _PLAIN):
            total += sys.getsizeof(one)
            continue
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            total += sys.getsizeof(one)
            left += one.keys()
            left += one.values()
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            total += sys.getsizeof(one)
            if len(one) > _FEW and isinstance(next(iter(one)), _PLAIN):
                some = list(one)[:: len(one) // _FEW]
                total += sum(map(sys.getsizeof, some)) * len(one) // len(some)
            else:
                left += one
        else:
            try:
                total += _buffer(one, seen, left)
            except Exception:  # noqa: BLE001 - attributes of foreign objects may do anything
                total += sys.getsizeof(one, 64)
    return total


def _buffer(one: Any, seen: set[int], left: list[Any]) -> int:
    """The bytes of an array, a tensor, an image or any other object; puts its parts on `left`."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(one, torch.Tensor):
        if one.device.type != "cpu":
            return 0
        if one.layout != torch.strided:
            return int(one.element_size() * one.numel())
        storage = one.untyped_storage()
        return _once(storage.data_ptr(), storage.nbytes(), seen)
    while (base := getattr(one, "base", None)) is not None and hasattr(base, "nbytes"):
        one = base  # a view: all of the array behind it stays in memory
    nbytes = getattr(one, "nbytes", None)
    if isinstance(nbytes, int):
        kind = getattr(getattr(one, "dtype", None), "kind", "")
        if kind == "O":
            left += one.ravel().tolist()
        where = getattr(one, "__array_interface__", None)
        return nbytes if where is None else _once(where["data"][0], nbytes, seen)
    if callable(getattr(one, "getbands", None)):  # an image of PIL
        width, height = one.size
        return int(width * height * len(one.getbands()))
    left += getattr(one, "__dict__", {}).values()
    left += [getattr(one, name, None) for name in getattr(type(one), "__slots__", ()) if name != "__dict__"]
    return sys.getsizeof(one, 64)


def _once(where: int, nbytes: int, seen: set[int]) -> int:
    if not nbytes or where in seen:
        return 0
    seen.add(where)
    return nbytes

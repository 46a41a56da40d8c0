"""The arrays of an index file, which is a file of safetensors: views of its bytes, without pickle."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from shardstream.errors import CorruptionError

__all__ = ["ArrayFile"]

_DTYPES = {
    "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I32": "<i4", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


class _Entry(msgspec.Struct):
    """An array in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class ArrayFile:
    """An index file as arrays, which are no copies. The safetensors library would copy each twice.

    Args:
        data: The content of the file, or of its beginning: then only the arrays that lie in it can be taken.
        where: The name of the file, for messages.

    Attributes:
        names: The names of all arrays, in the order of the header.

    Raises:
        CorruptionError: It is no index file.
    """

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        self._data, self._where = data, where
        try:
            (length,) = struct.unpack_from("<Q", data)
            self._begin = 8 + length
            self._header = msgspec.json.decode(data[8 : self._begin], type=dict[str, _Entry])
        except (msgspec.DecodeError, struct.error, ValueError) as error:
            raise self._damaged(error) from error
        self.names = dict.fromkeys(self._header).keys()

    def end_of(self, names: Iterable[str]) -> int:
        """Where the last byte of these arrays ends in the file.

        Raises:
            CorruptionError: There is no such array.
        """
        try:
            ends = [self._header[name].data_offsets[1] for name in names]
        except KeyError as error:
            raise self._damaged(error) from error
        return int(self._begin) + max(ends)

    def take(self, wanted: set[str], others: set[str]) -> dict[str, npt.NDArray[Any]]:
        """The arrays `wanted`.

        Raises:
            CorruptionError: The file does not have just these and `others`, or one is damaged.
        """
        try:
            arrays = {name: self._array(name) for name in self._header if name in wanted}
        except (ValueError, KeyError) as error:
            raise self._damaged(error) from error
        if self.names != wanted | others:
            raise CorruptionError(f"{self._where}: the index holds the arrays {sorted(self.names)}")
        return arrays

    def _array(self, name: str) -> npt.NDArray[Any]:
        entry, data, begin = self._header[name], self._data, self._begin
        dtype, (first, last) = np.dtype(_DTYPES[entry.dtype]), entry.data_offsets
        count = math.prod(entry.shape)
        if min(first, *entry.shape) < 0 or last - first != count * dtype.itemsize or begin + last > len(data):
            raise ValueError(f"the array {name} of shape {entry.shape} is not at {first} to {last}")
        found = np.frombuffer(data, dtype, count, begin + first) if count else np.empty(0, dtype)
        return found.reshape(entry.shape)

    def _damaged(self, error: Exception) -> CorruptionError:
        return CorruptionError(f"{self._where}: not an index file ({error})")

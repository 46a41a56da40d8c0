"""The .idx file of Megatron: where the documents of a .bin file begin."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from shardstream.errors import SourceError
from shardstream.packing.sources.base import TokenDtype
from shardstream.storage.inputs import open_input, read_into
from shardstream.storage.store import Options, redact

MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}
# What a dtype is stored as. Signed ones hold ids too; an id below 0 is found when it is read.
_STORED: dict[str, TokenDtype] = {
    "uint8": "uint16", "int16": "uint16", "uint16": "uint16", "int32": "uint32", "int64": "uint32",
}  # fmt: skip
_DOCUMENTS = 1 << 16  # at once
_SEQUENCES = 1 << 20  # at once


class MegatronIndex:
    """An open .idx file. Only what is asked for is read.

    Args:
        file: The .idx file.
        size: Its size in bytes.
        data_size: The size of the .bin file in bytes.
        where: The .idx file, for messages.

    Raises:
        SourceError: It is no such file, it is damaged, or it does not belong to the .bin file.
    """

    def __init__(self, file: BinaryIO, size: int, data_size: int, where: str) -> None:
        self._file, self._where, self._data_size = file, where, data_size
        if size < _HEAD.size:
            raise SourceError(f"{where}: {size} bytes are no Megatron index")
        magic, version, code, self._sequences, entries = _HEAD.unpack(self._read(0, _HEAD.size))
        if magic != MAGIC or version != 1:
            raise SourceError(f"{where}: it is no Megatron index of version 1")
        name = _DTYPES.get(code, f"of code {code}")
        if name not in _STORED:
            raise SourceError(f"{where}: its numbers are {name}, which are no token ids")
        self.dtype: np.dtype[Any] = np.dtype(name).newbyteorder("<")
        self.stored = _STORED[name]
        self.documents = entries - 1
        self._pointers = _HEAD.size + 4 * self._sequences
        self._starts = self._pointers + 8 * self._sequences
        if not entries or self._starts + 8 * entries > size:
            raise SourceError(
                f"{where}: {size} bytes are too few for {self._sequences} sequences and {entries} documents; "
                "is it cut off?"
            )

    def bounds(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """The byte at which each document begins, and the byte behind the last.

        Args:
            first: The number of the first document.
            last: The number behind that of the last.

        Returns:
            Bytes in the .bin file, [last - first + 1].

        Raises:
            SourceError: The numbers of the index do not fit together.
        """
        wanted = self._numbers(self._starts + 8 * first, last - first + 1, np.dtype("<i8"))
        found = np.full(len(wanted), self._data_size, np.int64)
        right = bool((np.diff(wanted) >= 0).all())
        right &= int(wanted[0]) >= 0 and int(wanted[-1]) <= self._sequences
        right &= first > 0 or wanted[0] == 0
        right &= last < self.documents or wanted[-1] == self._sequences
        right &= self._sequences > 0 or self._data_size == 0
        stop = int(wanted[-1]) + 1 if right else int(wanted[0])  # nothing is looked up by wrong numbers
        for at in range(int(wanted[0]), stop, _SEQUENCES):
            # One more than are looked up, to compare the end of each with the beginning of the next.
            count = min(_SEQUENCES + 1, int(wanted[-1]) + 1 - at, self._sequences - at)
            if count < 1:
                break
            pointers = self._numbers(self._pointers + 8 * at, count, np.dtype("<i8"))
            sizes = self._numbers(_HEAD.size + 4 * at, count, np.dtype("<i4"))
            ends = pointers + sizes.astype(np.int64) * self.dtype.itemsize
            right &= bool((sizes >= 0).all()) and bool((ends[:-1] == pointers[1:]).all())
            right &= at > 0 or pointers[0] == 0
            right &= at + count < self._sequences or ends[-1] == self._data_size
            here = (wanted >= at) & (wanted < at + count)
            found[here] = pointers[wanted[here] - at]
        if not right:
            raise SourceError(
                f"{self._where}: its documents {first} to {last} do not fit together, or do not fill the "
                f".bin file of {self._data_size} bytes; are both files whole, and of one dataset?"
            )
        return found

    def parts(self, target: int) -> Iterator[tuple[int, int, int, int]]:
        """Runs of documents of about `target` bytes: first document, the one behind, and bytes."""
        start = begun = 0
        for at in range(0, self.documents, _DOCUMENTS):
            upto = min(at + _DOCUMENTS, self.documents)
            bounds = self.bounds(at, upto)
            while bounds[-1] - begun >= target:
                cut = int(np.searchsorted(bounds, begun + target))
                yield start, at + cut, begun, int(bounds[cut])
                start, begun = at + cut, int(bounds[cut])
        if start < self.documents or not self.documents:
            yield start, self.documents, begun, self._data_size

    def _numbers(self, at: int, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        return np.frombuffer(self._read(at, count * dtype.itemsize), dtype)

    def _read(self, at: int, size: int) -> bytearray:
        data = bytearray(size)
        self._file.seek(at)
        read_into(self._file, memoryview(data), self._where)
        return data


@contextmanager
def open_index(url: str, size: int, data_size: int, options: Options) -> Iterator[MegatronIndex]:
    """The index in a .idx file; see `MegatronIndex`."""
    with open_input(url, options) as file:
        yield MegatronIndex(file, size, data_size, redact(url))

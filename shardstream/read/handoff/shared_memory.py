"""Batches through memory that two processes share.

A segment is an anonymous file in memory (memfd) that both processes map. It has no name, so that nothing is
left behind, however the processes end. A batch is pickled with its arrays and tensors out of band (PEP 574).
The pickle and the buffers lie in one segment, and the arrays of the reader are views of it. When the last
view is gone, the segment is used again for a batch of about the same size. A few segments wait for that, and
the others are closed.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.read.buffers import FreeList, lease, rounded
from shardstream.storage.local.maps import map_descriptor

__all__ = ["Message", "Reader", "Writer", "dumped", "placed"]

_ALIGN = 64
_MOST = 512  # how many buffers of a batch may lie outside of its pickle
_LEAST = 1 << 10  # bytes that a buffer has at least, if it lies outside of the pickle
_VIEWED = 64  # how many segments the reader may use; if it has more batches, further ones are copies
_FIT = 4  # a batch fits into a segment if it fills at least 1/4 of it,
_SMALL = 1 << 20  # or if the segment has at most this many bytes
_IDLE = 4  # how many segments may wait to be used again
_HEAD = struct.Struct("<IQQI")
_NUMBER = struct.Struct("<I")
_SPAN = struct.Struct("<QQ")
_CLOSED = 256  # how many closed segments one message may name


class Message(NamedTuple):
    """Where the reader finds a batch.

    Attributes:
        segment: The number of the segment.
        capacity: The bytes of the segment.
        pickled: The bytes of the pickle, which lies at the beginning of the segment.
        spans: (first byte, number of bytes) of each buffer in the segment.
        closed: The numbers of segments that will not be used again.
    """

    segment: int
    capacity: int
    pickled: int
    spans: list[tuple[int, int]]
    closed: list[int]

    def to_bytes(self) -> bytes:
        """The message for a socket."""
        head = _HEAD.pack(self.segment, self.capacity, self.pickled, len(self.closed))
        closed = b"".join(map(_NUMBER.pack, self.closed))
        return head + closed + b"".join(_SPAN.pack(*span) for span in self.spans)

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The message that `to_bytes` made."""
        segment, capacity, pickled, count = _HEAD.unpack_from(data)
        at = _HEAD.size + _NUMBER.size * count
        closed = [number for (number,) in _NUMBER.iter_unpack(data[_HEAD.size : at])]
        return cls(segment, capacity, pickled, list(_SPAN.iter_unpack(data[at:])), closed)


class _Pickler(pickle.Pickler):
    """A pickler that pickles tensors of the CPU as arrays, whose memory then lies outside of the pickle."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor or value.device.type != "cpu":
            return NotImplemented
        try:
            return torch.from_numpy, (value.detach().numpy(),)
        except (TypeError, RuntimeError):  # bfloat16 or sparse: torch pickles them in its own way
            return NotImplemented


def dumped(value: Any, most: int | None = None) -> tuple[memoryview, list[memoryview]]:
    """The pickle of a value, and the larger buffers of the value, which are not in the pickle.

    Args:
        value: Any value that can be pickled.
        most: How many buffers there may be; None for any number.
    """
    views: list[memoryview] = []

    def apart(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if len(view) < _LEAST or len(views) == most:
            return True  # in band
        views.append(view)
        return False

    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=apart).dump(value)
    return file.getbuffer(), views


def placed(views: list[memoryview], at: int) -> tuple[list[tuple[int, int]], int]:
    """Where buffers lie if they are put one after another, each aligned to 64 bytes.

    Args:
        views: The buffers.
        at: The first byte that is free.

    Returns:
        (first byte, number of bytes) of each buffer, and the first byte behind all buffers.
    """
    spans = []
    for view in views:
        at += -at % _ALIGN
        spans.append((at, len(view)))
        at += len(view)
    return spans, at


class Writer:
    """The side of the process that makes batches.

    Args:
        limit: How many bytes of segments may wait to be used again. One segment may wait however large it is.
    """

    def __init__(self, limit: int) -> None:
        self._maps: dict[int, memoryview] = {}
        self._made = 0
        self._free: FreeList[int] = FreeList(limit, _IDLE, lambda size: max(_FIT * size, _SMALL))
        self._closed: list[int] = []  # closed segments, which the reader does not know yet

    @property
    def idle(self) -> int:
        """The bytes of segments that wait to be used again."""
        return self._free.size

    def give_back(self, segment: int) -> None:
        """Let a segment be used again: the reader does not use it any more."""
        self._close(self._free.give_back(segment, len(self._maps[segment])))

    def limit_to(self, limit: int) -> None:
        """Let at most `limit` bytes of segments wait to be used again."""
        self._free.limit = limit
        self._close(self._free.trim())

    def _close(self, segments: list[int]) -> None:
        for segment in segments:
            del self._maps[segment]  # this unmaps it
            self._closed.append(segment)

    def put(self, value: Any) -> tuple[Message, int | None]:
        """Write a value into a segment.

        Returns:
            The message for the reader; and the file of the segment if the reader does not have it yet, else
            None. The caller sends and closes the file.
        """
        pickled, views = dumped(value, _MOST)
        spans, at = placed(views, len(pickled))
        segment, capacity, new = self._take(at)
        memory = self._maps[segment]
        memory[: len(pickled)] = pickled
        for view, (begin, size) in zip(views, spans, strict=True):
            memory[begin : begin + size] = view
        closed, self._closed = self._closed[:_CLOSED], self._closed[_CLOSED:]
        return Message(segment, capacity, len(pickled), spans, closed), new

    def _take(self, size: int) -> tuple[int, int, int | None]:
        free = self._free.take(size)
        if free is not None:
            return free, len(self._maps[free]), None
        segment, capacity = self._made, rounded(size)
        self._made += 1
        file = os.memfd_create("shardstream-batch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, capacity)
            self._maps[segment] = map_descriptor(file, capacity, writable=True)
        except BaseException:
            os.close(file)
            raise
        return segment, capacity, file


class Reader:
    """The side of the process that uses batches.

    Attributes:
        freed: The numbers of the segments that the writer may use again.
    """

    def __init__(self) -> None:
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self.freed: deque[int] = deque()

    def get(self, message: Message, file: int | None) -> Any:
        """The value of a message. Its arrays are views of the segment.

        Args:
            message: What `Writer.put` returned.
            file: The file of the segment if it is new, which is closed here; else None.
        """
        for number in message.closed:
            self._maps.pop(number, None)  # no array refers to it, since it was given back
        if file is not None:
            try:
                mapped = map_descriptor(file, message.capacity, writable=True)
            finally:
                os.close(file)
            self._maps[message.segment] = np.frombuffer(mapped, np.uint8)
        freed, segment = self.freed, message.segment
        memory = lease(self._maps[segment], lambda: freed.append(segment))
        buffers = [memory[begin : begin + size] for begin, size in message.spans]
        if len(self._maps) > _VIEWED:
            buffers = [buffer.copy() for buffer in buffers]
        # To unpickle is safe: the other process of this loader wrote it.
        return pickle.loads(memory[: message.pickled].data, buffers=buffers)  # noqa: S301

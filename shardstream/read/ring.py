"""Batches through memory that two processes share.

A segment is an anonymous file in memory (memfd) that both processes map. It has no name, so that nothing
is left behind however they end. A batch is pickled with its arrays and tensors out of band (PEP 574):
pickle and buffers lie in one segment, and the reader's arrays are views of it. When the last of them is
gone, the segment is used again.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import sys
import weakref
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Message", "Reader", "Writer", "dumped", "placed"]

_ALIGN = 64
_STEP = 1 << 16
_MOST = 512  # buffers that are sent apart from the pickle, and
_LEAST = 1 << 10  # the bytes from which on one is
_VIEWED = 64  # a map holds a descriptor: who keeps more batches than this gets copies of the others
_HEAD = struct.Struct("<IQQ")
_SPAN = struct.Struct("<QQ")


class Message(NamedTuple):
    """What the reader must know: which segment, its size, the pickle's size, and where the buffers lie."""

    segment: int
    capacity: int
    pickled: int
    spans: list[tuple[int, int]]

    def to_bytes(self) -> bytes:
        """The message for a socket."""
        head = _HEAD.pack(self.segment, self.capacity, self.pickled)
        return head + b"".join(_SPAN.pack(*span) for span in self.spans)

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The message that `to_bytes` made."""
        segment, capacity, pickled = _HEAD.unpack_from(data)
        return cls(segment, capacity, pickled, list(_SPAN.iter_unpack(data[_HEAD.size :])))


class _Pickler(pickle.Pickler):
    """Takes tensors for the arrays that they are."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor or value.device.type != "cpu":
            return NotImplemented
        try:
            return torch.from_numpy, (value.detach().numpy(),)
        except (TypeError, RuntimeError):  # bfloat16, sparse: as torch pickles them
            return NotImplemented


def dumped(value: Any, most: int | None = None) -> tuple[memoryview, list[memoryview]]:
    """The pickle of a value, and its larger buffers, at most `most`, which are apart from it."""
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
    """(begin, size) of buffers that lie aligned, one after another, from `at` on; and where they end."""
    spans = []
    for view in views:
        at += -at % _ALIGN
        spans.append((at, len(view)))
        at += len(view)
    return spans, at


class Writer:
    """The process that makes batches."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._free: list[int] = []

    def give_back(self, segment: int) -> None:
        """The reader is done with a segment."""
        self._free.append(segment)

    def put(self, value: Any) -> tuple[Message, int | None]:
        """Write a value; returns the message for the reader, and the file of a segment new to it.

        The file is the caller's to send and to close.
        """
        pickled, views = dumped(value, _MOST)
        spans, at = placed(views, len(pickled))
        segment, capacity, new = self._take(at)
        memory = self._maps[segment]
        memory[: len(pickled)] = pickled
        for view, (begin, size) in zip(views, spans, strict=True):
            memory[begin : begin + size] = view
        return Message(segment, capacity, len(pickled), spans), new

    def _take(self, size: int) -> tuple[int, int, int | None]:
        for place, segment in enumerate(self._free):
            capacity = len(self._maps[segment])
            if size <= capacity:
                del self._free[place]
                return segment, capacity, None
        segment, capacity = len(self._maps), max(1, -(-size // _STEP)) * _STEP
        file = os.memfd_create("shardstream-batch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, capacity)
            self._maps[segment] = mmap.mmap(file, capacity)
        except BaseException:
            os.close(file)
            raise
        return segment, capacity, file


class Reader:
    """The process that uses batches. `freed` holds the segments that the writer may use again."""

    class _Owner(np.ndarray):
        """An array that numpy keeps as the base of its views, so that its end can be seen."""

    def __init__(self) -> None:
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self.freed: deque[int] = deque()

    def get(self, message: Message, file: int | None) -> Any:
        """The value of a message, its arrays views of the segment. Closes the file of a new segment."""
        if file is not None:
            try:
                memory = mmap.mmap(file, message.capacity)
            finally:
                os.close(file)
            self._maps[message.segment] = np.frombuffer(memory, np.uint8)
        owner = self._maps[message.segment].view(self._Owner)
        # Appending to a deque is atomic: the last array may go in any thread, and inside anything.
        weakref.finalize(owner, self.freed.append, message.segment).atexit = False
        buffers = [np.asarray(owner[begin : begin + size]) for begin, size in message.spans]
        if len(self._maps) > _VIEWED:
            buffers = [buffer.copy() for buffer in buffers]
        # Our own other process wrote it.
        return pickle.loads(owner[: message.pickled].data, buffers=buffers)  # noqa: S301

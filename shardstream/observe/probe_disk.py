"""What the disk of a cache does: a file is written with fsync, and read cold."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time

from shardstream.errors import StorageError
from shardstream.observe.probe_limits import Limits
from shardstream.observe.probe_load import latency, sweep
from shardstream.observe.probe_profile import Disk
from shardstream.observe.probe_ranges import Object, Ranges, drop_pages
from shardstream.storage.local_store import LocalStore
from shardstream.storage.named import named

__all__ = ["measure_disk"]

_FILE = 128 << 20  # bytes that are written at most
_PIECE = 1 << 20  # bytes of a write
_SIZES = (4 << 10, 256 << 10, 1 << 20)  # bytes of cold reads
_RANGE = 1 << 20  # bytes of a read of the closed loops: about a frame
_MOST = 32  # concurrency
_SPARE = 0.1  # the part of the free bytes that is written at most


def measure_disk(folder: str, limits: Limits) -> Disk | None:
    """Write a file below `folder`, read it cold, and delete it.

    Raises:
        StorageError: The folder cannot be made or written to.
    """
    with named(f"the cache {folder}"):
        os.makedirs(folder, exist_ok=True)
        free = os.statvfs(folder)
        size = min(_FILE, int(_SPARE * free.f_bavail * free.f_frsize), limits.bytes_left // 4)
        if size < _PIECE:
            limits.note("the disk of the cache: too few bytes are free, or left to the probe")
            return None
        descriptor, path = tempfile.mkstemp(prefix=".shardstream-probe-", dir=folder)
        try:
            try:
                written, seconds = _write(descriptor, size, limits)
            finally:
                os.close(descriptor)
            if not written:
                return None
            where = Object(LocalStore(folder), os.path.basename(path), written)
            ranges = Ranges([where])
            latencies = []
            for number, each in enumerate(_SIZES):
                drop_pages(path)
                part = limits.part(limits.seconds_left / (len(_SIZES) - number + 3), 0.1)
                latencies.append(latency(ranges.read, min(each, written), part))
            closed = sweep(ranges, min(_RANGE, written), limits, _MOST)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    return Disk(written, written / seconds, tuple(one for one in latencies if one is not None), closed)


def _write(descriptor: int, size: int, limits: Limits) -> tuple[int, float]:
    """(bytes written, seconds with fsync)."""
    piece = os.urandom(_PIECE)  # a file system that compresses must not look fast
    written, began = 0, time.monotonic()
    until = began + limits.seconds_left / 2
    while written + _PIECE <= size and time.monotonic() < until and limits.take(_PIECE):
        view = memoryview(piece)
        while view:
            count = os.write(descriptor, view)
            if not count:
                raise StorageError("the disk took no bytes")
            view = view[count:]
        written += _PIECE
    os.fsync(descriptor)
    return written, max(time.monotonic() - began, 1e-6)

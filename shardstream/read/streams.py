"""Shards that are one compressed stream, and can only be entered at their beginning."""

from __future__ import annotations

import io
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import zstandard

from shardstream.errors import CorruptionError
from shardstream.format import frames
from shardstream.format.manifest import ShardInfo
from shardstream.storage.stores import Data

__all__ = ["Streams", "inflate"]

_CHUNK = 1 << 20
_KEPT = 1 << 30  # bytes of decompressed archives, the last one always


class Streams:
    """The uncompressed tars of such shards; the last ones are kept."""

    def __init__(self) -> None:
        self._raw: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: int, info: ShardInfo, stored: Callable[[int], Data], where: str) -> memoryview:
        """The uncompressed tar of a shard; `stored` gives its file."""
        # One at a time: threads that want the same shard must not each decompress it.
        with self._lock:
            raw = self._raw.pop(shard, None)
            if raw is None:
                raw = inflate(info.codec, stored(shard), info.raw_bytes, where)
            self._raw[shard] = raw
            while len(self._raw) > 1 and sum(map(len, self._raw.values())) > _KEPT:
                self._raw.popitem(last=False)
        return raw


def inflate(codec: str, stored: Data, raw_size: int, where: str) -> memoryview:
    """Decompress a whole gzip or zstd file of known raw size, never allocating more than that."""
    file: Any
    # Grown as data comes: `raw_size` may be a damaged manifest's.
    raw = bytearray()
    try:
        if codec == "gzip":
            import gzip

            file = gzip.GzipFile(fileobj=io.BytesIO(stored))
        else:
            file = zstandard.ZstdDecompressor(max_window_size=1 << frames.WINDOW_LOG_MAX).stream_reader(
                io.BytesIO(stored), read_across_frames=True
            )
        while len(raw) < raw_size:
            chunk = file.read(min(_CHUNK, raw_size - len(raw)))
            if not chunk:
                break
            raw += chunk
        extra = len(file.read(1) or b"")
    except (zstandard.ZstdError, OSError, EOFError, zlib.error) as error:
        raise CorruptionError(f"{where}: the {codec} stream is damaged ({error})") from error
    if len(raw) != raw_size or extra:
        raise CorruptionError(f"{where}: {len(raw) + extra} bytes decompressed, {raw_size} expected")
    return memoryview(raw).toreadonly()

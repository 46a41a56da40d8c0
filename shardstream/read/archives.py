"""Shards that are one compressed stream, which can only be decompressed from its beginning."""

from __future__ import annotations

import io
import logging
import threading
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

from shardstream.errors import CorruptionError
from shardstream.format import frames
from shardstream.format.manifest import ShardInfo
from shardstream.memory import MemoryBudget, RecentValues
from shardstream.storage.transport.backends import Data

__all__ = ["Archives", "inflate"]

log = logging.getLogger("shardstream")

_CHUNK = 1 << 20  # bytes
_SHARE = 3 / 8  # of the budget, for decompressed archives; the last one always stays


class Archives:
    """The uncompressed tars of shards that are one compressed stream. The tars used last stay in memory.

    Args:
        budget: The memory in which the tars count.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._raw: RecentValues[int, memoryview] = budget.recent_values("archives", len, _SHARE)
        self._seen: set[int] = set()
        self._warned = False
        self._lock = threading.Lock()

    def get(self, shard: int, info: ShardInfo, stored: Callable[[int], Data], where: str) -> memoryview:
        """The uncompressed tar of a shard.

        Args:
            shard: The number of the shard.
            info: Its entry in the manifest.
            stored: From a shard to the bytes of its file.
            where: The shard, for messages.

        Raises:
            CorruptionError: The file is damaged.
        """
        # One at a time: several threads that need one shard must not each decompress it.
        with self._lock:
            raw = self._raw.get(shard)
            if raw is None:
                self._warn_if_again(shard, where)
                raw = self._raw.put(shard, inflate(info.codec, stored(shard), info.raw_bytes, where))
        return raw

    def _warn_if_again(self, shard: int, where: str) -> None:
        """Log once that the budget is too small for all archives that are read in turn."""
        if shard in self._seen and not self._warned:
            self._warned = True
            log.warning(
                "%s is decompressed again, as a whole, since only %d MiB of such archives stay in memory; a "
                "larger Cache(ram=) avoids it, and so does packing the data",
                where, self._raw.limit >> 20,
            )  # fmt: skip
        self._seen.add(shard)


def inflate(codec: str, stored: Data, raw_size: int, where: str) -> memoryview:
    """The content of a gzip or zstd file. It never takes more memory than `raw_size`.

    Args:
        codec: "gzip", or "zstd-stream".
        stored: The bytes of the file.
        raw_size: How many bytes the content has to have.
        where: The file, for messages.

    Raises:
        CorruptionError: The file is damaged, or its content has another size.
    """
    file: Any
    # It grows with the data: `raw_size` comes from a manifest, which may be damaged.
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
        raise CorruptionError(frames.damaged(where, f"{codec} stream", error)) from error
    if len(raw) != raw_size or extra:
        raise CorruptionError(f"{where}: {len(raw) + extra} bytes decompressed, {raw_size} expected")
    return memoryview(raw).toreadonly()

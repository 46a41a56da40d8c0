"""One stream of samples to shards: threads compress the frames and write the shards, while samples come in.

Where a shard ends depends on the samples alone, so that the bytes are the same for any number of threads. The
memory is bounded by two frames for each thread, and three shards.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from shardstream.errors import CorruptionError, OptionError, StorageError
from shardstream.format import frames
from shardstream.format.columns import NO_COLUMNS, ColumnValue
from shardstream.format.manifest import ShardInfo
from shardstream.packing.claim import Claim
from shardstream.packing.layout import Layout
from shardstream.packing.open_shard import Output
from shardstream.packing.shard_puts import ShardPuts
from shardstream.packing.writer import SampleWriter, TokenWriter
from shardstream.storage.store import Store

if TYPE_CHECKING:
    import numpy as np

    from shardstream.packing.documents import Document

RECEIPTS = ".pack-shard-"
_WRITES = 2  # complete shards that are written while the next one is made
Stored = bytes | bytearray | memoryview


class Receipt(msgspec.Struct):
    """Says that a shard of an unfinished stream is complete. It is stored as JSON.

    Args:
        shard: The shard.
        content: The checksum of its samples and their keys.
    """

    shard: ShardInfo
    content: str


class Threads:
    """The threads that compress frames and write shards.

    Args:
        layout: How frames are compressed.
        count: How many threads compress.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        self._layout = layout
        self._own = threading.local()
        self._compressing = ThreadPoolExecutor(count, "shardstream-compress")
        self._writing = ThreadPoolExecutor(_WRITES, "shardstream-write")
        self._frames = threading.BoundedSemaphore(2 * count)
        self._shards = threading.BoundedSemaphore(_WRITES)

    def compress(self, raw: bytes) -> Future[Stored]:
        """Compress a frame. This waits while there are enough frames in work."""
        return self._submit(self._compressing, self._frames, lambda: self._compress(raw))

    def write(self, work: Callable[[], ShardInfo]) -> Future[ShardInfo]:
        """Call a function that writes a shard. This waits while there are enough shards in work."""
        return self._submit(self._writing, self._shards, work)

    def stop(self) -> None:
        """End the threads. What has not begun is left out; what has begun is waited for."""
        self._compressing.shutdown(wait=False, cancel_futures=True)
        self._writing.shutdown(wait=False, cancel_futures=True)
        self._compressing.shutdown(wait=True)
        self._writing.shutdown(wait=True)

    def _submit(
        self, pool: ThreadPoolExecutor, bound: threading.BoundedSemaphore, work: Callable[[], Any]
    ) -> Future[Any]:
        bound.acquire()
        try:
            future = pool.submit(work)
        except BaseException:
            bound.release()
            raise
        future.add_done_callback(lambda _: bound.release())
        return future

    def _compress(self, raw: bytes) -> Stored:
        if self._layout.codec == "none":
            return raw  # it is a copy already
        # A compressor is for one thread at a time.
        if not hasattr(self._own, "compress"):
            self._own.compress = frames.compressor(self._layout.codec, self._layout.level)
        stored: Stored = self._own.compress(raw)
        return stored


class _Deferred(SampleWriter):
    """A writer of one shard. Threads compress its frames; without threads it only takes checksums."""

    threads: Threads | None = None

    def begin(self, threads: Threads | None) -> None:
        self.threads = threads
        self._checksum = xxhash.xxh3_128()
        self._pending: deque[tuple[Future[Stored], int, int, bool]] = deque()
        self._sealed = False

    @property
    def full(self) -> bool:
        """Whether the shard ends here."""
        return self._shard.payload >= self._layout.shard_size

    @property
    def payload(self) -> int:
        """The bytes of all samples so far."""
        return self._shard.payload

    @property
    def keys(self) -> list[bytes]:
        """The keys of all samples so far."""
        return self._shard.keys

    def seal(self) -> str:
        """End the last frame; returns the checksum of the content. No sample may be added after this."""
        self._end_frame()
        self._sealed = True
        self._checksum.update(b"\0".join(self._shard.keys))
        if self._shard.values:
            self._checksum.update(repr(self._shard.values).encode("utf-8", "surrogatepass"))
        return self._checksum.hexdigest()

    def finish(self) -> ShardInfo:
        """Write the sealed shard. This may run in another thread."""
        while self._pending:
            stored, size, first, listed = self._pending.popleft()
            self._shard.store_frame(stored.result(), size, first, listed)
        (info,) = self.close()
        return info

    def _put_frame(self, raw: bytes | memoryview, first: int, listed: bool = True) -> None:
        if self._sealed:
            super()._put_frame(raw, first, listed)
            return
        self._checksum.update(raw)
        if self.threads is not None:
            data = raw if isinstance(raw, bytes) else bytes(raw)
            self._pending.append((self.threads.compress(data), len(data), first, listed))


class _DeferredTokens(_Deferred, TokenWriter):
    pass


class ShardStream:
    """Writes one stream of samples, or of documents of tokens, into shards.

    Args:
        store: Where the shards are written.
        layout: How they are cut and compressed. A shard ends at the first sample behind `shard_size`.
        threads: Compress and write.
        name: The number of a shard and how many shards of that number come before it, of its place k in the
            stream. No two shards may have the same.
        dtype: The dtype of the tokens; None for samples.
        resume: Whether to compare the stream with the shards of an unfinished one, and to leave out what is
            there.
        claim: By which it may write there; see `ShardPuts`. None: no one else does.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        threads: Threads,
        name: Callable[[int], tuple[int, int]],
        dtype: np.dtype[np.generic] | None = None,
        resume: bool = False,
        claim: Claim | None = None,
    ) -> None:
        self._store = store
        self._output: Output = store if claim is None else ShardPuts(store, claim)
        self._layout = layout
        self._threads = threads
        self._name = name
        self._dtype = dtype
        self._found = {one for one in store.list() if one.startswith(RECEIPTS)} if resume else set()
        self._before: Receipt | None = None  # of the open shard, if it is complete already
        self._open: _Deferred | None = None
        self._shards: list[ShardInfo | Future[ShardInfo]] = []
        self.samples = 0
        self._closed_bytes = 0  # of the samples of complete shards

    def add(
        self, key: str, fields: dict[str, bytes], columns: Mapping[str, ColumnValue] = NO_COLUMNS
    ) -> None:
        """Add one sample. Raises SourceError if it cannot be stored; the stream is then as before."""
        shard = self._open
        if shard is None or shard.full:
            shard = self._writer()
        shard.add(key, fields, columns)
        self.samples += 1

    def add_tokens(self, document: Document) -> None:
        """Add one document. Raises SourceError if it cannot be stored; the stream is then as before."""
        shard = self._writer()
        assert isinstance(shard, _DeferredTokens)
        shard.add_tokens(document.key, document.tokens, document.columns)
        self.samples += 1

    @property
    def input_bytes(self) -> int:
        """The bytes of all samples so far."""
        return self._closed_bytes + (0 if self._open is None else self._open.payload)

    def close(self) -> list[ShardInfo]:
        """Write the last shard, and wait for all. Returns all shards in order."""
        if self._open is not None and self._open.keys:
            self._cut()
        return [one if isinstance(one, ShardInfo) else one.result() for one in self._shards]

    def _writer(self) -> _Deferred:
        """The writer of the open shard, which has room."""
        if self._open is not None and self._open.full:
            self._cut()
        if self._open is None:
            number, before = self._name(len(self._shards))
            self._before = self._receipt()
            if self._dtype is None:
                self._open = _Deferred(self._output, number, self._layout, before)
            else:
                self._open = _DeferredTokens(self._output, number, self._layout, self._dtype, before)
            self._open.begin(None if self._before is not None else self._threads)
        return self._open

    def _cut(self) -> None:
        shard, self._open = self._open, None
        assert shard is not None
        content = shard.seal()
        self._closed_bytes += shard.payload
        if self._before is not None:
            if content != self._before.content:
                raise OptionError(self._changed(shard, self._before.shard))
            self._shards.append(self._before.shard)
            return
        for one in self._shards:  # an error of a thread is raised at once, not at the end
            if isinstance(one, Future) and one.done():
                one.result()
        store, receipt = self._store, self._receipt_name()

        def write() -> ShardInfo:
            info = shard.finish()
            store.write(receipt, msgspec.json.encode(Receipt(info, content)))
            return info

        self._shards.append(self._threads.write(write))

    def _receipt_name(self) -> str:
        number, before = self._name(len(self._shards))
        return f"{RECEIPTS}{number:06d}-{before:06d}.json"

    def _receipt(self) -> Receipt | None:
        name = self._receipt_name()
        if name not in self._found:
            return None
        with contextlib.suppress(msgspec.DecodeError, StorageError):
            receipt = msgspec.json.decode(self._store.read(name), type=Receipt)
            if self._store.size(receipt.shard.url) == receipt.shard.bytes:
                return receipt
        return None

    def _changed(self, shard: _Deferred, before: ShardInfo) -> str:
        first = self.samples - len(shard.keys)
        what = f"one of the samples {first:,} to {self.samples - 1:,} has another content"
        with contextlib.suppress(StorageError, CorruptionError):
            from shardstream.format.index import ShardIndex

            index = ShardIndex.from_bytes(
                self._store.read(before.index_url),
                where=self._store.where(before.index_url),
                fields=len(before.fields),
                samples=before.samples,
                frames=before.frames,
                shard_bytes=before.bytes,
                raw_bytes=before.raw_bytes,
            )
            old = index.keys_list(0, before.samples)
            new = [key.decode() for key in shard.keys]
            for number, (one, other) in enumerate(zip(old, new, strict=False)):
                if one != other:
                    what = f"sample {first + number:,} was {one!r}, and is {other!r}"
                    break
            else:
                if len(old) != len(new):
                    what = f"the shard of sample {first:,} had {len(old):,} samples, and has {len(new):,}"
        return (
            f"{self._store.url}: the samples have changed since the unfinished pack began: {what}; "
            "give the same samples to resume, or start again without it"
        )

"""Where the samples of one stream go: into shards as they come, or shuffled over a local disk before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from shardstream.errors import SourceError
from shardstream.format.columns import ColumnValue
from shardstream.format.kinds import COMPRESSED, extension
from shardstream.format.manifest import ShardInfo
from shardstream.packing.documents import Document
from shardstream.packing.layout import Codec, Layout
from shardstream.packing.parts import Dtype
from shardstream.packing.shard_stream import ShardStream, Threads
from shardstream.packing.sources.base import TOKENS, Sample
from shardstream.packing.stream_target import StreamTarget

if TYPE_CHECKING:
    from shardstream.packing.disk_shuffle import Scatter

__all__ = ["StreamOutput"]


class StreamOutput:
    """Puts samples or documents into the shards of a target.

    Args:
        target: The target.
        layout: How shards are cut and compressed.
        codec: The codec. None: as the first sample shows.
        workers: How many threads compress.
        seed: The seed of a shuffle; None: in the order in which they come.
    """

    def __init__(
        self,
        target: StreamTarget,
        layout: Layout,
        codec: Codec | None,
        workers: int,
        seed: int | None,
    ) -> None:
        self._target, self._layout, self._codec = target, layout, codec
        self._workers, self._seed = workers, seed
        self._stream: ShardStream | None = None
        self._spill: Scatter | None = None
        self._dtype: Dtype | None = None
        if seed is not None:
            from shardstream.packing.disk_shuffle import FINE, Scatter

            self._folder = target.spill_folder()
            self._spill = Scatter(self._folder, seed, target.part_number, FINE, layout.shard_size)
            target.held.callback(self._spill.abort)

    @property
    def samples(self) -> int:
        """How many samples there are so far."""
        if self._spill is not None:
            return self._spill.written.samples
        return 0 if self._stream is None else self._stream.samples

    @property
    def input_bytes(self) -> int:
        """The bytes of their fields."""
        if self._spill is not None:
            return self._spill.written.bytes
        return 0 if self._stream is None else self._stream.input_bytes

    def add(self, key: str, fields: dict[str, bytes], columns: Mapping[str, ColumnValue], where: str) -> None:
        """Add a sample.

        Args:
            key: The key of the sample.
            fields: The bytes of each field, by name.
            columns: The values that the index keeps, by name.
            where: Where it came from, for messages.

        Raises:
            SourceError: It cannot be stored. All is then as before.
            StorageError: A shard could not be written, or the local disk is full.
        """
        if self._spill is not None:
            self._codec = self._codec or _codec(fields)
            self._spill.add(Sample(key, fields, where, columns=columns))
            return
        stream = self._stream
        if stream is None:
            stream = self._open(self._codec or _codec(fields))
        stream.add(key, fields, columns)

    def add_document(self, document: Document, dtype: Dtype) -> None:
        """Add a document.

        Args:
            document: The document.
            dtype: How its tokens are stored, the same for all.

        Raises:
            SourceError: It cannot be stored. All is then as before.
            StorageError: A shard could not be written, or the local disk is full.
        """
        self._dtype = dtype
        if self._spill is None:
            (self._stream or self._open(self._codec or "zstd")).add_tokens(document)
        else:
            fields = {TOKENS: document.tokens.tobytes()}
            self._spill.add(Sample(document.key, fields, document.where, columns=document.columns))

    def close(self, reject: Callable[[str, SourceError], None]) -> list[ShardInfo]:
        """Write what is left; returns all shards in order.

        Args:
            reject: Called for a sample of a shuffle that cannot be stored, such as one whose key comes twice:
                where it came from, and why. What it raises ends this.
        """
        if self._spill is not None:
            from shardstream.packing.disk_shuffle import gather, joined

            written = self._spill.close()
            part = self._target.part_number
            for number, span in enumerate(joined(written.bytes, self._layout.shard_size)):
                for sample in gather(self._folder, self._seed or 0, number, 1, span, part):
                    try:
                        self._add_shuffled(sample)
                    except SourceError as error:
                        reject(sample.where, error)
        return [] if self._stream is None else self._stream.close()

    def _add_shuffled(self, sample: Sample) -> None:
        import numpy as np

        stream = self._stream or self._open(self._codec or "zstd")
        if self._dtype is None:
            stream.add(sample.key, sample.fields, sample.columns)
            return
        tokens = np.frombuffer(sample.fields[TOKENS], np.dtype(self._dtype).newbyteorder("<"))
        stream.add_tokens(Document(sample.key, tokens, sample.where, sample.columns))

    def _open(self, codec: Codec) -> ShardStream:
        import numpy as np

        layout = replace(self._layout, codec=codec)
        threads = Threads(layout, self._workers)
        self._target.held.callback(threads.stop)
        dtype = None if self._dtype is None else np.dtype(self._dtype)
        target = self._target
        self._stream = ShardStream(
            target.store, layout, threads, target.name, dtype, target.resume, target.claim
        )
        return self._stream


def _codec(fields: Mapping[str, bytes]) -> Codec:
    """ "none" if most bytes of a sample are compressed already, else "zstd"."""
    packed = sum(len(data) for name, data in fields.items() if extension(name) in COMPRESSED)
    return "none" if 2 * packed > sum(map(len, fields.values())) else "zstd"

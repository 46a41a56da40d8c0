"""TFRecord files of tf.train.Example, plain, gzip or zlib, without TensorFlow."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

from shardstream.errors import SourceError
from shardstream.packing.sources.base import FileSpan, Reject, Sample, Streamed, Task, grouped
from shardstream.packing.sources.crc32c import masked
from shardstream.packing.sources.example import parse
from shardstream.packing.sources.file_keys import based
from shardstream.packing.sources.mds import take
from shardstream.packing.sources.row_source import RowSource
from shardstream.packing.sources.rows import KEYS, Kind
from shardstream.storage.inputs import FileInfo, open_input
from shardstream.storage.store import redact

_HEAD = struct.Struct("<QI")
_CHUNK = 1 << 16


@dataclass(frozen=True)
class TfrecordSource(Streamed, RowSource):
    """tf.train.Examples as rows: a feature is a column, of one value or of a list. All checksums are checked.

    Bytes are the files that they are, and text if they are UTF-8 and are a key or kept.

    See `RowSource` for its arguments.
    """

    name: str = "tfrecord"
    extensions: ClassVar[tuple[str, ...]] = tuple(
        name + compression for name in (".tfrecord", ".tfrecords") for compression in ("", ".gz")
    )

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        """Tasks of about `target` bytes. The lengths in a plain file of more are read, to cut it.

        Raises:
            SourceError: A length does not fit its checksum, or a file is cut off.
        """

        def slices() -> Iterator[list[FileSpan]]:
            for file, base in based(files, self.extensions):
                if file.size <= target:
                    yield [FileSpan(file.url, 0, file.size, file.size, base)]
                else:
                    for start, end in self._cut(file, target):
                        yield [FileSpan(file.url, start, end, file.size, base)]

        return grouped(slices(), target)

    def _cut(self, file: FileInfo, target: int) -> Iterator[tuple[int, int]]:
        """Parts of whole records."""
        where = redact(file.url)
        start = at = 0
        with open_input(file.url, self.storage_options) as stream:
            if _kind(stream, where) == "plain":
                while at < file.size:
                    stream.seek(at)
                    end = at + 16 + _length(take(stream, _HEAD.size, where), where, at)
                    if end > file.size:
                        raise SourceError(f"{where}: it ends inside the record at byte {at}; is it cut off?")
                    if at > start and end - start > target:
                        yield start, at
                        start = at
                    at = end
        yield start, file.size

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span in task.files:
            where = redact(span.url)
            with open_input(span.url, self.storage_options) as file:
                kind = _kind(file, where) if span.size else "plain"
                file.seek(span.start)
                packed = kind != "plain"
                stream = io.BufferedReader(_Inflated(file, kind, where), _CHUNK) if packed else file
                at = span.start
                while packed or at < span.end:
                    head = stream.read(_HEAD.size)
                    if packed and not head:
                        break
                    if len(head) < _HEAD.size:
                        raise SourceError(f"{where}: it ends inside the record at byte {at}; is it cut off?")
                    length = _length(head, where, at)
                    data = take(stream, length, where)
                    (check,) = struct.unpack("<I", take(stream, 4, where))
                    if check != masked(data):
                        raise SourceError(f"{where}: the record at byte {at} does not fit its checksum")
                    yield self._sample(data, span, at, f"{where}, byte {at}")
                    at += 16 + length

    def _sample(self, data: bytes, span: FileSpan, at: int, where: str) -> Sample | Reject:
        names = {*(self.rows.keep or ()), *(KEYS if self.rows.key is None else (self.rows.key,))}
        fields = {column for _, column in self.rows.column or ()}
        try:
            row = parse(data)
            kinds: dict[str, Kind] = {}
            for name, value in row.items():
                if isinstance(value, bytes) and name in names - fields:
                    row[name] = value.decode()
                media = isinstance(value, bytes) and name not in names
                kinds[name] = "bytes" if media else "text" if isinstance(value, bytes) else "other"
            rows = self.rows.of_table(kinds, where)
        except (SourceError, UnicodeDecodeError, struct.error) as error:
            return Reject(where, str(error).removeprefix(f"{where}: "))
        return rows.sample(row, span, at, where)


def _kind(file: BinaryIO, where: str) -> str:
    """plain, gzip or zlib, by the content: a plain file begins with a length and its checksum."""
    file.seek(0)
    head = file.read(_HEAD.size)
    if len(head) == _HEAD.size and masked(head[:8]) == _HEAD.unpack(head)[1]:
        return "plain"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if len(head) > 1 and head[0] & 15 == 8 and int.from_bytes(head[:2], "big") % 31 == 0:
        return "zlib"
    raise SourceError(f"{where}: it begins neither with a record nor as gzip or zlib; is it a TFRecord file?")


def _length(head: bytes, where: str, at: int) -> int:
    length, check = _HEAD.unpack(head)
    if check != masked(head[:8]):
        raise SourceError(f"{where}: the length at byte {at} does not fit its checksum; is it damaged?")
    return int(length)


class _Inflated(io.RawIOBase):
    """The decompressed bytes of a gzip or zlib file, of one or more members."""

    def __init__(self, file: BinaryIO, kind: str, where: str) -> None:
        self._file, self._where, self._bits = file, where, 31 if kind == "gzip" else 15
        self._engine: Any = None
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._input = self._input or self._file.read(_CHUNK)
            if self._engine is None:
                if not self._input:
                    return 0
                self._engine = zlib.decompressobj(self._bits)
            elif not self._input:
                raise SourceError(f"{self._where}: it ends inside its compressed data; is it cut off?")
            try:
                data = self._engine.decompress(self._input, len(buffer))
            except zlib.error as error:
                raise SourceError(f"{self._where}: damaged compressed data ({error})") from error
            self._input = self._engine.unconsumed_tail
            if self._engine.eof:
                self._input, self._engine = self._engine.unused_data, None
            if data:
                buffer[: len(data)] = data
                return len(data)

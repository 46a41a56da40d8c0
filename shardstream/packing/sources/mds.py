"""MDS folders of mosaicml-streaming: index.json and shards, plain or compressed. The reader is our own."""

from __future__ import annotations

import bz2
import io
import itertools
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, cast

import msgspec

from shardstream.errors import SourceError, require
from shardstream.format.frames import damaged
from shardstream.packing.sources.base import FileSpan, Reject, Sample, Task, group, read_whole, relative
from shardstream.packing.sources.file_keys import unique_keys
from shardstream.packing.sources.mds_values import Config, check, kinds, read_row
from shardstream.packing.sources.row_source import RowSource
from shardstream.packing.sources.streams import decompressed
from shardstream.storage.inputs import FileInfo, open_input
from shardstream.storage.store import redact

_INDEX = "index.json"
_CHUNK = 1 << 20


class _File(msgspec.Struct):
    basename: str
    bytes: int


class _Shard(msgspec.Struct):
    version: int
    format: str
    samples: int
    raw_data: _File
    column_names: list[str]
    column_encodings: list[str]
    zip_data: _File | None = None


class _Index(msgspec.Struct):
    version: int
    shards: list[_Shard]


@dataclass(frozen=True)
class MdsSource(RowSource):
    """Samples of MDS folders as rows. Images stay the files they are; arrays become .npy, raw images PNG.

    A shard belongs to the index.json in its folder. Pickles are refused, since to read one may run any code,
    unless `keep` leaves their column out.

    See `RowSource` for its arguments.
    """

    name: str = "mds"
    streams: ClassVar[bool] = True
    extensions: ClassVar[tuple[str, ...]] = (
        ".mds",
        *(f".mds.{c}" for c in ("zstd", "gz", "bz2", "br", "snappy")),
    )
    companions: ClassVar[tuple[str, ...]] = (f"/{_INDEX}",)

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Tasks of about `target` bytes. A plain shard of more is cut by the numbers of its samples.

        Raises:
            SourceError: An index.json is damaged, names a shard that is not there, or an encoding that is
                not known.
        """
        listed = {info.url: info for info in files}
        bundles: list[list[FileSpan]] = []
        for info in files:
            if info.url.endswith(f"/{_INDEX}"):
                bundles += self._folder(listed.pop(info.url), listed, target)
        for info in listed.values():  # what no index names: `read` says so
            bundles.append([FileSpan(info.url, 0, info.size, info.size, "", "?")])
        return group(bundles, target)

    def _folder(self, index: FileInfo, listed: dict[str, FileInfo], target: int) -> Iterator[list[FileSpan]]:
        where, folder = redact(index.url), index.url[: -len(_INDEX)]
        span = FileSpan(index.url, 0, index.size, index.size, "", "index")
        try:
            found = msgspec.json.decode(read_whole(span, self.storage_options), type=_Index)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise SourceError(f"{where}: not the index of an MDS folder ({error})") from error
        shards = []
        for shard in found.shards:
            if (found.version, shard.version, shard.format) != (2, 2, "mds"):
                raise SourceError(
                    f"{where}: {shard.format} of version {shard.version} is not MDS of version 2"
                )
            check(shard.column_names, shard.column_encodings, self.rows, where)
            names = [one.basename for one in (shard.raw_data, shard.zip_data) if one is not None]
            there = [listed.pop(folder + name) for name in names if folder + name in listed]
            if not there:
                raise SourceError(f"{where}: its shard {names[-1]} is not in the input")
            shards.append((there[0], shard))
        bases = unique_keys(relative(info).partition(".mds")[0] for info, _ in shards)
        more = [span]  # the index is counted in the first task
        for (info, shard), base in zip(shards, bases, strict=True):
            samples, label = shard.samples, f"{shard.samples}/{shard.raw_data.bytes}"
            # The bytes of a part are its share; only the numbers of the samples are exact.
            parts = max(1, -(-info.size // target)) if info.url.endswith(".mds") else 1
            parts = max(1, min(parts, samples))
            for part in range(parts):
                start, end = info.size * part // parts, info.size * (part + 1) // parts
                units = (samples * part // parts, samples * (part + 1) // parts)
                yield [*more, FileSpan(info.url, start, end, info.size, base, label, units=units)]
                more = []
        if more:
            yield more

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span in task.files:
            if span.label == "?":
                yield Reject(redact(span.url), f"no {_INDEX} beside it names this file as a shard")
            elif span.label != "index":
                yield from self._shard(span)

    def _shard(self, span: FileSpan) -> Iterator[Sample | Reject]:
        where = redact(span.url)
        first, last = span.units
        with self._open(span) as file:
            (samples,) = struct.unpack("<I", take(file, 4, where))
            if samples != (said := int(span.label.partition("/")[0])):
                raise SourceError(f"{where}: it holds {samples} samples, and {_INDEX} says {said}")
            table = take(file, 4 * (samples + 1), where)
            offsets = struct.unpack(f"<{samples + 1}I", table)
            if offsets[0] < len(table) + 4 or any(a > b for a, b in itertools.pairwise(offsets)):
                raise SourceError(f"{where}: the places of its samples are not in order; is it damaged?")
            config = self._config(take(file, offsets[0] - len(table) - 4, where), where)
            rows = self.rows.of_table(kinds(config), where)
            if first:
                file.seek(offsets[first])
            for number in range(first, last):
                data = take(file, offsets[number + 1] - offsets[number], where)
                place = f"{where}, sample {number}"
                try:
                    row = read_row(data, config)
                # A number that is none is a ValueError, and so are the errors of msgspec and of Unicode.
                except (SourceError, struct.error, ValueError, RecursionError) as error:
                    yield Reject(place, str(error))
                    continue
                yield rows.sample(row, span, number, place)

    def _config(self, data: bytes, where: str) -> Config:
        try:
            config = msgspec.json.decode(data, type=Config)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise SourceError(f"{where}: its header is no MDS ({error})") from error
        if len({len(config.column_names), len(config.column_encodings), len(config.column_sizes)}) != 1:
            raise SourceError(f"{where}: its header names columns without an encoding or a size")
        check(config.column_names, config.column_encodings, self.rows, where)
        return config

    @contextmanager
    def _open(self, span: FileSpan) -> Iterator[BinaryIO]:
        """The bytes of a shard before compression."""
        where, kind = redact(span.url), span.url.rpartition(".")[2]
        with open_input(span.url, self.storage_options) as file:
            if kind in ("br", "snappy"):
                yield self._at_once(span, kind)
            elif kind == "bz2":
                yield cast(BinaryIO, _Bzip2(file, where))
            else:
                yield decompressed(file, where)

    def _at_once(self, span: FileSpan, kind: str) -> BinaryIO:
        # Neither can be read in pieces with what pyarrow has, so that a whole shard is in memory.
        arrow = require("pyarrow", "arrow")
        codec = "brotli" if kind == "br" else kind
        size = int(span.label.partition("/")[2])
        try:
            data = read_whole(span, self.storage_options)
            return io.BytesIO(arrow.decompress(data, size, codec, asbytes=True))
        except (arrow.ArrowException, OSError) as error:
            raise SourceError(damaged(redact(span.url), f"{codec} data", error)) from error


class _Bzip2:
    """A bzip2 file as a stream whose errors name the file."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file, self._where = bz2.BZ2File(file), where

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except (OSError, EOFError) as error:
            raise SourceError(damaged(self._where, "bzip2 data", f"or cut off: {error}")) from error


def take(file: BinaryIO, size: int, where: str) -> bytes:
    """So many bytes of a file. Raises SourceError if there are fewer."""
    # In pieces: memory for a size in a header must not be allocated before the bytes are there.
    parts = []
    while size and (part := file.read(min(size, _CHUNK))):
        parts.append(part)
        size -= len(part)
    if size:
        raise SourceError(f"{where}: it ends {size} bytes too early; is it cut off?")
    return parts[0] if len(parts) == 1 else b"".join(parts)

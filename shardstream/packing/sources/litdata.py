"""LitData folders: index.json and chunks, plain or compressed. The reader is our own."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, ClassVar

import msgspec
import zstandard

from shardstream.errors import OptionError, SourceError
from shardstream.packing.sources.base import (
    FileSpan,
    Reject,
    Sample,
    SourceOptions,
    Task,
    TokenDtype,
    group,
    read_whole,
    relative,
)
from shardstream.packing.sources.file_keys import unique_keys
from shardstream.packing.sources.litdata_arrow import arrow_rows, arrow_samples
from shardstream.packing.sources.litdata_tokens import TOKENS_LOADER, Config, stored_tokens, token_samples
from shardstream.packing.sources.litdata_values import kind, unknown, value
from shardstream.packing.sources.mds import take
from shardstream.packing.sources.mds_values import without
from shardstream.packing.sources.row_source import RowSource
from shardstream.packing.sources.rows import Rows
from shardstream.packing.sources.streams import zstd_stream
from shardstream.storage.inputs import FileInfo, open_input, read_slice, size_of
from shardstream.storage.store import redact

_INDEX = "index.json"
_FRAMED = struct.Struct("<8sHHIII")
_FRAME = struct.Struct("<IIQII")
_MAGIC = b"LDFZ01\0\0"
_LONGEST = 1 << 30  # bytes of a frame
_IN_ARROW = {"str", "int", "float", "bool", "bytes", "json"}  # what LitData may put into Arrow's format


class _Chunk(msgspec.Struct):
    filename: str
    chunk_size: int


class _Head(msgspec.Struct):
    config: Config


class _Index(_Head):
    chunks: list[_Chunk]


@dataclass(frozen=True)
class LitdataSource(RowSource):
    """Samples of LitData folders as rows. Images stay the files they are; arrays and tensors become .npy.

    A nested value is a column such as `more.image`. Chunks of the default loader are read, plain or
    compressed by zstd in each of the three ways, and rows in Arrow's format behind a chunk. Chunks of its
    TokensLoader give a document for each item that was written. What else there is, is refused by its name:
    encryption, other loaders, and pickles, unless `keep` leaves their column out.

    See `RowSource` for its other arguments.

    Args:
        dtype: How the ids of chunks of tokens are stored, if not as they are there.
        token_dtype: None: samples are no documents of tokens. `prepare` finds it.
    """

    dtype: TokenDtype | None = None
    token_dtype: TokenDtype | None = None
    name: str = "litdata"
    streams: ClassVar[bool] = True
    extensions: ClassVar[tuple[str, ...]] = ()  # .bin has many meanings
    takes: ClassVar[frozenset[str]] = RowSource.takes | {"dtype", "eos"}

    @classmethod
    def make(cls, options: SourceOptions) -> LitdataSource:
        if options.dtype not in (None, "uint16", "uint32"):
            raise OptionError(f"dtype={options.dtype!r} must be 'uint16' or 'uint32'")
        return cls(Rows.make(options), options.storage_options, options.dtype)

    def prepare(self, files: Sequence[FileInfo]) -> LitdataSource:
        """The source for these files: their indexes say whether they hold samples or tokens.

        Raises:
            SourceError: An index.json is damaged, or some chunks hold tokens and others do not.
            OptionError: Chunks of tokens have no columns, but one was asked for.
        """
        indexes = [info for info in files if info.url.endswith(f"/{_INDEX}")]
        found = {stored_tokens(self._index(info).config, redact(info.url)) for info in indexes}
        if len(found) > 1 and None in found:
            raise SourceError("some of these chunks hold tokens, and others samples: pack each by itself")
        widest = max(found - {None}, default=None, key=str)
        if widest is None:
            return replace(self, token_dtype=self.rows.token_dtype)
        rows = self.rows
        given = [name for name in ("column", "key", "keep") if getattr(rows, name) is not None]
        if rows.text_key != "text":
            given.append("text_key")
        if given:
            raise OptionError(f"{given[0]} is for columns, and these chunks hold tokens alone")
        return replace(self, token_dtype=self.dtype or widest)

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Tasks of whole chunks, of about `target` bytes.

        Raises:
            SourceError: An index.json is damaged, names a chunk that is not there, or what is not known.
        """
        listed = {info.url: info for info in files}
        bundles: list[list[FileSpan]] = []
        for info in files:
            if info.url.endswith(f"/{_INDEX}"):
                bundles += self._folder(listed.pop(info.url), listed)
        for info in listed.values():  # what no index names: `read` says so
            bundles.append([FileSpan(info.url, 0, info.size, info.size, "", "?")])
        return group(bundles, target)

    def _index(self, index: FileInfo) -> _Index:
        span = FileSpan(index.url, 0, index.size, index.size, "", "index")
        found: _Index = _decode(read_whole(span, self.storage_options), _Index, redact(index.url))
        return found

    def _folder(self, index: FileInfo, listed: dict[str, FileInfo]) -> Iterator[list[FileSpan]]:
        where, folder = redact(index.url), index.url[: -len(_INDEX)]
        span = FileSpan(index.url, 0, index.size, index.size, "", "index")
        found = self._index(index)
        _check(found.config, where)
        # Rows with JSON, and nothing that is a file, are in Arrow's format, which says its columns itself.
        formats = set(found.config.data_format or [])
        if stored_tokens(found.config, where) is None and not {"json"} <= formats <= _IN_ARROW:
            _columns(found.config, self.rows, where)
        chunks = []
        for chunk in found.chunks:
            info = listed.pop(folder + chunk.filename, None)
            if info is None:
                raise SourceError(f"{where}: its chunk {chunk.filename} is not in the input")
            chunks.append((info, chunk.chunk_size))
        bases = unique_keys(relative(info).removesuffix(".bin") for info, _ in chunks)
        more = [span]  # the index is counted in the first task
        for (info, count), base in zip(chunks, bases, strict=True):
            yield [*more, FileSpan(info.url, 0, info.size, info.size, base, "chunk", units=(0, count))]
            more = []
        if more:
            yield more

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        configs: dict[str, Config] = {}
        for span in task.files:
            if span.label == "?":
                yield Reject(redact(span.url), f"no {_INDEX} beside it names this file as a chunk")
            elif span.label == "chunk":
                folder = span.url.rpartition("/")[0]
                if folder not in configs:
                    configs[folder] = self._config(span.url, f"{folder}/{_INDEX}")
                yield from self._chunk(span, configs[folder])

    def _config(self, chunk: str, url: str) -> Config:
        with open_input(chunk, self.storage_options):
            pass  # a folder that is gone is told by the name of the chunk
        data = read_slice(url, 0, size_of(url, self.storage_options), self.storage_options)
        found: Config = _decode(bytes(data), _Head, redact(url)).config
        return found

    def _chunk(self, span: FileSpan, config: Config) -> Iterator[Sample | Reject]:
        where = redact(span.url)
        _check(config, where)
        with open_input(span.url, self.storage_options) as file:
            if self.token_dtype is not None and stored_tokens(config, where) is not None:
                items = _items(file, span, config, where)
                yield from token_samples(items, config, self.token_dtype, self.rows.eos, span)
                return
            found = arrow_rows(file, span, where)
            if found is not None:
                yield from arrow_samples(self.rows, found, span, where)
                return
            columns = _columns(config, self.rows, where)
            rows = self.rows.of_table({name: kind(form) for name, form in columns}, where)
            for number, data in enumerate(_items(file, span, config, where)):
                place = f"{where}, sample {number}"
                try:
                    row = _row(data, columns)
                except (SourceError, struct.error, UnicodeError) as error:
                    yield Reject(place, str(error))
                    continue
                yield rows.sample(row, span, number, place)


def _decode(data: bytes, type_: type[Any], where: str) -> Any:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SourceError(f"{where}: not the index of a LitData folder ({error})") from error


def _check(config: Config, where: str) -> None:
    """Raise SourceError if something of the chunks is not known."""
    if config.encryption is not None:
        raise SourceError(f"{where}: its chunks are encrypted; decrypt them first")
    if config.item_loader not in (None, "PyTreeLoader", TOKENS_LOADER):
        raise SourceError(
            f"{where}: its chunks are for {config.item_loader}, which is not known; pack what its own reader "
            "gives: ss.pack(litdata.StreamingDataset(...), DEST)"
        )
    if config.compression is not None and not config.compression.startswith("zstd"):
        raise SourceError(f"{where}: its compression {config.compression!r} is not known")


def _columns(config: Config, rows: Rows, where: str) -> list[tuple[str, str]]:
    """The name and the format of each column; the format is "" if the column is not read.

    Raises:
        SourceError: Something of the index is not known.
    """
    try:
        version, spec = msgspec.json.decode(config.data_spec or "")
        names = list(_names(spec, ""))
        if version != 1:
            raise ValueError(f"version {version}")
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{where}: its data_spec is not known ({error})") from error
    formats = config.data_format or []
    if len(names) != len(formats):
        raise SourceError(f"{where}: it names {len(names)} columns and {len(formats)} formats")
    plain = [name for name, form in zip(names, formats, strict=True) if kind(form) == "other"]
    read: list[str] = []
    for name, form in zip(names, formats, strict=True):
        reason = unknown(form)
        if reason and rows.reads(name):
            raise SourceError(f"{where}: column {name!r} {reason}. {without(plain)}")
        read.append("" if reason else form)
    return list(zip(names, read, strict=True))


def _names(spec: dict[str, Any], path: str) -> Iterator[str]:
    """The names of the leaves of a tree of dicts, lists and tuples, in order."""
    children = spec["children_spec"]
    match spec["type"]:
        case None:
            yield path or "item"
            return
        case "builtins.dict":
            names = msgspec.json.decode(spec["context"], type=list[str])
        case "builtins.list" | "builtins.tuple":
            names = [str(number) for number in range(len(children))]
        case other:
            raise ValueError(f"a sample of type {other}")
    for name, child in zip(names, children, strict=True):
        yield from _names(child, f"{path}.{name}" if path else name)


def _items(file: BinaryIO, span: FileSpan, config: Config, where: str) -> Iterator[bytes]:
    """The bytes of each sample of a chunk."""
    level = config.compression_level or "chunk" if config.compression else None
    if level == "batch":
        yield from _framed(file, span, where)
        return
    stream = zstd_stream(file, where) if level == "chunk" else file
    count = struct.unpack("<I", take(stream, 4, where))[0]
    _count(count, span, where)
    bounds = struct.unpack(f"<{count + 1}I", take(stream, 4 * (count + 1), where))
    if bounds[0] != 4 * (count + 2):
        raise SourceError(f"{where}: its samples do not begin behind their places; is it damaged?")
    if count and bounds[-1] == bounds[0]:  # as of rows in Arrow's format, which are not behind it
        raise SourceError(f"{where}: its samples have no bytes; is it cut off?")
    for size in _sizes(bounds, where):
        data = take(stream, size, where)
        yield _unzstd(data, where) if level == "sample" else data


def _framed(file: BinaryIO, span: FileSpan, where: str) -> Iterator[bytes]:
    """The bytes of each sample of a chunk in which frames of some samples are compressed."""
    magic, version, _, count, _, frames = _FRAMED.unpack(take(file, _FRAMED.size, where))
    if (magic, version) != (_MAGIC, 1):
        raise SourceError(f"{where}: not a chunk of frames of version 1")
    _count(count, span, where)
    bounds = struct.unpack(f"<{count + 1}I", take(file, 4 * (count + 1), where))
    sizes = _sizes(bounds, where)
    table = list(_FRAME.iter_unpack(take(file, frames * _FRAME.size, where)))
    given = 0
    for first, items, offset, length, size in table:
        file.seek(offset)
        data = _unzstd(take(file, length, where), where, size)
        if first != given or first + items > count or sum(sizes[first : first + items]) != size:
            raise SourceError(f"{where}: its frames do not fit its samples; is it damaged?")
        stream = io.BytesIO(data)
        yield from (stream.read(one) for one in sizes[first : first + items])
        given += items
    if given != count:
        raise SourceError(f"{where}: its frames hold {given} of {count} samples")


def _count(count: int, span: FileSpan, where: str) -> None:
    if count != span.units[1]:
        raise SourceError(f"{where}: it holds {count} samples, and {_INDEX} says {span.units[1]}")


def _sizes(bounds: Sequence[int], where: str) -> list[int]:
    sizes = [end - start for start, end in itertools.pairwise(bounds)]
    if any(size < 0 for size in sizes):
        raise SourceError(f"{where}: the places of its samples are not in order; is it damaged?")
    return sizes


def _unzstd(data: bytes, where: str, size: int | None = None) -> bytes:
    try:
        told = zstandard.get_frame_parameters(data).content_size
        if told > _LONGEST or (size is not None and told != size):
            raise SourceError(f"{where}: a frame of {told} bytes, where {size or _LONGEST} may be")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(1, told))
    except zstandard.ZstdError as error:
        raise SourceError(f"{where}: damaged zstd data ({error})") from error


def _row(data: bytes, columns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The values of a sample: the size of each column, and then all columns."""
    sizes = struct.unpack_from(f"<{len(columns)}I", data)
    at = 4 * len(columns)
    if at + sum(sizes) != len(data):
        raise SourceError(f"its columns are {at + sum(sizes)} bytes, and the sample {len(data)}")
    row: dict[str, Any] = {}
    for (name, form), size in zip(columns, sizes, strict=True):
        row[name] = value(form, data[at : at + size])
        at += size
    return row

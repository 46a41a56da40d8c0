"""Export: a dataset back as plain WebDataset tars, as JSON Lines, as Parquet or as MDS."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from shardstream.errors import CommitError, OptionError, SourceError, StorageError
from shardstream.format.manifest import Manifest
from shardstream.format.names import unescape_key
from shardstream.format.sizes import parse_size
from shardstream.format.tar import TRAILER, member_header, padding
from shardstream.maintain.export_mds import INDEX, MdsFormat
from shardstream.maintain.export_parquet import ParquetFormat
from shardstream.progress import Report, Reporter, with_bar
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Options, Store

ExportFormat = Literal["webdataset", "jsonl", "parquet", "mds"]
FORMATS: tuple[ExportFormat, ...] = ("webdataset", "jsonl", "parquet", "mds")

_REPORT_EVERY = 1024  # samples between calls of progress


class _Format(Protocol):
    """A format of files: how a sample becomes a piece, and pieces a file."""

    def name(self, number: int) -> str: ...
    def encode(self, key: str, fields: dict[str, bytes]) -> Any: ...
    def size(self, piece: Any) -> int: ...
    def join(self, pieces: Sequence[Any]) -> list[bytes]: ...
    def last(self, written: Sequence[tuple[str, int, int]]) -> dict[str, bytes]: ...


@with_bar("exporting")
def export(
    url: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    format: ExportFormat = "webdataset",
    shard_size: str | int = "64MiB",
    storage_options: Options = None,
    progress: Report = None,
) -> int:
    """Write every sample, in natural order, to files such as `shard-000000.tar`.

    Each file is put whole and atomically. After an error the files of this export are deleted. The memory
    is bounded by `shard_size` and one sample.

    Args:
        url: the dataset.
        dest: an empty folder, a path or a URL.
        format: "webdataset" for plain tars with the bytes of each field as they were packed; or "jsonl" for
            lines with `__key__`, the text as `text`, the names of field json, and other fields as text.
            Tokens become lists of numbers, beside the columns that were kept. "parquet" for a column
            `__key__` and one for each field: txt and json are strings, cls is int64, tokens are lists, all
            others are binary; a missing field is null. "mds" for a folder that mosaicml-streaming reads, with
            the same columns, as str, json, int, jpeg, png, ndarray and bytes.
        shard_size: bytes of a file.
        storage_options: for fsspec.
        progress: True shows a bar on stderr; a function is called with a Progress,
            of samples, now and then and at the end.

    Returns:
        The number of samples.

    Raises:
        OptionError: an unknown format, or a size that it cannot have.
        SourceError: for "jsonl", a field that is not text, or two values for one name; for "parquet" and
            "mds", a field that is not what its extension says; for "mds", a sample without one of the fields.
        CommitError: `dest` holds shards already.
        StorageError: no access, or a full disk.
        CorruptionError: the dataset is damaged.
        MissingExtraError: for "parquet", pyarrow is not installed.
    """
    if format not in FORMATS:
        raise OptionError(f"format={format!r}; choose {', '.join(FORMATS)}, or for the command dali-index")
    limit = parse_size(shard_size, "shard_size")
    reader = DatasetReader.open(os.fspath(url), storage_options)
    store = Store.open(os.fspath(dest), storage_options)
    local = store.local_path("")
    if local is not None and os.path.isfile(local.rstrip("/")):
        raise StorageError(f"{store.url}: a file is in the place of the folder; choose another destination")
    if any(
        name.startswith(("shard-", "shard.")) or name in ("manifest.json", INDEX) for name in store.list()
    ):
        raise CommitError(f"{store.url} holds shards already; choose an empty target")
    made = _make(format, reader, limit)
    report, total = Reporter(progress), reader.manifest.samples
    written: list[tuple[str, int, int]] = []
    pieces: list[Any] = []
    size = count = 0

    def put() -> None:
        parts = made.join(pieces)
        written.append((made.name(len(written)), sum(map(len, parts)), len(pieces)))
        store.write(written[-1][0], *parts)

    try:
        for key, fields in reader.iter_samples():
            piece = made.encode(key, fields)
            if pieces and size + made.size(piece) > limit:
                put()
                pieces, size = [], 0
            pieces.append(piece)
            size += made.size(piece)
            count += 1
            if count % _REPORT_EVERY == 0:
                report(samples=count, total_samples=total)
        if pieces:
            put()
        for name, data in made.last(written).items():
            store.write(name, data)
        report(samples=count, total_samples=total)
    except BaseException:
        # Part of an export reads like a whole one, and would block the next attempt.
        for name in (*(name for name, _, _ in written), *made.last(written)):
            with contextlib.suppress(StorageError):
                store.delete(name)
        raise
    return count


def _make(format: ExportFormat, reader: DatasetReader, limit: int) -> _Format:
    if format == "parquet":
        return ParquetFormat(reader.manifest)
    if format == "mds":
        return MdsFormat(reader.manifest, limit)
    return _Lines(reader) if format == "jsonl" else _Tars()


class _Joined:
    """A format whose files are their samples, one after another."""

    suffix = ""
    end = b""

    def name(self, number: int) -> str:
        return f"shard-{number:06d}{self.suffix}"

    def size(self, piece: bytes) -> int:
        return len(piece)

    def join(self, pieces: Sequence[bytes]) -> list[bytes]:
        return [*pieces, self.end]

    def last(self, written: Sequence[tuple[str, int, int]]) -> dict[str, bytes]:
        return {}


class _Tars(_Joined):
    suffix = ".tar"
    end = TRAILER

    def encode(self, key: str, fields: dict[str, bytes]) -> bytes:
        return b"".join(
            part
            for name, data in fields.items()
            for part in (member_header(f"{key}.{name}", len(data)), data, padding(len(data)))
        )


class _Lines(_Joined):
    suffix = ".jsonl"

    def __init__(self, reader: DatasetReader) -> None:
        self._manifest = manifest = reader.manifest
        # The field json of samples has the values of their columns, but tokens have no other field.
        kept = manifest.kind == "tokens" and manifest.columns
        self._columns = _columns(reader) if kept else itertools.repeat({})

    def encode(self, key: str, fields: dict[str, bytes]) -> bytes:
        return msgspec.json.encode(_row(self._manifest, key, fields) | next(self._columns)) + b"\n"


def _columns(reader: DatasetReader) -> Iterator[dict[str, object]]:
    """The values of the columns of each sample, without those that it lacks."""
    for shard, info in enumerate(reader.manifest.shards):
        stored = reader.read_columns(shard)[1]
        rows: list[dict[str, object]] = [{} for _ in range(info.samples)]
        for column in info.columns:
            found = stored[column.name]
            values = found.as_type(column.dtype, column.name).tolist()
            for sample in np.flatnonzero(~found.missing).tolist():
                rows[sample][column.name] = values[sample]
        yield from rows


def _row(manifest: Manifest, key: str, fields: dict[str, bytes]) -> dict[str, object]:
    row: dict[str, object] = {"__key__": unescape_key(key)}
    for name, data in fields.items():
        try:
            values = _values(manifest, name, data)
        except (UnicodeDecodeError, msgspec.DecodeError) as error:
            raise SourceError(
                f"sample {key!r}, field {name!r}: not text; export with --format webdataset"
            ) from error
        for column, value in values.items():
            # Two values for one name: a line could hold only one, and the other would be lost.
            if column in row and row[column] != value:
                raise SourceError(
                    f"sample {key!r}, field {name!r}: a second value for {column!r}; "
                    "export with --format webdataset"
                )
            row[column] = value
    return row


def _values(manifest: Manifest, name: str, data: bytes) -> dict[str, object]:
    if manifest.kind == "tokens":
        return {name: np.frombuffer(data, np.dtype(manifest.fields[0].dtype)).tolist()}
    if name == "json":
        value = msgspec.json.decode(data)
        return value if isinstance(value, dict) else {name: value}
    return {"text" if name == "txt" else name: data.decode()}

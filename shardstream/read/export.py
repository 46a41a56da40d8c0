"""export(): a dataset back as plain WebDataset tars or as JSON Lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from shardstream.errors import CommitError, OptionError, SourceError, StorageError
from shardstream.format.manifest import Manifest
from shardstream.format.names import unescape_key
from shardstream.format.sizes import parse_size
from shardstream.format.tar import TRAILER, member_header, padding
from shardstream.read.reader import DatasetReader
from shardstream.storage.remote import Options, Store

FORMATS = {"webdataset": ".tar", "jsonl": ".jsonl"}

_REPORT_EVERY = 1024  # samples between calls of progress


def export(
    url: str,
    dest: str,
    format: str = "webdataset",
    shard_size: str | int = "64MiB",
    storage_options: Options = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write every sample in natural order to files `shard-000000.tar` or `.jsonl`; returns how many.

    Tars hold the fields' bytes as they were packed. A JSON line holds `__key__`, the text as
    `text`, the keys of field json, and other fields as text; a field that is not text, or two
    values for one name, raise SourceError. Tokens become lists of numbers.

    Each file is put whole and atomically; after an error the files of this export are deleted.
    Memory is bounded by `shard_size` and one sample. `progress` gets (samples written, of all).
    """
    if format not in FORMATS:
        raise OptionError(f"format={format!r}; choose {', '.join(FORMATS)}, or for the command dali-index")
    limit = parse_size(shard_size, "shard_size")
    reader = DatasetReader.open(url, storage_options)
    store = Store.open(dest, storage_options)
    if any(name.startswith("shard-") or name == "manifest.json" for name in store.list()):
        raise CommitError(f"{store.url} holds shards already; choose an empty target")
    end = TRAILER if format == "webdataset" else b""
    pieces = _tars(reader) if format == "webdataset" else _lines(reader)
    written: list[str] = []
    held = bytearray()
    count = 0

    def put() -> None:
        written.append(f"shard-{len(written):06d}{FORMATS[format]}")
        store.write(written[-1], held, end)

    try:
        for piece in pieces:
            if held and len(held) + len(piece) > limit:
                put()
                held = bytearray()
            held += piece
            count += 1
            if progress is not None and count % _REPORT_EVERY == 0:
                progress(count, reader.manifest.samples)
        if held:
            put()
    except BaseException:
        # Part of an export reads like a whole one, and would block the next attempt.
        for name in written:
            with contextlib.suppress(StorageError):
                store.delete(name)
        raise
    return count


def _tars(reader: DatasetReader) -> Iterator[bytes]:
    for key, fields in reader.iter_samples():
        yield b"".join(
            part
            for name, data in fields.items()
            for part in (member_header(f"{key}.{name}", len(data)), data, padding(len(data)))
        )


def _lines(reader: DatasetReader) -> Iterator[bytes]:
    for key, fields in reader.iter_samples():
        yield msgspec.json.encode(_row(reader.manifest, key, fields)) + b"\n"


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

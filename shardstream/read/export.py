"""export(): a dataset back as plain WebDataset tars or as JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from shardstream.errors import CommitError, OptionError, SourceError
from shardstream.format.manifest import Manifest
from shardstream.format.names import unescape_key
from shardstream.format.sizes import parse_size
from shardstream.format.tar import TRAILER, member_header, padding
from shardstream.read.reader import DatasetReader
from shardstream.storage.remote import Options, Store

FORMATS = {"webdataset": ".tar", "jsonl": ".jsonl"}


def export(
    url: str,
    dest: str,
    format: str = "webdataset",
    shard_size: str | int = "64MiB",
    storage_options: Options = None,
) -> int:
    """Write every sample in natural order to files `shard-000000.tar` or `.jsonl`; returns how many.

    Tars hold the fields' bytes as they were packed. A JSON line holds `__key__`, the text as
    `text`, the keys of field json, and other fields as text; a field that is not text raises
    SourceError. Tokens become lists of numbers. Memory is bounded by `shard_size` and one sample.
    """
    if format not in FORMATS:
        raise OptionError(f"format={format!r}; choose {' or '.join(FORMATS)}")
    limit = parse_size(shard_size, "shard_size")
    reader = DatasetReader.open(url, storage_options)
    store = Store.open(dest, storage_options)
    if any(name.startswith("shard-") or name == "manifest.json" for name in store.list()):
        raise CommitError(f"{store.url} holds shards already; choose an empty target")
    end = TRAILER if format == "webdataset" else b""
    held = bytearray()
    files = count = 0
    for piece in _tars(reader) if format == "webdataset" else _lines(reader):
        if held and len(held) + len(piece) > limit:
            store.write(f"shard-{files:06d}{FORMATS[format]}", bytes(held + end))
            files += 1
            held.clear()
        held += piece
        count += 1
    if held:
        store.write(f"shard-{files:06d}{FORMATS[format]}", bytes(held + end))
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
            if manifest.kind == "tokens":
                row[name] = np.frombuffer(data, np.dtype(manifest.fields[0].dtype)).tolist()
            elif name == "json":
                value = msgspec.json.decode(data)
                row |= value if isinstance(value, dict) else {name: value}
            else:
                row["text" if name == "txt" else name] = data.decode()
        except (UnicodeDecodeError, msgspec.DecodeError) as error:
            raise SourceError(
                f"sample {key!r}, field {name!r}: not text; export with --format webdataset"
            ) from error
    return row

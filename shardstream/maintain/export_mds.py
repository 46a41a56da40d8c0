"""Samples to MDS, the format of mosaicml-streaming. Neither that package nor torch is needed for it.

The format has version 2 (streaming/base/format/mds/writer.py of mosaicml-streaming 0.13). A shard is: the
number of samples, uint32; the offset of each sample and of the end, uint32 each; a JSON object with the
names, the encodings and the sizes of the columns; and the samples. A sample is the size, uint32, of each
column that has no fixed size; then the values. Columns are sorted by their names. All numbers are
little-endian.
`index.json` lists the shards.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Sequence
from typing import Any

from shardstream.errors import OptionError, SourceError
from shardstream.format.kinds import extension
from shardstream.format.manifest import Manifest
from shardstream.format.names import unescape_key
from shardstream.maintain.columns import KEY, Column, checked, columns

__all__ = ["INDEX", "MdsFormat"]

INDEX = "index.json"
_ENCODINGS = {"text": "str", "json": "json", "int": "int"}
# Images keep their bytes, which these encodings decode with Pillow.
_IMAGES = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png"}
_UINT32 = struct.Struct("<I")
_MOST = (1 << 32) - 1  # bytes of a shard


class MdsFormat:
    """Makes MDS shards.

    Args:
        manifest: The dataset.
        limit: Bytes of a shard.

    Raises:
        OptionError: A shard of MDS cannot be so large, or a field has the name of the column of keys.
    """

    def __init__(self, manifest: Manifest, limit: int) -> None:
        if limit > _MOST:
            raise OptionError(f"shard_size={limit}: a shard of MDS has less than 4 GiB")
        found = columns(manifest)
        if any(column.name == KEY for column in found):
            raise OptionError(f"a field has the name {KEY!r}, which is the column of keys")
        self._columns = sorted([Column(KEY, "text"), *found])
        self._limit = limit
        names = [column.name for column in self._columns]
        self._config: dict[str, Any] = {
            "column_encodings": [_encoding(column) for column in self._columns],
            "column_names": names,
            "column_sizes": [8 if column.kind == "int" else None for column in self._columns],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": limit,
            "version": 2,
        }
        self._header = json.dumps(self._config, sort_keys=True).encode()

    def name(self, number: int) -> str:
        """The name of a file."""
        return f"shard.{number:05d}.mds"

    def encode(self, key: str, fields: dict[str, bytes]) -> bytes:
        """A sample. Raises SourceError if it cannot be one."""
        head: list[bytes] = []
        body: list[bytes] = []
        for column in self._columns:
            data = unescape_key(key).encode() if column.name == KEY else fields.get(column.name)
            if data is None:
                raise SourceError(
                    f"sample {key!r} has no field {column.name!r}: in MDS all samples have all columns; "
                    "export with --format webdataset or parquet"
                )
            value = _value(column, data, key)
            if column.kind != "int":
                head.append(_UINT32.pack(len(value)))
            body.append(value)
        return b"".join((*head, *body))

    def size(self, piece: bytes) -> int:
        """The bytes that a sample adds to its shard."""
        return len(piece) + _UINT32.size

    def join(self, pieces: Sequence[bytes]) -> list[bytes]:
        """A shard, in parts."""
        start = _UINT32.size * (len(pieces) + 2) + len(self._header)
        offsets = list(itertools.accumulate(map(len, pieces), initial=start))
        if offsets[-1] > _MOST:
            raise SourceError(f"a sample has {len(pieces[-1])} bytes; a shard of MDS has less than 4 GiB")
        table = struct.pack(f"<{len(offsets) + 1}I", len(pieces), *offsets)
        return [table, self._header, *pieces]

    def last(self, written: Sequence[tuple[str, int, int]]) -> dict[str, bytes]:
        """The index of all shards, by name. Of each shard: its name, its bytes, and its samples."""
        shards = [
            {
                **self._config,
                "raw_data": {"basename": name, "bytes": size, "hashes": {}},
                "samples": samples,
                "zip_data": None,
            }
            for name, size, samples in written
        ]
        return {INDEX: json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode()}


def _encoding(column: Column) -> str:
    if column.kind == "tokens":
        return f"ndarray:{column.dtype}"
    if column.kind == "bytes":
        return _IMAGES.get(extension(column.name), "bytes")
    return _ENCODINGS[column.kind]


def _value(column: Column, data: bytes, key: str) -> bytes:
    if column.name == KEY:
        return data
    checked(column, data, key)
    if column.kind == "int":
        return struct.pack("<q", int(data))
    if column.kind == "tokens":
        # One axis, its length as uint32: see NDArray in streaming/base/format/mds/encodings.py.
        if not data:
            raise SourceError(f"document {key!r} has no token, and MDS has no empty arrays")
        count = len(data) // (2 if column.dtype == "uint16" else 4)
        return bytes([1 << 2 | 2]) + _UINT32.pack(count) + data
    return data

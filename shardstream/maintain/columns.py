"""The columns of a dataset, for formats whose files have typed columns: Parquet and MDS."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from shardstream.errors import SourceError
from shardstream.format.kinds import extension
from shardstream.format.manifest import Manifest

__all__ = ["KEY", "Column", "checked", "columns"]

KEY = "__key__"
Kind = Literal["bytes", "text", "json", "int", "tokens"]
_KINDS: dict[str, Kind] = {
    "txt": "text",
    "text": "text",
    "caption": "text",
    "transcript": "text",
    "json": "json",
    "cls": "int",
}
_DIGITS = 18  # of an integer that surely fits 64 bits


class Column(NamedTuple):
    """A column.

    Args:
        name: The name of the field.
        kind: What it holds: "text", "json" as text, "int" of 64 bits, "tokens", or else "bytes".
        dtype: The dtype of tokens; else None.
    """

    name: str
    kind: Kind
    dtype: str | None = None


def columns(manifest: Manifest) -> list[Column]:
    """The columns of a dataset, one for each field. The extension of the field says which kind it is."""
    if manifest.kind == "tokens":
        return [Column(manifest.fields[0].name, "tokens", manifest.fields[0].dtype)]
    return [Column(field.name, _KINDS.get(extension(field.name), "bytes")) for field in manifest.fields]


def checked(column: Column, data: bytes, key: str) -> bytes:
    """`data` itself if the column can hold it so that the same bytes come back.

    Args:
        column: The column.
        data: The bytes of the field.
        key: The key of the sample, for messages.

    Raises:
        SourceError: The column cannot hold it.
    """
    try:
        if column.kind == "text":
            data.decode()
        elif column.kind == "json":
            msgspec.json.decode(data.decode())
        elif column.kind == "int" and (len(data) > _DIGITS or str(int(data)).encode() != data):
            raise ValueError(f"{data[:40]!r} is no whole number in its usual form")
    except (ValueError, msgspec.DecodeError) as error:
        raise SourceError(
            f"sample {key!r}, field {column.name!r}: it is not {column.kind} ({error}); "
            "export with --format webdataset"
        ) from error
    return data

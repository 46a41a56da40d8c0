"""One shard, as the manifest lists it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from shardstream.format.columns import ColumnInfo

__all__ = ["Codec", "ShardInfo", "are_plain", "index_of", "is_inside"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")  # most names: certainly inside
_PLAIN_LINES = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*\n)*\Z")

Codec = Literal["zstd", "none", "gzip", "zstd-stream"]


class ShardInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One shard and its index.

    Args:
        url: The path of the file below the dataset, or the URL of an adopted archive.
        codec: "zstd" for frames of zstd, "none" for a plain tar; "gzip" and "zstd-stream" for an adopted
            archive that is compressed as a whole.
        fields: The columns of the index. Each is a field of the manifest.
        bytes: The size of the file.
        raw_bytes: The size of the tar in the file.
        samples: How many samples there are.
        tokens: How many tokens there are; 0 in a dataset of samples.
        frames: How many frames there are.
        checksum: xxh3_128 of the file, 32 hex digits.
        index_url: The path of the index below the dataset.
        index_bytes: The size of the index.
        index_checksum: xxh3_128 of the index, 32 hex digits.
        grouped: Whether a frame of an adopted archive may be several frames of zstd, or one without its size.
        columns: The columns of values in the index.
        index_head: If there are such columns: the bytes of the index without them. They come first.
        index_head_checksum: xxh3_128 of these bytes, 32 hex digits.
        sparse: Whether the index lists the fields that samples have, since they lack most.
    """

    url: str
    codec: Codec
    fields: tuple[str, ...]
    bytes: int
    raw_bytes: int
    samples: int
    tokens: int
    frames: int
    checksum: str
    index_url: str
    index_bytes: int
    index_checksum: str
    grouped: bool = False
    columns: tuple[ColumnInfo, ...] = ()
    index_head: int = 0
    index_head_checksum: str = ""
    sparse: bool = False


def is_inside(url: str) -> bool:
    """Whether `url` is a relative path that stays within the dataset's root."""
    return bool(_PLAIN.match(url)) or (
        bool(url)
        and not (
            url.startswith("/")
            or "\\" in url
            or "\0" in url
            or _SCHEME.match(url)
            or any(part in ("", ".", "..") for part in url.split("/"))
        )
    )


def are_plain(urls: Sequence[str]) -> bool:
    """Whether all of many URLs are names of which `is_inside` needs no second look: one match for all."""
    lines = "".join([f"{url}\n" for url in urls])
    return lines.count("\n") == len(urls) and bool(_PLAIN_LINES.match(lines))


def index_of(url: str) -> str:
    """The name that an index has by default."""
    return f"{url.removesuffix('.zst').removesuffix('.tar')}.index"

"""What version 0.1 recorded of a pack, so that packs which it began are continued.

It named the input by absolute paths. Everything else in its record is as it is now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from shardstream.storage.inputs import FileInfo
from shardstream.storage.store import redact

_OPTIONS = {
    "format", "compression", "level", "frame_size", "shard_size", "shuffle", "limit", "on_error", "text_key",
    "keep", "resize", "quality",
}  # fmt: skip


def old_record(record: Mapping[str, Any], files: Sequence[FileInfo]) -> dict[str, Any] | None:
    """The record that version 0.1 made of the same pack. None if it had no such pack.

    Args:
        record: The record as it is made now.
        files: The files of the input.
    """
    options = record["options"]
    if record.get("keys") not in (None, "id", "path/id") or any(
        value is not None for name, value in options.items() if name not in _OPTIONS
    ):
        return None
    listing = hashlib.sha256()
    for file in files:
        listing.update(f"{redact(file.url)}\0{file.size}\n".encode("utf-8", "surrogateescape"))
    sources = {
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "first": redact(files[0].url).encode("utf-8", "replace").decode(),
        "listing_sha256": listing.hexdigest(),
    }
    options = {name: value for name, value in options.items() if name in _OPTIONS}
    same = {name: record[name] for name in ("tool", "classes", "tokenizer") if name in record}
    return {**same, "options": options, "sources": sources}


def is_continued(record: Mapping[str, Any]) -> bool:
    """Whether the rest of a pack that version 0.1 began would be packed as it would have been then.

    Args:
        record: The record as it is made now.
    """
    options = record["options"]
    # Several files of rows have other tasks and other keys now, and a shuffle spills other samples.
    one_way = record["sources"]["files"] == 1 or options["format"] in ("text", "images")
    return bool(one_way and record.get("keys") in (None, "id") and options["shuffle"] is None)

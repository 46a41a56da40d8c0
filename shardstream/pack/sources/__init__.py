"""Sources: one file per input format."""

from __future__ import annotations

from collections.abc import Sequence

from shardstream.errors import OptionError
from shardstream.pack.shrink import Shrink
from shardstream.pack.sources import images, jsonl, webdataset
from shardstream.pack.sources.base import FileSpan, Reject, Sample, Source, Task
from shardstream.pack.sources.images import ImagesSource
from shardstream.pack.sources.jsonl import JsonlSource
from shardstream.pack.sources.text import TextSource
from shardstream.pack.sources.webdataset import WebdatasetSource
from shardstream.storage.files import FileInfo
from shardstream.storage.remote import Options, redact

FORMATS = ("jsonl", "text", "images", "webdataset")
_JSONL = tuple(e + c for e in jsonl.EXTENSIONS for c in ("", ".gz", ".zst", ".zstd"))
_TEXT = (
    ".txt",
    ".text",
    ".md",
    ".rst",
    ".tex",
    ".html",
    ".xml",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".py",
    ".rs",
)
_IMAGES = tuple(f".{extension}" for extension in images.EXTENSIONS)
_SIDECARS = tuple(f".{extension}" for extension in images.SIDECARS)


def make_source(
    format: str,
    *,
    text_key: str = "text",
    keep: Sequence[str] | None = None,
    shrink: Shrink | None = None,
    storage_options: Options = None,
) -> Source:
    """The source of a format's name."""
    if shrink is not None and format != "images":
        raise OptionError(f"resize is for --format images, not for {format}")
    if format == "jsonl":
        return JsonlSource(text_key, None if keep is None else tuple(keep), storage_options)
    if format == "text":
        return TextSource(storage_options)
    if format == "images":
        return ImagesSource(shrink, storage_options)
    if format == "webdataset":
        return WebdatasetSource(storage_options)
    raise OptionError(f"unknown format {format!r}; there are {', '.join(FORMATS)}")


def recognise(files: Sequence[FileInfo]) -> str:
    """The format that the files' extensions show, else OptionError."""
    names = [redact(info.url).lower() for info in files]
    if names:
        for name, extensions in (
            ("webdataset", webdataset.EXTENSIONS),
            ("jsonl", _JSONL),
            ("text", _TEXT),
        ):
            if all(path.endswith(extensions) for path in names):
                return name
        if any(path.endswith(_IMAGES) for path in names) and all(
            path.endswith(_IMAGES + _SIDECARS) for path in names
        ):
            return "images"
    raise OptionError(
        f"the extensions of {len(names)} file(s) do not show one format; pass --format ({', '.join(FORMATS)})"
    )


__all__ = [
    "FORMATS",
    "FileSpan",
    "ImagesSource",
    "Reject",
    "Sample",
    "Source",
    "Task",
    "make_source",
    "recognise",
]

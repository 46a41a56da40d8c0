"""Sources: one file for each format of input, and the table of all formats."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal, cast

from shardstream.errors import OptionError
from shardstream.packing.formats import FORMATS, Format
from shardstream.packing.sources.base import (
    FileSpan,
    Reject,
    Sample,
    Source,
    SourceOptions,
    Streamed,
    Task,
)
from shardstream.packing.sources.images import ImagesSource
from shardstream.storage.inputs import FileInfo, Unread, expand, names_database
from shardstream.storage.spool import gathered
from shardstream.storage.store import Options, redact

ENTRY_POINTS = "shardstream.sources"
# Imported when they are asked for: some need packages that are extras, or take long to import.
_CLASSES: dict[str, str] = {
    "webdataset": "webdataset:WebdatasetSource",
    "jsonl": "jsonl:JsonlSource",
    "text": "text:TextSource",
    "images": "images:ImagesSource",
    "bin": "bin:BinSource",
    "parquet": "parquet:ParquetSource",
    "csv": "csv:CsvSource",
    "json": "json:JsonSource",
    "arrow": "arrow:ArrowSource",
    "hf": "hf:HfSource",
    "mds": "mds:MdsSource",
    "litdata": "litdata:LitdataSource",
    "tfrecord": "tfrecord:TfrecordSource",
    "sql": "sql:SqlSource",
    "files": "files:FilesSource",  # behind those that know what they read
}


def source_class(format: str) -> type[Source]:
    """The class of a format.

    Args:
        format: The name of the format, ours or that of an entry point in the group `shardstream.sources`.

    Raises:
        OptionError: There is no such format.
    """
    if format in _CLASSES:
        module, name = _CLASSES[format].split(":")
        found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return cast("type[Source]", found)
    others = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if format in others.names:
        return cast("type[Source]", others[format].load())
    raise OptionError(f"unknown format {format!r}; there are {', '.join([*FORMATS, *sorted(others.names)])}")


def make_source(format: str | Source, options: SourceOptions | None = None) -> Source:
    """The source for a format.

    Args:
        format: The name of the format, or a source, which has its options already.
        options: What was asked for. None: nothing.

    Raises:
        OptionError: There is no such format, or an option is for another format.
    """
    options, usual = options or SourceOptions(), SourceOptions()
    if not isinstance(format, str):
        return _checked(format, options, usual)
    kind = source_class(format)
    for option in fields(SourceOptions):
        given = getattr(options, option.name) != getattr(usual, option.name)
        if given and option.name not in kind.takes | {"storage_options"}:
            takers = [name for name in FORMATS if option.name in source_class(name).takes]
            raise OptionError(f"{option.name} is for --format {' or '.join(takers)}, not for {format}")
    return kind.make(options)


def _checked(source: Source, options: SourceOptions, usual: SourceOptions) -> Source:
    """`source` if it is one and no option was given beside it."""
    missing = [
        name
        for name in ("name", "options", "plan", "read")
        if isinstance(source, type) or not hasattr(source, name)
    ]
    if missing:
        raise OptionError(f"format={source!r} is neither a name nor a Source: it has no {missing[0]}")
    for option in fields(SourceOptions):
        if option.name != "storage_options" and getattr(options, option.name) != getattr(usual, option.name):
            raise OptionError(f"{option.name} is an option of {source.name}: give it to the Source itself")
    return source


def input_files(
    urls: Sequence[str],
    format: str | Source | None,
    storage_options: Options,
    unread: Unread | None,
    markers: Unread,
) -> Sequence[FileInfo]:
    """The files that URLs name, or the databases; see `expand`.

    Args:
        urls: What the user named.
        format: The option `format`. The URLs of databases are recognised without it.
        storage_options, unread, markers: As for `expand`.
    """
    kind = source_class(format) if isinstance(format, str) else format
    if getattr(kind, "is_database", False):
        return [FileInfo(url, 0, "") for url in urls]
    return expand(urls, storage_options, unread, markers)


def recognise(files: Sequence[FileInfo], storage_options: Options = None) -> Format:
    """The format of files by their extensions; of .json files by the content of the first that is not empty.

    Databases are recognised by the schemes of their URLs.

    Raises:
        OptionError: They do not show one format.
    """
    if files and all(names_database(info.url) for info in files):
        return "sql"
    # Seen through once, with all formats that are possible so far: there may be very many files.
    kinds = {known: source_class(known) for known in FORMATS}
    allowed = {
        known: kind.extensions + _beside(kind, "companions") + _beside(kind, "left_out")
        for known, kind in kinds.items()
    }
    shown, left, ends = set[str](), list(FORMATS), set[str]()
    for info in files:
        path = redact(info.url).lower()
        left = [known for known in left if path.endswith(allowed[known])]
        shown.update(known for known in left if known not in shown and path.endswith(kinds[known].extensions))
        ends.add(os.path.splitext(path)[1] or "none")
    for known in left:
        if known in shown:
            kind = kinds[known]
            return "json" if known == "jsonl" and _is_json(kind, files, storage_options) else known
    some = ", ".join(sorted(ends)[:5]) + (", ..." if len(ends) > 5 else "")
    raise OptionError(
        f"the extensions of {len(files)} file(s) ({some}) do not show one format; pass --format "
        f"({', '.join(FORMATS)}). files takes all of them, those of one name as a sample"
    )


def _beside(kind: type[Source], attribute: Literal["companions", "left_out"]) -> tuple[str, ...]:
    """The ends of the names of files that may lie beside those by which a format is recognised.

    A source reads its `companions`. `pack` keeps what is `left_out` from it.
    """
    found: tuple[str, ...] = getattr(kind, attribute, ())
    return found


def without_companions(
    format: str, files: Sequence[FileInfo]
) -> tuple[Sequence[FileInfo], list[tuple[str, str]]]:
    """The files of a folder that its source reads, and where the others are, and why they are none.

    Args:
        format: The name of the format.
        files: The files of the input. Those that were named by themselves are always read.
    """
    kind = source_class(format)

    def is_data(file: FileInfo) -> bool:
        return _is_data(kind, file, redact(file.url).lower())

    odd = [file for file in files if not is_data(file)] if _beside(kind, "left_out") else []
    if not odd or len(odd) == len(files):
        return files, []
    here = "a file that tools write beside the data"
    read = gathered(filter(is_data, files), tuple, FileInfo._make)
    return read, [(redact(file.url), here) for file in odd]


def _is_data(kind: type[Source], file: FileInfo, path: str) -> bool:
    """Whether a file is not left out; `path` is its URL in lower case."""
    return not (file.root and path.endswith(_beside(kind, "left_out")))


def _is_json(kind: type[Source], files: Sequence[FileInfo], storage_options: Options) -> bool:
    # One file is looked at: a request for each would take long. The format json reads lines, too.
    from shardstream.packing.sources.json import JsonSource, is_lines

    first: FileInfo | None = None
    for file in files:
        path = redact(file.url).lower()
        if not _is_data(kind, file, path):
            continue
        if not path.endswith(JsonSource.extensions):
            return False
        first = file if first is None and file.size else first
    return first is not None and not is_lines(first.url, storage_options)


__all__ = [
    "FORMATS",
    "FileSpan",
    "Format",
    "ImagesSource",
    "Reject",
    "Sample",
    "Source",
    "SourceOptions",
    "Streamed",
    "Task",
    "input_files",
    "make_source",
    "recognise",
    "source_class",
    "without_companions",
]

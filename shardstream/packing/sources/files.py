"""Any files, grouped by their names: audio with text, video with JSON, images with masks."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shardstream.errors import OptionError, SourceError
from shardstream.format.names import escape_key
from shardstream.packing.columns import columns_of
from shardstream.packing.sources import metadata
from shardstream.packing.sources.base import (
    NO_COUNTS,
    FileSpan,
    Reject,
    Sample,
    SourceOptions,
    Streamed,
    Task,
    grouped,
    read_whole,
    relative,
)
from shardstream.packing.sources.encoded import field_bytes, text_bytes
from shardstream.packing.sources.file_keys import keyed
from shardstream.packing.sources.rows import find, kept, key_of
from shardstream.packing.sources.windows import windows
from shardstream.storage.inputs import FileInfo
from shardstream.storage.store import Options, redact

_ROW = "/row"  # stands for the field in the span of a row of metadata: no field has a slash in its name
# What may be a part of the name of a field, such as `mask` in x.mask.png. In `take 1.5 b.jpg` nothing is.
_PART = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}\Z")


@dataclass(frozen=True)
class FilesSource(Streamed):
    """Files as samples: those of one folder and one stem are a sample; what is behind the stem is a field.

    The stem is the name up to its last dot: `x.jpg` and `x.txt` are fields jpg and txt of x. A name with more
    dots belongs to the shortest stem that another file has: `x.mask.png` and `x.jpg.txt` are fields
    mask.png and jpg.txt of x, if there is `x.jpg`.

    The rows of metadata.jsonl and metadata.csv, as Hugging Face's imagefolder has them, belong to the files
    that their `file_name` names; their other columns become field json.

    Args:
        keep: The columns of metadata that are stored. None: all that are no field of their own.
        column: Which file, by what is behind its stem, or which column of metadata becomes which field: pairs
            of a field and one of these. None: all files.
        key: The column of metadata that names the sample; "none" and None: the path.
        storage_options: Options for the stores of the input.
    """

    keep: tuple[str, ...] | None = None
    column: tuple[tuple[str, str], ...] | None = None
    key: str | None = None
    storage_options: Options = field(default=None, repr=False)
    name: str = "files"
    extensions: ClassVar[tuple[str, ...]] = tuple(f"/{name}" for name in metadata.NAMES)
    companions: ClassVar[tuple[str, ...]] = ("",)  # anything may lie beside metadata
    takes: ClassVar[frozenset[str]] = frozenset({"keep", "column", "key"})
    names_samples: ClassVar[bool] = True  # paths name them, also with several files
    keys: ClassVar[str] = "the path of the files below the given folder, up to what names the field"

    @classmethod
    def make(cls, options: SourceOptions) -> FilesSource:
        return cls(options.keep, options.column, options.key, options.storage_options)

    def options(self) -> dict[str, Any]:
        return {
            "keep": None if self.keep is None else list(self.keep),
            "column": None if self.column is None else [list(pair) for pair in self.column],
            "key": self.key,
        }

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        """Tasks of about `target` bytes. The files of a sample, and its row of metadata, are in one task.

        With metadata all files are held in memory.

        Raises:
            SourceError: A file of metadata cannot be read as such.
            OptionError: There is no metadata in which `key` or `keep` could be.
        """
        tables = [info for info in files if info.url.rpartition("/")[2] in metadata.NAMES]
        if files and not tables and (self.key not in (None, "none") or self.keep):
            raise OptionError(
                "--key and --keep name columns of metadata.jsonl or metadata.csv; there is no such file"
            )
        if not tables:
            return grouped(_bundles(files), target)
        known = set(tables)
        bundles = list(_bundles([info for info in files if info not in known]))
        places = {span.url: bundle for bundle in bundles for span in bundle}
        for info in tables:
            bundles += list(self._attach(info, places))
        return grouped(bundles, target)

    def _attach(self, info: FileInfo, places: dict[str, list[FileSpan]]) -> Iterator[list[FileSpan]]:
        """Put each row of a file of metadata to its files; gives the rows that have none."""
        folder = info.url[: -len(os.path.basename(info.url))]
        for start, end, name in metadata.rows(info, self.storage_options):
            bundle = places.get(folder + os.path.normpath(name)) if name else None
            if bundle is None or bundle[-1].label == _ROW:
                key = f"{escape_key(relative(info))}-{start:012d}"
                yield [FileSpan(info.url, start, end, info.size, key, _ROW)]
            else:
                bundle.append(FileSpan(info.url, start, end, info.size, bundle[0].key_base, _ROW))

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """A sample for each group of files."""
        headers: dict[str, list[str]] = {}

        def row_of(span: FileSpan) -> dict[str, Any] | None:
            if span.url.endswith(".csv") and span.url not in headers:
                headers[span.url] = metadata.header(span.url, self.storage_options)
            return metadata.read_row(span, headers.get(span.url), self.storage_options)

        for key, spans in itertools.groupby(task.files, key=lambda span: span.key_base):
            *members, last = spans
            row: dict[str, Any] | None = None
            if last.label == _ROW:
                try:
                    row = row_of(last)
                except SourceError as error:
                    yield Reject(f"{redact(last.url)}, byte {last.start}", str(error))
                    continue
            else:
                members.append(last)
            if members:
                yield self._sample(key, members, row or {})
            elif row is not None:  # else the file of metadata has no rows
                yield _alone(last, row)

    def _sample(self, key: str, members: list[FileSpan], row: dict[str, Any]) -> Sample | Reject:
        where = redact(members[0].url)
        used = None if self.column is None else {column for _, column in self.column}
        found: dict[str, bytes] = {}
        for span in members:
            if not span.label:
                return Reject(redact(span.url), "a file without an extension, by which a field is named")
            if span.label in found:
                return Reject(where, f"two files give field {span.label!r}; rename one of them")
            if used is None or span.label in used:
                found[span.label] = read_whole(span, self.storage_options)
        try:
            return self._with_row(key, found, row, where)
        except SourceError as error:
            return Reject(where, str(error))

    def _with_row(
        self, key: str, found: dict[str, bytes], row: dict[str, Any], where: str
    ) -> Sample | Reject:
        row.pop(metadata.FILE_NAME, None)
        fields, used, counts = found, set[str](), NO_COUNTS
        if self.column is not None:
            fields = {}
            for name, column in self.column:
                value = found[column] if column in found else find(row, column)
                if isinstance(value, str):
                    fields[name], some = text_bytes(value)
                    counts = some or counts
                else:
                    fields[name] = field_bytes(name, value)
                used.add(column)
        rest = {name: value for name, value in row.items() if name not in used}
        missing: tuple[str, ...] = ()
        if self.keep is not None:
            rest, missing = kept(row, self.keep)
        if rest and "json" in fields:
            return Reject(where, "a .json file and metadata both give field 'json'; give --column")
        if rest:
            fields["json"] = field_bytes("json", rest)
        if self.key not in (None, "none"):
            key = key_of(row, self.key, FileSpan("", 0, 0, 0, key), 0)
        return Sample(key, fields, where, counts, columns_of(row, self.keep), missing)


def _alone(span: FileSpan, row: dict[str, Any]) -> Reject:
    """Why a row of metadata has no files."""
    name = row.get(metadata.FILE_NAME)
    reason = f"there is no file {name!r}, or another row names it" if name else "it has no 'file_name'"
    return Reject(f"{redact(span.url)}, byte {span.start}", reason)


Member = tuple[FileInfo, str]  # a file, and its field: what is behind the stem, in lower case, or ""


def _bundles(files: Sequence[FileInfo]) -> Iterator[list[FileSpan]]:
    """The files of each sample, with its key."""

    def stem(members: list[Member]) -> str:
        info, name = members[0]
        return relative(info)[: -len(name)].rstrip(".")

    found = windows(files, _least_stem)

    def groups() -> Iterator[list[Member]]:
        return itertools.chain.from_iterable(map(_groups, found))

    for members, key in keyed(groups, stem):
        yield [FileSpan(info.url, 0, info.size, info.size, key, name) for info, name in members]


def _least_stem(url: str) -> str:
    """The shortest stem that a file can belong to."""
    folder, slash, name = url.rpartition("/")
    parts = name.split(".")
    for count in range(1, len(parts) - 1):
        if all(map(_PART.match, parts[count:-1])):
            return folder + slash + ".".join(parts[:count])
    return os.path.splitext(url)[0]


def _groups(files: Sequence[FileInfo]) -> list[list[Member]]:
    """The files of each sample, each with its field."""
    stems = {(info.root, os.path.splitext(info.url)[0]) for info in files}
    found: dict[tuple[str, str], list[Member]] = {}
    for info in files:
        stem, name = os.path.splitext(info.url)
        base = stem.rpartition("/")[2]
        if "." in base:
            stem, name = _shortest(info, stem[: len(stem) - len(base)], stems)
        found.setdefault((info.root, stem), []).append((info, name[1:].lower()))
    return list(found.values())


def _shortest(info: FileInfo, folder: str, stems: set[tuple[str, str]]) -> tuple[str, str]:
    """The shortest stem of a name with several dots that another file has, and what is behind it."""
    parts = info.url[len(folder) :].split(".")
    for count in range(1, len(parts) - 1):
        stem = folder + ".".join(parts[:count])
        if (info.root, stem) in stems and all(map(_PART.match, parts[count:-1])):
            return stem, info.url[len(stem) :]
    return os.path.splitext(info.url)

"""Comma- or tab-separated values: each row is a sample. All values are text."""

from __future__ import annotations

import codecs
import contextlib
import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, ClassVar

from shardstream.errors import SourceError
from shardstream.packing.sources.base import HUB_FILES, FileSpan, Reject, Sample, Streamed, Task, cut_files
from shardstream.packing.sources.file_keys import based
from shardstream.packing.sources.row_source import RowSource
from shardstream.packing.sources.streams import (
    SUFFIXES,
    another_type,
    compression,
    names_compressed,
    open_stream,
    peek,
)
from shardstream.storage.inputs import FileInfo, open_input
from shardstream.storage.store import named, redact

Lines = Iterator[tuple[int, bytes]]
_CHUNK = 1 << 20
_LONGEST = 1 << 30  # bytes of a value


@dataclass(frozen=True)
class CsvSource(Streamed, RowSource):
    """Rows of CSV and TSV files as samples. The first line has the names of the columns.

    Columns are separated by tabs in a .tsv file. Else they are separated by commas, or by semicolons or tabs
    if the first line has no comma. Values are quoted as RFC 4180 says.

    A large file is cut into slices, if each of its lines has an even number of quotation marks. Otherwise it
    is a single task, since a line break may then be part of a value.

    See `RowSource` for its arguments.
    """

    name: str = "csv"
    streams: ClassVar[bool] = True
    extensions: ClassVar[tuple[str, ...]] = tuple(
        name + compression for name in (".csv", ".tsv") for compression in SUFFIXES
    )
    left_out: ClassVar[tuple[str, ...]] = HUB_FILES

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        """Tasks of about `target` bytes. Files of more are read once, to see whether they can be cut."""
        return cut_files(based(files, self.extensions), target, self._is_whole)

    def _is_whole(self, file: FileInfo) -> bool:
        """Whether a file cannot be cut: it is compressed, or a line break may be part of a value."""
        if names_compressed(file.url):
            return True
        with named(redact(file.url)), open_input(file.url, self.storage_options) as stream:
            return compression(peek(stream)) is not None or any(
                line.count(b'"') & 1 for _, line in _lines(stream, 0)
            )

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """A sample for each row. A row with more or fewer values than columns is a Reject."""
        for span in task.files:
            where = redact(span.url)
            with contextlib.ExitStack() as opened:

                def lines(start: int, opened: contextlib.ExitStack = opened, url: str = span.url) -> Lines:
                    file = opened.enter_context(open_stream(url, self.storage_options))
                    if start:
                        file.seek(start)
                    return _lines(file, start)

                yield from self._span(span, lines, where)

    def _span(self, span: FileSpan, lines: Callable[[int], Lines], where: str) -> Iterator[Sample | Reject]:
        found = lines(0)
        _, first = next(found, (0, b""))
        try:
            names, delimiter = _header(first, span.url, where)
        except SourceError as error:
            if what := another_type(span.url, self.storage_options):
                raise SourceError(f"{where}: this is {what}, not CSV") from error
            raise
        rows = self.rows.of_table(dict.fromkeys(names, "text"), where)
        if span.start:
            # Begin one byte before the slice. The line with this byte belongs to the slice before.
            found = lines(span.start - 1)
            next(found, None)
        if span.end < span.size:
            found = itertools.takewhile(lambda line: line[0] < span.end, found)
        for at, values in _values(found, delimiter):
            place = f"{where}, byte {at}"
            if isinstance(values, str):
                yield Reject(place, values)
            elif len(values) != len(names):
                yield Reject(place, f"{len(values)} values for {len(names)} columns")
            else:
                yield rows.sample(dict(zip(names, values, strict=True)), span, at, place)


def _lines(file: BinaryIO, at: int) -> Lines:
    """(byte at which it begins, line with its break) of the lines from here on."""
    rest = bytearray()
    while chunk := file.read(_CHUNK):
        if b"\n" not in chunk:
            rest += chunk
            continue
        lines = (bytes(rest) + chunk).split(b"\n")
        rest = bytearray(lines.pop())
        for line in lines:
            yield at, line + b"\n"
            at += len(line) + 1
    if rest:
        yield at, bytes(rest)


def _values(lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """(byte at which it begins, values) of each row; what is wrong with it instead of the values."""
    begin = -1

    def texts() -> Iterator[str]:
        nonlocal begin
        for at, line in lines:
            begin = at if begin < 0 else begin
            yield line.decode()

    # The limit is one for the whole process. It is never made lower here, in case that somebody needs it.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        begin = -1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield begin, f"not CSV ({error})"
        except UnicodeDecodeError as error:
            yield begin, f"not UTF-8 ({error})"
            reader = csv.reader(texts(), delimiter=delimiter, strict=True)  # the error has ended the other
        else:
            if values:
                yield begin, values


def _header(line: bytes, url: str, where: str) -> tuple[list[str], str]:
    """The names of the columns, and what separates them."""
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode().rstrip("\r\n")
        delimiter = ","
        if ".tsv" in url.lower().rpartition("/")[2]:
            delimiter = "\t"
        elif "," not in text:
            delimiter = next((one for one in ";\t" if one in text), ",")
        names = next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{where}: the first line must name the columns ({error})") from error
    if not names:
        raise SourceError(f"{where}: the first line must name the columns; it is empty")
    odd = next((name for name in names if not name or names.count(name) > 1), None)
    if odd is not None:
        what = f"two columns are called {odd!r}" if odd else "a column has no name"
        raise SourceError(f"{where}: {what}; the first line must name the columns")
    return names, delimiter

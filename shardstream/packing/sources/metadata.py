"""metadata.jsonl and metadata.csv beside files, as Hugging Face's imagefolder and audiofolder have them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from shardstream.errors import SourceError
from shardstream.packing.sources.base import FileSpan
from shardstream.storage.inputs import FileInfo, open_input, read_slice
from shardstream.storage.store import Options, redact

NAMES = ("metadata.jsonl", "metadata.csv")
FILE_NAME = "file_name"
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Row(NamedTuple):
    """A row of metadata.

    Args:
        start: The first byte of it. The header and empty lines before it belong to it.
        end: The byte behind it. Empty lines behind the last row belong to it.
        file_name: The file that it is about, or None.
    """

    start: int
    end: int
    file_name: str | None


def rows(info: FileInfo, options: Options) -> Iterator[Row]:
    """All rows of a file. A file without a row is one row without a name, which `read_row` finds empty.

    Raises:
        SourceError: A .csv file is not such.
    """
    start = end = 0
    name: str | None = None
    held = False  # whether `name` is that of a row that has not been given yet
    with open_input(info.url, options) as file:
        found = _csv_names(file, info) if info.url.endswith(".csv") else _json_names(file)
        for begin, upto, file_name, there in found:
            if there and held:
                yield Row(start, begin, name)
                start = begin
            if there:
                name, held = file_name, True
            end = upto
    yield Row(start, max(end, info.size), name)


def _json_names(lines: Iterable[bytes]) -> Iterator[tuple[int, int, str | None, bool]]:
    """The first byte and the one behind of each line, the file that it names, and whether it is a row."""
    at = 0
    for line in lines:
        end = at + len(line)
        name: Any = None
        if line.strip():
            try:
                name = _decode(line).get(FILE_NAME)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                name = None  # `read_row` says what is wrong
        yield at, end, name if isinstance(name, str) else None, bool(line.strip())
        at = end


def _csv_names(lines: Iterable[bytes], info: FileInfo) -> Iterator[tuple[int, int, str | None, bool]]:
    header: list[str] | None = None
    for begin, end, cells in _records(lines, redact(info.url)):
        if cells and header is None:
            header = cells
            yield begin, end, None, False
            continue
        row = dict(zip(header or [], cells, strict=False))
        yield begin, end, row.get(FILE_NAME), bool(cells)


def _records(lines: Iterable[bytes], where: str) -> Iterator[tuple[int, int, list[str]]]:
    """The first byte and the one behind of each record of CSV, and its cells."""
    begin = end = 0

    def decoded() -> Iterator[str]:
        nonlocal end
        for line in lines:
            text = line.decode("utf-8-sig" if end == 0 else "utf-8")
            end += len(line)
            yield text

    try:
        for cells in csv.reader(decoded(), strict=True):
            yield begin, end, cells
            begin = end
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"{where}, byte {begin}: not CSV in UTF-8 ({error})") from error


def header(url: str, options: Options) -> list[str]:
    """The names of the columns of a .csv file."""
    with open_input(url, options) as file:
        return next((cells for _, _, cells in _records(file, redact(url)) if cells), [])


def read_row(span: FileSpan, columns: list[str] | None, options: Options) -> dict[str, Any] | None:
    """A row of metadata; None if the file has no rows.

    Args:
        span: The part of the file that `rows` gave.
        columns: The names of the columns of a .csv file.
        options: Options for the stores.

    Raises:
        SourceError: It is no object, or its cells are not as many as the columns.
    """
    data = bytes(read_slice(span.url, span.start, span.end - span.start, options))
    if len(data) != span.end - span.start:
        raise SourceError(f"{redact(span.url)}: it ends before the size that was listed; did it change?")
    if columns is None:
        if not data.strip():
            return None
        try:
            return _decode(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise SourceError(f"not a JSON object in UTF-8 ({error})") from error
    found = [cells for _, _, cells in _records(data.splitlines(keepends=True), redact(span.url)) if cells]
    found = found[1:] if span.start == 0 else found
    if not found:
        return None
    if len(found[0]) != len(columns):
        raise SourceError(f"{len(found[0])} cells, where the header has {len(columns)}")
    return dict(zip(columns, found[0], strict=True))

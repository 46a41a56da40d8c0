"""JSON Lines, plain or compressed: one object a line, one sample an object."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shardstream.format.names import escape_key
from shardstream.pack.sources.base import FileSpan, Reject, Sample, Task, relative, unique_keys
from shardstream.pack.sources.streams import GZIP, ZSTD, open_stream
from shardstream.storage.remote import FileInfo, Options, read_slice, redact

EXTENSIONS = (".jsonl", ".ndjson", ".json")
_SUFFIX = re.compile(r"\.(jsonl|ndjson|json)(\.(gz|zst|zstd))?\Z", re.IGNORECASE)
_CHUNK = 8 << 20
_KEYS = ("__key__", "key", "id")


@dataclass(frozen=True)
class JsonlSource:
    """The text of `text_key` becomes field txt; the remaining keys, or those in `keep`, field json.

    The key is `id`, `key` or `__key__` where an object has one, else file and byte offset of the
    line (file and line number in a compressed file). Plain files are cut into slices, and a slice
    owns the lines that start in it; a compressed file is one task.
    """

    text_key: str = "text"
    keep: tuple[str, ...] | None = None
    storage_options: Options = field(default=None, repr=False)
    name: str = "jsonl"

    def options(self) -> dict[str, Any]:
        return {
            "text_key": self.text_key,
            "keep": None if self.keep is None else list(self.keep),
        }

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        tasks: list[Task] = []
        bases = unique_keys(_SUFFIX.sub("", relative(file)) for file in files)
        for file, base in zip(files, bases, strict=True):
            # A compressed file cannot be entered in the middle.
            step = max(1, file.size) if file.url.lower().endswith(GZIP + ZSTD) else target
            for start in range(0, file.size, step):
                end = min(start + step, file.size)
                tasks.append(Task(len(tasks), (FileSpan(file.url, start, end, file.size, base),)))
        return tasks

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span in task.files:
            compressed = span.url.lower().endswith(GZIP + ZSTD)
            lines = self._stream_lines(span) if compressed else self._slice_lines(span)
            yield from self._samples(span, lines, compressed)

    def _samples(
        self, span: FileSpan, lines: Iterator[tuple[int, bytes]], numbered: bool
    ) -> Iterator[Sample | Reject]:
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        encode = msgspec.json.Encoder().encode
        text_key, keep = self.text_key, self.keep
        file = redact(span.url)
        for at, line in lines:
            try:
                row = decode(line)
                text = row.pop(text_key).encode()
            except (
                msgspec.DecodeError,
                KeyError,
                AttributeError,
                UnicodeError,
                RecursionError,
            ) as error:
                if line.strip():
                    number = at if numbered else self._line_number(span, at)
                    yield Reject(f"{file}:{number}", self._reason(error))
                continue
            key = ""
            for name in _KEYS:
                value = row.get(name)
                if (isinstance(value, str) and value) or type(value) is int:
                    key = escape_key(str(value))
                    break
            row.pop("__key__", None)
            fields = {"txt": text}
            if keep is not None:
                row = {name: row[name] for name in keep if name in row}
            if row:
                fields["json"] = encode(row)
            where = f"{file}:{at}" if numbered else f"{file}, byte {at}"
            yield Sample(key or f"{span.key_base}-{at:012d}", fields, where)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, KeyError):
            return f"no key {self.text_key!r}; name the one that holds the text with --text-key"
        if isinstance(error, AttributeError):
            return f"the value of {self.text_key!r} is not a string"
        return f"not a JSON object in UTF-8 ({error})"

    def _slice_lines(self, span: FileSpan) -> Iterator[tuple[int, bytes]]:
        """(byte offset, line) of the lines that start in the span."""
        at = span.start
        rest = b""
        if at:
            # The line that the byte before us belongs to is the previous slice's, unless it ends there.
            at -= 1
        first = at < span.start
        position = at
        while position < span.size:
            chunk = read_slice(span.url, position, min(_CHUNK, span.size - position), self.storage_options)
            if not chunk:
                break
            position += len(chunk)
            if first:
                cut = chunk.find(b"\n")
                if cut < 0:
                    at = position
                    if at >= span.end:
                        return
                    continue
                chunk, at, first = chunk[cut + 1 :], at + cut + 1, False
            if rest and b"\n" not in chunk:
                rest += chunk
                continue
            lines = (rest + chunk).split(b"\n")
            rest = bytearray(lines.pop())  # type: ignore[assignment]
            for line in lines:
                if at >= span.end:
                    return
                yield at, line
                at += len(line) + 1
            if at >= span.end:
                return
        if rest and at < span.end:
            yield at, bytes(rest)

    def _stream_lines(self, span: FileSpan) -> Iterator[tuple[int, bytes]]:
        """(line number from 1, line) of a compressed file."""
        number = 1
        rest = bytearray()
        with open_stream(span.url, self.storage_options) as file:
            while chunk := file.read(1 << 20):
                if b"\n" not in chunk:
                    rest += chunk
                    continue
                lines = (bytes(rest) + chunk).split(b"\n")
                rest = bytearray(lines.pop())
                for line in lines:
                    yield number, line
                    number += 1
        if rest:
            yield number, bytes(rest)

    def _line_number(self, span: FileSpan, offset: int) -> int:
        """The number of the line at a byte offset; counted only for messages."""
        lines, position = 1, 0
        while position < offset:
            size = min(_CHUNK, offset - position)
            chunk = read_slice(span.url, position, size, self.storage_options)
            if not chunk:
                break
            lines += chunk.count(b"\n")
            position += len(chunk)
        return lines

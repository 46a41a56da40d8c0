"""JSON Lines, plain or compressed: one object a line, one sample an object."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shardstream.format.names import escape_key
from shardstream.pack.sources.base import FileSpan, Reject, Sample, Task, relative, unique_keys
from shardstream.pack.sources.streams import is_compressed, open_stream
from shardstream.storage.files import FileInfo, open_input, read_into, read_slice
from shardstream.storage.remote import Options, redact

EXTENSIONS = (".jsonl", ".ndjson", ".json")
_SUFFIX = re.compile(r"\.(jsonl|ndjson|json)(\.(gz|zst|zstd))?\Z", re.IGNORECASE)
_CHUNK = 1 << 20
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
            step = max(1, file.size) if is_compressed(file.url) else target
            for start in range(0, file.size, step):
                end = min(start + step, file.size)
                tasks.append(Task(len(tasks), (FileSpan(file.url, start, end, file.size, base),)))
        return tasks

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span in task.files:
            compressed = is_compressed(span.url)
            lines: Iterator[tuple[int, bytes | memoryview]]
            lines = self._stream_lines(span) if compressed else self._slice_lines(span)
            if span.start == 0 and (first := next(lines, None)) is not None:
                at, line = first
                if bytes(line[:3]) == codecs.BOM_UTF8:
                    line = line[3:]
                lines = itertools.chain([(at, line)], lines)
            yield from self._samples(span, lines, compressed)

    def _samples(
        self, span: FileSpan, lines: Iterator[tuple[int, bytes | memoryview]], numbered: bool
    ) -> Iterator[Sample | Reject]:
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        encode = msgspec.json.Encoder().encode
        text_key, keep = self.text_key, self.keep
        file = redact(span.url)
        place = f"{file}:" if numbered else f"{file}, byte "
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
                if bytes(line).strip():
                    number = at if numbered else self._line_number(span, at)
                    yield Reject(f"{file}:{number}", self._reason(error))
                continue
            key = ""
            for name in _KEYS:
                value = row.get(name)
                if value is not None and ((isinstance(value, str) and value) or type(value) is int):
                    key = escape_key(str(value))
                    break
            row.pop("__key__", None)
            fields = {"txt": text}
            if keep is not None:
                row = {name: row[name] for name in keep if name in row}
            if row:
                fields["json"] = encode(row)
            yield Sample(key or f"{span.key_base}-{at:012d}", fields, f"{place}{at}")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, KeyError):
            return f"no key {self.text_key!r}; name the one that holds the text with --text-key"
        if isinstance(error, AttributeError):
            return f"the value of {self.text_key!r} is not a string"
        return f"not a JSON object in UTF-8 ({error})"

    def _slice_lines(self, span: FileSpan) -> Iterator[tuple[int, bytes | memoryview]]:
        """(byte offset, line) of the lines that start in the span.

        A line is a view of one buffer that is read into again and again: fresh memory for every
        chunk costs more than parsing it.
        """
        # The line that the byte before the span belongs to is another slice's, unless it ends there.
        base = max(0, span.start - 1)
        skipping = base < span.start
        buffer = bytearray(_CHUNK)
        filled = 0
        with open_input(span.url, self.storage_options) as file:
            file.seek(base)
            while True:
                room = min(len(buffer) - filled, span.size - base - filled)
                count = read_into(file, memoryview(buffer)[filled : filled + room], redact(span.url))
                filled += count
                at = 0
                while (cut := buffer.find(b"\n", at, filled)) >= 0:
                    if skipping:
                        skipping = False
                    elif base + at >= span.end:
                        return
                    else:
                        yield base + at, memoryview(buffer)[at:cut]
                    at = cut + 1
                if base + filled >= span.size:
                    if at < filled and base + at < span.end and not skipping:
                        yield base + at, memoryview(buffer)[at:filled]
                    return
                if skipping:
                    at = filled  # a line that began before us and has not ended yet
                if base + at >= span.end:
                    return
                if at == 0 and filled == len(buffer):
                    buffer = buffer + bytes(len(buffer))  # a line longer than the buffer
                else:
                    buffer[: filled - at] = buffer[at:filled]
                    base += at
                    filled -= at

    def _stream_lines(self, span: FileSpan) -> Iterator[tuple[int, bytes | memoryview]]:
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
            lines += bytes(chunk).count(b"\n")
            position += len(chunk)
        return lines

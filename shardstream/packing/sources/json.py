"""JSON files that are no lines: arrays of objects, objects one after another, one object."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, ClassVar

from shardstream.errors import SourceError
from shardstream.packing.sources.base import FileSpan, Reject, Sample, Task, whole_files
from shardstream.packing.sources.block import Block
from shardstream.packing.sources.file_keys import based
from shardstream.packing.sources.jsonl import JsonlSource
from shardstream.packing.sources.streams import SUFFIXES, another_type, head_of, open_stream
from shardstream.storage.inputs import FileInfo
from shardstream.storage.store import Options, redact

_CHUNK = 1 << 20
_HEAD = 1 << 16  # bytes that show whether a file has an object on each line
# A text as a whole, or its beginning if its end was not read yet; or one letter that changes the depth or
# separates values.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("|\\?\Z)|[\[\]{},]', re.DOTALL)
_SPACE = b" \t\r\n"


@dataclass(frozen=True)
class JsonSource(JsonlSource):
    """The objects of JSON files as samples; see `JsonlSource` for what becomes their keys and fields.

    The objects are the values of an array, or they follow one another, on as many lines as they like. Files
    are read a MiB at a time. Each is a part of one task.
    """

    name: str = "json"
    extensions: ClassVar[tuple[str, ...]] = tuple(".json" + suffix for suffix in SUFFIXES)

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        return whole_files(based(files, self.extensions), target)

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span in task.files:
            where = redact(span.url)
            if what := another_type(span.url, self.storage_options):
                raise SourceError(f"{where}: this is {what}, not JSON")
            with open_stream(span.url, self.storage_options) as file:
                yield from self._samples(span, _values(file, where), False)

    def read_blocks(self, task: Task) -> Iterator[Block | Sample | Reject]:
        return self.read(task)  # a value is not kept while others are read

    def _where(self, span: FileSpan, offset: int) -> str:
        return f"{redact(span.url)}, byte {offset}"


def is_lines(url: str, options: Options = None) -> bool:
    """Whether a file called .json has an object on each line, as its first shows; else it is an array."""
    head = head_of(url, options, _HEAD)
    first, end, _ = head.removeprefix(codecs.BOM_UTF8).lstrip(_SPACE).partition(b"\n")
    if not end and len(head) == _HEAD:
        return first.startswith(b"{")  # a long line
    try:
        return not first or isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _values(file: BinaryIO, where: str) -> Iterator[tuple[int, bytes | memoryview]]:
    """(byte at which it begins, value) of the objects of a file.

    Raises:
        SourceError: The file is no JSON: brackets do not fit, or it ends too early.
    """
    data = bytearray()
    base = 0  # the byte of the file that `data` begins with; the open value begins there, too
    at = depth = 0  # up to `at` data was looked at
    array = False

    def value(begin: int, end: int) -> Iterator[tuple[int, bytes | memoryview]]:
        found = bytes(data[begin:end])
        if text := found.strip(_SPACE):
            yield base + begin + found.index(text), text

    while True:
        chunk = file.read(max(_CHUNK, len(data) - at))  # a long text is looked at again from its beginning
        data += chunk
        if base == at == 0 and data.startswith(codecs.BOM_UTF8):
            data[: len(codecs.BOM_UTF8)] = b"   "  # so that it stays as long
        begin = 0
        for match in _TOKEN.finditer(data, at):
            token = match[0][:1]
            if token == b'"':
                if match[1] != b'"':
                    break  # the text goes on in the next chunk
            elif token == b"," and depth == 0 and array:
                yield from value(begin, match.start())
                begin = match.end()
            elif token == b"[" and depth == 0 and not array and not data[begin : match.start()].strip(_SPACE):
                array, begin = True, match.end()
            elif token in (b"[", b"{"):
                depth += 1
            elif token in (b"]", b"}") and depth == 0:
                if token != b"]" or not array:
                    raise SourceError(
                        f"{where}: not JSON: {token.decode()!r} closes nothing at byte {base + match.start()}"
                    )
                yield from value(begin, match.start())
                array, begin = False, match.end()
            elif token in (b"]", b"}"):
                depth -= 1
                if depth == 0 and not array:
                    yield from value(begin, match.end())
                    begin = match.end()
            at = match.end()
        at -= begin
        del data[:begin]
        base += begin
        if not chunk:
            break
    if depth or array:
        raise SourceError(f"{where}: the JSON ends too early; is the file cut off?")
    yield from value(0, len(data))

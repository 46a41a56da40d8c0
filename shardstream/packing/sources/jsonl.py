"""JSON Lines, plain or compressed: each line is an object, and each object is a sample."""

from __future__ import annotations

import codecs
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar

import msgspec

from shardstream.errors import SourceError
from shardstream.packing.columns import columns_of
from shardstream.packing.sources.base import (
    HUB_FILES,
    NO_COUNTS,
    FileSpan,
    Reject,
    Sample,
    SourceOptions,
    Streamed,
    Task,
    TokenDtype,
    cut_files,
)
from shardstream.packing.sources.block import Block
from shardstream.packing.sources.encoded import field_bytes, text_bytes, to_json
from shardstream.packing.sources.file_keys import based
from shardstream.packing.sources.json_block import Line, json_block
from shardstream.packing.sources.rows import Rows, kept, key_of, with_id
from shardstream.packing.sources.streams import (
    SUFFIXES,
    another_type,
    compression,
    decompressed,
    names_compressed,
)
from shardstream.storage.inputs import FileInfo, open_input, read_into, read_slice
from shardstream.storage.store import Options, redact

EXTENSIONS = (".jsonl", ".ndjson", ".json")
_CHUNK = 1 << 20
_LINES = 4096  # that are given at once: each takes memory beside its bytes, however short it is


def _of_python(line: bytes | memoryview, error: msgspec.DecodeError) -> dict[str, Any]:
    """An object that Python's json writes and JSON does not have: NaN, Infinity, half of a surrogate pair.

    Raises:
        DecodeError: It is no object for Python either; `error`, which says where it is wrong.
    """
    try:
        row = json.loads(str(line, "utf-8"))  # of bytes it would guess the encoding
    except ValueError:
        raise error from None
    if not isinstance(row, dict):
        raise error
    return row


@dataclass(frozen=True)
class JsonlSource(Streamed):
    """JSON Lines as samples: the text becomes field txt, and the other keys of the object field json.

    The key of a sample is by default the value of `__key__`, `key` or `id`, if the object has one of these,
    and the path of the file before it if there are several files. Otherwise it is made of the file and the
    byte at which the line begins; in a compressed file, of the file and the number of the line.

    Plain files are cut into slices. A line belongs to the slice in which it begins. A compressed file is one
    task.

    Args:
        text_key: The key of the text.
        keep: The other keys that are stored. None: all.
        key: What names a sample; see `SourceOptions`.
        storage_options: Options for the stores of the input.
        rows: Makes the samples, if it was said what becomes which field. None: as above.
    """

    text_key: str = "text"
    keep: tuple[str, ...] | None = None
    key: str | None = None
    storage_options: Options = field(default=None, repr=False)
    rows: Rows | None = None
    name: str = "jsonl"
    streams: ClassVar[bool] = True
    extensions: ClassVar[tuple[str, ...]] = tuple(
        extension + suffix for extension in EXTENSIONS for suffix in SUFFIXES
    )
    left_out: ClassVar[tuple[str, ...]] = HUB_FILES
    takes: ClassVar[frozenset[str]] = frozenset(
        {"text_key", "keep", "key", "column", "chat_template", "dtype", "eos"}
    )

    @classmethod
    def make(cls, options: SourceOptions) -> JsonlSource:
        plain = options.column is None and options.chat_template is None
        rows = None if plain else Rows.make(options)
        return cls(options.text_key, options.keep, options.key, options.storage_options, rows)

    @property
    def token_dtype(self) -> TokenDtype | None:
        """How tokens are stored that are there already; None if samples are no tokens."""
        return None if self.rows is None else self.rows.token_dtype

    def options(self) -> dict[str, Any]:
        return {
            "text_key": self.text_key,
            "keep": None if self.keep is None else list(self.keep),
            **({} if self.key is None else {"key": self.key}),
            **({} if self.rows is None else self.rows.options()),
        }

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        # A compressed file can only be read from its beginning.
        return cut_files(based(files, self.extensions), target, self._is_compressed)

    def _is_compressed(self, file: FileInfo) -> bool:
        if names_compressed(file.url):
            return True
        return compression(bytes(read_slice(file.url, 0, 8, self.storage_options))) is not None

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span, batches, numbered in self._lines(task):
            yield from self._samples(span, itertools.chain.from_iterable(batches), numbered)

    def read_blocks(self, task: Task) -> Iterator[Block | Sample | Reject]:
        """The samples as `read` gives them, many at once where no line has to be looked at alone."""
        if self.rows is not None or self.keep is not None:
            yield from self.read(task)
            return
        for span, batches, numbered in self._lines(task):
            for lines in batches:
                samples = functools.partial(self._samples, span, lines, numbered)
                block = json_block(lines, span, self.text_key, self.key, samples) if lines else None
                if block is None:
                    yield from samples()
                else:
                    yield block

    def _lines(self, task: Task) -> Iterator[tuple[FileSpan, Iterator[list[Line]], bool]]:
        """Of each file of a task its part, its lines, many at a time, and whether these are numbered."""
        for span in task.files:
            with open_input(span.url, self.storage_options) as file:
                found = decompressed(file, span.url) if span.start == 0 else file
                compressed = found is not file
                batches = self._stream_lines(found) if compressed else self._slice_lines(span, file)
                yield span, _without_mark(batches) if span.start == 0 else batches, compressed

    def _samples(self, span: FileSpan, lines: Iterable[Line], numbered: bool) -> Iterator[Sample | Reject]:
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        encode = msgspec.json.Encoder().encode
        text_key, wanted = self.text_key, self.key
        # The text is in field txt, and __key__ is the key: they are not stored twice.
        stored = {text_key, "__key__"} if wanted is None else {text_key}
        keep = None if self.keep is None else [name for name in self.keep if name not in stored]
        file = redact(span.url)
        place = f"{file}:" if numbered else f"{file}, byte "
        for at, line in lines:
            as_python, own = False, None
            try:
                try:
                    row = decode(line)
                except msgspec.DecodeError as error:
                    row, as_python = _of_python(line, error), True
                if self.rows is not None:
                    yield self.rows.sample(row, span, at, f"{place}{at}")
                    continue
                if "messages" in row and text_key == "text" and "text" not in row:
                    yield self._chat(row, span, at, f"{place}{at}")
                    continue
                key = "" if wanted is None else key_of(row, wanted, span, at)
                text, counts = row.pop(text_key), NO_COUNTS
                try:
                    text = text.encode()
                except UnicodeEncodeError:
                    text, counts = text_bytes(text)
            except (
                msgspec.DecodeError,
                KeyError,
                AttributeError,
                UnicodeError,
                RecursionError,
                SourceError,
            ) as error:
                if bytes(line).strip():
                    if at <= 1 and (what := another_type(span.url, self.storage_options)):
                        raise SourceError(f"{file}: this is {what}, not JSON") from error
                    where = f"{file}:{at}" if numbered else self._where(span, at)
                    array = "; for a file that is an array: --format json" if line[:1] == b"[" else ""
                    yield Reject(where, self._reason(error, line) + array)
                continue
            if wanted is None:
                key = key_of(row, None, span, at)
                own = row.pop("__key__", None)
            fields = {"txt": text}
            missing: tuple[str, ...] = ()
            everything = row
            columns = columns_of(row, keep)
            if keep is not None:
                row, missing = kept(row, keep)
            row = with_id(row, everything if own is None else {"__key__": own}, wanted, key)
            if row:
                try:
                    fields["json"] = to_json(row) if as_python else encode(row)
                except RecursionError as error:
                    yield Reject(f"{place}{at}", f"its objects lie too deep within one another ({error})")
                    continue
            yield Sample(key, fields, f"{place}{at}", counts, columns, missing)

    def _chat(self, row: dict[str, Any], span: FileSpan, at: int, where: str) -> Sample | Reject:
        """The sample of a conversation, which has no text: all of it stays an object."""
        found, missing = (row, ()) if self.keep is None else kept(row, ("messages", *self.keep))
        try:
            key, data = key_of(row, self.key, span, at), field_bytes("json", found)
        except SourceError as error:
            return Reject(where, str(error))
        return Sample(key, {"json": data}, where, NO_COUNTS, columns_of(row, self.keep), missing)

    def _reason(self, error: Exception, line: bytes | memoryview) -> str:
        if isinstance(error, SourceError):
            return str(error)
        if isinstance(error, KeyError):
            tokens = "; for token ids: --column tokens=input_ids" if b'"input_ids"' in bytes(line) else ""
            return f"no key {self.text_key!r}; name the one that holds the text with --text-key{tokens}"
        if isinstance(error, AttributeError):
            chat = "; text of conversations is made by --chat-template" if b'"role"' in bytes(line) else ""
            return f"the value of {self.text_key!r} is not a string{chat}"
        return f"not a JSON object in UTF-8 ({error})"

    def _slice_lines(self, span: FileSpan, file: BinaryIO) -> Iterator[list[Line]]:
        """(byte offset, line) of the lines that begin in the span, many at once.

        A line is a view of a buffer that is used again for the next ones: new memory costs more than to parse
        it.
        """
        # Begin one byte before the span. The line with this byte belongs to the slice before.
        base = max(0, span.start - 1)
        skipping = base < span.start
        buffer = bytearray(_CHUNK)
        filled = 0
        file.seek(base)
        while True:
            view = memoryview(buffer)
            room = min(len(buffer) - filled, span.size - base - filled)
            filled += read_into(file, view[filled : filled + room], redact(span.url))
            at, last = 0, base + filled >= span.size
            if skipping:
                at = buffer.find(b"\n", 0, filled) + 1
                skipping = not at
                at = at or filled  # the line of the slice before has not ended yet
            end = min(filled, span.end - base)  # of the places where lines begin that are taken from here
            while at < end:
                lines: list[Line] = []
                stop = min(end, at + _CHUNK)
                for _ in range(_LINES):
                    if at >= stop or (cut := buffer.find(b"\n", at, filled)) < 0:
                        break
                    lines.append((base + at, view[at:cut]))
                    at = cut + 1
                if not lines:
                    break
                yield lines
            if last and at < end:
                yield [(base + at, view[at:filled])]
            if last or base + at >= span.end:
                return
            if at == 0 and filled == len(buffer):  # the line is longer than the buffer
                longer = bytearray(2 * len(buffer))
                longer[:filled] = view
                buffer = longer
                continue
            left = view[at:filled]
            # The buffer for a line that was long is not kept for those behind it.
            buffer = bytearray(_CHUNK) if len(left) < _CHUNK < len(buffer) else buffer
            memoryview(buffer)[: len(left)] = left  # which may overlap
            base += at
            filled -= at

    def _stream_lines(self, file: BinaryIO) -> Iterator[list[Line]]:
        """(line number from 1, line) of a compressed file, many at once."""
        number = 1
        rest = bytearray()  # the begin of a line
        while chunk := file.read(_CHUNK):
            *lines, left = chunk.split(b"\n", _LINES)
            if lines and rest:
                rest += lines[0]
                lines[0] = bytes(rest)
                rest = bytearray()
            while lines:
                yield list(enumerate(lines, number))
                number += len(lines)
                *lines, left = left.split(b"\n", _LINES)
            rest += left
        if rest:
            yield [(number, bytes(rest))]

    def _where(self, span: FileSpan, offset: int) -> str:
        """Where a line is, for a message. Its number is only counted for it."""
        lines, position = 1, 0
        while position < offset:
            size = min(_CHUNK, offset - position)
            chunk = read_slice(span.url, position, size, self.storage_options)
            if not chunk:
                break
            lines += bytes(chunk).count(b"\n")
            position += len(chunk)
        return f"{redact(span.url)}:{lines}"


def _without_mark(batches: Iterable[list[Line]]) -> Iterator[list[Line]]:
    """The lines of a file without the byte order mark before its first one."""
    first = True
    for lines in batches:
        if lines and first:
            first, (at, line) = False, lines[0]
            if bytes(line[:3]) == codecs.BOM_UTF8:
                lines[0] = at, line[3:]
        yield lines

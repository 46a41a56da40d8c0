"""Arrow IPC files, of the file and of the stream format: each row is a sample."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, TypeVar, cast

from shardstream.errors import SourceError
from shardstream.packing.sources.arrow_messages import BATCH, DICTIONARY, END, MAGIC, SCHEMA, Part, messages
from shardstream.packing.sources.arrow_rows import reading, row_blocks, row_samples, schema_rows
from shardstream.packing.sources.base import HUB_FILES, FileSpan, Reject, Sample, Task, group
from shardstream.packing.sources.file_keys import key_bases
from shardstream.packing.sources.row_block import RowBlock
from shardstream.packing.sources.row_source import RowSource
from shardstream.packing.sources.rows import Rows
from shardstream.storage.inputs import FileInfo, open_input
from shardstream.storage.store import Options, named, redact

Made = TypeVar("Made")


@dataclass(frozen=True)
class ArrowSource(RowSource):
    """Rows of Arrow IPC files as samples. A task has whole record batches, of several files
    if they are small.

    See `RowSource` for its arguments.
    """

    name: str = "arrow"
    extensions: ClassVar[tuple[str, ...]] = (".arrow", ".ipc", ".feather")
    left_out: ClassVar[tuple[str, ...]] = HUB_FILES
    takes: ClassVar[frozenset[str]] = RowSource.takes | {"chat_template", "dtype", "eos"}

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Tasks of about `target` bytes. The headers of all batches of a file of more are read."""
        bases = key_bases(files, self.extensions)
        return group(
            (
                [span]
                for file, base in zip(files, bases, strict=True)
                for span in self.parts(file, base, target)
            ),
            target,
        )

    def parts(self, file: FileInfo, base: str, target: int) -> Iterator[FileSpan]:
        """A file as it is cut between record batches, each part of about `target` bytes.

        A file that cannot be cut so is one part: whoever reads it says what is wrong with it.
        """
        start = first = rows = 0
        whole = FileSpan(file.url, 0, file.size, file.size, base)
        if file.size > target:
            with named(redact(file.url)), open_input(file.url, self.storage_options) as opened:
                found = list(messages(opened, file.size))
            kinds = [message.kind for message in found]
            first_batch = kinds.index(BATCH) if BATCH in kinds else 0
            # A dictionary behind the first batch may change what later batches mean.
            if kinds[:1] == [SCHEMA] and kinds[-1] == END and DICTIONARY not in kinds[first_batch:]:
                for number, message in enumerate(found):
                    rows += message.rows
                    after = found[number + 1] if number + 1 < len(found) else message
                    if message.kind == after.kind == BATCH and after.end - start > target:
                        yield whole._replace(start=start, end=message.end, units=(first, rows))
                        start, first = message.end, rows
        yield whole._replace(start=start, units=(first, rows) if start else (0, 0))

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """A sample for each row. One record batch is in memory."""
        for span in task.files:
            yield from self._rows(span, row_samples)

    def read_blocks(self, task: Task) -> Iterator[RowBlock | Sample | Reject]:
        """The same samples, many at once where it can be."""
        for span in task.files:
            yield from self._rows(span, row_blocks)

    def _rows(
        self, span: FileSpan, make: Callable[[Rows, Any, FileSpan, int, str], Iterator[Made]]
    ) -> Iterator[Made]:
        """The samples of one part of a file."""
        where, number = redact(span.url), span.units[0]
        with batches(span, self.storage_options) as (schema, found):
            rows, columns = schema_rows(self.rows, schema, where)
            for batch in found:
                some = batch if columns is None else batch.select(columns)
                for begin in range(0, some.num_rows, 1 << 10):
                    part = some.slice(begin, 1 << 10)
                    yield from make(rows, part, span, number + begin, where)
                number += batch.num_rows
        if span.end < span.size and number != span.units[1]:
            raise SourceError(f"{where}: it changed while packing; pack again")


@contextlib.contextmanager
def batches(span: FileSpan, options: Options) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema and the record batches of a part of a file in either format.

    Raises:
        MissingExtraError: pyarrow is not installed.
        SourceError: The file is damaged.
    """
    with reading(span.url, options, "pyarrow.ipc") as (source, ipc):
        if (span.start, span.end) != (0, span.size):
            with open_input(span.url, options) as opened:
                stream = ipc.open_stream(_part(opened, span))
                yield stream.schema, iter(stream)
            return
        magic = source.read(len(MAGIC))
        source.seek(0)
        if magic == MAGIC:
            source.seek(8)
            first = ipc.open_stream(source).schema
            file = ipc.open_file(source)
            if not file.schema.equals(first):
                raise SourceError(f"{redact(span.url)}: its footer has other columns than its first message")
            yield file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            stream = ipc.open_stream(source)
            yield stream.schema, iter(stream)


def _part(file: BinaryIO, span: FileSpan) -> BinaryIO:
    """The schema of a file and the batches of a part of it, as a stream."""
    head = next((found for found in messages(file, span.size) if found.kind == BATCH), None)
    if head is None:
        raise SourceError(f"{redact(span.url)}: it changed while packing; pack again")
    file.seek(0)
    begin = 8 if file.read(len(MAGIC)) == MAGIC else 0
    return cast(
        BinaryIO,
        io.BufferedReader(Part(file, (begin, head.start), (max(span.start, head.start), span.end)), 1 << 20),
    )

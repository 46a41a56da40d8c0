"""Rows that LitData has put behind a chunk as an Arrow file, in place of its own samples.

It does this for samples of texts, numbers and nested values, if pyarrow is there. The chunk has its number of
samples, places that are all the same, the Arrow file or stream, its size in 4 bytes, and a mark of 8 bytes.
Source: `append_arrow_row_footer` of litdata 0.2.76.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from shardstream.errors import SourceError, require
from shardstream.format.frames import damaged
from shardstream.packing.sources.arrow_messages import MAGIC
from shardstream.packing.sources.arrow_rows import row_samples, schema_rows
from shardstream.packing.sources.base import FileSpan, Reject, Sample
from shardstream.packing.sources.mds import take
from shardstream.packing.sources.rows import Rows

__all__ = ["arrow_rows", "arrow_samples"]

_END = struct.Struct("<I8s")
_MARK = b"LDARW01\0"
_ROWS = 1 << 10


def arrow_rows(file: BinaryIO, span: FileSpan, where: str) -> bytes | None:
    """The Arrow file behind a chunk that has no samples of its own; None if the chunk has its own.

    Args:
        file: The chunk; afterwards it is at its beginning.
        span: Its size, and in `units` how many samples the index says it has.
        where: The chunk, for messages.

    Raises:
        SourceError: The chunk is cut off or does not fit its index.
    """
    head = 4 * (span.units[1] + 2)
    if span.size < head + _END.size:
        return None
    file.seek(span.size - _END.size)
    size, mark = _END.unpack(take(file, _END.size, where))
    file.seek(0)
    count, first = struct.unpack("<2I", take(file, 8, where))
    file.seek(0)
    # A chunk with samples of its own may have the same rows in Arrow, too: its own are read.
    if mark != _MARK or count != span.units[1] or first != head or _last(file, head, where) != first:
        return None
    if size > span.size - head - _END.size:
        raise SourceError(f"{where}: its rows in Arrow's format are cut off")
    file.seek(span.size - _END.size - size)
    return take(file, size, where)


def _last(file: BinaryIO, head: int, where: str) -> int:
    """Where the last sample ends."""
    file.seek(head - 4)
    (last,) = struct.unpack("<I", take(file, 4, where))
    file.seek(0)
    return int(last)


def arrow_samples(rows: Rows, data: bytes, span: FileSpan, where: str) -> Iterator[Sample | Reject]:
    """A sample for each row.

    Args:
        rows: Makes samples of rows.
        data: What `arrow_rows` found.
        span: The chunk.
        where: The chunk, for messages.

    Raises:
        MissingExtraError: pyarrow is not installed.
        SourceError: The rows are damaged, or are not as many as the index says.
    """
    arrow, ipc = require("pyarrow", "arrow"), require("pyarrow.ipc", "arrow")
    number = 0
    try:
        for batch in _batches(ipc, data):
            made, columns = schema_rows(rows, batch.schema, where)
            some = batch if columns is None else batch.select(columns)
            for begin in range(0, some.num_rows, _ROWS):
                yield from row_samples(made, some.slice(begin, _ROWS), span, number + begin, where)
            number += batch.num_rows
    except (arrow.ArrowException, ValueError, OverflowError, OSError) as error:
        raise SourceError(damaged(where, "rows in Arrow's format", error)) from error
    if number != span.units[1]:
        raise SourceError(
            f"{where}: its rows in Arrow's format are {number}, and {span.units[1]} in index.json"
        )


def _batches(ipc: Any, data: bytes) -> Iterator[Any]:
    """The record batches of a file or of a stream."""
    if data.startswith(MAGIC):
        file = ipc.open_file(data)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        yield from ipc.open_stream(data)

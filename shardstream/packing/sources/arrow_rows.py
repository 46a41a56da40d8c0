"""Rows in Arrow's memory, of whatever file: their columns, and samples of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from shardstream.errors import ShardstreamError, SourceError, require
from shardstream.format.frames import damaged
from shardstream.packing.sources.arrow_values import NoValue, values
from shardstream.packing.sources.base import FileSpan, Reject, Sample
from shardstream.packing.sources.content import file_type
from shardstream.packing.sources.row_block import RowBlock, most_rows, row_block
from shardstream.packing.sources.rows import Kind, Rows
from shardstream.storage.inputs import open_input, read_slice
from shardstream.storage.store import Options, local_path_of, named, redact

_WANTED = {
    "pyarrow.parquet": ("a Parquet file",),
    "pyarrow.ipc": ("an Arrow file", "a stream of Arrow"),
}
__all__ = ["kind", "reading", "row_blocks", "row_samples", "schema_rows"]


@contextlib.contextmanager
def reading(url: str, options: Options, module: str = "pyarrow.parquet") -> Iterator[tuple[Any, Any]]:
    """A file as pyarrow reads it, and a module of pyarrow. What is wrong with the file is a SourceError.

    Raises:
        MissingExtraError: pyarrow is not installed.
        SourceError: The file is damaged, or it is no such file.
    """
    needed, arrow = require(module, "arrow"), require("pyarrow", "arrow")
    local = local_path_of(url)
    with contextlib.ExitStack() as stack:
        try:
            if local is None:
                source = arrow.PythonFile(stack.enter_context(open_input(url, options)), mode="r")
            else:
                with named(redact(url)):
                    source = stack.enter_context(arrow.OSFile(local))
            yield source, needed
        except arrow.ArrowException as error:
            what = None
            with contextlib.suppress(ShardstreamError):
                what = file_type(bytes(read_slice(url, 0, 512, options)))
            if what is None or what in _WANTED[module]:
                raise SourceError(damaged(redact(url), "data", error)) from error
            raise SourceError(f"{redact(url)}: this is {what}, not {_WANTED[module][0]}") from error
        except (ValueError, OverflowError) as error:  # in the names of columns, in dates
            raise SourceError(damaged(redact(url), "data", error)) from error
        except OSError as error:
            # pyarrow raises it for damaged data. What stores raise is another class, or has a number.
            if error.errno is not None:
                raise
            raise SourceError(damaged(redact(url), "data", error)) from error


def kind(type_: Any) -> Kind:
    """What a column of this type can become."""
    types = require("pyarrow.types", "arrow")
    if types.is_dictionary(type_):
        return kind(type_.value_type)
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return "text"
    if types.is_struct(type_):
        names = [type_.field(number).name for number in range(type_.num_fields)]
        return "bytes" if "bytes" in names and _is_bytes(type_.field("bytes").type) else "other"
    return "bytes" if _is_bytes(type_) else "other"


def _is_bytes(type_: Any) -> bool:
    types = require("pyarrow.types", "arrow")
    return bool(
        types.is_binary(type_)
        or types.is_large_binary(type_)
        or types.is_binary_view(type_)
        or types.is_fixed_size_binary(type_)
    )


def schema_rows(rows: Rows, schema: Any, where: str) -> tuple[Rows, list[str] | None]:
    """The rows of a table, and the columns that have to be read for them; None for all.

    Raises:
        SourceError: A column that becomes a field or the key is not there, or no column can be a field.
    """
    if len(set(schema.names)) != len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise SourceError(f"{where}: two columns are called {twice!r}; rename one of them")
    found = rows.of_table({field.name: kind(field.type) for field in schema}, where, one_of_many=True)
    needed = found.needed()
    if needed is None:
        return found, None
    # A name with a dot is that of a column, or of a part of one.
    names = {name if name in schema.names else name.partition(".")[0] for name in needed}
    return found, [name for name in schema.names if name in names]


def row_blocks(
    rows: Rows, batch: Any, span: FileSpan, first: int, where: str
) -> Iterator[RowBlock | Sample | Reject]:
    """The samples of a record batch as blocks of rows, or one by one where a block cannot be made.

    See `row_samples` for the arguments.
    """
    batch.validate(full=True)
    most = most_rows(rows, batch)
    for begin in range(0, batch.num_rows, most):
        part, number = batch.slice(begin, most), first + begin

        def samples(part: Any = part, number: int = number) -> Iterator[Sample | Reject]:
            return row_samples(rows, part, span, number, where)

        block = row_block(rows, part, span, number, samples)
        if block is not None:
            yield block
        else:
            yield from samples()


def row_samples(rows: Rows, batch: Any, span: FileSpan, first: int, where: str) -> Iterator[Sample | Reject]:
    """A sample for each row of a record batch.

    Args:
        rows: Makes samples of rows.
        batch: A pyarrow RecordBatch.
        span: The part of the file that the rows are in.
        first: The number of the first row in its file.
        where: The file, for messages.
    """
    arrow = require("pyarrow", "arrow")
    # Offsets and UTF-8 of a damaged file may be wrong; pyarrow trusts them.
    batch.validate(full=True)
    names, texts, columns = batch.schema.names, rows.texts(), []
    lost: list[str] = []  # columns with values that Python cannot hold
    for name, column in zip(names, batch.columns, strict=True):
        if name in texts and column.type == arrow.string():
            column = column.view(arrow.binary())  # the bytes of UTF-8 as they are
        columns.append(found := values(column))
        if any(isinstance(value, NoValue) for value in found):
            lost.append(name)
    make = rows.sample
    for number, row_values in enumerate(zip(*columns, strict=True), first):
        row, place = dict(zip(names, row_values, strict=True)), f"{where}, row {number}"
        bad = next((name for name in lost if isinstance(row[name], NoValue)), None)
        if bad is None:
            yield make(row, span, number, place)
        else:
            reason = row[bad].reason
            yield Reject(place, f"column {bad!r} has a value that Python cannot hold ({reason})")

"""Parquet files, and folders of them as hubs have them: each row is a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from shardstream.packing.sources.arrow_rows import reading, row_blocks, row_samples, schema_rows
from shardstream.packing.sources.base import FileSpan, Reject, Sample, Task, group
from shardstream.packing.sources.file_keys import key_bases
from shardstream.packing.sources.row_block import RowBlock
from shardstream.packing.sources.row_source import RowSource
from shardstream.packing.sources.rows import Rows
from shardstream.storage.inputs import FileInfo
from shardstream.storage.store import redact

_FOOTERS = 32  # files whose footers are read at the same time
_BATCH = 2 << 20  # bytes of rows in memory at once
_ALL = (0, 0)  # all row groups of a file
Made = TypeVar("Made")


@dataclass(frozen=True)
class ParquetSource(RowSource):
    """Rows of Parquet files as samples. A task has whole row groups, of several files if they are small.

    See `RowSource` for its arguments.
    """

    name: str = "parquet"
    extensions: ClassVar[tuple[str, ...]] = (".parquet", ".pq")
    # What hubs have beside the data in a folder.
    left_out: ClassVar[tuple[str, ...]] = (".md", ".json", ".txt", ".yaml", "/license")
    takes: ClassVar[frozenset[str]] = RowSource.takes | {"chat_template", "dtype", "eos"}

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Tasks of about `target` bytes of rows, as the footers count them: those are not compressed.

        A file of less than an eighth of `target` is not cut, and so its footer is not read for the plan: a
        folder may have 100,000 files. It counts as its bytes.
        """
        files = [file for file in files if not self._is_beside(file)]
        large = [file for file in files if file.size >= target // 8]
        with ThreadPoolExecutor(_FOOTERS) as threads:
            footers = dict(zip(large, threads.map(self._groups, large), strict=True))
        bases = key_bases(files, self.extensions)
        sized = [
            (FileSpan(file.url, start, end, file.size, base, units=units), size)
            for file, base in zip(files, bases, strict=True)
            for start, end, units, size in footers.get(file, [(0, file.size, _ALL, file.size)])
        ]
        return group(([span] for span, _ in sized), target, [size for _, size in sized])

    def _is_beside(self, file: FileInfo) -> bool:
        return bool(file.root) and redact(file.url).lower().endswith(self.left_out)

    def _groups(self, file: FileInfo) -> list[tuple[int, int, tuple[int, int], int]]:
        """Of each row group its part of the file's bytes, its number, and the bytes of its rows."""
        with reading(file.url, self.storage_options) as (source, parquet):
            footer = parquet.ParquetFile(source).metadata
            sizes = [footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)]
        # Not the offsets of its columns: pyarrow ends the process if those of a damaged footer are asked for.
        whole, done, found = max(1, sum(sizes)), 0, []
        for number, size in enumerate(sizes):
            start = file.size * done // whole
            done += size
            end = file.size if number == len(sizes) - 1 else file.size * done // whole
            found.append((start, end, (number, number + 1), size))
        return found or [(0, file.size, _ALL, 0)]

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """A sample for each row. Rows are decoded a few MiB at a time."""
        return self._rows(task, row_samples)

    def read_blocks(self, task: Task) -> Iterator[RowBlock | Sample | Reject]:
        """The same samples, many at once where it can be."""
        return self._rows(task, row_blocks)

    def _rows(
        self, task: Task, make: Callable[[Rows, Any, FileSpan, int, str], Iterator[Made]]
    ) -> Iterator[Made]:
        for span in task.files:
            where = redact(span.url)
            with reading(span.url, self.storage_options) as (source, parquet):
                # Not `pre_buffer`: it holds whole row groups. A buffer streams the pages of each column.
                file = parquet.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
                rows, columns = schema_rows(self.rows, file.schema_arrow, where)
                units = (0, file.num_row_groups) if span.units == _ALL else span.units
                number = sum(file.metadata.row_group(group).num_rows for group in range(units[0]))
                for unit in range(*units):
                    info = file.metadata.row_group(unit)
                    batch = max(1, min(1 << 13, _BATCH * info.num_rows // max(1, info.total_byte_size)))
                    for found in file.iter_batches(batch, [unit], columns=columns, use_threads=False):
                        yield from make(rows, found, span, number, where)
                        number += found.num_rows

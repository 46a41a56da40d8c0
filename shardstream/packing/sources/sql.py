"""Rows of a query over a database: each is a sample."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from shardstream.errors import OptionError, SourceError
from shardstream.format.names import shorten
from shardstream.packing.sources.base import FileSpan, Reject, Sample, SourceOptions, Task
from shardstream.packing.sources.file_keys import key_bases
from shardstream.packing.sources.row_source import RowSource
from shardstream.packing.sources.rows import Kind
from shardstream.packing.sources.sql_database import Database, Key, open_database
from shardstream.packing.sources.sql_snapshot import Cell, KeyCount, Snapshot, kind_of, take_snapshot
from shardstream.storage.inputs import FileInfo
from shardstream.storage.store import redact

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SqlSource"]

_BATCH = 4 << 20  # bytes of rows in memory at once
_MOST_ROWS = 1 << 13  # of a batch


@dataclass(frozen=True)
class _Range(Task):
    """The rows from the key `begin` to before the key `end`.

    Args:
        begin, end: None: from the first one, to the last one.
        rows, digest: How many there were when the pack was planned, and what their keys were.
        nulls: Of the last task: how many rows had NULL for a key. None: this is another task.
    """

    alone: ClassVar[bool] = True  # another attempt may find other values

    begin: Key | None = None
    end: Key | None = None
    rows: int = 0
    digest: int = 0
    nulls: int | None = None


@dataclass(frozen=True)
class SqlSource(RowSource):
    """Rows of a query as samples, in the order of a key. A task has a range of the key.

    All keys are read for the plan, so that each task knows what it must find. Other keys than these are an
    error: the table was changed meanwhile. A change of other values is not noticed.

    See `RowSource` for the arguments that are not listed here.

    Args:
        query: A SELECT.
        snapshot: The keys when the pack was planned. `prepare` fills it.
        cells: Ranges of keys, of which tasks are made. Workers do not need them.
    """

    name: str = "sql"
    query: str = ""
    snapshot: Snapshot | None = None
    cells: tuple[Cell, ...] = ()
    extensions: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[frozenset[str]] = RowSource.takes | {"query", "chat_template", "dtype", "eos"}
    is_database: ClassVar[bool] = True

    @classmethod
    def make(cls, options: SourceOptions) -> Self:
        if not options.query or not options.query.strip():
            raise OptionError(
                'sql needs a query, as in --query "SELECT id, text FROM docs": nothing else says what to pack'
            )
        if options.key in (None, "none"):
            raise OptionError(
                "sql needs a key, as in --key id: a column of the query with another value in each row, best "
                "with an index. Rows of a database have no order, and no other name"
            )
        return replace(super().make(options), query=options.query)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cells": ()}

    def options(self) -> dict[str, Any]:
        found = {} if self.snapshot is None else {"snapshot": self.snapshot.record()}
        return {**super().options(), "query": self.query, **found}

    @property
    def _key(self) -> str:
        assert self.rows.key is not None
        return self.rows.key

    def prepare(self, files: Sequence[FileInfo]) -> Self:
        """The source, with a snapshot of the keys."""
        if len(files) != 1:
            raise OptionError("sql packs one database at a time; add the rows of another with --append")
        where = redact(files[0].url)
        with open_database(files[0].url, self.query, self._key, self.storage_options) as database:
            snapshot, cells = take_snapshot(database, where)
        if not snapshot.rows and not snapshot.nulls:
            raise SourceError(f"{where}: the query gave no rows: no samples were found")
        if snapshot.rows:
            self.rows.of_table(dict(snapshot.kinds), where)  # raises if it cannot be packed
        return replace(self, snapshot=snapshot, cells=cells)

    def sized(self, files: Sequence[FileInfo]) -> list[FileInfo]:
        """The database with about the bytes of its rows for a size."""
        return [file._replace(size=self._bytes()) for file in files]

    def _bytes(self) -> int:
        found = self.snapshot
        return 0 if found is None else found.rows * found.row_bytes

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Tasks of about `target` bytes of values, as some rows show how large a row is."""
        if not files:
            return []
        if self.snapshot is None or (self.snapshot.rows and not self.cells):
            return self.prepare(files).plan(files, target)
        snapshot, (base,) = self.snapshot, key_bases(files, self.extensions)
        groups: list[list[Cell]] = []
        room = 0
        for cell in self.cells:
            if room <= 0:
                groups.append([])
                room = max(1, target // snapshot.row_bytes)
            groups[-1].append(cell)
            room -= cell.rows
        if not groups and snapshot.nulls:
            groups = [[]]  # there is nothing but rows to reject
        tasks: list[Task] = []
        done = 0
        for number, cells in enumerate(groups):
            rows, last = sum(cell.rows for cell in cells), number == len(groups) - 1
            begin, end = done * snapshot.row_bytes, (done + rows) * snapshot.row_bytes
            span = FileSpan(files[0].url, begin, end, self._bytes(), base, units=(done, done + rows))
            tasks.append(
                _Range(
                    number,
                    (span,),
                    # The first and the last are open, so that keys before and behind the others are noticed.
                    begin=None if number == 0 else cells[0].begin,
                    end=None if last else groups[number + 1][0].begin,
                    rows=rows,
                    digest=sum(cell.digest for cell in cells) & ((1 << 64) - 1),
                    nulls=snapshot.nulls if last else None,
                )
            )
            done += rows
        return tasks

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """A sample for each row.

        Rows with the same key are Rejects, all of them: nothing says which comes first. So are rows without
        a key.

        Raises:
            SourceError: The keys are others than when the pack was planned.
        """
        assert isinstance(task, _Range)
        (span,) = task.files
        where = redact(span.url)
        with open_database(span.url, self.query, self._key, self.storage_options) as database:
            yield from self._rows(database, task, span, where)
            if task.nulls is not None:
                nulls = database.nulls()
                if nulls != task.nulls:
                    self._raise_changed(where, f"{task.nulls:,} rows had no key", f"{nulls:,} have none")
                for number in range(nulls):
                    yield Reject(f"{where}, {self._key}=NULL", f"no key; row {number + 1} of {nulls} such")

    def _rows(
        self, database: Database, task: _Range, span: FileSpan, where: str
    ) -> Iterator[Sample | Reject]:
        snapshot = self.snapshot
        assert snapshot is not None
        if not task.rows and not snapshot.rows:
            rows, columns = self.rows, [self._key]
        else:
            rows = self.rows.of_table(dict(snapshot.kinds), where)
            columns = self._columns(rows.needed(), database, where)
        at, batch = columns.index(self._key), max(1, min(_MOST_ROWS, _BATCH // snapshot.row_bytes))
        count = KeyCount()
        held: Sequence[Any] | None = None
        times = 0
        for part in database.rows(columns, task.begin, task.end, batch):
            for values in part:
                count.add(values[at], where)
                if held is not None:
                    if held[at] == values[at]:
                        times += 1
                        continue
                    yield from self._row(rows, columns, held, at, times, span, where)
                held, times = values, 1
        if held is not None:
            yield from self._row(rows, columns, held, at, times, span, where)
        if (count.rows, count.digest) != (task.rows, task.digest):
            low, high = ("..." if key is None else shorten(repr(key)) for key in (task.begin, task.end))
            same = " other" if count.rows == task.rows else ""
            self._raise_changed(
                where,
                f"{self._key} from {low} to {high} had {task.rows:,} rows",
                f"it has{same} {count.rows:,} now",
            )

    def _columns(self, needed: set[str] | None, database: Database, where: str) -> list[str]:
        """The columns to read, in their order."""
        snapshot = self.snapshot
        assert snapshot is not None
        known = [name for name, _ in snapshot.kinds]
        if database.columns != known:
            self._raise_changed(where, f"there were the columns {', '.join(known)}", "they are others now")
        if needed is None:
            return known
        # A name with a dot is that of a column, or of a part of one.
        names = {name if name in known else name.partition(".")[0] for name in needed} | {self._key}
        return [name for name in known if name in names]

    def _row(
        self, rows: Any, columns: Sequence[str], values: Sequence[Any], at: int, times: int, span: FileSpan,
        where: str,
    ) -> Iterator[Sample | Reject]:  # fmt: skip
        key = values[at]
        place = f"{where}, {self._key}={shorten(repr(key))}"
        if times > 1:
            for _ in range(times):
                yield Reject(place, f"{times:,} rows have this key; a key names one row")
            return
        row = dict(zip(columns, values, strict=True))
        for name, value in row.items():
            if isinstance(value, (str, bytes)) and (reason := self._misfit(name, value)):
                yield Reject(place, reason)
                return
        if not isinstance(key, (str, int)):
            row[self._key] = str(key)  # a UUID
        yield rows.sample(row, span, span.units[0], place)

    def _misfit(self, name: str, value: str | bytes) -> str:
        """Why a value is no value of its column, or "": bytes become fields, which text does not."""
        kind, found = self._kinds.get(name), kind_of(value)
        if kind is None or found == kind or (found == "text" and kind == "other"):
            return ""
        what = {
            "text": "text",
            "bytes": "bytes, or text that is not UTF-8",
            "other": "neither text nor bytes",
        }
        return (
            f"column {name!r} is {what[found]} here, and {what[kind]} in other rows; cast it in the query, "
            f"or take it as it is with --column FIELD={name}"
        )

    @functools.cached_property
    def _kinds(self) -> dict[str, Kind]:
        """The kinds of columns; without those that become fields as they are, since the user said so."""
        said = {name for field, name in self.rows.column or () if "*" not in field}
        kinds = () if self.snapshot is None else self.snapshot.kinds
        return {name: kind for name, kind in kinds if name not in said and name != self.rows.key}

    def _raise_changed(self, where: str, before: str, now: str) -> None:
        raise SourceError(
            f"{where}: the table was changed while it was packed: {before}, {now}; pack again, without "
            "--resume, from a table that nobody changes. Or the query gives other rows each time"
        )

"""Log: rows of a training job, on their way to any store. Nobody waits for it."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shardstream.errors import OptionError, StateError
from shardstream.format.numbers import whole_number
from shardstream.format.sizes import parse_size
from shardstream.logs.handler import LogHandler
from shardstream.logs.objects import Objects
from shardstream.logs.ranks import detected_rank
from shardstream.logs.rows import MARK, encode
from shardstream.logs.sinks import Sink
from shardstream.logs.spool import Spool, folders_for
from shardstream.logs.stream import Stream
from shardstream.memory import when_dropped
from shardstream.storage.options import Options
from shardstream.storage.store import absolute, redact

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Log"]

_LEAST, _LARGEST = 1 << 10, 256 << 20  # bytes of a segment


class Log:
    """A log of rows, in a folder or any store, one JSON line for each row.

    A row goes into a file in memory at once, and so outlives the process. A thread compresses these files and
    uploads each as a new object, `rank-0/000123.jsonl.zst`. A store that is slow, or never answers, makes
    nobody wait. What a killed process has left, the next one with the same `url` and `spool` on this machine
    uploads. If the whole machine is lost, the rows of the last `seconds` are lost.

    Threads may share a log. A process that is forked, or gets it by pickle, writes a file of its own. The
    sinks get only the rows of the process that made the log.

    Args:
        url: The folder or store for the log. Several jobs may write to one: no object is ever written again.
        rank: The rank of this process; None to ask torch.distributed, Horovod or the launcher. 0 without
            them.
        spool: A local folder for rows that are not uploaded yet, best in a tmpfs. If it takes no rows, those
            go to the system's temporary folder.
        storage_options: As for a dataset: credentials, endpoints, `retry` and `timeouts`.
        spool_limit: Bytes that waiting rows take at most, such as "64MiB"; at least two segments. If a
            store is away for longer, the oldest rows are dropped. `dropped` counts them, and a row in the
            log says so.
        segment: Bytes after which a file of rows is uploaded, "1KiB" to "256MiB". A longer row is dropped.
        seconds: Seconds after which it is uploaded even if it is smaller.
        timeout: Seconds that `close`, `flush` and the end of the program wait for the store and the sinks.
        sinks: What gets the rows, too, each in a thread of its own: `logs.CSV`, `logs.TensorBoard`,
            `logs.Wandb`, or any object with their methods.

    Raises:
        OptionError: An option cannot work.
        StorageError: No local folder takes a file.
        MissingExtraError: The store needs a package that is not installed.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        rank: int | None = None,
        spool: str | os.PathLike[str] = "/dev/shm",  # noqa: S108 - its folder is checked to be ours alone
        storage_options: Options = None,
        spool_limit: int | str = "64MiB",
        segment: int | str = "4MiB",
        seconds: float = 10.0,
        timeout: float = 10.0,
        sinks: Sequence[Sink] = (),
    ) -> None:
        where = absolute(os.fspath(url))
        self._rank = detected_rank() if rank is None else whole_number("Log: rank", rank, 0)
        size, limit = parse_size(segment, "Log: segment"), parse_size(spool_limit, "Log: spool_limit")
        if not _LEAST <= size <= _LARGEST:
            raise OptionError(f"Log: segment={segment!r} must be from '1KiB' to '256MiB'")
        if limit < 2 * size:
            raise OptionError(
                f"Log: spool_limit={spool_limit!r} must be at least two segments of {size} bytes"
            )
        for name, value in (("seconds", seconds), ("timeout", timeout)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
                raise OptionError(f"Log: {name}={value!r} must be a number of seconds, greater than 0")
        objects = Objects(where, storage_options)
        store = Spool(folders_for(where, os.fspath(spool)), self._rank, size, limit)
        self._timeout, self._closed, self._complete = timeout, False, False
        self._stream = Stream(store, objects, redact(where), seconds, tuple(sinks), timeout)
        when_dropped(self, self._stream.leave)
        # For a process that gets it by pickle. A rank that was detected is detected again there.
        self._made: Callable[[], Log] = functools.partial(
            type(self), where, rank=rank, spool=os.fspath(spool), storage_options=storage_options,
            spool_limit=spool_limit, segment=segment, seconds=seconds, timeout=timeout,
        )  # fmt: skip

    def write(self, /, **row: Any) -> None:
        """Write a row; it takes some microseconds, and waits for nothing.

        Args:
            row: The fields. Numbers, text, lists, dicts, and scalars and arrays of numpy and torch; any
                other value as `docs/logs.md` says, at least as its `str`: no value raises an error. NaN and
                infinities are written as "NaN", "Infinity" and "-Infinity". The row also gets "time"
                (seconds since 1970) and "rank", unless it has them. The name "shardstream" is reserved. A
                tensor on a GPU makes the caller wait for the GPU.

        Raises:
            OptionError: A field is named "shardstream": rows with it say what the log has dropped.
            StateError: The log is closed.
        """
        if self._closed:
            raise StateError(f"the log {self._stream.where} is closed")
        if MARK in row:
            raise OptionError(
                f"Log.write: the field {MARK!r} is reserved for rows that say what is missing; rename it"
            )
        self._stream.put(encode({"time": time.time(), "rank": self._rank, **row}))

    def handler(self, level: int | str = logging.NOTSET) -> logging.Handler:
        """A handler for the `logging` of Python: each record is a row.

        Args:
            level: The least level of a record that is written.

        Returns:
            A new handler. Once the log is closed, it does nothing.
        """
        return LogHandler(self._write_record, level)

    def _write_record(self, row: dict[str, Any]) -> None:
        if not self._closed:
            self._stream.put(encode({"time": 0.0, "rank": self._rank, **row}))

    @property
    def dropped(self) -> int:
        """How many rows are not in the log: the spool was full, a row was too long, or a kill has cut it."""
        return self._stream.spool.dropped

    def stats(self) -> dict[str, Any]:
        """What the log has done so far.

        Returns:
            "rows" that were written, "dropped", "waiting" (segments and rows), "uploaded_segments", "error"
            (the last failure, "" if the last upload was a success), and "sinks": for each "sink", "rows",
            "failed" and "dropped".
        """
        return self._stream.stats()

    def flush(self, timeout: float | None = None) -> bool:
        """Upload what has been written, and wait for that.

        Args:
            timeout: Seconds to wait at most; None for those of the log.

        Returns:
            Whether all is uploaded.
        """
        return self._stream.flush(self._timeout if timeout is None else timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Upload what has been written, close the sinks, and end.

        Args:
            timeout: Seconds to wait at most; None for those of the log. What is not uploaded then stays on
                this machine for the next process, with a warning.

        Returns:
            Whether the store and all sinks have taken all rows: none is left, none was dropped. A row
            that a kill has cut in an earlier process does not count. A second call returns the same.
        """
        if not self._closed:
            self._closed = True
            self._complete = self._stream.end(self._timeout if timeout is None else timeout)
        return self._complete

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made, ()

    def __repr__(self) -> str:
        return f"Log({self._stream.where!r}, rank={self._rank})"

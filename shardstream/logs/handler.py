"""A handler of `logging` that makes rows of records."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from shardstream.logs.rows import MARK, text
from shardstream.storage.secrets import TALKERS

__all__ = ["LogHandler"]

_OTHERS = frozenset(TALKERS) - {"shardstream"}
_FORMATTER = logging.Formatter()
# What a record has by itself; the rest of it is what the caller gave in `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogHandler(logging.Handler):
    """Writes each record as a row: time, level, logger, message, exc_info, and what `extra=` has.

    Packages that talk to stores write records for each request. Below the level WARNING these make no rows:
    each upload of rows would make new rows.

    Args:
        write: Takes a row, and raises nothing.
        level: The least level of a record that is written.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], level: int | str) -> None:
        super().__init__(level)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. An error goes to `logging.Handler.handleError`, as with every handler.

        A record whose message cannot be formatted is written with its parts.
        """
        if record.levelno < logging.WARNING and record.name.partition(".")[0] in _OTHERS:
            return
        try:
            message = self.format(record) if self.formatter else record.getMessage()
        except Exception:  # noqa: BLE001 - what a handler raises would end in the user's code
            self.handleError(record)
            message = f"{text(record.msg)} % {text(record.args)}"
        row: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        try:
            if record.exc_info:
                row["exc_info"] = record.exc_text or _FORMATTER.formatException(record.exc_info)
            elif record.exc_text:
                row["exc_info"] = record.exc_text
        except Exception:  # noqa: BLE001
            row["exc_info"] = text(record.exc_info)
        if record.stack_info:
            row["stack_info"] = record.stack_info
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        for name, value in extra.items():
            # The log has a meaning for this name: a row of its own.
            row.setdefault(f"{MARK}_" if name == MARK else name, value)
        try:
            self._write(row)
        except Exception:  # noqa: BLE001
            self.handleError(record)

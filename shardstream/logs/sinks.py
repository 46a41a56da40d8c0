"""Sinks: where rows go besides the log. Each is fed by a thread of its own."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from shardstream.errors import MissingExtraError, OptionError, require
from shardstream.logs.rows import MARK

__all__ = ["CSV", "RowsError", "Sink", "TensorBoard", "Wandb"]

_limit_lock = threading.Lock()
_OWN = frozenset({"time", "rank", "step"})


class Sink(Protocol):
    """What `ss.Log(url, sinks=[...])` takes: any object with these methods. One thread calls them."""

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take rows, in their order.

        Args:
            rows: One or more rows, each with "time" (seconds since 1970), "rank", and what the user gave.
        """
        ...

    def close(self) -> None:
        """There are no more rows."""
        ...


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, without those that say where it belongs."""
    if MARK in row:
        return {}
    return {
        name: value
        for name, value in row.items()
        if name not in _OWN and isinstance(value, (bool, int, float))
    }


def _step(row: Mapping[str, Any]) -> int | None:
    step = row.get("step")
    if isinstance(step, float):
        return int(step) if math.isfinite(step) else None
    return int(step) if isinstance(step, int) else None


class RowsError(Exception):
    """A sink has not taken some rows of a batch.

    Args:
        rows: How many.
        first: Why it has not taken the first of them.
    """

    def __init__(self, rows: int, first: Exception) -> None:
        super().__init__(f"{type(first).__name__}: {first}")
        self.rows, self.first = rows, first


def _each(
    rows: Sequence[Mapping[str, Any]], write: Callable[[Mapping[str, Any]], object]
) -> RowsError | None:
    """Writes row by row; one that raises does not cost the others."""
    errors = []
    for row in rows:
        try:
            write(row)
        except Exception as error:  # noqa: BLE001 - such as a number that the library does not take
            errors.append(error)
    return RowsError(len(errors), errors[0]) if errors else None


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Lets the csv module read fields of any length, as it writes them; its limit is one for the process."""
    with _limit_lock:
        before = csv.field_size_limit(2**31 - 1)
        try:
            yield
        finally:
            csv.field_size_limit(before)


class CSV:
    """A CSV file, one line for each row. It is continued if it exists.

    Args:
        path: A local file. Its folder must exist.
        fields: The columns. None: those of all rows so far. If a row has a new field, the file is written
            anew with one more column. Records of logging are then left out.

    Raises:
        OptionError: `fields` has no names.
    """

    def __init__(self, path: str | os.PathLike[str], fields: Sequence[str] | None = None) -> None:
        if fields is not None and (isinstance(fields, str) or not fields):
            raise OptionError(f"CSV: fields={fields!r} must be a list of names, or None")
        self._path = os.path.abspath(os.fspath(path))
        self._fixed = fields is not None
        self._fields = list(fields or ())
        self._begun = False

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows at the end of the file."""
        if not self._fixed:
            rows = [row for row in rows if "logger" not in row and MARK not in row]
        if not rows:
            return
        if not self._begun:
            self._begin()
        new = dict.fromkeys(name for row in rows for name in row if name not in self._fields)
        if new and not self._fixed:
            fields = [*self._fields, *new]
            self._rewrite(fields)
            self._fields = fields
        # No buffer: a process that is forked meanwhile would write it a second time.
        with open(self._path, "ab", buffering=0) as file:
            text, error = self._text(rows, header=not file.tell())
            file.write(text)
        if error is not None:
            raise error

    def close(self) -> None:
        """Nothing is open between two writes."""

    def _begin(self) -> None:
        if os.path.exists(self._path) and os.path.getsize(self._path):
            with open(self._path, encoding="utf-8", newline="") as file:
                found = next(csv.reader(file))
            if self._fixed and found != self._fields:
                raise OptionError(f"{self._path}: its columns are {found}, not fields={self._fields}")
            self._fields = found
            with open(self._path, "rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a process was killed while it wrote
                    file.write(b"\r\n")
        self._begun = True

    def _rewrite(self, fields: Sequence[str]) -> None:
        """The same lines with these columns. If it fails, the file stays as it is."""
        if not os.path.exists(self._path) or not os.path.getsize(self._path):
            return
        new = f"{self._path}.new"
        try:
            with (
                _long_fields(),
                open(self._path, encoding="utf-8", newline="") as old,
                open(new, "w", encoding="utf-8", newline="") as file,
            ):
                writer = csv.DictWriter(file, fields)
                writer.writeheader()
                writer.writerows(csv.DictReader(old))
            os.replace(new, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def _text(self, rows: Sequence[Mapping[str, Any]], header: bool) -> tuple[bytes, RowsError | None]:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._fields, extrasaction="ignore")
        if header:
            writer.writeheader()
        error = _each(rows, writer.writerow)
        return text.getvalue().encode(), error


class TensorBoard:
    """The numbers of each row as scalars of TensorBoard, at the row's step and time.

    It takes the writer of tensorboardX, or else that of torch. Rows without a number are left out.

    Args:
        folder: A local folder for event files.

    Raises:
        MissingExtraError: Neither tensorboardX nor torch with tensorboard is installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.path.abspath(os.fspath(folder))
        self._writer: Any = None
        try:
            self._module = require("tensorboardX", "tensorboard")
        except MissingExtraError as missing:
            try:
                self._module = require("torch.utils.tensorboard", "tensorboard")
            except MissingExtraError:
                raise missing from None

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the scalars, and flush them to the file."""
        if self._writer is None:
            self._writer = self._module.SummaryWriter(self._folder)
        error = _each(rows, self._add)
        self._writer.flush()
        if error is not None:
            raise error

    def _add(self, row: Mapping[str, Any]) -> None:
        step, time = _step(row), row.get("time")
        for name, value in _metrics(row).items():
            self._writer.add_scalar(name, value, step, walltime=time)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """The numbers of each row in a run of Weights & Biases.

    `logs.Wandb(wandb.init(project="p", mode="offline"))`. Rows of one step make one point. wandb leaves out
    a row whose step is less than that of the row before. Rows without a number are left out.

    Args:
        run: What `wandb.init` returns. It is finished with the log.

    Raises:
        OptionError: It is no run.
    """

    def __init__(self, run: Any) -> None:
        if not callable(getattr(run, "log", None)) or not callable(getattr(run, "finish", None)):
            raise OptionError(
                f"Wandb: run={run!r} is no run; give it what wandb.init() returns (extra: wandb)"
            )
        self._run = run

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the numbers of each row."""
        if error := _each(rows, self._log):
            raise error

    def _log(self, row: Mapping[str, Any]) -> None:
        if metrics := _metrics(row):
            self._run.log(metrics, step=_step(row))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

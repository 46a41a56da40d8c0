"""Functions of Python as a source: each is one task, and returns or yields the samples of it."""

from __future__ import annotations

import contextlib
import functools
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from shardstream.errors import MissingExtraError, OptionError, SourceError
from shardstream.format.names import escape_key
from shardstream.packing.columns import columns_of_sample
from shardstream.packing.sources.base import FileSpan, Reject, Sample, SourceOptions, Task
from shardstream.packing.values import encoder
from shardstream.storage.inputs import FileInfo

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Call", "Calls", "key_and_fields", "located", "sample_of"]

Call = Callable[[], Iterable[Mapping[str, Any]]]
_KEY = "__key__"
_END = object()


@dataclass(frozen=True)
class _CallTask(Task):
    """One call.

    Args:
        call: The function; in another process its pickle, so that it is loaded where an error can name it.
        name: Its name, for messages.
    """

    alone: ClassVar[bool] = True

    call: Call | bytes = b""
    name: str = ""

    def __getstate__(self) -> dict[str, Any]:
        call = self.call if isinstance(self.call, bytes) else _pickled(self.call, f"task {self.number}")
        return {"number": self.number, "files": self.files, "call": call, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Calls:
    """The source for a list of functions.

    Args:
        calls: The functions. Each can be pickled, takes no argument, and returns or yields samples.
        keep: The names of values that the index keeps.
    """

    extensions: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[frozenset[str]] = frozenset()

    calls: Sequence[Call] = ()
    keep: tuple[str, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"calls": (), "keep": self.keep}  # the tasks hold the calls

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    @classmethod
    def make(cls, options: SourceOptions) -> Self:
        raise OptionError("format 'python' has no files: give pack the functions, or the samples")

    @property
    def name(self) -> str:
        return "python"

    def options(self) -> dict[str, Any]:
        return {} if self.keep is None else {"keep": list(self.keep)}

    def files(self) -> list[FileInfo]:
        """What stands for files in the provenance of a dataset: one name for each function."""
        return [FileInfo(f"{number:06d}-{_name(call)}", 0, "") for number, call in enumerate(self.calls)]

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        tasks: list[Task] = []
        for number, call in enumerate(self.calls):
            span = FileSpan(f"task {number}", 0, 0, 0, f"{number:06d}")
            tasks.append(_CallTask(number, (span,), call, _name(call)))
        return tasks

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        assert isinstance(task, _CallTask)
        where = f"task {task.number} ({task.name})"
        call = _unpickled(task.call, where) if isinstance(task.call, bytes) else task.call
        with _explained(where):
            samples = iter(_iterable(call(), where))
        number = 0
        while True:
            with _explained(f"{where}, behind sample {number - 1}" if number else where):
                sample = next(samples, _END)
            if sample is _END:
                return
            key = f"{task.files[0].key_base}-{number:012d}"
            yield sample_of(sample, f"{where}, sample {number}", key, self.keep or ())
            number += 1


def sample_of(given: object, where: str, key: str, keep: Sequence[str] = ()) -> Sample | Reject:
    """The sample that a dict is.

    Args:
        given: `__key__`, a str or an int, and the values of fields by name; see `values`. Other names that
            begin with two underscores are notes of a loader, such as `__url__`, and no fields.
        where: Where the sample came from, for messages.
        key: Its key if it names none.
        keep: The names of values that the index keeps. One of them that is None is no field of the sample.
    """
    try:
        named, fields = key_and_fields(given, keep)
    except SourceError as error:
        return Reject(located(given, where), str(error))
    where = where if named is None else f"{where} ({named})"
    if not keep:
        return Sample(named or key, fields, where)
    columns, missing = columns_of_sample(cast("Mapping[str, Any]", given), keep)
    return Sample(named or key, fields, where, columns=columns, missing=missing)


def key_and_fields(given: object, keep: Sequence[str] = ()) -> tuple[str | None, dict[str, bytes]]:
    """The key that a sample names, or None, and the bytes of its fields; see `sample_of`.

    Raises:
        SourceError: It is no sample, or a value cannot be stored.
        MissingExtraError: An image needs Pillow, which is not installed.
    """
    if type(given) is not dict and not isinstance(given, Mapping):
        raise SourceError(f"a sample is a dict of fields, not a value of type {type(given).__qualname__}")
    named = given.get(_KEY)
    key = None if named is None else _key(named)
    fields: dict[str, bytes] = {}
    for name, encode in _fields(tuple(given)):
        value = given[name]
        if value is not None or name not in keep:
            fields[name] = value if type(value) is bytes else encode(name, value)
    return key, fields


def located(given: object, where: str) -> str:
    """Where a sample came from, for messages: with its key, if it names one."""
    with contextlib.suppress(SourceError):
        if isinstance(given, Mapping) and given.get(_KEY) is not None:
            return f"{where} ({_key(given[_KEY])})"
    return where


def _key(named: object) -> str:
    if type(named) is int or (isinstance(named, str) and named):
        return escape_key(str(named))
    raise SourceError(f"{_KEY} is {named!r}; it has to be a str that is not empty, or an int")


@functools.lru_cache(1 << 10)
def _fields(names: tuple[object, ...]) -> tuple[tuple[str, Callable[[str, Any], bytes]], ...]:
    """Of the names in a sample those of fields, and what makes their bytes."""
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None:
        raise SourceError(f"the name of a field is {odd!r}; it has to be a str")
    return tuple((str(name), encoder(str(name))) for name in names if not str(name).startswith("__"))


def _name(call: object) -> str:
    if isinstance(call, functools.partial):
        return _name(call.func)
    return str(getattr(call, "__qualname__", None) or type(call).__qualname__)


def _pickled(call: Call, where: str) -> bytes:
    try:
        return pickle.dumps(call, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # a user's __reduce__ may raise anything
        raise OptionError(
            f"{where} ({_name(call)}) cannot be sent to a worker process: {error}. Give a function of a "
            "module, functools.partial of one, or an object of a class of a module; or use workers=1"
        ) from error


def _unpickled(data: bytes, where: str) -> Call:
    try:
        call: Call = pickle.loads(data)  # noqa: S301 - made by `plan`, in the process that packs
    except Exception as error:
        raise OptionError(
            f"{where}: a worker process cannot load it: {type(error).__name__}: {error}. Workers do not "
            "run the main module: move the function to a module in a file of its own, or use workers=1"
        ) from error
    return call


def _iterable(found: object, where: str) -> Iterable[object]:
    if isinstance(found, Mapping) or not isinstance(found, Iterable):
        kind = type(found).__qualname__
        raise SourceError(f"{where}: it returned a {kind}; it has to return a list of samples, or yield them")
    return found


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what a user's function raises into an error that says where, and that can be sent."""
    try:
        yield
    except (SourceError, MissingExtraError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}:{last.lineno}, in {last.name}"
        raise SourceError(f"{where}: {type(error).__name__}: {error} ({place})") from error

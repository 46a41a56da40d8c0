"""What `pack` does with samples and functions of Python, instead of files."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

from shardstream.errors import OptionError, noted
from shardstream.format.manifest import Manifest
from shardstream.format.numbers import whole_number
from shardstream.packing.end_of_text import Eos
from shardstream.packing.engines.choice import EngineOption
from shardstream.packing.hf_rows import refuse_hf_dict, rows_of
from shardstream.packing.layout import Codec
from shardstream.packing.samples_writer import Writer
from shardstream.packing.sources.base import TOKENS, Reject
from shardstream.packing.sources.calls import Calls
from shardstream.progress import Report
from shardstream.storage.store import Options

__all__ = ["PythonOptions", "check_options", "pack_samples", "samples_or_calls"]

_END = object()
_ROW_OPTIONS = ("text_key", "column", "key")  # of a dataset in memory


class PythonOptions(TypedDict, total=False):
    """The arguments of `pack` for samples and functions; see there."""

    compression: Codec | None
    level: int
    frame_size: str | int | None
    shard_size: str | int | None
    workers: int | None
    tokenizer: str | None
    eos: Eos
    keep: Sequence[str] | None
    shuffle: int | None
    limit: int | None
    on_error: Literal["raise", "skip"]
    max_rejects: float
    resume: bool
    append: bool
    commit: bool
    engine: EngineOption
    storage_options: Options
    progress: Report


def samples_or_calls(sources: object) -> list[str] | Calls | Iterable[object]:
    """What the sources of a pack are.

    Args:
        sources: A path, a list or other iterable of paths, a list of functions, or an iterable of samples.

    Returns:
        The paths; the functions, as a source; or the samples.

    Raises:
        OptionError: It is none of them, or a list of unlike things.
    """
    if isinstance(sources, (str, os.PathLike)):
        return [os.fspath(sources)]
    refuse_hf_dict(sources)
    try:
        if isinstance(sources, Mapping):  # one sample, most likely
            raise TypeError
        items: Iterator[Any] = iter(cast("Iterable[Any]", sources))
    except TypeError:
        what = (
            "a function: call it, or give a list" if callable(sources) else f"a {type(sources).__qualname__}"
        )
        raise OptionError(
            f"sources are paths, an iterable of samples or a list of functions, not {what}"
        ) from None
    if isinstance(sources, (list, tuple)):
        listed = list(sources)
    else:
        first = list(itertools.islice(items, 1))
        if not first or _kind(first[0]) != "paths":
            return itertools.chain(first, items)
        listed = [*first, *items]
    kinds = {_kind(item) for item in listed}
    if len(kinds) > 1:
        raise OptionError(f"sources are all of one kind, not {' and '.join(sorted(kinds))}")
    if kinds <= {"paths"}:
        return [os.fspath(item) for item in listed]
    return Calls(tuple(listed)) if kinds == {"functions"} else iter(listed)


def _kind(item: object) -> str:
    if isinstance(item, (str, os.PathLike)):
        return "paths"
    return "functions" if callable(item) and not isinstance(item, Mapping) else "samples"


def check_options(
    function: Callable[..., Any], arguments: Mapping[str, Any], also: Sequence[str] = ()
) -> dict[str, Any]:
    """The options of a pack of samples or functions.

    Args:
        function: `pack`.
        arguments: All its arguments by name.
        also: Options of files that these samples have, too.

    Raises:
        OptionError: An option was given that only files have.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("sources", "dest", "part", *also) or name in PythonOptions.__annotations__:
            continue
        if arguments[name] != parameter.default:
            raise OptionError(f"{name} is for files, not for samples or functions of Python")
    return {name: arguments[name] for name in ("part", *PythonOptions.__annotations__)}


def pack_samples(
    samples: Iterable[object], dest: str | os.PathLike[str], options: dict[str, Any]
) -> Manifest:
    """Pack samples that come one after another. See `pack`.

    Args:
        samples: The samples. They are read in this thread, while others compress.
        dest: Where the dataset is written.
        options: What `check_options` returned.

    Raises:
        OptionError: An option is wrong.
    """
    limit, most = options.pop("limit"), options.pop("max_rejects")
    if options.pop("commit") or options["part"] is not None:
        raise OptionError("an iterable has no parts: give each process its own, and Writer(dest, part=...)")
    if options.pop("engine") != "local":
        raise OptionError("an iterable is read here: give a list of functions, or leave out engine")
    if limit is not None:
        limit = whole_number("limit", limit, 1)
    with _PackWriter(dest, **options) as writer:
        writer.write_all(samples, limit, most)
    return writer.manifest


def pack_rows(
    function: Callable[..., Any], dataset: object, dest: str | os.PathLike[str], arguments: Mapping[str, Any]
) -> Manifest:
    """Pack a dataset of Hugging Face that is in memory. See `pack`.

    Args:
        function: `pack`.
        dataset: The dataset.
        dest: Where the packed dataset is written.
        arguments: All arguments of `pack` by name.

    Raises:
        SourceError: A column that was asked for is not there, or no column can be a field.
        OptionError: An option is wrong.
    """
    told = {name: arguments[name] for name in _ROW_OPTIONS}
    options = check_options(function, arguments, also=_ROW_OPTIONS)
    if TOKENS in (told["column"] or ()):
        raise OptionError(
            f"column makes field {TOKENS!r}, but token ids of a dataset in memory are written with "
            "ss.Writer(dest, tokens=True), or packed from the folder of its save_to_disk"
        )
    return pack_samples(rows_of(dataset, **told, keep=arguments["keep"]), dest, options)


class _PackWriter(Writer):
    """The Writer of one `pack`."""

    def _add(self, sample: Any, number: int) -> None:
        if isinstance(sample, Reject):
            self._reject(sample)
        else:
            super()._add(sample, number)

    def write_all(self, samples: Iterable[object], limit: int | None, most: float) -> None:
        """Write samples until there are no more, or the limit is reached.

        Args:
            samples: The samples.
            limit: How many are packed at most, without those that are rejected. None: all.
            most: The share that may be rejected, 0 to 1. It is checked before the commit.
        """
        self._max_rejects = most
        source = iter(samples)
        number = 0
        while limit is None or not self._holds(limit):
            with noted(f"shardstream: raised where pack asked for sample {number}"):
                sample: Any = next(source, _END)
            if sample is _END:
                return
            self.write(sample)
            number += 1

    def _holds(self, count: int) -> bool:
        """Whether so many samples are accepted. Some of the texts that wait may still be rejected."""
        if self._given - self._rejected < count:
            return False
        with self._write_lock:
            self._add_waiting()
        return self._given - self._rejected >= count

"""What every source is: it plans tasks over its files, and reads the samples of one task."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from shardstream.errors import SourceError
from shardstream.format.names import escape_key
from shardstream.storage.files import FileInfo, read_slice
from shardstream.storage.remote import Options, redact


class FileSpan(NamedTuple):
    """Bytes [start, end) of a file of `size` bytes.

    Keys made from it begin with `key_base`; `label` is its class, if it has one.
    """

    url: str
    start: int
    end: int
    size: int
    key_base: str
    label: str = ""


@dataclass(frozen=True)
class Task:
    """One slice of the input: a run of whole files, or a part of one."""

    number: int
    files: tuple[FileSpan, ...]


class Sample(NamedTuple):
    """A sample: its key, its fields as bytes, and where it came from ("corpus.jsonl:17").

    counts: numbers that are added up over all samples, for the manifest's provenance.
    """

    key: str
    fields: dict[str, bytes]
    where: str
    counts: Mapping[str, int] = MappingProxyType({})


class Reject(NamedTuple):
    """A piece of input that is no sample: where, and why not."""

    where: str
    reason: str


class Source(Protocol):
    """One kind of input. A frozen dataclass of its options, which travels to workers by pickle.

    Tasks depend on the input and the target size alone, never on the number of workers.
    """

    @property
    def name(self) -> str:
        """The name that --format takes."""
        ...

    def options(self) -> dict[str, Any]:
        """The options that shape the samples, for the manifest's provenance."""
        ...

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Cut the files into tasks of about `target` bytes."""
        ...

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """The samples of one task, in a fixed order, in bounded memory."""
        ...


def relative(file: FileInfo) -> str:
    """The file's path below the directory that was given, or its name."""
    if file.root and file.url.startswith(file.root.rstrip("/") + "/"):
        return file.url[len(file.root.rstrip("/")) + 1 :]
    return os.path.basename(file.url.rstrip("/")) or file.url


def group(bundles: Iterable[list[FileSpan]], target: int) -> list[Task]:
    """Tasks of consecutive bundles of whole files, about `target` bytes each."""
    tasks: list[Task] = []
    held: list[FileSpan] = []
    size = 0
    for bundle in bundles:
        extra = sum(span.size for span in bundle)
        if held and size + extra > target:
            tasks.append(Task(len(tasks), tuple(held)))
            held, size = [], 0
        held += bundle
        size += extra
    if held:
        tasks.append(Task(len(tasks), tuple(held)))
    return tasks


def unique_keys(names: Iterable[str]) -> list[str]:
    """A key for each name: the name escaped, and numbered where it came before."""
    last: dict[str, int] = {}  # the keys that are taken, and the last number given to each
    for name in names:
        key = stem = escape_key(name)
        while key in last:
            last[stem] += 1
            key = f"{stem}~{last[stem]}"
        last[key] = 1
    return list(last)


def read_whole(span: FileSpan, storage_options: Options) -> bytes:
    """The bytes of a whole file; SourceError if it is no longer as long as it was when listed."""
    data = read_slice(span.url, 0, span.size + 1, storage_options)
    if len(data) != span.size:
        raise SourceError(
            f"{redact(span.url)}: its size changed from {span.size} bytes while packing; pack again"
        )
    return bytes(data)

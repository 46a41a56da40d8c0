"""A tree of text files: each file is a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shardstream.packing.sources.base import (
    Reject,
    Sample,
    SourceOptions,
    Streamed,
    Task,
    read_whole,
    relative,
    whole_files,
)
from shardstream.packing.sources.file_keys import keyed
from shardstream.storage.inputs import FileInfo
from shardstream.storage.store import Options, redact

EXTENSIONS = (
    ".txt",
    ".text",
    ".md",
    ".rst",
    ".tex",
    ".html",
    ".xml",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".py",
    ".rs",
)


@dataclass(frozen=True)
class TextSource(Streamed):
    """Text files as samples: the text is field txt, and the escaped path below the given folder is the key.

    Args:
        storage_options: Options for the stores of the input.
    """

    storage_options: Options = field(default=None, repr=False)
    name: str = "text"
    extensions: ClassVar[tuple[str, ...]] = EXTENSIONS
    keys: ClassVar[str] = "the path of the file below the given folder"
    takes: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def make(cls, options: SourceOptions) -> TextSource:
        return cls(options.storage_options)

    def options(self) -> dict[str, Any]:
        return {}

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        return whole_files(keyed(lambda: files, relative), target)

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        for span in task.files:
            data = read_whole(span, self.storage_options)
            where = redact(span.url)
            try:
                data.decode()
            except UnicodeDecodeError as error:
                line = data.count(b"\n", 0, error.start) + 1
                yield Reject(f"{where}:{line}", "not UTF-8 text")
                continue
            yield Sample(span.key_base, {"txt": data}, where)

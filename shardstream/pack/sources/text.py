"""A tree of text files: one sample a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardstream.pack.sources.base import (
    FileSpan,
    Reject,
    Sample,
    Task,
    group,
    read_whole,
    relative,
    unique_keys,
)
from shardstream.storage.files import FileInfo
from shardstream.storage.remote import Options, redact


@dataclass(frozen=True)
class TextSource:
    """Each file's text becomes field txt; its path below the given directory, escaped, the key."""

    storage_options: Options = field(default=None, repr=False)
    name: str = "text"

    def options(self) -> dict[str, Any]:
        return {}

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        keys = unique_keys(map(relative, files))
        spans = (
            [FileSpan(file.url, 0, file.size, file.size, key)] for file, key in zip(files, keys, strict=True)
        )
        return group(spans, target)

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

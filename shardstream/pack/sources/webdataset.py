"""Existing WebDataset archives: .tar, .tar.gz, .tgz, .tar.zst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as option
from typing import Any, BinaryIO

from shardstream.errors import SourceError
from shardstream.format.names import check_field, check_key, split_name
from shardstream.format.tar import scan
from shardstream.pack.sources.base import FileSpan, Reject, Sample, Task, unique_keys
from shardstream.pack.sources.streams import is_compressed, open_stream
from shardstream.storage.files import FileInfo
from shardstream.storage.remote import Options, redact

EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WebdatasetSource:
    """Members of archives to samples, grouped by key in their order."""

    storage_options: Options = option(default=None, repr=False)
    name: str = "webdataset"

    def options(self) -> dict[str, Any]:
        return {}

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """One task per archive."""
        bases = unique_keys(redact(info.url).rpartition("/")[2] for info in files)
        return [
            Task(number, (FileSpan(info.url, 0, info.size, info.size, base),))
            for number, (info, base) in enumerate(zip(files, bases, strict=True))
        ]

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """The samples of each archive."""
        for span in task.files:
            yield from self._archive(span)

    def _archive(self, span: FileSpan) -> Iterator[Sample | Reject]:
        where = redact(span.url)
        seen: set[tuple[str, str]] = set()
        with open_stream(span.url, self.storage_options) as file:
            key, fields, problem = "", dict[str, bytes](), ""
            for member in scan(file, None if is_compressed(span.url) else span.size, where):
                new_key, field = split_name(member.name.removeprefix("./"))
                field = field.lower()
                if new_key != key:
                    if problem or fields:
                        yield _finish(key, fields, where, problem)
                    key, fields, problem = new_key, {}, ""
                if not field:
                    problem = problem or f"member {member.name!r} has no extension"
                elif (key, field) in seen:
                    problem = problem or f"member {member.name!r} appears twice"
                else:
                    seen.add((key, field))
                    data = _take(file, member.size)
                    if len(data) != member.size:
                        raise SourceError(f"{where}: cut off inside {member.name!r}")
                    fields[field] = data
            if problem or fields:
                yield _finish(key, fields, where, problem)


def _take(file: BinaryIO, size: int) -> bytes:
    # In pieces: a hostile header's size must not be allocated before its bytes are there.
    parts = []
    while size and (part := file.read(min(size, _CHUNK))):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _finish(key: str, fields: dict[str, bytes], where: str, problem: str) -> Sample | Reject:
    if not problem:
        try:
            check_key(key)
            for field in fields:
                check_field(field)
        except SourceError as error:
            problem = str(error)
    return Reject(f"{where}:{key}", problem) if problem else Sample(key, fields, f"{where}:{key}")

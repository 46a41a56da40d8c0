"""index(): make a dataset of existing WebDataset tars, in place.

Only a manifest and indexes are written; the archives stay where they are. Each is read once, in
full, because every frame gets a checksum.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, cast

import xxhash

from shardstream.errors import CommitError, OptionError, SourceError, StorageError
from shardstream.format.manifest import NAME, Manifest, ShardInfo
from shardstream.format.names import check_field
from shardstream.format.rows import index_bytes
from shardstream.format.sizes import parse_size
from shardstream.format.tar import Member, scan, split_name
from shardstream.pack import claim
from shardstream.pack.compose import TOOL, field_infos
from shardstream.pack.engines.local import run_tasks
from shardstream.pack.progress import Progress
from shardstream.pack.sources.streams import GZIP, ZSTD, decompressed
from shardstream.storage.files import FileInfo, expand, open_input
from shardstream.storage.remote import Options, Store, absolute, is_private, redact

_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Job:
    dest: str
    frame_size: int
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Archive:
    number: int
    url: str
    size: int


def index(
    tars: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dest: str | os.PathLike[str],
    *,
    frame_size: str | int = "1MiB",
    workers: int | None = None,
    storage_options: Options = None,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Adopt tars (plain, .gz or .zst; paths or URLs with globs or braces) as a dataset at `dest`.

    A compressed tar can only be entered at its beginning: it is decompressed as a whole, and kept in
    memory, when a sample of it is read.

    Raises OptionError, SourceError for an archive that cannot be adopted (links, duplicate members, a
    cut-off end), StorageError (no access) and CommitError (`dest` holds a dataset already, or is taken).
    """
    names = [tars] if isinstance(tars, (str, os.PathLike)) else list(tars)
    files = expand([os.fspath(name) for name in names], storage_options)
    for file in files:
        if redact(file.url) == file.url:
            continue
        if "://" not in file.url:
            raise SourceError(f"{redact(file.url)}: a manifest holds only names in UTF-8; rename the file")
        raise OptionError(
            f"{redact(file.url)}: a URL with credentials or a signature would be written into the "
            "manifest; pass them by storage_options"
        )
    store = Store.open(os.fspath(dest), storage_options)
    job = _Job(os.fspath(dest), parse_size(frame_size, "frame_size"), storage_options)
    tasks = [_Archive(number, file.url, file.size) for number, file in enumerate(files)]
    total = sum(file.size for file in files)
    started = time.monotonic()
    done: dict[int, ShardInfo] = {}
    if any(is_private(url) for url in (job.dest, *(file.url for file in files))):
        workers = 1
    with claim.hold(store) as lock:
        if store.exists(NAME):
            raise CommitError(f"{store.url} already holds a dataset; choose another target")
        claim.take(store, "index", resume=False, locked=lock is not None)
        keep = () if lock is None else (lock,)
        try:
            for number, info in run_tasks(_adopt, job, tasks, workers or os.cpu_count() or 1, keep):
                done[number] = info
                if progress is not None:
                    progress(
                        Progress(
                            done_bytes=sum(tasks[number].size for number in done),
                            total_bytes=total,
                            samples=sum(info.samples for info in done.values()),
                            rejected=0,
                            done_tasks=len(done),
                            total_tasks=len(tasks),
                            seconds=time.monotonic() - started,
                        )
                    )
            manifest = _manifest([done[number] for number in sorted(done)], files)
            store.create(NAME, manifest.to_bytes())
        except BaseException:
            with contextlib.suppress(StorageError):  # there is nothing that could be gone on with
                store.delete(claim.CLAIM)
            raise
        store.delete(claim.CLAIM)
    return manifest


def _manifest(shards: list[ShardInfo], files: Sequence[FileInfo]) -> Manifest:
    if not any(shard.samples for shard in shards):
        raise SourceError("the archives hold no samples: no member is named KEY.EXTENSION")
    provenance = {"tool": TOOL, "adopted": len(files)}
    return Manifest.build("samples", field_infos(shards), tuple(shards), provenance, external=True)


def _adopt(job: _Job, task: _Archive) -> tuple[int, ShardInfo]:
    lower = task.url.lower()
    codec: Literal["none", "gzip", "zstd-stream"]
    codec = "gzip" if lower.endswith(GZIP) else "zstd-stream" if lower.endswith(ZSTD) else "none"
    where = redact(task.url)
    with open_input(task.url, job.storage_options) as file:
        stored = _Counted(file)
        raw = _Counted(decompressed(cast(BinaryIO, stored), task.url)) if codec != "none" else stored
        rows = _Rows(job.frame_size)
        _scan(raw, task.size if codec == "none" else None, where, rows)
        while raw.read(_CHUNK):  # what follows the end mark counts in the checksum
            pass
        while stored.read(_CHUNK):
            pass
    if codec != "none":
        rows.frames = [(0, stored.position, *row[2:]) for row in rows.frames]
    data = index_bytes(rows.frames, rows.cells, rows.keys, len(rows.columns))
    store = Store.open(job.dest, job.storage_options)
    name = f"shard-{task.number:06d}.index"
    store.write(name, data)
    return task.number, ShardInfo(
        url=absolute(task.url),
        codec=codec,
        fields=tuple(rows.columns),
        bytes=stored.position,
        raw_bytes=raw.position,
        samples=len(rows.keys),
        tokens=0,
        frames=len(rows.frames),
        checksum=stored.digest.hexdigest(),
        index_url=name,
        index_bytes=len(data),
        index_checksum=xxhash.xxh3_128_hexdigest(data),
    )


class _Counted:
    """A stream that counts and hashes what passes, and holds what has not been taken yet."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.digest = xxhash.xxh3_128()
        self.held: bytearray | None = None

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        self.digest.update(data)
        if self.held is not None:
            self.held += data
        return data


class _Rows:
    """The rows of an index under construction, frames cut at sample boundaries."""

    def __init__(self, frame_size: int) -> None:
        self._frame_size = frame_size
        self.frames: list[tuple[int, int, int, int, int, int]] = []
        self.columns: dict[str, int] = {}
        self.cells: list[tuple[int, int, int, int]] = []
        self.keys: list[bytes] = []
        self._digest = xxhash.xxh3_64()
        self.begin = -1
        self.end = -1
        self._first = 0

    def feed(self, data: bytes | bytearray) -> None:
        """Add bytes to the open frame, if there is one."""
        if self.begin >= 0:
            self._digest.update(data)

    def open(self, at: int) -> None:
        """Begin a sample at raw offset `at`, in a new frame if the open one is full."""
        if self.begin >= 0 and self.end - self.begin >= self._frame_size:
            self.close()
        if self.begin < 0:
            self.begin = at
            self._first = len(self.keys)

    def close(self) -> None:
        """End the open frame, if there is one."""
        if self.begin < 0:
            return
        size = self.end - self.begin
        checksum = self._digest.intdigest()
        self.frames.append((self.begin, size, self.begin, size, self._first, checksum))
        self._digest = xxhash.xxh3_64()
        self.begin = -1


def _scan(raw: _Counted, size: int | None, where: str, rows: _Rows) -> None:
    seen: set[str] = set()
    key = ""
    raw.held = bytearray()
    for member in scan(cast(BinaryIO, raw), size, where):
        name, field_name = split_name(member.name.removeprefix("./"))
        if not field_name or name.endswith("/") or not name:
            # As WebDataset does: a file without an extension, or a hidden one, is no field.
            _take(raw, member, where, rows)
            continue
        try:
            field_name = check_field(field_name.lower())
        except SourceError as error:
            raise SourceError(f"{where}: the member {member.name!r}: {error}") from error
        if name != key:
            if name in seen:
                raise SourceError(f"{where}: the key {name!r} occurs twice, with others in between")
            before = rows.begin
            rows.open(member.start)
            if rows.begin != before:  # a new frame begins with this member's headers
                del raw.held[: len(raw.held) - (member.offset - member.start)]
            key = name
            seen.add(name)
            rows.keys.append(name.encode())
            fields: set[str] = set()
        if field_name in fields:
            raise SourceError(f"{where}: the member {member.name!r} occurs twice")
        fields.add(field_name)
        column = rows.columns.setdefault(field_name, len(rows.columns))
        rows.cells.append((len(rows.keys) - 1, column, member.offset - rows.begin, member.size))
        _take(raw, member, where, rows)
    rows.close()
    raw.held = None


def _take(raw: _Counted, member: Member, where: str, rows: _Rows) -> None:
    """Add a member, the headers held and its data, to the open frame, if there is one."""
    rows.feed(raw.held or b"")
    raw.held = None
    left = member.size + -member.size % 512
    while left:
        chunk = raw.read(min(_CHUNK, left))
        if not chunk:
            raise SourceError(f"{where}: the tar ends inside {member.name!r}; is it cut off?")
        rows.feed(chunk)
        left -= len(chunk)
    rows.end = raw.position
    raw.held = bytearray()

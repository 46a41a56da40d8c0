"""Files from a store to a folder: many ranges at a time, each checked, each file whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from shardstream.counters.layout import slot
from shardstream.counters.page import begin
from shardstream.counters.recorder import add
from shardstream.errors import CorruptionError
from shardstream.progress import Bytes, Report
from shardstream.storage.fetch.ranges import RangeReader
from shardstream.storage.local.writes import reserve, sync_folder
from shardstream.storage.local_store import LocalStore
from shardstream.storage.spans import Part, fill
from shardstream.storage.store import Store, named
from shardstream.weights.digests import BLOCK, Digests
from shardstream.weights.urls import Place

__all__ = ["RemoteFile", "digests_of_file", "download", "read_blocks"]

_BYTES = slot("weight_bytes")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class RemoteFile:
    """A file that is to be fetched.

    Attributes:
        name: Its path in the folder.
        path: Its path in the store.
        bytes: Its size.
        digests: Its checksums, if they are known.
        sha256: The same of the whole file.
    """

    name: str
    path: str
    bytes: int
    digests: Digests | None = None
    sha256: str | None = None


class Rooms:
    """Memory for blocks, as much as there are threads at a time."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lend(self, size: int) -> Iterator[memoryview]:
        """Memory of so many bytes, at most a block."""
        with self._lock:
            room = self._free.pop() if self._free else None
        if room is None:
            room = memoryview(bytearray(BLOCK))
        try:
            yield room[:size]
        finally:
            with self._lock:
                self._free.append(room)


def read_blocks(
    store: Store,
    files: Sequence[tuple[str, int, Digests | None]],
    use: Callable[[str, int, memoryview], None],
    where: Callable[[str], str],
    anew: str = "",
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[str, Digests]]:
    """Read files by blocks, with many threads, and check them.

    Args:
        store: Where they are.
        files: (path, size, checksums if they are known) of each.
        use: Called with a path, where a block begins, and its bytes, in the thread that has read it.
        where: Names a file for messages.
        anew: What messages add if checksums differ.
        progress: Called with the bytes of each block that was used, in the thread that has read it.

    Yields:
        (path, checksums) of each file, when all its blocks were used.

    Raises:
        CorruptionError: A block has another checksum, even after it was read again.
        StorageError: It cannot be read.
    """
    begin("weights", store.url)
    rooms, lock, alone = Rooms(), threading.Lock(), threading.Lock()
    ended: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
    blocks = {path: [""] * -(-size // BLOCK) for path, size, _ in files}
    left = {path: len(found) for path, found in blocks.items()}

    def read(
        path: str, number: int, size: int, known: Digests | None, into: Callable[[str, list[Part]], None]
    ) -> None:
        start = number * BLOCK
        with rooms.lend(min(BLOCK, size - start)) as room:
            into(path, [(start, room)])
            digest = xxhash.xxh3_64_hexdigest(room)
            if known is not None and digest != known.blocks[number]:
                store.read_into(path, [(start, room)])  # it may have been damaged on its way
                digest = xxhash.xxh3_64_hexdigest(room)
                if digest != known.blocks[number]:
                    end = start + len(room)
                    raise CorruptionError(
                        f"{where(path)}: bytes {start} to {end} are damaged: their checksum differs{anew}"
                    )
            use(path, start, room)
            add(_BYTES, len(room))
            blocks[path][number] = digest
            progress(len(room))

    def read_whole(path: str, size: int, known: Digests | None) -> None:
        # The server would send the whole file for each block. One such file at a time is in memory.
        with alone:
            data = store.read_range(path, 0, size)
            for number in range(len(blocks[path])):
                read(path, number, size, known, lambda _, parts: fill(parts, 0, data))

    def done(path: str, count: int, error: BaseException | None) -> None:
        with lock:
            left[path] -= 0 if error else count
            whole = not left[path]
        if error is not None or whole:
            ended.put(error or path)

    with RangeReader(store) as reader:
        for path, size, known in files:
            if known is not None and known.bytes != size:
                raise CorruptionError(
                    f"{where(path)}: {size} bytes, {known.bytes} when it was recorded{anew}"
                )
            count = len(blocks[path])
            if count > 1 and store.sends_whole(path):
                reader.run(
                    functools.partial(read_whole, path, size, known), functools.partial(done, path, count)
                )
                continue
            for number in range(count):
                reader.run(
                    functools.partial(read, path, number, size, known, store.read_into),
                    functools.partial(done, path, 1),
                )
            if not count:
                ended.put(path)
        for _ in files:
            found = ended.get()
            if isinstance(found, BaseException):
                raise found
            size = next(size for path, size, _ in files if path == found)
            yield found, Digests(size, blocks[found])
            reader.check_process("fetch_weights")


def digests_of_file(store: Store, path: str) -> Digests:
    """The checksums of a file as it is."""
    [(_, found)] = read_blocks(store, [(path, store.size(path), None)], lambda *_: None, store.where)
    return found


@dataclass
class _Open:
    """A file that is being written."""

    wanted: RemoteFile
    temporary: str
    file: int = -1
    lock: Any = field(default_factory=threading.Lock)

    def write(self, start: int, data: memoryview) -> None:
        with self.lock:
            if self.file < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                self.file = os.open(self.temporary, flags, 0o600)
                reserve(self.file, self.wanted.bytes)
        while data:
            count = os.pwrite(self.file, data, start)
            start += count
            data = data[count:]

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def download(
    place: Place, wanted: Sequence[RemoteFile], local: LocalStore, anew: str = "", progress: Report = None
) -> Iterator[tuple[str, Digests]]:
    """Fetch files into a folder. A file is at its name when it is whole and on the disk.

    Args:
        place: Where they are.
        wanted: The files.
        local: The folder.
        anew: What messages add if checksums differ.
        progress: Called with a Progress after each block, or None.

    Yields:
        The name of each file then, and its checksums.

    Raises:
        CorruptionError: A file has other checksums in the store.
        StorageError: A file cannot be read or written.
    """
    opened: dict[str, _Open] = {}
    for file in wanted:
        target = str(local.local_path(file.name))
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        temporary = os.path.join(os.path.dirname(target), f"{_TEMPORARY}{os.urandom(8).hex()}")
        opened[file.path] = _Open(file, temporary)

    def use(path: str, start: int, data: memoryview) -> None:
        with named(f"writing {local.where(opened[path].wanted.name)}"):
            opened[path].write(start, data)

    try:
        files = [(file.path, file.bytes, file.digests) for file in wanted]
        done = Bytes(progress, sum(file.bytes for file in wanted))
        for path, digests in read_blocks(place.store, files, use, place.where, anew, done.add):
            each = opened[path]
            with named(f"writing {local.where(each.wanted.name)}"):
                each.write(0, memoryview(b""))  # an empty file has no block
                os.fsync(each.file)
                each.close()
                target = str(local.local_path(each.wanted.name))
                os.replace(each.temporary, target)
                sync_folder(os.path.dirname(target))
            yield each.wanted.name, digests
    finally:
        for each in opened.values():
            each.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each.temporary)

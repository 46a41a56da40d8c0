"""Writes one rank's part of a checkpoint in the background: local files first, the store behind them."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import xxhash

from shardstream.checkpoint.layout import BLOCK, CELL, FilePlan, Placed, receipt_name, sums_name
from shardstream.checkpoint.manifest import Chunk, FileInfo, Receipt, TensorInfo, encode
from shardstream.checkpoint.staging import BlockPool
from shardstream.counters.layout import slot, stage
from shardstream.counters.page import begin
from shardstream.counters.recorder import add, span
from shardstream.errors import OptionError, StorageError
from shardstream.storage.store import Store, sync_folder

__all__ = ["PartWriter", "failure_name", "is_failure", "receipt_of"]

_PARTS = 64  # places in memory that a block is written from; what lies in more is copied together
_SENDERS = 4  # uploads at a time; each is one request of up to 256 MiB


_DURABLE, _SAVES, _BYTES = stage("durable"), slot("saves"), slot("checkpoint_bytes")
_COMMITS, _FAILURES = slot("commits"), slot("saves_failed")


def failure_name(rank: int) -> str:
    """The name of the object by which a rank tells the others that its part will not come."""
    return f"failed-{rank:05d}.json"


def is_failure(name: str) -> bool:
    """Whether this is the name of such an object."""
    return name.startswith("failed-")


@dataclass(frozen=True)
class _Block:
    """8 MiB of a file, fewer at its end. `taken` is memory of the pool, if the bytes lie in it."""

    parts: list[memoryview]
    taken: memoryview | None


@dataclass
class _File:
    """A file on its way."""

    plan: FilePlan
    blocks: list[_Block] = field(default_factory=list)  # that no disk has taken
    digests: list[str] = field(default_factory=list)
    sums: bytearray = field(default_factory=bytearray)  # of its cells
    descriptor: int = -1
    path: str | None = None  # where it lies on this machine

    def digest(self, parts: Sequence[memoryview]) -> None:
        """Add the checksums of the next block."""
        whole, cell, room = xxhash.xxh3_64(), xxhash.xxh3_64(), CELL
        for part in parts:
            whole.update(part)
            start = 0
            while start < len(part):
                piece = part[start : start + room]
                cell.update(piece)
                start, room = start + len(piece), room - len(piece)
                if not room:
                    self.sums += cell.digest()
                    cell.reset()
                    room = CELL
        if room < CELL:
            self.sums += cell.digest()
        self.digests.append(whole.hexdigest())

    @property
    def info(self) -> FileInfo:
        return FileInfo(self.plan.name, self.plan.size, self.digests)


class PartWriter:
    """The part that one rank writes of one attempt. Files are staged by one thread, in turn.

    The thread that stages returns as soon as the bytes are copied. A thread of the writer writes and syncs
    them; it is no daemon, so that the program waits for it at its end. An error of any thread ends the
    attempt: nothing of it is committed, and `error` has it.

    Args:
        store: The folder of the checkpoint. Errors of its requests are tried again by the store itself.
        attempt: The folder of the files in it.
        rank: Which rank writes.
        pool: Memory to stage into. It must have room for a whole file if there is no local disk.
        local: The folder of the checkpoint on a local disk, which is written first; None writes to the
            store alone.
        then: Called in the background with the receipt, once it is stored; its errors are errors of the
            attempt.
        failed: Called in the background with the error, if the attempt has failed.
    """

    def __init__(
        self, store: Store, attempt: str, rank: int, pool: BlockPool, local: Store | None = None,
        then: Callable[[Receipt], None] | None = None, failed: Callable[[BaseException], None] | None = None,
    ) -> None:  # fmt: skip
        begin("checkpoint", store.url)
        add(_SAVES)
        self._started = time.monotonic()
        self.attempt, self.rank = attempt, rank
        self.error: BaseException | None = None
        self.local_failed = ""  # why the local disk was not used for some file; "" if it was
        self._store, self._pool, self._then, self._tell = store, pool, then, failed
        target = local if local is not None else store
        self._disk = target.local_path(attempt)  # None: no file is written on this machine
        self._sends = store.local_path(attempt) is None or local is not None
        self._files: list[_File] = []
        self._failed = threading.Event()
        self._begin = threading.Event()  # not earlier: the copies that the caller waits for come first
        self._done = threading.Event()
        self._stored = threading.Event()
        self._queue: queue.SimpleQueue[tuple[_File, _Block] | None] = queue.SimpleQueue()
        self._uploads: queue.SimpleQueue[_File | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"checkpoint-{attempt}", daemon=False)
        self._thread.start()

    def stage(self, plan: FilePlan) -> None:
        """Copy the bytes of a file. Returns once the tensors may change; waits while all memory is in use.

        Items with `memory` are not copied: theirs must stay as it is until `stored` or `wait` has returned.

        Raises:
            OptionError: Without a local disk: the file has more bytes than the memory.
            Exception: What a background thread has met.
        """
        copied = any(placed.item.memory is None for placed in plan.items)
        if self._disk is None and copied and plan.size > self._pool.limit:
            raise OptionError(
                f"{plan.name} has {plan.size} bytes, since one of its tensors is that large, and "
                f"memory={self._pool.limit} is less: give more memory=, or a local disk by local="
            )
        file = _File(plan)
        self._files.append(file)
        for start in range(0, plan.size, BLOCK):
            parts = plan.views(start, min(start + BLOCK, plan.size), _PARTS)
            if parts is not None:
                if self._failed.is_set() and self.error is not None:
                    raise self.error
                self._queue.put((file, _Block(parts, None)))
                self._begin.set()
                continue
            if self._pool.empty:
                self._begin.set()
            block = self._pool.take(self._failed.is_set)
            if block is None:
                assert self.error is not None
                raise self.error
            try:
                plan.fill(start, block[: plan.size - start])
            except BaseException:
                self._pool.give(block)
                raise
            self._queue.put((file, _Block([block[: plan.size - start]], block)))
        file.plan = plan.staged()

    def close(self) -> None:
        """Say that no more files come."""
        self._queue.put(None)
        self._begin.set()

    def abort(self, error: BaseException) -> None:
        """End the attempt, which will not be committed."""
        self._fail(error)
        self.close()

    @property
    def written(self) -> list[tuple[FilePlan, FileInfo]]:
        """The files, with their checksums, which are whole once `stored` or `wait` has returned."""
        return [(file.plan, file.info) for file in self._files]

    @property
    def done(self) -> bool:
        """Whether the background has ended, with or without an error."""
        return self._done.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the background has ended; whether it has."""
        return self._done.wait(seconds)

    def stored(self, seconds: float | None = None) -> bool:
        """Wait until all files lie on the disk and are synced, or the background has ended; whether so.

        Files that the disk did not take are not waited for: `local_failed` says if there are any.
        """
        return self._stored.wait(seconds)

    def stopped(self, seconds: float = 0.0) -> bool:
        """Whether the attempt has failed; waits so long for that."""
        return self._failed.wait(seconds)

    def _fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self._failed.set()
        self._pool.wake()

    def _run(self) -> None:
        senders = [
            threading.Thread(target=self._send_all, name=f"upload-{self.attempt}", daemon=False)
            for _ in range(_SENDERS if self._sends else 0)
        ]
        try:
            for sender in senders:
                sender.start()
            self._begin.wait()
            while (taken := self._queue.get()) is not None:
                self._take(*taken)
            if self._disk is not None and not self._failed.is_set():
                self._sync()
                self._stored.set()
        except BaseException as error:  # noqa: BLE001 - raised by the caller's next call
            self._fail(error)
        for _ in senders:
            self._uploads.put(None)
        for sender in senders:
            if sender.ident is not None:
                sender.join()
        try:
            if not self._failed.is_set():
                self._finish()
        except BaseException as error:  # noqa: BLE001 - raised by the caller's next call
            self._fail(error)
        try:
            self._clean()
        finally:
            self._stored.set()
            self._done.set()

    def _give(self, block: _Block) -> None:
        if block.taken is not None:
            self._pool.give(block.taken)

    def _take(self, file: _File, block: _Block) -> None:
        """Write a block, or keep it until its file is whole and can be sent."""
        try:
            if not self._failed.is_set() and not self._write(file, block):
                file.blocks.append(block)
                if len(file.blocks) * BLOCK >= file.plan.size:
                    self._uploads.put(file)
                return
        except BaseException as error:  # noqa: BLE001 - raised by the caller's next call
            self._fail(error)
        self._give(block)

    def _write(self, file: _File, block: _Block) -> bool:
        """Write a block to the disk; False if no disk takes the file, and the store will."""
        start = len(file.digests) * BLOCK
        if self._disk is None or (start == 0 and (file.blocks or not self._opened(file))):
            return False
        file.digest(block.parts)
        size = sum(len(part) for part in block.parts)
        with _named(f"writing {file.path}"):
            _write_at(file.descriptor, block.parts, start)
            if start + size == file.plan.size:
                os.fsync(file.descriptor)
                os.close(file.descriptor)
                file.descriptor = -1
                # Not synced: whoever does not find it reads whole blocks.
                with open(sums_name(file.path or ""), "xb") as sums:
                    sums.write(file.sums)
                if self._sends:
                    self._uploads.put(file)
        return True

    def _opened(self, file: _File) -> bool:
        """Make the file and reserve its bytes; False if there is no room, and it can go to the store."""
        assert self._disk is not None
        path = os.path.join(self._disk, file.plan.name)
        try:
            os.makedirs(self._disk, exist_ok=True)
            file.descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            # A full disk says so now, while the bytes are still in memory.
            os.posix_fallocate(file.descriptor, 0, file.plan.size)
        except OSError as error:
            if file.descriptor >= 0:
                os.close(file.descriptor)
                file.descriptor = -1
                with contextlib.suppress(OSError):
                    os.unlink(path)
            if not self._sends or file.plan.size > self._pool.limit:
                raise StorageError(f"writing {path}: {error.strerror}") from error
            self.local_failed = f"{path}: {error.strerror}"
            return False
        file.path = path
        return True

    def _sync(self) -> None:
        """Make the names of the files durable."""
        assert self._disk is not None
        for folder in (self._disk, os.path.dirname(self._disk), os.path.dirname(os.path.dirname(self._disk))):
            if os.path.isdir(folder):
                with _named(f"writing {folder}"):
                    sync_folder(folder)

    def _send_all(self) -> None:
        while (file := self._uploads.get()) is not None:
            try:
                if not self._failed.is_set():
                    self._send(file)
            except BaseException as error:  # noqa: BLE001 - raised by the caller's next call
                self._fail(error)
            for block in file.blocks:
                self._give(block)
            file.blocks = []

    def _send(self, file: _File) -> None:
        path = f"{self.attempt}/{file.plan.name}"
        if file.path is not None:
            with _mapped(file.path, file.plan.size) as data:
                self._store.write(path, data)
            self._store.write(sums_name(path), file.sums)
            return
        for block in file.blocks:
            file.digest(block.parts)
        self._store.write(path, *(part for block in file.blocks for part in block.parts))
        self._store.write(sums_name(path), file.sums)

    def _finish(self) -> None:
        receipt = receipt_of(self.rank, self.written)
        self._store.write(f"{self.attempt}/{receipt_name(self.rank)}", encode(receipt))
        add(_BYTES, sum(file.plan.size for file in self._files))
        if self._then is not None:
            self._then(receipt)
        span(_DURABLE, self._started, time.monotonic())
        add(_COMMITS)

    def _clean(self) -> None:
        """After an error: give back what is left, and tell the other ranks."""
        for file in self._files:
            if file.descriptor >= 0:
                os.close(file.descriptor)
                file.descriptor = -1
            for block in file.blocks:
                self._give(block)
            file.blocks = []
        if self.error is not None:
            add(_FAILURES)
            if self._tell is not None:
                self._tell(self.error)
            with contextlib.suppress(Exception):  # the others wait for this rank only for a time
                self._store.write(f"{self.attempt}/{failure_name(self.rank)}", b"{}")


def receipt_of(rank: int, files: Sequence[tuple[FilePlan, FileInfo]]) -> Receipt:
    """What a rank has written.

    Args:
        rank: Which rank.
        files: Its files, in order, with their checksums.
    """
    tensors: dict[str, TensorInfo] = {}
    for number, (plan, _) in enumerate(files):
        for placed in plan.items:
            _add(tensors, number, placed)
    return Receipt(rank, [info for _, info in files], tensors)


def _add(tensors: dict[str, TensorInfo], file: int, placed: Placed) -> None:
    item = placed.item
    chunk = Chunk(file, placed.start, item.shape, item.offsets)
    known = tensors.get(item.tensor)
    if known is None:
        tensors[item.tensor] = TensorInfo(item.dtype, item.whole or item.shape, [chunk])
    else:
        known.chunks.append(chunk)


def _write_at(descriptor: int, parts: Sequence[memoryview], start: int) -> None:
    left = [part for part in parts if len(part)]
    while left:
        count = os.pwritev(descriptor, left, start)
        start += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror}") from error


@contextlib.contextmanager
def _mapped(path: str, size: int) -> Iterator[memoryview]:
    """The bytes of a file."""
    if not size:
        yield memoryview(b"")
        return
    with _named(f"reading {path}"), open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    yield memoryview(mapped)
    # Not closed: a request that was given up may still hold the memory. It goes with its last user.

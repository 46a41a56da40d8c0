"""Writes one rank's part of a checkpoint in the background: local files first, the store behind them."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping

from shardstream.checkpoint.holds import Hold
from shardstream.checkpoint.layout import BLOCK, FilePlan, receipt_name, sums_name
from shardstream.checkpoint.manifest import FileInfo, Pending, Receipt, encode
from shardstream.checkpoint.outgoing import Block, Outgoing, named, sync_names
from shardstream.checkpoint.receipts import receipt_of, say_failed
from shardstream.checkpoint.retention import delete_part
from shardstream.checkpoint.sending import Senders
from shardstream.checkpoint.staging import BlockPool
from shardstream.counters.layout import slot, stage
from shardstream.counters.page import begin
from shardstream.counters.recorder import add, span
from shardstream.errors import OptionError, StorageError
from shardstream.storage.store import Store

__all__ = ["PartWriter", "receipt_of"]

_PARTS = 64  # places in memory that a block is written from; what lies in more is copied together

_DURABLE, _SAVES, _BYTES = stage("durable"), slot("saves"), slot("checkpoint_bytes")
_COMMITS, _FAILURES = slot("commits"), slot("saves_failed")


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
        notes: Objects for the local folder, which are written there with the receipt once all files are. With
            them a later job can finish the attempt. If it fails, files that nobody can finish are deleted.
            None: no such notes, and the caller deletes.
    """

    def __init__(
        self, store: Store, attempt: str, rank: int, pool: BlockPool, local: Store | None = None,
        then: Callable[[Receipt], None] | None = None, failed: Callable[[BaseException], None] | None = None,
        notes: Mapping[str, Pending] | None = None,
    ) -> None:  # fmt: skip
        self.attempt, self.rank = attempt, rank
        self.error: BaseException | None = None
        self.local_failed = ""  # why the local disk was not used for some file; "" if it was
        self._store, self._pool, self._then, self._tell = store, pool, then, failed
        target = local if local is not None else store
        self._disk = target.local_path(attempt)  # None: no file is written on this machine
        self._sends = store.local_path(attempt) is None or local is not None
        self._notes, self._local = notes, local
        self._finishing = self._whole = False  # whole: what is on the local disk is enough to finish it
        self._hold: Hold | None = None
        self._files: list[Outgoing] = []
        self._failed = threading.Event()
        self._begin = threading.Event()  # not earlier: the copies that the caller waits for come first
        self._done, self._stored = threading.Event(), threading.Event()
        self._queue: queue.SimpleQueue[tuple[Outgoing, Block] | None] = queue.SimpleQueue()
        begin("checkpoint", store.url)
        add(_SAVES)
        self._since = time.monotonic()
        self._senders = Senders(store, attempt, self._failed, self._fail, self._forget)
        self._thread = threading.Thread(target=self._run, name=f"checkpoint-{attempt}", daemon=False)

    def _started(self) -> None:
        """Start the thread, which whoever stages, closes or aborts needs: one that nobody ends would stay."""
        if self._thread.ident is None and not self._done.is_set():
            try:
                self._thread.start()
            except BaseException as error:
                self._fail(error)
                try:
                    if isinstance(error, Exception):  # there is no thread; after Ctrl-C it may be there
                        self._clean()
                finally:
                    self._stored.set()
                    self._done.set()
                raise

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
        self._started()
        file = Outgoing(plan)
        self._files.append(file)
        for start in range(0, plan.size, BLOCK):
            parts = plan.views(start, min(start + BLOCK, plan.size), _PARTS)
            if parts is not None:
                if self._failed.is_set() and self.error is not None:
                    raise self.error
                self._queue.put((file, Block(parts, None)))
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
            self._queue.put((file, Block([block[: plan.size - start]], block)))
        file.plan = plan.staged()

    def close(self) -> None:
        """Say that no more files come."""
        self._started()
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
        try:
            if self._sends:
                self._senders.start()
            self._begin.wait()
            while (taken := self._queue.get()) is not None:
                self._take(*taken)
            if self._disk is not None and not self._failed.is_set():
                sync_names(self._disk)
                self._note()
                self._stored.set()
        except BaseException as error:  # noqa: BLE001 - raised by the caller's next call
            self._fail(error)
        self._senders.finish()
        try:
            if not self._failed.is_set():
                self._finish()
        except BaseException as error:  # noqa: BLE001 - raised by the caller's next call
            self._fail(error)
        try:
            self._clean()
        finally:
            if self._hold is not None:
                self._hold.release()
            self._stored.set()
            self._done.set()

    def _give(self, block: Block) -> None:
        if block.taken is not None:
            self._pool.give(block.taken)

    def _take(self, file: Outgoing, block: Block) -> None:
        """Write a block, or keep it until its file is whole and can be sent."""
        try:
            if not self._failed.is_set() and not self._write(file, block):
                file.blocks.append(block)
                if len(file.blocks) * BLOCK >= file.plan.size:
                    self._senders.put(file)
                return
        except BaseException as error:  # noqa: BLE001 - raised by the caller's next call
            self._fail(error)
        self._give(block)

    def _write(self, file: Outgoing, block: Block) -> bool:
        """Write a block to the disk; False if no disk takes the file, and the store will."""
        start = len(file.digests) * BLOCK
        if self._disk is None or (start == 0 and (file.blocks or not self._opened(file))):
            return False
        size = sum(len(part) for part in block.parts)
        with named(f"writing {file.path}"):
            file.write(block.parts, start)
            if start + size == file.plan.size:
                os.fsync(file.descriptor)
                os.close(file.descriptor)
                file.descriptor = -1
                # Not synced: whoever does not find it reads whole blocks.
                with open(sums_name(file.path or ""), "xb") as sums:
                    sums.write(file.sums)
                if self._sends:
                    self._senders.put(file)
        return True

    def _opened(self, file: Outgoing) -> bool:
        """Make the file and reserve its bytes; False if there is no room, and it can go to the store."""
        assert self._disk is not None
        path = os.path.join(self._disk, file.plan.name)
        try:
            if self._notes is not None and self._local is not None and self._hold is None:
                self._hold = Hold.shared(self._disk)
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

    def _note(self) -> None:
        """Say on the local disk that the part of this rank is whole there."""
        if self._notes is None or self._local is None or self.local_failed:
            return
        names: dict[str, Pending | Receipt] = {**self._notes}
        names[receipt_name(self.rank)] = receipt_of(self.rank, self.written)  # the last one
        try:
            if self._hold is None:
                self._hold = Hold.shared(self._local.local_path(self.attempt) or "")
            for name, content in names.items():
                self._local.write(f"{self.attempt}/{name}", encode(content))
        except (OSError, StorageError) as error:
            self.local_failed = str(error)
        else:
            self._whole = True

    def _forget(self, file: Outgoing) -> None:
        """Give back the memory of a file that was sent, or will not be."""
        for block in file.blocks:
            self._give(block)
        file.blocks = []

    def _finish(self) -> None:
        receipt = receipt_of(self.rank, self.written)
        self._finishing = True
        self._store.write(f"{self.attempt}/{receipt_name(self.rank)}", encode(receipt))
        if self._then is not None:
            self._then(receipt)
        add(_BYTES, sum(file.plan.size for file in self._files))
        span(_DURABLE, self._since, time.monotonic())
        add(_COMMITS)

    def _clean(self) -> None:
        """After an error: give back what is left, and tell the other ranks."""
        for file in self._files:
            if file.descriptor >= 0:
                os.close(file.descriptor)
                file.descriptor = -1
            self._forget(file)
        if self.error is None:
            return
        add(_FAILURES)
        if self._tell is not None:
            self._tell(self.error)
        told = say_failed(self._store, self.attempt, self.rank)
        if self._notes is not None and not self._whole:
            names = [name for file in self._files for name in (file.plan.name, sums_name(file.plan.name))]
            if not self._finishing:  # else the attempt may be committed, or be about to
                delete_part(self._store, self.attempt, [*names, receipt_name(self.rank)])
            if self._local is not None:
                delete_part(self._local, self.attempt, [*names, *self._notes])
        if not told and self._store.local_path("") is not None:  # the disk may have room now
            say_failed(self._store, self.attempt, self.rank)

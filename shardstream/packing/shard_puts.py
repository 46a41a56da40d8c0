"""Puts the shards of one task. An attempt never takes the place of what another one has finished.

All attempts at a task of the same plan write the same bytes under the same names, so that it does no harm if
a task is done twice. What else may lie under such a name was left by a worker of another plan that was slow
to notice its end, or by an earlier version that compressed otherwise and was killed.
"""

from __future__ import annotations

import contextlib

import xxhash

from shardstream.errors import CommitError, CorruptionError, StorageError
from shardstream.packing import receipts
from shardstream.packing.claim import Claim
from shardstream.packing.result import Result
from shardstream.packing.shard_names import check_folder
from shardstream.storage.store import Store

__all__ = ["ShardPuts", "checksum_of"]

_PIECE = 16 << 20  # bytes that are read at a time to compare
_TRIES = 5
_GONE = "gone"  # no store has such a version
Part = bytes | bytearray | memoryview


class ShardPuts:
    """Puts objects of one task.

    Args:
        store: The target.
        claim: By which it may write there.
        number: The number of the task. None: what it puts has no receipts, and may be put again otherwise.
        stage: The pass of the task.

    Attributes:
        versions: The versions of the objects, by name, as far as the store tells them.
    """

    def __init__(self, store: Store, claim: Claim, number: int | None = None, stage: str = "task") -> None:
        self._store, self._claim = store, claim
        self._receipt = None if number is None else receipts.receipt_name(stage, number)
        self.versions: dict[str, str] = {}

    def write(self, path: str, *parts: Part) -> None:
        """Put an object, or accept it if it is there already.

        Raises:
            CommitError: It is another packer's turn at the target; or the folder is another dataset.
            CorruptionError: Another attempt at this task has put other bytes there, and has finished.
            StorageError: It cannot be written.
        """
        self._claim.check(self._store)
        check_folder(self._store, path)
        for _ in range(_TRIES):
            try:
                self.versions[path] = self._store.create(path, *parts)
                return
            except CommitError:
                version = self._other(path, parts)
            if version is None:
                return
            if version == _GONE:
                continue
            self._claim.check(self._store, now=True)
            done = None if self._receipt is None else receipts.read_one(self._store, self._receipt)
            # An object that is not the one of the receipt any more was damaged, and is made again.
            if done is not None and done.plan == self._claim.plan and self._is_of(done, path, version):
                raise CorruptionError(
                    f"{self._store.where(path)}: two attempts at one task made different bytes of the same "
                    "input; the machines may have different packages, or the source is not the same each time"
                )
            # Only what was compared is replaced, and nothing is deleted: this worker may be stopped here, and
            # wake when another pack is complete.
            with contextlib.suppress(CommitError):
                self.versions[path] = self._store.replace(path, b"".join(parts), version)
                return
        raise StorageError(f"{self._store.where(path)}: other workers are writing it")

    def _is_of(self, done: Result, path: str, version: str) -> bool:
        """Whether an object that is there, of some version, is the one that a receipt names."""
        if version:
            return done.versions.get(path, "").strip('"') == version.strip('"')
        for shard in done.shards:  # the store tells no versions
            if path == shard.url:
                return self._has(path, shard.bytes, shard.checksum)
            if path == shard.index_url:
                return self._has(path, shard.index_bytes, shard.index_checksum)
        return path in done.versions

    def _has(self, path: str, size: int, checksum: str) -> bool:
        return self._store.size(path) == size and checksum_of(self._store, path, size) == checksum

    def _other(self, path: str, parts: tuple[Part, ...]) -> str | None:
        """The version of what is there; None if it has the same bytes; _GONE if there is nothing any more."""
        digest = xxhash.xxh3_128()
        for part in parts:
            digest.update(part)
        try:
            version, size = self._store.version(path)
            if size == sum(map(len, parts)) and checksum_of(self._store, path, size) == digest.hexdigest():
                self.versions[path] = version
                return None
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            return _GONE
        return version


def checksum_of(store: Store, path: str, size: int) -> str:
    """The checksum of an object of so many bytes, as a manifest has it. It is read piece by piece."""
    digest = xxhash.xxh3_128()
    for start in range(0, size, _PIECE):
        digest.update(store.read_range(path, start, min(_PIECE, size - start)))
    return digest.hexdigest()

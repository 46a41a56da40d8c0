"""The claim on a target: one packer at a time, and it may be taken over once its process is dead."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

import msgspec

from shardstream.errors import CommitError, CorruptionError, OptionError, StorageError
from shardstream.storage.remote import Store

CLAIM = ".pack-claim.json"
LOCK = ".pack-lock"
_PATIENCE = 5.0  # seconds for the workers of a killed packer to notice and end


class Claim(msgspec.Struct, frozen=True):
    """What is being packed here: the identity of the plan, and of the dataset that it appends to."""

    plan: str
    base: str = ""


@contextlib.contextmanager
def hold(store: Store) -> Iterator[int | None]:
    """Hold the target against other processes of this machine; yields the lock's descriptor.

    Workers inherit the descriptor, so that the lock lasts until the last of them is gone, even
    where the packer was killed. On a remote store the claim object alone guards (None is yielded).
    Raises CommitError while another packer of this machine holds it, StorageError without access.
    """
    path = store.local_path(LOCK)
    if path is None:
        yield None
        return
    descriptor = _lock(path, store.url)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def _lock(path: str, target: str) -> int:
    deadline = time.monotonic() + _PATIENCE
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder deletes the file when it ends: what is locked must be what lies there.
                with contextlib.suppress(FileNotFoundError):
                    if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                        return descriptor
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(descriptor)
                    raise
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise CommitError(f"{target}: another packer is at work here; wait for it to end")
            time.sleep(0.05)
    except OSError as error:
        raise StorageError(f"{target}: cannot lock the target: {error.strerror}") from error


def read(store: Store) -> Claim | None:
    """The claim on a target, if there is one."""
    if not store.exists(CLAIM):
        return None
    try:
        return msgspec.json.decode(store.read(CLAIM), type=Claim)
    except msgspec.DecodeError as error:
        raise CorruptionError(f"{store.where(CLAIM)}: damaged; delete it") from error


def take(store: Store, plan: str, resume: bool, locked: bool, base: str = "") -> bool:
    """Claim the target for a plan. True if an unfinished pack of the same plan is to be continued.

    `locked` says that the lock proves any other claimant dead. Without it a claim of another packer
    is a CommitError, unless this is a resume of the same plan. OptionError to resume another plan.
    """
    data = msgspec.json.encode(Claim(plan, base))
    try:
        store.create(CLAIM, data)
    except CommitError:
        found = read(store)
        if resume and found == Claim(plan, base):
            return True
        if resume:
            raise OptionError(
                f"{store.url}: the unfinished pack here had other sources or options; give the same "
                "ones to --resume, or start again without it"
            ) from None
        if not locked:
            raise CommitError(
                f"{store.url}: another packer has claimed this target. If it is dead, the same "
                f"pack with --resume continues it; to start again delete {store.where(CLAIM)}"
            ) from None
        store.write(CLAIM, data)
    return False

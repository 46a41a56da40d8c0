"""One packer at a time for each target: a lock for this machine, and an object for all other machines.

If its packer is dead, another packer may continue with the reservation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from shardstream.errors import CommitError, CorruptionError, OptionError, StorageError
from shardstream.storage.store import Store

NAME = ".pack-claim.json"
LOCK = ".pack-lock"
TEST = ".pack-test-"  # begins the names of objects that only try what the store does
# What a file system without locks answers, such as Lustre that is mounted without the option flock.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_TESTS = 3  # of a store that does not refuse to create an object again
_LOCK_TIMEOUT = 5.0  # seconds in which the workers of a killed packer notice that, and end


class Reservation(msgspec.Struct, frozen=True):
    """Says which pack writes to a target. It is stored as JSON.

    Args:
        plan: The identity of the pack, from its sources and options.
        base: The fingerprint of the dataset that the pack appends to, or "".
        tool: The version of shardstream that began the pack. Version 0.1.0 did not write this.
        parts: How many processes write a part each, before one commit for all of them. 0: it is no such pack.
        record: Only with `parts`: the provenance of the new samples.
        kind: Only with `parts`: the kind of the dataset.
        versions: Only of parts of `pack`: the versions that the bytes depend on.
        tasks: Only of parts of `pack`: a checksum of all tasks.
        epoch: How often a packer has started or resumed here since the reservation was made.
        owner: A random name of the packer whose turn it is.
        tagged: Whether the names of shards have a part of the plan in them, since the store lets a second
            writer of an object have its way.
    """

    plan: str
    base: str = ""
    tool: str = ""
    parts: int = 0
    record: dict[str, Any] = {}
    kind: Literal["samples", "tokens"] = "samples"
    versions: dict[str, str] = {}
    tasks: str = ""
    epoch: int = 0
    owner: str = ""
    tagged: bool = False


@contextlib.contextmanager
def lock_machine(store: Store, name: str = LOCK, shared: bool = False) -> Iterator[int | None]:
    """Lock the target against other processes of this machine.

    Workers inherit the file descriptor of the lock. So the lock lasts until the last worker has ended, even
    if the packer was killed.

    Args:
        store: The target.
        name: The name of the lock.
        shared: Whether others may have the lock too, if they share it.

    Yields:
        The file descriptor. None for a remote store, or a file system without locks, which only the object
        NAME protects.

    Raises:
        CommitError: Another packer of this machine has the lock.
        StorageError: The target cannot be accessed.
    """
    path = store.local_path(name)
    if path is None:
        yield None
        return
    descriptor = _lock(path, store.url, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    if descriptor is None:
        yield None
        return
    owner = os.getpid()
    try:
        yield descriptor
    finally:
        if os.getpid() == owner:  # not a fork of it, which may end first
            with contextlib.suppress(OSError):  # others share the lock, or somebody has emptied the target
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # since forks have the descriptor too
        os.close(descriptor)


def _lock(path: str, target: str, kind: int) -> int | None:
    deadline = time.monotonic() + _LOCK_TIMEOUT
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                # The last owner deletes the file when it ends. So check that the locked file is still there.
                with contextlib.suppress(FileNotFoundError):
                    if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                        return descriptor
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    os.close(descriptor)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                    return None
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(descriptor)
                    raise
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise CommitError(f"{target}: another packer is at work here; wait for it to end")
            time.sleep(0.05)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(
            f"{target}: a dataset is a directory, but a file is in its place; choose another destination"
        ) from error
    except OSError as error:
        raise StorageError(f"{target}: cannot lock the target: {error.strerror}") from error


def read(store: Store) -> Reservation | None:
    """The reservation of a target, or None. Raises CorruptionError if it is damaged."""
    try:
        return msgspec.json.decode(store.read(NAME), type=Reservation)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except msgspec.DecodeError as error:
        raise CorruptionError(f"{store.where(NAME)}: damaged; delete it") from error


def reserve(store: Store, mine: Reservation, resume: bool, locked: bool) -> tuple[Reservation, bool]:
    """Reserve the target for a pack. Packers that had their turn before notice that it is over.

    Args:
        store: The target.
        mine: The pack.
        resume: Whether to continue an unfinished pack of the same plan.
        locked: Whether `lock_machine` has a lock, so that no other packer is alive.

    Returns:
        (the reservation, whether an unfinished pack of the same plan is continued).

    Raises:
        CommitError: Another packer has reserved the target, and may be alive; or two resumed at once, and
            the other one was first.
        OptionError: `resume` is True, and the unfinished pack has another plan.
    """
    mine = msgspec.structs.replace(mine, owner=os.urandom(8).hex(), epoch=1)
    try:
        version = store.create(NAME, msgspec.json.encode(mine))
    except CommitError:
        found, version = _read_version(store)
        if resume and found is not None and (found.plan, found.base) == (mine.plan, mine.base):
            mine = msgspec.structs.replace(found, owner=mine.owner, epoch=found.epoch + 1)
            try:
                store.replace(NAME, msgspec.json.encode(mine), version)
            except CommitError as error:
                raise CommitError(
                    f"{store.url}: another packer has just continued this pack; wait for it to end"
                ) from error
            return mine, True
        if resume:
            raise OptionError(
                f"{store.url}: the unfinished pack here had other sources or options{_version(found, mine)}; "
                "give the same ones to --resume, or start again without it, as also if a source was changed"
            ) from None
        if found is not None and found.parts:
            raise CommitError(
                f"{store.url}: {found.parts} parts are written here and not committed yet; commit them, or "
                "empty the target to start again"
            ) from None
        if not locked:
            raise CommitError(
                f"{store.url}: another packer has claimed this target. If it is dead, the same "
                "pack with --resume continues it; to start again empty the target"
            ) from None
        mine = msgspec.structs.replace(mine, epoch=0 if found is None else found.epoch + 1)
        version = store.replace(NAME, msgspec.json.encode(mine), version)
    if not creates_once(store):
        mine = msgspec.structs.replace(mine, tagged=True)
        # This packer may have been stopped since it made the reservation, which may be another one's now.
        store.replace(NAME, msgspec.json.encode(mine), version)
    return mine, False


def _read_version(store: Store) -> tuple[Reservation | None, str]:
    """(the reservation, its version): never an older one than its content."""
    try:
        version = store.version(NAME)[0]
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CommitError(
                f"{store.url}: another packer has just ended here; look what it left"
            ) from error
        raise
    return read(store), version


def creates_once(store: Store) -> bool:
    """Whether the store refuses to create an object again. Some servers ignore that they are asked to.

    It is tried with an object of its own: the reservation may have gone meanwhile, and must not come back. It
    is tried again if it was not refused, since somebody may have emptied the target between both requests.

    Args:
        store: The target.
    """
    if store.local_path(NAME) is not None or not store.conditional:
        return store.conditional
    return any(_refuses(store) for _ in range(_TESTS))


def _refuses(store: Store) -> bool:
    """Whether a store refuses to create an object that is there."""
    name = f"{TEST}{os.urandom(8).hex()}"
    try:
        with contextlib.suppress(CommitError):  # a request that was sent again after its answer was lost
            store.create(name, b"test")
        store.create(name, b"test")
    except CommitError:
        return True
    finally:
        store.delete(name)
    return False


def _version(found: Reservation | None, mine: Reservation) -> str:
    """A remark for the message if another version began the pack, since that may be why options differ."""
    began = "shardstream 0.1.0" if found is None or not found.tool else found.tool
    return "" if began == mine.tool else f" (it was begun by {began}, this is {mine.tool})"

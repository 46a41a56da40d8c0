"""The folders of the files, which only their user may write to, and how a file in them is read."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import tempfile

__all__ = ["SUFFIX", "directories", "in_memory", "make", "paths_in", "read"]

SUFFIX = ".counters"
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a folder in it is made for this user alone
_VARIABLE = "SHARDSTREAM_COUNTERS"  # a folder in which the folder of each user is, or "off"
# A name that leads elsewhere is not followed, and a FIFO does not block who opens it.
_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)


def directories() -> list[str]:
    """The folders in which files of this user may be, the first one first; none if they are turned off."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    name = f"shardstream-{user}"
    chosen = os.environ.get(_VARIABLE)
    if chosen is not None:
        return [] if chosen.lower() in ("off", "0", "") else [os.path.join(chosen, name)]
    # Where a machine has /dev/shm, the temporary folder is for when that one is full or closed.
    places = [_SHARED_MEMORY]
    with contextlib.suppress(OSError):  # there may be no folder at all that takes files
        places.append(tempfile.gettempdir())
    return [os.path.join(place, name) for place in places if os.path.isdir(place)]


def make(place: str) -> None:
    """Make the folder, for this user alone.

    Raises:
        OSError: It cannot be made, or it is somebody else's.
    """
    with contextlib.suppress(FileExistsError):
        os.makedirs(place, mode=0o700)
    found = os.lstat(place)
    if not _ours(found):
        raise PermissionError(0, "it belongs to somebody else")
    if found.st_mode & 0o077:
        os.chmod(place, 0o700)


def paths_in(place: str) -> list[str]:
    """The files in a folder, ordered by name; none if it is not there, or somebody else's."""
    try:
        if not _ours(os.lstat(place)):
            return []
        return [os.path.join(place, name) for name in sorted(os.listdir(place)) if name.endswith(SUFFIX)]
    except OSError:
        return []


def read(path: str, size: int) -> bytes:
    """The first bytes of a file.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    with open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is no regular file")
        return file.read(size)


def in_memory(path: str) -> bool:
    """Whether a file is in memory: another boot cannot have left it."""
    try:
        return _is_memory(os.lstat(path).st_dev)
    except OSError:
        return False


@functools.lru_cache(maxsize=64)
def _is_memory(device: int) -> bool:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for fields in map(str.split, file):
            if fields[2] == wanted:  # the type is behind the only "-"
                return fields[fields.index("-", 6) + 1] in ("tmpfs", "ramfs")
    return False


def _ours(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())

"""Who writes to a folder of this machine: locks that end with their process, and not with its forks."""

from __future__ import annotations

import contextlib
import fcntl
import os

__all__ = ["Hold"]

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_held: set[int] = set()  # descriptors, which a fork would hold as long as it lives


class Hold:
    """A lock on a folder. Writers share it; who deletes the folder, or finishes what is in it, has it alone.

    Args:
        descriptor: Of the folder, locked.
        path: The folder.
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self.path = path
        self._descriptor = descriptor
        _held.add(descriptor)

    @classmethod
    def shared(cls, path: str) -> Hold:
        """Make a folder if it is not there, and hold it to write in it.

        Raises:
            OSError: The folder cannot be made.
        """
        while True:
            os.makedirs(path, exist_ok=True)
            try:
                found = cls._locked(path, fcntl.LOCK_SH)
            except FileNotFoundError:
                found = None
            if found is not None:
                return found  # else somebody has just deleted it

    @classmethod
    def alone(cls, path: str) -> Hold | None:
        """Hold a folder that no living process holds; None if one does, or if it is not there."""
        with contextlib.suppress(OSError):
            return cls._locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None

    @classmethod
    def is_written(cls, path: str) -> bool:
        """Whether a writer holds a folder that `alone` did not give; not if somebody else has it alone."""
        with contextlib.suppress(OSError):
            found = cls._locked(path, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if found is not None:
                found.release()
                return True
        return False

    @classmethod
    def _locked(cls, path: str, kind: int) -> Hold | None:
        descriptor = os.open(path, _FLAGS)
        try:
            try:
                fcntl.flock(descriptor, kind)
            except OSError:
                if kind != fcntl.LOCK_SH:
                    raise
                # A file system without locks: nobody else can hold it alone there.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return cls(descriptor, path)
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def release(self) -> None:
        """Let the folder go."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def _let_go() -> None:
    """In the child of a fork: the locks are those of the parent."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)

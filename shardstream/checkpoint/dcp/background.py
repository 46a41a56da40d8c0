"""What goes on behind a save: uploads and the commit. Its errors arrive at the user's next call."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import Protocol

from shardstream.errors import StorageError

__all__ = ["Background", "Committing", "add", "is_busy", "raise_untold", "wait_for"]


class Background(Protocol):
    """Work in the background."""

    error: BaseException | None

    @property
    def done(self) -> bool:
        """Whether it has ended, with or without an error."""
        ...

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        ...


class Committing:
    """A commit in a thread, which is no daemon: the program waits for it at its end.

    Args:
        work: Uploads what is left, and commits.
        name: Of the thread.
    """

    def __init__(self, work: Callable[[], object], name: str) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._done = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=False).start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised by the user's next call
            self.error = error
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        return self._done.wait(seconds)


# Of all writers of the process: a user may make a writer for each save.
_running: list[tuple[Background, str]] = []
_lock = threading.Lock()


def add(background: Background, url: str) -> None:
    """Remember work whose error must be told."""
    with _lock:
        _running.append((background, url))


def is_busy(url: str) -> bool:
    """Whether work for this URL goes on."""
    with _lock:
        return any(name == url and not background.done for background, name in _running)


def raise_untold() -> None:
    """Raise what an earlier save has met in the background, once.

    Raises:
        StorageError: A checkpoint was not committed; its cause says why.
    """
    with _lock:
        ended = [each for each in _running if each[0].done]
        _running[:] = [each for each in _running if not each[0].done]
        failed = next((each for each in ended if each[0].error is not None), None)
        # Others that have failed are told by the calls after this one.
        _running.extend(each for each in ended if each[0].error is not None and each is not failed)
    if failed is not None:
        raise StorageError(
            f"{failed[1]}: this checkpoint was not committed, which happens behind the save: "
            f"{failed[0].error}"
        ) from failed[0].error


def wait_for(backgrounds: list[Background]) -> None:
    """Wait for work, then raise what it has met."""
    for background in backgrounds:
        background.wait()
    raise_untold()


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _running.clear()


# The threads of a process are not in its children.
os.register_at_fork(after_in_child=_forget)
# Threads that are no daemons have ended by then. What is raised here is printed.
atexit.register(raise_untold)

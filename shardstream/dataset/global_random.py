"""The global random generators of Python, numpy and torch: they are seeded for a while, and watched."""

from __future__ import annotations

import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

__all__ = ["CHECKS", "GLOBALS", "attended", "watched"]

T = TypeVar("T")
CHECKS = 32  # calls of a dataset's transform that are watched
_COMPARED = 256  # seeded sections of an iteration before which the generators are compared
_CLASH = ""  # what is told about the program itself, and no dataset
_CLASHES = 3  # that are more than what a program draws between its iterations

States = dict[str, Any]


class _Globals:
    """The generators of this process; of torch the CPU's, once torch is loaded."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._last: States | None = None  # what the last section left
        self._left_to_compare = self._clashes = 0
        self.turns = 0  # grows when a section begins and when it ends
        self.notices: list[str] = []  # for whoever iterates next to tell
        self._told: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether a seeded section is running."""
        return self._depth > 0

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """A section in which all generators begin at `seed`; then they are again what they were."""
        with self._lock:
            before = _states()
            self._compare(before)
            self._depth += 1
            self.turns += 1
            try:
                _seed(seed)
                yield
            finally:
                _restore(before)
                self._last = before
                self.turns += 1
                self._depth -= 1

    def begin(self) -> None:
        """An iteration begins: what was drawn before it does not matter."""
        self._last, self._left_to_compare, self._clashes = None, _COMPARED, 0

    def end(self) -> None:
        """No iteration is left: what is drawn from now on does not matter."""
        self._left_to_compare = 0

    def _compare(self, before: States) -> None:
        """See whether others draw, between sections, from what a thread seeds for its samples."""
        last, own = self._last, threading.current_thread() is threading.main_thread()
        if _CLASH in self._told or own or self._depth or last is None or not self._left_to_compare:
            return
        self._left_to_compare -= 1
        if names := _moved(last, before):
            self._clashes += 1
            if self._clashes >= _CLASHES:
                self.tell(
                    _CLASH,
                    f"this program draws from the global generator of {' and of '.join(names)} while threads "
                    f"seed it for their samples, as ss.seeded asks: the draws of both are not exact. Let "
                    f"other processes make the samples: StreamingLoader(..., engine='process'), or a "
                    f"DataLoader with workers",
                )

    def tell(self, what: str, message: str) -> None:
        """Have a message told, once for each `what`."""
        if what not in self._told:
            self._told.add(what)
            self.notices.append(message)


GLOBALS = _Globals()


class _Consumers:
    """The threads that iterate, and whether they wait for a batch, so that they draw nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[int, int] = {}  # by thread
        self._idle: dict[int, int] = {}
        self._turns = 0

    def begin(self, thread: int) -> None:
        with self._lock:
            self._streams[thread] = self._streams.get(thread, 0) + 1

    def end(self, thread: int) -> None:
        with self._lock:
            self._turns += 1
            self._streams[thread] -= 1
            if not self._streams[thread]:
                del self._streams[thread]
            if not self._streams:
                GLOBALS.end()

    @contextmanager
    def waiting(self, thread: int) -> Iterator[None]:
        with self._lock:
            self._turns += 1
            self._idle[thread] = self._idle.get(thread, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._turns += 1
                self._idle[thread] -= 1
                if not self._idle[thread]:
                    del self._idle[thread]

    def quiet(self) -> tuple[int, int] | None:
        """Something that stays the same as long as all of them wait and no section begins; else None."""
        with self._lock:
            if GLOBALS.busy or not self._streams or any(one not in self._idle for one in self._streams):
                return None
            return self._turns, GLOBALS.turns


_CONSUMERS = _Consumers()


def attended(built: Generator[T, None, None], watching: Callable[[], bool]) -> Generator[T, None, None]:
    """The batches; while the thread that iterates waits for one, what transforms draw can be told apart.

    watching: whether a transform is still watched.
    """
    thread, main = threading.get_ident(), threading.current_thread() is threading.main_thread()
    GLOBALS.begin()
    _CONSUMERS.begin(thread)
    try:
        while True:
            try:
                # If another thread than the main one iterates, the training loop may run beside it.
                if main and watching():
                    with _CONSUMERS.waiting(thread):
                        batch = next(built)
                else:
                    batch = next(built)
            except StopIteration:
                return
            finally:
                while GLOBALS.notices:
                    _warn(GLOBALS.notices.pop(0))
            yield batch
    finally:
        _CONSUMERS.end(thread)
        built.close()


def watched(call: Callable[[], T], url: str) -> tuple[T, int]:
    """The result of a transform's call, and for how many of CHECKS the call counts.

    What the call moves is told, if it alone can have done it.
    """
    before = _CONSUMERS.quiet()
    if before is None:
        return call(), 0
    states = _states()
    made = call()
    names = _moved(states, _states())
    if _CONSUMERS.quiet() != before:
        return made, 0
    if names:
        GLOBALS.tell(
            f"{url} {names}",
            f"the transform of {url} draws from the global generator of {' and of '.join(names)}, which all "
            f"threads share: its draws differ from run to run and after a resume. Give it a parameter named "
            f"rng, which is then a numpy Generator of the sample's own, or write "
            f"transform=ss.seeded(transform)",
        )
    return made, CHECKS if names else 1


def _warn(message: str) -> None:
    """A warning that points to the user's line."""
    frame, level = sys._getframe(1), 2  # noqa: SLF001 - how `warnings` itself does it
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("shardstream."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _torch() -> Any:
    """torch's generator of the CPU, if torch is loaded."""
    return getattr(sys.modules.get("torch"), "default_generator", None)


def _states() -> States:
    found: States = {"Python": random.getstate(), "numpy": np.random.get_state(legacy=False)}
    if (generator := _torch()) is not None:
        found["torch"] = generator.get_state()
    return found


def _restore(states: States) -> None:
    random.setstate(states["Python"])
    np.random.set_state(states["numpy"])
    if "torch" in states:
        _torch().set_state(states["torch"])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    if (generator := _torch()) is not None:
        # torch.manual_seed would also seed the generators of GPUs, from which the training loop draws.
        generator.manual_seed(seed & (1 << 63) - 1)


def _moved(before: States, after: States) -> list[str]:
    """Whose generators differ."""
    return [name for name, state in before.items() if not _same(state, after.get(name, state))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple):
        return bool(one == other)
    return bool((one == other).all()) if hasattr(one, "all") else bool(one == other)


def _renew() -> None:
    """In a fork, the parent's threads are gone: nothing ends what they began."""
    GLOBALS.__init__()  # type: ignore[misc]
    _CONSUMERS.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)

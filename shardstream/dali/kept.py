"""The pipeline that an epoch leaves to the next one: to build it anew costs threads and fresh memory."""

from __future__ import annotations

import atexit
import importlib
import os
import weakref
from typing import Any

from shardstream.read.handoff.process_bound import leak

__all__ = ["Kept"]


class Kept:
    """At most one pipeline, with its source, at the end of an epoch.

    It is not kept if DALI's own random operators are in it: those begin each epoch from a seed of its own.
    """

    def __init__(self) -> None:
        self._pipe: tuple[Any, Any] | None = None
        _all.add(self)

    def take(self) -> tuple[Any, Any] | None:
        """The pipeline and its source, ready for another epoch; None if there is none."""
        found, self._pipe = self._pipe, None
        return found

    def put(self, pipe: Any, source: Any) -> None:
        """Keep a pipeline whose epoch is over."""
        if _repeats(pipe):
            pipe.reset()
            self._pipe = pipe, source

    def disown(self) -> None:
        """Leave the pipeline alone: its threads are those of the process that this one is a fork of."""
        found, self._pipe = self._pipe, None
        leak(found)


def _repeats(pipe: Any) -> bool:
    """Whether a pipeline makes the same of the same input, whatever it made before."""
    backend: Any = importlib.import_module("nvidia.dali.backend")

    sources = set()
    for operator in pipe._ops or ():  # noqa: SLF001 - there is no other way to ask for them
        name = getattr(operator._op, "schema_name", None)  # noqa: SLF001
        schema = None if name is None else backend.TryGetSchema(name)
        if schema is not None:
            if schema.HasRandomSeedArg() or schema.IsStateful():
                return False
        elif (group := getattr(operator, "_group", None)) is not None:
            sources.add(id(group))
        else:
            return False
    return len(sources) == 1  # of a second one nobody knows what it gives


_all: weakref.WeakSet[Kept] = weakref.WeakSet()


def _at_exit() -> None:
    # DALI ends a pipeline by what its modules hold, which may be gone when a program's variables go.
    for kept in list(_all):
        kept.take()


atexit.register(_at_exit)


def _after_fork() -> None:
    for kept in list(_all):
        kept.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

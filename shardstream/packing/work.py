"""How much work a task is, and some tasks of a plan."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar, overload

from shardstream.packing.sources.streams import names_compressed

__all__ = ["Chosen", "work_of"]

_EXPANDED = 4  # what a file becomes that is compressed, about
T = TypeVar("T")


def work_of(task: Any) -> int:
    """About how many bytes a task has to do with; 0 if it is not known."""
    bounds = getattr(task, "bounds", None)  # of the objects of the first pass of a shuffle
    if bounds is not None:
        return int((bounds[:, -1] - bounds[:, 0]).sum())
    work = getattr(task, "work", None)  # of a task whose files are not in memory
    if work is not None:
        return int(work)
    files = getattr(task, "files", ())
    return sum((each.end - each.start) * (_EXPANDED if names_compressed(each.url) else 1) for each in files)


class Chosen(Sequence[T], Generic[T]):
    """The tasks at some places of a plan that is not in memory: a number for each is held.

    Args:
        tasks: The tasks of the plan.
        places: The places, in the order in which the tasks are wanted.
    """

    def __init__(self, tasks: Sequence[T], places: Iterable[int]) -> None:
        self._tasks, self._places = tasks, array("Q", places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return Chosen(self._tasks, self._places[place])
        return self._tasks[self._places[place]]

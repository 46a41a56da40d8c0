"""How much work a task is."""

from __future__ import annotations

from typing import Any

from shardstream.packing.sources.streams import names_compressed

__all__ = ["work_of"]

_EXPANDED = 4  # what a file becomes that is compressed, about


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

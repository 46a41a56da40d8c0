"""The state that says how far a consumer came in a dataset; and how it is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardstream.dataset.contents import Contents
from shardstream.dataset.worker_epochs import current_worker
from shardstream.errors import StateError
from shardstream.order.cursor import STATE_VERSION, Run, check_state, read_place

__all__ = ["accept", "state_at"]


def state_at(contents: Contents[Any], run: Run) -> dict[str, Any]:
    """The state that says: the place of `run` is the next to deliver."""
    if not contents.rank.decided:
        contents.decide()  # by which the lanes are chosen
    place = {"version": STATE_VERSION, "epoch": run.epoch, "position": run.position}
    worker = current_worker()
    mine = {} if worker is None or not run.own else {"worker": worker.number, "workers": worker.size}
    return place | mine | contents.identity() | {"lanes": contents.lanes}


def accept(contents: Contents[Any], state: Mapping[str, Any], worker: bool = False) -> tuple[int, int, bool]:
    """The epoch and position of a state, and whether the position is that of a worker process.

    Its lanes are taken over if none were asked for, and its manifest if the cache has it.

    Args:
        contents: The dataset.
        state: What `state_at` gave, in any process.
        worker: A worker's state is welcome, too.

    Raises:
        StateError: It belongs to another dataset or another order.
    """
    undo = contents.follow(state)
    try:
        return _accepted(contents, state, worker)
    except BaseException:
        undo()
        raise


def _accepted(contents: Contents[Any], state: Mapping[str, Any], worker: bool) -> tuple[int, int, bool]:
    epoch, position = read_place(state)
    own = "workers" in state
    here = current_worker() if worker else None
    place = {"workers": here and here.size, "worker": here and here.number} if own else {}
    mine = contents.identity()
    asked = 1 if contents.shuffle is None else contents.shuffle.lanes
    check_state(state, place | (mine if asked is None else mine | {"lanes": asked}))
    lanes = state.get("lanes")
    if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
        raise StateError(f"the state's lanes is {lanes!r}, not a number of at least 1")
    before = contents.take_lanes(lanes)
    total = contents.total  # of a mixture it depends on the lanes
    if position > total:
        contents.take_lanes(before)
        raise StateError(f"the state's position is {position}, the dataset has {total} samples")
    return epoch, position, own

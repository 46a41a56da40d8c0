"""Finishes what a job that was killed has left on local disks: its parts are sent, and it is committed.

Each rank looks at its disk, and the first one at the store. An attempt whose parts are whole, each on some
disk or in the store, is committed. Of others the files are deleted, unless a living process writes them.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from shardstream.checkpoint.agreement import Failure, raise_other
from shardstream.checkpoint.commit import committed_steps, read_manifest
from shardstream.checkpoint.finishing import finish
from shardstream.checkpoint.holds import Hold
from shardstream.checkpoint.layout import PENDING, rank_of, step_folder, step_of
from shardstream.checkpoint.leftovers import Left, left_on, pending_of, send
from shardstream.checkpoint.manifest import Manifest
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.receipts import is_failure
from shardstream.checkpoint.retention import Run, delete_attempt, delete_if_empty, local_attempts
from shardstream.errors import CorruptionError, StateError, StorageError

__all__ = ["Recovered", "recover"]

log = logging.getLogger("shardstream")

_KEEP, _COMMITTED, _FINISH, _DELETE, _SEND = "keep", "committed", "finish", "delete", "send"


class Recovered(NamedTuple):
    """An attempt that was found on a local disk.

    Attributes:
        step: Its step.
        attempt: Its name.
        committed: Whether it was committed now.
        missing: The ranks whose parts are nowhere; of one that was not committed.
        reason: Why it was not committed.
    """

    step: int
    attempt: str
    committed: bool
    missing: list[int]
    reason: str


class _Plan(NamedTuple):
    """What is done with an attempt."""

    what: str
    missing: list[int] = []  # noqa: RUF012 - never changed
    reason: str = ""


def recover(
    run: Run, local: Run | None, ranks: Ranks, conditional: Callable[[], bool], without: int | None = None,
    partly: bool = False,
) -> list[Recovered]:  # fmt: skip
    """Finish what earlier jobs have left. All ranks call it.

    Args:
        run: The checkpoints.
        local: Those on a disk of this machine, or None.
        ranks: The ranks.
        conditional: Says whether the store has a conditional put; called if something is to be committed.
        without: A step that is about to be saved again: of what is left of it only whole copies stay.
        partly: Whether the parts of other machines may come later: what is here is sent then, and stays.

    Returns:
        The attempts that were committed, or would have been if all had been there; the same on all ranks.

    Raises:
        StorageError: The store has failed. What is on the disks stays.
    """
    held: dict[tuple[int, str], tuple[Hold, Left]] = {}
    try:
        return _recover(run, local, ranks, conditional, without, partly, held)
    finally:
        for hold, _ in held.values():
            hold.release()


def _hold(local: Run, found: dict[tuple[int, str], tuple[Hold, Left]], living: set[tuple[int, str]]) -> None:
    """Hold the attempts on this disk that no living process writes; of several ranks, one has each.

    The attempts that a living process writes are noted in `living`.
    """
    for name in local.open().list():
        step = step_of(name)
        if step is None:
            continue
        for attempt in local_attempts(local, step):
            path = local.open(name).local_path(attempt) or ""
            hold = Hold.alone(path)
            if hold is None and Hold.is_written(path):
                living.add((step, attempt))
            if hold is not None:
                found[step, attempt] = hold, Left(step, attempt, [], 0)  # which are released in any case
                found[step, attempt] = hold, left_on(local, step, attempt)


def _recover(
    run: Run, local: Run | None, ranks: Ranks, conditional: Callable[[], bool], without: int | None,
    partly: bool, held: dict[tuple[int, str], tuple[Hold, Left]],
) -> list[Recovered]:  # fmt: skip
    living: set[tuple[int, str]] = set()

    def look() -> None:
        if local is not None:
            _hold(local, held, living)

    told = _together(run, ranks, look, lambda: ([left for _, left in held.values()], living))
    found: list[Left] = [left for lefts, _ in told for left in lefts]
    if not found:
        return []
    alive: set[tuple[int, str]] = set().union(*(each for _, each in told))
    mine = [left for _, left in held.values()]
    plans: dict[tuple[int, str], _Plan] = {}

    def plan() -> None:
        if ranks.rank == 0:
            plans.update(_planned(run, found, alive, without, partly))

    plans = _together(run, ranks, plan, lambda: plans)[0]
    broken: dict[tuple[int, str], str] = {}

    def work() -> None:
        for left in mine:
            _prepare(run, local, left, plans[left.step, left.attempt], broken)

    for each in _together(run, ranks, work, lambda: broken):
        plans |= {key: _Plan(_DELETE, [], reason) for key, reason in each.items()}

    def commit() -> None:
        if ranks.rank == 0:
            for (step, attempt), plan in plans.items():
                if plan.what == _FINISH:
                    plans[step, attempt] = _commit(run, step, attempt, conditional)

    plans = _together(run, ranks, commit, lambda: plans)[0]
    for left in mine:
        _tidy(local, left, plans[left.step, left.attempt])
    return _results(run, plans, ranks.rank == 0)


def _together(run: Run, ranks: Ranks, work: Callable[[], None], result: Callable[[], Any]) -> list[Any]:
    """Do something on each rank; the results of all, or the error of one on all."""
    error: Exception | None = None
    try:
        work()
    except Exception as caught:  # noqa: BLE001 - raised once the other ranks know
        error = caught
    told = ranks.gather((None if error is None else Failure.of(error), result()))
    if error is not None:
        raise error
    for rank, (failure, _) in enumerate(told):
        if failure is not None:
            what = f"{run.open().url}: rank {rank} cannot finish what an earlier job has left"
            raise_other(what, failure)
    return [found for _, found in told]


def _planned(
    run: Run, left: Sequence[Left], living: Collection[tuple[int, str]], without: int | None, partly: bool
) -> dict[tuple[int, str], _Plan]:
    """What is done with each attempt that is on some disk."""
    found: dict[tuple[int, str], list[Left]] = {}
    for each in left:
        found.setdefault((each.step, each.attempt), []).append(each)
    manifests: dict[int, Manifest | str | None] = {}
    plans: dict[tuple[int, str], _Plan] = {}

    def order(key: tuple[int, str]) -> tuple[int, float, str]:
        return key[0], -max(each.time for each in found[key]), key[1]  # of a step the newest first

    for step, attempt in sorted(found, key=order):
        parts = found[step, attempt]
        if (step, attempt) in living:  # a process that lives, on another machine, may still commit it
            plans[step, attempt] = _Plan(_KEEP)
            continue
        if step not in manifests:
            try:
                manifests[step] = read_manifest(run.open(step_folder(step)))
            except CorruptionError as error:
                manifests[step] = str(error)
        manifest = manifests[step]
        if isinstance(manifest, str):
            plans[step, attempt] = _Plan(_KEEP)  # which attempt it was is not known
        elif manifest is not None:
            plans[step, attempt] = _Plan(_COMMITTED if manifest.attempt == attempt else _DELETE)
        elif step == without:  # what is whole stays until the new save is committed, which may fail
            whole = _plan_of(run, step, attempt, parts, partly).what == _FINISH
            plans[step, attempt] = _Plan(_KEEP if whole else _DELETE)
        else:
            plans[step, attempt] = _plan_of(run, step, attempt, parts, partly)
    if not partly and any(plan.what == _FINISH for plan in plans.values()):
        newest = max(committed_steps(run.open()), default=-1)
        for key, plan in plans.items():
            if plan.what == _FINISH and key[0] < newest:  # it may have been committed, and deleted since
                reason = f"step {newest} is committed already; `shardstream checkpoint upload` commits it"
                plans[key] = _Plan(_KEEP, [], reason)
    return plans


def _plan_of(run: Run, step: int, attempt: str, parts: Sequence[Left], partly: bool) -> _Plan:
    pending = next((each.world for each in parts if each.world), 0)
    there = run.open(step_folder(step), attempt).list()
    if not pending and PENDING in there:
        with contextlib.suppress(CorruptionError):  # a damaged one says nothing
            pending = pending_of(run, step, attempt).world
    whole = {rank for each in parts for rank in each.ranks}
    whole |= {rank for name in there if (rank := rank_of(name)) is not None}
    missing = [rank for rank in range(pending) if rank not in whole]
    if pending and not missing:
        return _Plan(_FINISH)
    if not there and not pending:
        return _Plan(_DELETE)  # a copy of a checkpoint that was deleted since
    known = f"the parts of ranks {missing[:8]} are" if pending else "what the first rank has written is"
    reason = f"{known} neither here nor in the store"
    return _Plan(_SEND if partly and whole else _DELETE, missing, reason)


def _prepare(
    run: Run, local: Run | None, left: Left, plan: _Plan, broken: dict[tuple[int, str], str]
) -> None:
    """Send what is on this disk of an attempt that is finished, now or later."""
    assert local is not None
    if plan.what in (_FINISH, _SEND):
        try:
            send(run, local, left)
        except CorruptionError as error:
            broken[left.step, left.attempt] = str(error)


def _commit(run: Run, step: int, attempt: str, conditional: Callable[[], bool]) -> _Plan:
    inside = run.open(step_folder(step), attempt)
    for name in inside.list():
        if is_failure(name):
            inside.delete(name)

    def stopped(_: float) -> bool:
        raise CorruptionError(f"{inside.url}: files are missing which its receipts name")

    try:
        finish(run, pending_of(run, step, attempt), stopped, math.inf, conditional())
    except (CorruptionError, StateError) as error:
        return _Plan(_DELETE, [], str(error))
    inside.delete(PENDING)
    return _Plan(_FINISH)


def _tidy(local: Run | None, left: Left, plan: _Plan) -> None:
    """Delete what is of no more use on this disk."""
    assert local is not None
    try:
        if plan.what == _DELETE:
            delete_attempt(local, left.step, left.attempt)
        elif plan.what in (_FINISH, _COMMITTED):
            local.open(step_folder(left.step), left.attempt).delete(PENDING)
        delete_if_empty(local, step_folder(left.step))
    except StorageError as error:  # the other ranks go on, and the next job tries it again
        log.warning("%s: step %d was not deleted: %s", local.open().url, left.step, error)


def _results(run: Run, plans: Mapping[tuple[int, str], _Plan], first: bool) -> list[Recovered]:
    found = []
    url = run.open().url
    for (step, attempt), plan in sorted(plans.items()):
        if plan.what == _FINISH:
            found.append(Recovered(step, attempt, True, [], ""))
            if first:
                log.warning("%s: step %d of an earlier job is committed now from local disks", url, step)
        elif plan.reason:
            found.append(Recovered(step, attempt, False, plan.missing, plan.reason))
            if first:
                log.warning("%s: step %d of an earlier job is not committed: %s", url, step, plan.reason)
    return found

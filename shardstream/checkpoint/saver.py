"""The saves of one handle: what the ranks agree on, what goes on behind a save, and what it has met."""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shardstream.checkpoint.agreement import Failure, OtherRankError, Told, again, first_failure, raise_errors
from shardstream.checkpoint.behind import BUSY, Behind, Settings, choice
from shardstream.checkpoint.commit import committed_steps, wait_for_manifest
from shardstream.checkpoint.layout import PENDING, new_attempt, step_folder
from shardstream.checkpoint.manifest import Pending
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.receipts import say_failed
from shardstream.checkpoint.retention import Run
from shardstream.checkpoint.saving import Part, Plans, checksum, collected, merge_values, rank_prefix
from shardstream.checkpoint.staging import BlockPool
from shardstream.checkpoint.writing import PartWriter
from shardstream.counters.layout import slot, stage
from shardstream.counters.recorder import add, span
from shardstream.errors import ShardstreamError, StateError, StorageError
from shardstream.format.numbers import whole_number
from shardstream.storage.store import Store, redact

__all__ = ["Saver"]

log = logging.getLogger("shardstream")

_SAVE, _SKIPPED = stage("save"), slot("saves_skipped")


class _Flight(NamedTuple):
    step: int
    writer: PartWriter


class _Mine(NamedTuple):
    """What this rank saves, and where."""

    part: Part
    store: Store
    local: Store | None


class Saver:
    """The saves of one handle.

    Args:
        run: The checkpoints.
        local: Those on a disk of this machine, or None.
        ranks: The ranks.
        settings: Options of the user.

    Attributes:
        flight: The last save, until its end is known to the caller.
        skips: How many saves were skipped, since an earlier one was not committed yet.
        failures: How many saves have failed.
    """

    def __init__(self, run: Run, local: Run | None, ranks: Ranks, settings: Settings) -> None:
        self._run, self._local, self._ranks, self._settings = run, local, ranks, settings
        self._url = redact(run.url)
        self.pool = BlockPool(settings.memory)
        self._plans = Plans(ranks, self.pool)
        self.flight: _Flight | None = None
        self.behind = Behind(run, local, settings)
        self._listed = False
        self.skips = self.failures = 0

    def forked(self) -> Saver:
        """The same in the child of a fork, which has none of the threads."""
        made = Saver(self._run, self._local, self._ranks, self._settings)
        made.skips, made.failures = self.skips, self.failures
        made.behind.damaged = dict(self.behind.damaged)
        return made

    def save(self, step: int, state: Mapping[str, Any], per_rank: Mapping[str, Any], busy: str) -> bool:
        """See `Checkpoints.save`.

        Args:
            step: The step.
            state: What to save.
            per_rank: What this rank has of its own.
            busy: What to do while an earlier save goes on.
        """
        started = time.monotonic()
        begun = self._save(step, state, per_rank, busy)
        span(_SAVE, started, time.monotonic())
        return begun

    def _save(self, step: int, state: Mapping[str, Any], per_rank: Mapping[str, Any], busy: str) -> bool:
        told, error = self._ask(step, busy)
        self._raise_failures(told)
        raise_errors(self._url, told, error)
        if any(each.busy for each in told):
            if busy == "raise":
                raise StateError(f"{self._url}: an earlier checkpoint is not committed yet")
            self.skips += 1
            add(_SKIPPED)
            log.info("%s: step %d is not saved, since an earlier one is not committed yet", self._url, step)
            return False
        if self.flight is not None:  # it was committed
            self.behind.damaged.pop(self.flight.step, None)
        # Only now: the states of some objects are made by collectives, which all ranks have to begin.
        step = told[0].step
        mine, told, error = self._collect(step, state, per_rank, told[0].attempt)
        raise_errors(self._url, told, error)
        assert mine is not None
        self._begin(step, mine, told)
        return True

    def settle(self) -> None:
        """Wait until nothing is written any more. What it has met is raised by the next call."""
        if self.flight is not None:
            self.flight.writer.wait()

    def _ask(self, step: int, busy_choice: str) -> tuple[list[Told], Exception | None]:
        """Whether the ranks can save, before any of them looks at the state."""
        number = -1

        def check() -> None:
            nonlocal number
            choice("busy", busy_choice, BUSY)
            number = whole_number("Checkpoints.save: step", step, 0, (1 << 63) - 1)

        error = self._alone(check)
        if error is None and busy_choice == "wait" and self.flight is not None:
            self.flight.writer.wait()
        failure = self._failure()
        busy = self.flight is not None and not self.flight.writer.done
        if error is None and self._ranks.rank == 0:
            error = self._alone(functools.partial(self._check_step, number))
        said = None if error is None else Failure.of(error)
        return self._ranks.gather(Told(number, new_attempt(), failure, said, busy)), error

    def _collect(
        self, step: int, state: Mapping[str, Any], per_rank: Mapping[str, Any], attempt: str
    ) -> tuple[_Mine | None, list[Told], Exception | None]:
        """What this rank has to save, what all ranks say, and why this one cannot."""
        mine: _Mine | None = None
        check, changed = "", False

        def collect() -> None:
            nonlocal mine, check, changed
            part, name = collected(state, per_rank, self._ranks.rank), step_folder(step)
            check, changed = checksum(part), self._plans.changed(part)
            local = None if self._local is None else self._local.open(name)
            mine = _Mine(part, self._run.open(name), local)

        error = self._alone(collect)
        own = {} if mine is None else mine.part.own
        said = None if error is None else Failure.of(error)
        told = self._ranks.gather(Told(step, attempt, None, said, False, changed, check, own))
        return mine, told, error

    def _alone(self, work: Callable[[], object]) -> Exception | None:
        """Do what this rank does by itself; returns why it cannot: the others wait until it says so."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised once the other ranks know
            return error
        return None

    def _check_step(self, step: int) -> None:
        self.behind.conditional()
        committed = self.behind.committed
        if not self._listed:
            committed.update(committed_steps(self._run.open()))
            self._listed = True
        # A damaged one stays until all of the new one is in the store.
        if step in committed and step not in self.behind.damaged:
            raise StateError(f"{self._url}: step {step} is committed already, and is never overwritten")

    def _begin(self, step: int, mine: _Mine, told: list[Told]) -> None:
        part, store, local = mine
        if any(each.changed for each in told):
            self._plans.agree(part)
        values = merge_values(self._ranks, part, [each.checksum for each in told])
        attempt, rank = told[0].attempt, self._ranks.rank
        then: Any = functools.partial(self.behind.sent, step)
        notes: dict[str, Pending] = {}
        if rank == 0:
            own = {rank_prefix(rank): each.own for rank, each in enumerate(told) if each.own}
            pending = Pending(
                step, attempt, self._ranks.size, values | own, part.modules, part.data, part.texts
            )
            then, notes = functools.partial(self.behind.commit, pending), {PENDING: pending}
        try:
            writer = PartWriter(
                store, attempt, rank, self.pool, local, lambda _: then(writer),
                functools.partial(self.behind.failed, step), notes,
            )  # fmt: skip
        except BaseException:
            say_failed(store, attempt, rank)  # the first rank waits for the part
            raise
        try:
            self.flight = _Flight(step, writer)
            for plan in self._plans.files(part):
                writer.stage(plan)
            writer.close()
        except Exception as error:
            writer.abort(error)
            writer.wait()
            self.flight = None
            raise
        except BaseException as error:
            writer.abort(error)  # Ctrl-C does not wait for the store; the next call does, and raises
            raise

    def _failure(self) -> Failure | None:
        """What the last save has met, if it has failed."""
        if self.flight is None or self.flight.writer.error is None:
            return None
        return Failure.of(self.flight.writer.error, f"step {self.flight.step}: ")

    def _raise_failures(self, told: list[Told]) -> None:
        failed = first_failure(told)
        if failed is None:
            return
        rank, failure = failed
        own, flight = self._failure(), self.flight
        self.flight = None
        mine = None if flight is None else flight.writer.error
        if flight is not None and not flight.writer.done:
            flight.writer.abort(StorageError(f"rank {rank} has failed"))
            flight.writer.wait()
        if own is not None and own.kind != OtherRankError.__name__:
            rank, failure = self._ranks.rank, own
        self.failures += 1
        where = f" on rank {rank}" if self._ranks.size > 1 else ""
        text = f"{self._url}: a save has failed{where}, {failure.text}"
        if self._settings.errors == "warn":
            warnings.warn(text, RuntimeWarning, stacklevel=5)
            return
        raise again(failure.kind, text) from mine

    def wait(self, seconds: float | None) -> bool:
        """See `Checkpoints.wait`."""
        if self.flight is None:
            return True
        step, writer = self.flight
        limit = None if seconds is None else time.monotonic() + seconds
        if not writer.wait(seconds):
            return False
        if writer.error is None and writer.rank:
            return self._wait_for_commit(step, writer, limit)
        failure, self.flight = self._failure(), None
        if failure is None:
            return True
        self.failures += 1
        text = f"{self._url}: a save has failed, {failure.text}"
        if self._settings.errors == "warn":
            warnings.warn(text, RuntimeWarning, stacklevel=3)
            return False
        raise again(failure.kind, text) from writer.error

    def _wait_for_commit(self, step: int, writer: PartWriter, limit: float | None) -> bool:
        """On ranks but the first: ask the store until the manifest is there."""
        name = step_folder(step)
        try:
            there = wait_for_manifest(
                self._run.open(name), self._run.open(name, writer.attempt), writer.attempt,
                self._settings.patience, limit, self.behind.damaged.get(step),
            )  # fmt: skip
        except ShardstreamError as error:
            self.flight = None
            self.failures += 1
            if self._settings.errors == "warn":
                warnings.warn(f"{self._url}: a save has failed: {error}", RuntimeWarning, stacklevel=4)
                return False
            raise
        if there:
            self.flight = None
            self.behind.damaged.pop(step, None)
        return there

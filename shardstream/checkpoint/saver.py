"""The saves of one handle: what the ranks agree on, what goes on behind a save, and what it has met."""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from shardstream.checkpoint.agreement import Told, again, first_failure, raise_errors
from shardstream.checkpoint.commit import committed_steps, conditional_put, wait_for_manifest
from shardstream.checkpoint.layout import new_attempt, step_folder
from shardstream.checkpoint.planning import Tensors
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.retention import Run, delete_step, prune, prune_local, sweep
from shardstream.checkpoint.saving import Part, Plans, checksum, collected, finish, merge_values, rank_prefix
from shardstream.checkpoint.staging import BlockPool
from shardstream.checkpoint.writing import PartWriter
from shardstream.errors import OptionError, ShardstreamError, StateError, StorageError
from shardstream.storage.store import redact

__all__ = ["Saver", "Settings"]

log = logging.getLogger("shardstream")

_SWEEP_EVERY = 3600.0  # seconds
_KEEP_LOCAL = 2  # checkpoints on the local disk, if `keep` does not say


@dataclass(frozen=True)
class Settings:
    """The options of `Checkpoints` that are for saving; `memory` in bytes."""

    keep: int | None
    memory: int
    errors: str
    single_writer: bool
    patience: float


class _Flight(NamedTuple):
    step: int
    writer: PartWriter


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
        self._conditional: bool | None = None
        self._committed: set[int] = set()
        self._damaged: set[int] = set()
        self._swept = 0.0
        self.skips = self.failures = 0

    def forked(self) -> Saver:
        """The same in the child of a fork, which has none of the threads."""
        made = Saver(self._run, self._local, self._ranks, self._settings)
        made.skips, made.failures = self.skips, self.failures
        return made

    def save(
        self, step: int, state: Mapping[str, Any], per_rank: Mapping[str, Any], busy: str,
        damaged: Collection[int],
    ) -> bool:  # fmt: skip
        """See `Checkpoints.save`.

        Args:
            step: The step.
            state: What to save.
            per_rank: What this rank has of its own.
            busy: What to do while an earlier save goes on.
            damaged: Committed steps that are known to be damaged.
        """
        self._damaged = set(damaged)
        told = self._ask(step, busy)
        self._raise_failures(told)
        raise_errors(self._url, told)
        if any(each.busy for each in told):
            if busy == "raise":
                raise StateError(f"{self._url}: an earlier checkpoint is not committed yet")
            self.skips += 1
            log.info("%s: step %d is not saved, since an earlier one is not committed yet", self._url, step)
            return False
        # Only now: the states of some objects are made by collectives, which all ranks have to begin.
        part, told = self._collect(step, state, per_rank, told[0].attempt)
        raise_errors(self._url, told)
        assert part is not None
        self._begin(step, part, told)
        return True

    def settle(self) -> None:
        """Wait until nothing is written any more. What it has met is raised by the next call."""
        if self.flight is not None:
            self.flight.writer.wait()

    def _ask(self, step: int, choice: str) -> list[Told]:
        """Whether the ranks can save, before any of them looks at the state."""
        if choice == "wait" and self.flight is not None:
            self.flight.writer.wait()
        failure, error = self._failure(), ""
        busy = self.flight is not None and not self.flight.writer.done
        if self._ranks.rank == 0:
            error = self._alone(functools.partial(self._check_step, step, self._damaged))
        return self._ranks.gather(Told(step, new_attempt(), failure, error, busy))

    def _collect(
        self, step: int, state: Mapping[str, Any], per_rank: Mapping[str, Any], attempt: str
    ) -> tuple[Part | None, list[Told]]:
        """What this rank has to save, and what all ranks say."""
        part, check = None, ""

        def collect() -> None:
            nonlocal part, check
            part = collected(state, per_rank, self._ranks.rank)
            check = checksum(part)

        error = self._alone(collect)
        changed = part is not None and self._plans.changed(part)
        own = {} if part is None else part.own
        return part, self._ranks.gather(Told(step, attempt, "", error, False, changed, check, own))

    def _alone(self, work: Callable[[], object]) -> str:
        """Do what this rank does by itself; returns why it cannot: the others wait until it says so."""
        try:
            work()
        except Exception as error:
            if self._ranks.size == 1:
                raise
            log.debug("a rank cannot save", exc_info=True)
            return f"{type(error).__name__}: {error}"
        return ""

    def _check_step(self, step: int, damaged: Collection[int]) -> None:
        if self._conditional is None:
            found = conditional_put(self._run.open())
            if not found and not self._settings.single_writer:
                raise OptionError(
                    f"{self._url}: this store cannot refuse to overwrite an object, so that two jobs could "
                    "damage each other's checkpoints; give single_writer=True if there is only one job"
                )
            self._committed.update(committed_steps(self._run.open()))
            self._conditional = found
        if step in self._committed and step in damaged:
            log.warning("%s: step %d, which is damaged, is deleted and saved again", self._url, step)
            delete_step(self._run, step)
            self._committed.discard(step)
        if step in self._committed:
            raise StateError(f"{self._url}: step {step} is committed already, and is never overwritten")

    def _begin(self, step: int, part: Part, told: list[Told]) -> None:
        if any(each.changed for each in told):
            self._plans.agree(part)
        values = merge_values(self._ranks, part, [each.checksum for each in told])
        attempt, name = told[0].attempt, step_folder(step)
        local = None if self._local is None else self._local.open(name)
        then: Any = functools.partial(self._after, step)
        own = {rank_prefix(rank): each.own for rank, each in enumerate(told) if each.own}
        if self._ranks.rank == 0:
            # Without what copies the tensors, which would hold them.
            rest = part._replace(tensors=Tensors({}, {}))
            then = functools.partial(self._commit, step, rest, values, own, self._ranks.size)
        writer = PartWriter(
            self._run.open(name), attempt, self._ranks.rank, self.pool, local, lambda _: then(writer),
            functools.partial(_tell, f"{self._url}: step {step} was not saved"),
        )  # fmt: skip
        self.flight = _Flight(step, writer)
        try:
            for plan in self._plans.files(part):
                writer.stage(plan)
        except BaseException as error:
            writer.abort(error)
            writer.wait()
            self.flight = None
            raise
        writer.close()

    def _commit(
        self, step: int, part: Part, values: Mapping[str, Any], own: Mapping[str, Any], world: int,
        writer: PartWriter,
    ) -> None:  # fmt: skip
        finish(
            self._run, step, writer, world, part, values, own, self._settings.patience,
            bool(self._conditional),
            functools.partial(self._committed.add, step),
        )  # fmt: skip
        try:
            self._tidy(step, writer.attempt)
        except ShardstreamError as error:
            log.warning("%s: old checkpoints were not deleted: %s", self._url, error)
        self._after(step, writer)

    def _tidy(self, step: int, attempt: str) -> None:
        if self._settings.keep is not None:
            prune(self._run, self._settings.keep, self._damaged, step)
        if time.monotonic() - self._swept > _SWEEP_EVERY or not self._swept:
            self._swept = time.monotonic()
            sweep(self._run, {attempt})

    def _after(self, step: int, writer: PartWriter) -> None:
        if writer.local_failed:
            log.warning("%s: step %d went straight to the store: %s", self._url, step, writer.local_failed)
        if self._local is not None:
            try:
                prune_local(self._local, self._settings.keep or _KEEP_LOCAL, step)
            except ShardstreamError as error:
                log.warning("%s: old local files were not deleted: %s", self._url, error)

    def _failure(self) -> str:
        """What the last save has met, or ""."""
        if self.flight is None or self.flight.writer.error is None:
            return ""
        error = self.flight.writer.error
        return f"step {self.flight.step}: {type(error).__name__}: {error}"

    def _raise_failures(self, told: list[Told]) -> None:
        failed = first_failure(told)
        if failed is None:
            return
        rank, text = failed
        flight, self.flight = self.flight, None
        mine = None if flight is None else flight.writer.error
        if flight is not None and not flight.writer.done:
            flight.writer.abort(StorageError(f"rank {rank} has failed"))
            flight.writer.wait()
        self.failures += 1
        where = f"{self._url}: a save has failed{f' on rank {rank}' if self._ranks.size > 1 else ''}, {text}"
        if self._settings.errors == "warn":
            warnings.warn(where, RuntimeWarning, stacklevel=4)
            return
        raise again(mine, where) from mine

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
        if not failure:
            return True
        self.failures += 1
        if self._settings.errors == "warn":
            warnings.warn(f"{self._url}: a save has failed, {failure}", RuntimeWarning, stacklevel=3)
            return False
        raise again(writer.error, f"{self._url}: a save has failed, {failure}") from writer.error

    def _wait_for_commit(self, step: int, writer: PartWriter, limit: float | None) -> bool:
        """On ranks but the first: ask the store until the manifest is there."""
        name = step_folder(step)
        try:
            there = wait_for_manifest(
                self._run.open(name), self._run.open(name, writer.attempt), self._settings.patience, limit
            )
        except StorageError as error:
            self.flight = None
            self.failures += 1
            if self._settings.errors == "warn":
                warnings.warn(f"{self._url}: a save has failed: {error}", RuntimeWarning, stacklevel=4)
                return False
            raise
        if there:
            self.flight = None
        return there


def _tell(what: str, error: BaseException) -> None:
    """Say at once what the next call will raise: there may be none."""
    log.error("%s: %s: %s", what, type(error).__name__, error)

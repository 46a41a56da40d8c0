"""Checkpoints of a training job: saved while it runs, committed whole, loaded by any number of ranks."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from shardstream.checkpoint.agreement import Told, again, first_failure, raise_errors
from shardstream.checkpoint.commit import (
    PATIENCE,
    committed_steps,
    conditional_put,
    read_manifest,
    wait_for_manifest,
)
from shardstream.checkpoint.layout import new_attempt, step_folder
from shardstream.checkpoint.loading import Loading, candidates
from shardstream.checkpoint.manifest import Manifest
from shardstream.checkpoint.planning import Tensors
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.retention import Run, delete_step, prune, prune_local, sweep
from shardstream.checkpoint.saving import Part, Plans, checksum, collected, finish, merge_values, rank_prefix
from shardstream.checkpoint.staging import BlockPool
from shardstream.checkpoint.writing import PartWriter
from shardstream.counters.layout import slot, stage
from shardstream.counters.recorder import add, put, span
from shardstream.errors import CorruptionError, OptionError, ShardstreamError, StateError, StorageError
from shardstream.format.numbers import whole_number
from shardstream.format.sizes import parse_size
from shardstream.storage.store import Options, absolute, redact

__all__ = ["Checkpoints", "Skipped"]

log = logging.getLogger("shardstream")

_SAVE, _SKIPPED, _STEP = stage("save"), slot("saves_skipped"), slot("checkpoint_step")
_SWEEP_EVERY = 3600.0  # seconds
_KEEP_LOCAL = 2  # checkpoints on the local disk, if `keep` does not say


class Skipped(NamedTuple):
    """A checkpoint that `load` did not take, and why."""

    step: int
    reason: str


class _Flight(NamedTuple):
    step: int
    writer: PartWriter


class Checkpoints:
    """The checkpoints of a training job, below one URL.

    `save` copies the state into memory and returns; threads write it, first to a local disk if there is one,
    then to the store. A checkpoint exists once its manifest is there, which is put last and never
    overwritten. Every byte has a checksum. With several ranks of torch.distributed all of them call `save`
    and `load`.

    Args:
        url: The folder of all checkpoints: a local path, s3://, gs://, az://, or what fsspec knows.
        local: A folder on a disk of this machine, which is written before the store, and read before it.
        keep: How many checkpoints stay; older ones are deleted after a commit. None keeps all. On the local
            disk as many stay, or 2.
        memory: Bytes of this rank's buffers, such as "32GB". They are kept between saves. What does not fit
            waits, within `save`, until something is written.
        busy: What `save` does while an earlier checkpoint is not committed yet: "skip" returns False, "wait"
            waits for it, "raise" raises StateError.
        errors: "raise": what a save meets in the background is raised by the next call. "warn": it is a
            warning, and `failures` counts it.
        single_writer: That there is only one job which writes here. Only then is a store allowed that cannot
            refuse to overwrite an object.
        group: The ranks that save together, a process group of torch.distributed; None for all.
        patience: Seconds without a new object, after which the first rank takes another one for dead.
        storage_options: Options of the store.

    Attributes:
        skipped: The checkpoints that the last `load` did not take, newest first, and why.
        skips: How many saves were skipped, since an earlier one was not committed yet.
        failures: How many saves have failed.

    Raises:
        OptionError: An option that cannot work.
    """

    def __init__(
        self, url: str, *, local: str | None = None, keep: int | None = None, memory: str | int = "8GB",
        busy: Literal["skip", "wait", "raise"] = "skip", errors: Literal["raise", "warn"] = "raise",
        single_writer: bool = False, group: Any = None, patience: float = PATIENCE,
        storage_options: Options = None,
    ) -> None:  # fmt: skip
        self.url = redact(str(url))
        self._run = Run(absolute(str(url)), storage_options)
        self._local = None if local is None else Run(absolute(str(local)))
        if self._local is not None and self._local.open().local_path("") is None:
            raise OptionError(f"Checkpoints: local={local!r} must be a folder on this machine")
        if self._local is not None and self._local.url == self._run.url:
            raise OptionError(f"Checkpoints: local={local!r} is the folder of the checkpoints itself")
        self._run.open()  # a URL that cannot work is refused now
        self._keep = None if keep is None else whole_number("Checkpoints: keep", keep, 1, 1 << 30)
        self._busy = _choice("busy", busy, ("skip", "wait", "raise"))
        self._errors = _choice("errors", errors, ("raise", "warn"))
        self._single_writer, self._patience = bool(single_writer), float(patience)
        self._pool = BlockPool(parse_size(memory, "Checkpoints: memory"))
        self._ranks = Ranks(group)
        self._plans = Plans(self._ranks, self._pool)
        self._loading = Loading(self._run, self._local, self._ranks)
        self._flight: _Flight | None = None
        self._conditional: bool | None = None
        self._committed: set[int] = set()
        self._swept = 0.0
        self._process = os.getpid()
        self._lock = threading.RLock()
        self.skipped: list[Skipped] = []
        self.skips = self.failures = 0

    def __repr__(self) -> str:
        return f"Checkpoints({self.url!r})"

    # Saving

    def save(
        self, step: int, state: Mapping[str, Any], *, per_rank: Mapping[str, Any] | None = None,
        busy: Literal["skip", "wait", "raise"] | None = None,
    ) -> bool:  # fmt: skip
        """Save the state of a step. It may change as soon as this returns.

        Args:
            step: The number of the step, 0 or more.
            state: What to save, by name: modules, optimizers, loaders, anything with `state_dict` and
                `load_state_dict`, tensors, arrays, numbers, strings, bytes, and lists and dicts of them.
                What is no part of a sharded tensor is stored once, for all ranks.
            per_rank: What each rank has of its own, such as the state of its random numbers.
            busy: Another choice for this call alone.

        Returns:
            Whether it is being saved; False if it was skipped.

        Raises:
            StateError: The step is committed already, or something cannot be stored.
            StorageError: An earlier save has failed, on any rank. This one was not begun.
            CorruptionError: The same.
        """
        started = time.monotonic()
        begun = self._save(step, state, per_rank, busy)
        span(_SAVE, started, time.monotonic())
        return begun

    def _save(
        self, step: int, state: Mapping[str, Any], per_rank: Mapping[str, Any] | None, busy: str | None
    ) -> bool:
        with self._lock:
            self._after_fork()
            choice = self._busy if busy is None else _choice("busy", busy, ("skip", "wait", "raise"))
            step = whole_number("Checkpoints.save: step", step, 0, (1 << 63) - 1)
            told = self._ask(step, choice)
            self._raise_failures(told)
            raise_errors(self.url, told)
            if any(each.busy for each in told):
                if choice == "raise":
                    raise StateError(f"{self.url}: an earlier checkpoint is not committed yet")
                self.skips += 1
                add(_SKIPPED)
                log.info(
                    "%s: step %d is not saved, since an earlier one is not committed yet", self.url, step
                )
                return False
            # Only now: the states of some objects are made by collectives, which all ranks have to begin.
            part, told = self._collect(step, state, per_rank or {}, told[0].attempt)
            raise_errors(self.url, told)
            assert part is not None
            self._begin(step, part, told)
            return True

    def _after_fork(self) -> None:
        """The threads of a fork's parent are not here."""
        if self._process != os.getpid():
            self._process, self._flight = os.getpid(), None
            self._pool = BlockPool(self._pool.limit)

    def _ask(self, step: int, choice: str) -> list[Told]:
        """Whether the ranks can save, before any of them looks at the state."""
        if choice == "wait" and self._flight is not None:
            self._flight.writer.wait()
        failure, error = self._failure(), ""
        busy = self._flight is not None and not self._flight.writer.done
        if self._ranks.rank == 0:
            error = self._alone(functools.partial(self._check_step, step))
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

    def _check_step(self, step: int) -> None:
        if self._conditional is None:
            found = conditional_put(self._run.open())
            if not found and not self._single_writer:
                raise OptionError(
                    f"{self.url}: this store cannot refuse to overwrite an object, so that two jobs could "
                    "damage each other's checkpoints; give single_writer=True if there is only one job"
                )
            self._committed.update(committed_steps(self._run.open()))
            self._conditional = found
        if step in self._committed and step in {each.step for each in self.skipped}:
            log.warning("%s: step %d, which is damaged, is deleted and saved again", self.url, step)
            delete_step(self._run, step)
            self._committed.discard(step)
        if step in self._committed:
            raise StateError(f"{self.url}: step {step} is committed already, and is never overwritten")

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
            self._run.open(name), attempt, self._ranks.rank, self._pool, local, lambda _: then(writer),
            functools.partial(_tell, f"{self.url}: step {step} was not saved"),
        )  # fmt: skip
        self._flight = _Flight(step, writer)
        try:
            for plan in self._plans.files(part):
                writer.stage(plan)
        except BaseException as error:
            writer.abort(error)
            writer.wait()
            self._flight = None
            raise
        writer.close()

    def _commit(
        self, step: int, part: Part, values: Mapping[str, Any], own: Mapping[str, Any], world: int,
        writer: PartWriter,
    ) -> None:  # fmt: skip
        finish(
            self._run, step, writer, world, part, values, own, self._patience, bool(self._conditional),
            functools.partial(self._committed.add, step),
        )  # fmt: skip
        try:
            self._tidy(step, writer.attempt)
        except ShardstreamError as error:
            log.warning("%s: old checkpoints were not deleted: %s", self.url, error)
        self._after(step, writer)

    def _tidy(self, step: int, attempt: str) -> None:
        if self._keep is not None:
            prune(self._run, self._keep, {skipped.step for skipped in self.skipped}, step)
        if time.monotonic() - self._swept > _SWEEP_EVERY or not self._swept:
            self._swept = time.monotonic()
            sweep(self._run, {attempt})

    def _after(self, step: int, writer: PartWriter) -> None:
        put(_STEP, step)
        if writer.local_failed:
            log.warning("%s: step %d went straight to the store: %s", self.url, step, writer.local_failed)
        if self._local is not None:
            try:
                prune_local(self._local, self._keep or _KEEP_LOCAL, step)
            except ShardstreamError as error:
                log.warning("%s: old local files were not deleted: %s", self.url, error)

    # Failures

    def _failure(self) -> str:
        """What the last save has met, or ""."""
        if self._flight is None or self._flight.writer.error is None:
            return ""
        error = self._flight.writer.error
        return f"step {self._flight.step}: {type(error).__name__}: {error}"

    def _raise_failures(self, told: list[Told]) -> None:
        failed = first_failure(told)
        if failed is None:
            return
        rank, text = failed
        flight, self._flight = self._flight, None
        mine = None if flight is None else flight.writer.error
        if flight is not None and not flight.writer.done:
            flight.writer.abort(StorageError(f"rank {rank} has failed"))
            flight.writer.wait()
        self.failures += 1
        where = f"{self.url}: a save has failed{f' on rank {rank}' if self._ranks.size > 1 else ''}, {text}"
        if self._errors == "warn":
            warnings.warn(where, RuntimeWarning, stacklevel=3)
            return
        raise again(mine, where) from mine

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the last save is committed. No other rank needs to call it.

        Args:
            seconds: At most so long; None for as long as it takes.

        Returns:
            Whether it is committed, or there was none. With errors="warn" False, too, if it has failed.

        Raises:
            StorageError: It has failed.
            CorruptionError: The same.
        """
        with self._lock:
            self._after_fork()
            if self._flight is None:
                return True
            step, writer = self._flight
            limit = None if seconds is None else time.monotonic() + seconds
            if not writer.wait(seconds):
                return False
            if writer.error is None and writer.rank:
                return self._wait_for_commit(step, writer, limit)
            failure, self._flight = self._failure(), None
            if not failure:
                return True
            self.failures += 1
            if self._errors == "warn":
                warnings.warn(f"{self.url}: a save has failed, {failure}", RuntimeWarning, stacklevel=2)
                return False
            raise again(writer.error, f"{self.url}: a save has failed, {failure}") from writer.error

    def _wait_for_commit(self, step: int, writer: PartWriter, limit: float | None) -> bool:
        """On ranks but the first: ask the store until the manifest is there."""
        name = step_folder(step)
        try:
            there = wait_for_manifest(
                self._run.open(name), self._run.open(name, writer.attempt), self._patience, limit
            )
        except StorageError as error:
            self._flight = None
            self.failures += 1
            if self._errors == "warn":
                warnings.warn(f"{self.url}: a save has failed: {error}", RuntimeWarning, stacklevel=3)
                return False
            raise
        if there:
            self._flight = None
        return there

    # Loading

    def steps(self) -> list[int]:
        """The steps that are committed, ascending. They are not verified."""
        return committed_steps(self._run.open())

    def manifest(self, step: int) -> Manifest:
        """The manifest of a step.

        Raises:
            StateError: It is not committed.
            CorruptionError: It is damaged.
        """
        found = read_manifest(self._run.open(step_folder(step)))
        if found is None:
            raise StateError(f"{self.url}: step {step} is not committed")
        return found

    def folder(self, step: int) -> str:
        """The folder with the files of a step, which transformers and vLLM load if nothing is sharded."""
        manifest = self.manifest(step)
        return self._run.open(step_folder(step)).where(manifest.attempt)

    def load(
        self, state: dict[str, Any], *, step: int | None = None, per_rank: dict[str, Any] | None = None
    ) -> int | None:
        """Load the newest checkpoint that is whole and sound on all ranks, or that of a step.

        Objects and tensors are filled where they are; other values take the place of those in `state`. What
        is damaged is skipped for the next older one, with a warning; `skipped` says what and why. After an
        error objects may hold anything: do not train on.

        Args:
            state: As for `save`. It may lack what is not needed.
            step: The step; None for the newest.
            per_rank: As for `save`. A rank that did not save keeps what it has.

        Returns:
            The step; None if there is no checkpoint at all.

        Raises:
            StateError: The step is not committed, or the objects and the checkpoint do not fit.
            CorruptionError: There are checkpoints, and none of them is sound.
            StorageError: The store failed.
        """
        with self._lock:
            self._after_fork()
            if self._flight is not None:
                self._flight.writer.wait()
            self.skipped = []
            for candidate in candidates(self._run, self._ranks, step):
                damage = self._loading.load(candidate, state, {} if per_rank is None else per_rank)
                if not damage:
                    return candidate
                self.skipped.append(Skipped(candidate, damage))
                if step is None:
                    text = f"{self.url}: step {candidate} is skipped, since it is damaged: {damage}"
                    warnings.warn(text, RuntimeWarning, stacklevel=2)
            if not self.skipped:
                return None
            why = "; ".join(f"step {each.step}: {each.reason}" for each in self.skipped[:5])
            what = "no checkpoint is sound" if step is None else "it is damaged"
            raise CorruptionError(f"{self.url}: {what}: {why}")


def _tell(what: str, error: BaseException) -> None:
    """Say at once what the next call will raise: there may be none."""
    log.error("%s: %s: %s", what, type(error).__name__, error)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise OptionError(f"Checkpoints: {name}={value!r} must be one of {', '.join(choices)}")
    return value

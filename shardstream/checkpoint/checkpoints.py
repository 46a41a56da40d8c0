"""Checkpoints of a training job: saved while it runs, committed whole, loaded by any number of ranks."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from shardstream.checkpoint.behind import BUSY, Settings, choice
from shardstream.checkpoint.commit import PATIENCE, committed_steps, read_manifest
from shardstream.checkpoint.layout import step_folder
from shardstream.checkpoint.loading import Loading, candidates
from shardstream.checkpoint.manifest import Manifest
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.recovery import recover
from shardstream.checkpoint.retention import Run, local_run
from shardstream.checkpoint.saver import Saver
from shardstream.errors import CorruptionError, OptionError, StateError
from shardstream.format.numbers import whole_number
from shardstream.format.sizes import parse_size
from shardstream.storage.store import Options, absolute, redact

__all__ = ["Checkpoints", "Skipped"]


_handles: weakref.WeakSet[Checkpoints] = weakref.WeakSet()


class Skipped(NamedTuple):
    """A checkpoint that `load` did not take, and why."""

    step: int
    reason: str


class Checkpoints:
    """The checkpoints of a training job, below one URL.

    `save` copies the state into memory and returns; threads write it, first to a local disk if there is one,
    then to the store. A checkpoint exists once its manifest is there, which is put last and never
    overwritten. Every byte has a checksum. With several ranks of torch.distributed all of them call `save`
    and `load`.

    Args:
        url: The folder of all checkpoints: a local path, s3://, gs://, az://, or what fsspec knows.
        local: A folder on a disk of this machine, which is written before the store, and read before it. The
            run gets a folder of its own in it. What a job that was killed had not sent yet, the next one
            sends and commits.
        keep: How many checkpoints stay; older ones are deleted after a commit. None keeps all. On the local
            disk as many stay, or 2, beside the one that is being written.
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
        self._local = None if local is None else local_run(str(local), self._run)
        if self._local is not None and self._local.open().local_path("") is None:
            raise OptionError(f"Checkpoints: local={local!r} must be a folder on this machine")
        if local is not None and absolute(str(local)) == self._run.url:
            raise OptionError(f"Checkpoints: local={local!r} is the folder of the checkpoints itself")
        self._run.open()  # a URL that cannot work is refused now
        self._busy = choice("busy", busy, BUSY)
        settings = Settings(
            None if keep is None else whole_number("Checkpoints: keep", keep, 1, 1 << 30),
            parse_size(memory, "Checkpoints: memory"), choice("errors", errors, ("raise", "warn")),
            bool(single_writer), float(patience),
        )  # fmt: skip
        self._ranks = Ranks(group)
        self._saver = Saver(self._run, self._local, self._ranks, settings)
        self._loading = Loading(self._run, self._local, self._ranks)
        self._recovered = False
        self._process = os.getpid()
        self._lock = threading.RLock()
        _handles.add(self)
        self.skipped: list[Skipped] = []

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
            OptionError: An argument that cannot work, on any rank.
            StateError: The step is committed already, or something cannot be stored.
            StorageError: An earlier save has failed, on any rank. This one was not begun.
            CorruptionError: The same.
        """
        with self._lock:
            saver = self._own_saver()
            if not self._recovered:
                self._recover(saver, step)
            return saver.save(step, state, per_rank or {}, self._busy if busy is None else busy)

    def _recover(self, saver: Saver, without: int | None = None) -> None:
        """Finish what earlier jobs have left on local disks; but not of the step that is saved now."""
        found = recover(self._run, self._local, self._ranks, saver.behind.conditional, without)
        saver.behind.committed.update(each.step for each in found if each.committed)
        self._recovered = True

    def _own_saver(self) -> Saver:
        """What saves in this process: the threads of a fork's parent are not here."""
        if self._process != os.getpid():
            self._process, self._saver = os.getpid(), self._saver.forked()
        return self._saver

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
            return self._own_saver().wait(seconds)

    @property
    def skips(self) -> int:
        """How many saves were skipped, since an earlier one was not committed yet."""
        return self._saver.skips

    @property
    def failures(self) -> int:
        """How many saves have failed."""
        return self._saver.failures

    # Loading

    def steps(self) -> list[int]:
        """The steps that are committed, ascending. They are not verified."""
        return committed_steps(self._run.open())

    def manifest(self, step: int) -> Manifest:
        """The manifest of a step.

        Args:
            step: The number of the step.

        Returns:
            What the step holds: its tensors, values and files.

        Raises:
            StateError: It is not committed.
            CorruptionError: It is damaged.
        """
        found = read_manifest(self._run.open(step_folder(step)))
        if found is None:
            raise StateError(f"{self.url}: step {step} is not committed")
        return found

    def folder(self, step: int) -> str:
        """The folder with the files of a step, which transformers and vLLM load if nothing is sharded.

        Args:
            step: The number of the step.

        Returns:
            A path, or a URL.

        Raises:
            StateError: It is not committed.
            CorruptionError: Its manifest is damaged.
        """
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
            saver = self._own_saver()
            saver.settle()
            self._recover(saver)
            self.skipped = []
            for candidate in candidates(self._run, self._ranks, step):
                damage = self._loading.load(candidate, state, {} if per_rank is None else per_rank)
                if not damage:
                    saver.behind.damaged.pop(candidate, None)
                    return candidate
                if self._loading.damaged is not None:
                    saver.behind.damaged[candidate] = self._loading.damaged
                self.skipped.append(Skipped(candidate, damage))
                if step is None:
                    text = f"{self.url}: step {candidate} is skipped, since it is damaged: {damage}"
                    warnings.warn(text, RuntimeWarning, stacklevel=2)
            if not self.skipped:
                return None
            why = "; ".join(f"step {each.step}: {each.reason}" for each in self.skipped[:5])
            what = "no checkpoint is sound" if step is None else "it is damaged"
            raise CorruptionError(f"{self.url}: {what}: {why}")


def _unlock() -> None:
    """In the child of a fork: a thread of the parent that had a lock will not give it back."""
    for handle in _handles:
        handle._lock = threading.RLock()  # noqa: SLF001 - its own class


os.register_at_fork(after_in_child=_unlock)

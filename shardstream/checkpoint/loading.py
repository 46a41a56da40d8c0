"""One load: which step all ranks try, what each of them needs of it, and whether all of them have it."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from shardstream.checkpoint.agreement import Failure, raise_other
from shardstream.checkpoint.commit import committed_steps, read_manifest
from shardstream.checkpoint.files import Files
from shardstream.checkpoint.layout import MANIFEST, step_folder
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.restoring import Restoring
from shardstream.checkpoint.retention import Run
from shardstream.checkpoint.saving import rank_prefix
from shardstream.errors import CorruptionError, StateError

__all__ = ["Loading", "candidates"]

log = logging.getLogger("shardstream")


def candidates(run: Run, ranks: Ranks, step: int | None) -> list[int]:
    """The steps to try in turn: what the first rank finds. All ranks call it.

    Args:
        run: The checkpoints.
        ranks: The ranks.
        step: The only one to try; None for all, newest first.

    Raises:
        StateError: The step is not committed.
        StorageError: The store failed.
    """
    steps: list[int] = []
    error: Exception | None = None
    if ranks.rank == 0:
        try:
            steps = committed_steps(run.open())
            if step is not None and step not in steps:
                raise StateError(f"{run.open().url}: step {step} is not committed; there are {steps}")
        except Exception as caught:  # noqa: BLE001 - raised once the other ranks know
            error = caught
    found, failure = ranks.gather((steps, None if error is None else Failure.of(error)))[0]
    if error is not None:
        raise error
    if failure is not None:
        raise_other(f"{run.open().url}: rank 0 cannot load", failure)
    return list(found[::-1]) if step is None else [step]


class _Outcome(NamedTuple):
    damage: str = ""  # of the checkpoint: an older one may do
    error: Failure | None = None  # of anything else


class Loading:
    """The loads of one handle.

    Args:
        run: The checkpoints.
        local: Those on a disk of this machine, or None.
        ranks: The ranks.
    """

    def __init__(self, run: Run, local: Run | None, ranks: Ranks) -> None:
        self._run, self._local, self._ranks = run, local, ranks

    def load(self, step: int, state: dict[str, Any], per_rank: dict[str, Any]) -> str:
        """Load a step. All ranks call it.

        Args:
            step: The step.
            state: As users give it.
            per_rank: The same of this rank alone.

        Returns:
            "" if all ranks have it; else what is damaged, of the first rank that has found something.

        Raises:
            StateError: The objects and the checkpoint do not fit, on any rank.
        """
        damage, error = "", None
        parts: list[Restoring] = []
        try:
            parts = self._restoring(step, state, per_rank)
            for part in parts:
                part.read()
        except CorruptionError as found:
            damage = str(found)
        except Exception as found:  # noqa: BLE001 - raised by `_agree`, once the other ranks know
            if isinstance(found.__cause__, FileNotFoundError):
                damage = str(found)
            else:
                error = found
        damage = self._agree(step, damage, error)
        if damage:
            return damage
        try:
            for part in parts:
                part.apply()
        except Exception as found:  # noqa: BLE001 - raised by `_agree`, once the other ranks know
            error = found
        return self._agree(step, "", error)

    def _agree(self, step: int, damage: str, error: Exception | None) -> str:
        mine = _Outcome(damage, None if error is None else Failure.of(error))
        told = self._ranks.gather(tuple(mine))
        if error is not None:
            raise error
        for rank, (_, other) in enumerate(told):
            if other is not None:
                raise_other(f"{self._run.open().url}: rank {rank} cannot load step {step}", other)
        for rank, (other, _) in enumerate(told):
            if other:
                return f"rank {rank}: {other}" if self._ranks.size > 1 else str(other)
        return ""

    def _files(self, step: int) -> Files:
        name = step_folder(step)
        folder = self._run.open(name)
        manifest = read_manifest(folder)
        if manifest is None:
            raise CorruptionError(f"{folder.where(MANIFEST)} is no longer there")
        return Files(folder, manifest, None if self._local is None else self._local.open(name))

    def _restoring(self, step: int, state: dict[str, Any], per_rank: dict[str, Any]) -> list[Restoring]:
        files = self._files(step)
        stored = files.manifest.values
        if not isinstance(stored, dict):
            where = files.store.url
            raise StateError(f"{where} was not written by ss.Checkpoints: load it with ss.dcp.Reader")
        parts = [Restoring(files, state, stored)]
        prefix = rank_prefix(self._ranks.rank)
        if per_rank and prefix in stored:
            parts.append(Restoring(files, per_rank, stored[prefix], prefix))
        elif per_rank:
            log.warning("%s: rank %d did not save, and keeps what it has", files.store.url, self._ranks.rank)
        return parts

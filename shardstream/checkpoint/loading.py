"""One load: which step all ranks try, what each of them needs of it, and whether all of them have it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from shardstream.checkpoint.agreement import Failure, raise_other
from shardstream.checkpoint.commit import committed_steps, read_manifest
from shardstream.checkpoint.exchange import exchange, shared
from shardstream.checkpoint.files import Files
from shardstream.checkpoint.layout import MANIFEST, step_folder
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.restoring import Restoring
from shardstream.checkpoint.retention import Run
from shardstream.checkpoint.saving import rank_prefix
from shardstream.errors import CorruptionError, StateError
from shardstream.slices import Box

__all__ = ["Loading", "candidates"]

log = logging.getLogger("shardstream")


class _NoManifestError(CorruptionError):
    """There is no manifest: a rank may not see the folder, which does not make the checkpoint damaged."""


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


class Loading:
    """The loads of one handle.

    Args:
        run: The checkpoints.
        local: Those on a disk of this machine, or None.
        ranks: The ranks.
    """

    def __init__(self, run: Run, local: Run | None, ranks: Ranks) -> None:
        self._run, self._local, self._ranks = run, local, ranks
        self.bytes_read = 0  # by this rank, of disks and stores, in the last load
        # The attempt that the last load found damaged; "" if its manifest is what is damaged; None: none was.
        self.damaged: str | None = None
        self._attempt = ""

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
        self.damaged, self._attempt = None, ""
        parts: list[Restoring] = []
        wanted: dict[str, list[Box]] = {}

        def plan() -> None:
            parts.extend(self._restoring(step, state, per_rank))
            for each in parts[0].slices:
                wanted.setdefault(each.name, []).append(each.box)

        damage, told = self._together(step, plan, lambda: wanted)
        if damage:
            return damage
        files = parts[0].files
        pieces = shared(files.manifest, told, not files.is_local) if self._ranks.size > 1 else []
        chunks: dict[str, set[int]] = {}
        for piece in pieces:
            chunks.setdefault(piece.name, set()).add(piece.chunk)

        def read() -> None:
            failed: Exception | None = None
            try:
                for part in parts:
                    part.read(chunks)
            except Exception as error:  # noqa: BLE001 - the other ranks wait for the pieces of this one
                failed = error
            exchange(files, self._ranks, pieces, told, parts[0].slices)
            if failed is not None:
                raise failed

        def apply() -> None:
            for part in parts:
                part.apply()

        damage, _ = self._together(step, read)
        self.bytes_read = sum(part.files.bytes_read for part in parts[:1])
        return damage or self._together(step, apply, damages=False)[0]

    def _together(
        self, step: int, work: Callable[[], None], result: Callable[[], Any] = lambda: None,
        damages: bool = True,
    ) -> tuple[str, list[Any]]:  # fmt: skip
        """Do something on each rank.

        Args:
            step: The step.
            work: What to do.
            result: What to tell the other ranks then.
            damages: Whether damage is found, for which an older step may do; else it is an error.

        Returns:
            "", or what the first rank with damage has found; and the results of all ranks.

        Raises:
            ShardstreamError: A rank has met something else.
        """
        damage, error, attempt = "", None, None
        try:
            work()
        except Exception as caught:  # noqa: BLE001 - raised once the other ranks know
            lost = isinstance(caught, CorruptionError) or isinstance(caught.__cause__, FileNotFoundError)
            damage, error = (str(caught), None) if lost and damages else ("", caught)
            attempt = self._attempt if damage and not isinstance(caught, _NoManifestError) else None
        failure = None if error is None else Failure.of(error)
        told = self._ranks.gather((damage, failure, result(), attempt))
        if error is not None:
            raise error
        for rank, (_, failure, _, _) in enumerate(told):
            if failure is not None:
                raise_other(f"{self._run.open().url}: rank {rank} cannot load step {step}", failure)
        results = [each[2] for each in told]
        self.damaged = next((each[3] for each in told if each[3] is not None), None)
        for rank, (found, _, _, _) in enumerate(told):
            if found:
                return f"rank {rank}: {found}" if self._ranks.size > 1 else str(found), results
        return "", results

    def _files(self, step: int) -> Files:
        name = step_folder(step)
        folder = self._run.open(name)
        manifest = read_manifest(folder)
        if manifest is None:
            raise _NoManifestError(f"{folder.where(MANIFEST)} is no longer there")
        self._attempt = manifest.attempt
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

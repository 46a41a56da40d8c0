"""What goes on behind a save once this rank has sent its part: the commit, and what is deleted then."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from shardstream.checkpoint.commit import conditional_put
from shardstream.checkpoint.finishing import finish
from shardstream.checkpoint.layout import PENDING, step_folder
from shardstream.checkpoint.manifest import Pending
from shardstream.checkpoint.retention import Run, delete_attempt, prune, prune_local, sweep
from shardstream.checkpoint.writing import PartWriter
from shardstream.counters.layout import slot
from shardstream.counters.recorder import put
from shardstream.errors import OptionError
from shardstream.storage.store import redact

__all__ = ["BUSY", "Behind", "Settings", "choice"]

log = logging.getLogger("shardstream")

BUSY = ("skip", "wait", "raise")  # what a save does while an earlier one is not committed

_STEP = slot("checkpoint_step")

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


def choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """An option that is one of some words.

    Raises:
        OptionError: It is none of them.
    """
    if value not in choices:
        raise OptionError(f"Checkpoints: {name}={value!r} must be one of {', '.join(choices)}")
    return value


class Behind:
    """The background of all saves of one handle. Methods are called in the threads of the saves.

    Args:
        run: The checkpoints.
        local: Those on a disk of this machine, or None.
        settings: Options of the user.

    Attributes:
        committed: Steps that are known to be committed.
        damaged: Committed steps that are known to be damaged, with the attempt; "" if the manifest is what is
            damaged.
    """

    def __init__(self, run: Run, local: Run | None, settings: Settings) -> None:
        self._run, self._local, self._settings = run, local, settings
        self._url = redact(run.url)
        self._conditional: bool | None = None
        self._swept = 0.0
        self._lock = threading.Lock()
        self.committed: set[int] = set()
        self.damaged: dict[int, str] = {}

    def conditional(self) -> bool:
        """Whether the store can refuse to overwrite an object. It is tried once.

        Raises:
            OptionError: It cannot, and there may be several writers.
        """
        with self._lock:
            if self._conditional is None:
                found = conditional_put(self._run.open())
                if not found and not self._settings.single_writer:
                    raise OptionError(
                        f"{self._url}: this store cannot refuse to overwrite an object, so that two jobs "
                        "could damage each other's checkpoints; give single_writer=True if there is only "
                        "one job"
                    )
                self._conditional = found
            return self._conditional

    def commit(self, pending: Pending, writer: PartWriter) -> None:
        """On the first rank: wait for the parts of all ranks, and commit.

        Raises:
            ShardstreamError: It was not committed. What is deleted afterwards is no reason to fail.
        """
        patience, damaged = self._settings.patience, self.damaged.get(pending.step)
        finish(self._run, pending, writer.stopped, patience, self.conditional(), damaged)
        self.committed.add(pending.step)
        self.damaged.pop(pending.step, None)
        try:
            if damaged is not None:
                log.warning("%s: step %d, which was damaged, is saved again", self._url, pending.step)
            if damaged:
                delete_attempt(self._run, pending.step, damaged)
            if self._local is not None:
                self._local.open(step_folder(pending.step), pending.attempt).delete(PENDING)
            if self._settings.keep is not None:
                prune(self._run, self._settings.keep, set(self.damaged), pending.step)
            if time.monotonic() - self._swept > _SWEEP_EVERY or not self._swept:
                self._swept = time.monotonic()
                sweep(self._run, {pending.attempt})
        except Exception as error:  # noqa: BLE001 - the checkpoint is committed all the same
            log.warning("%s: old checkpoints were not deleted: %s", self._url, error)
        self.sent(pending.step, writer)

    def sent(self, step: int, writer: PartWriter) -> None:
        """The part of this rank is in the store."""
        put(_STEP, step)
        if writer.local_failed:
            log.warning("%s: step %d went straight to the store: %s", self._url, step, writer.local_failed)
        self._prune_local(step)

    def failed(self, step: int, error: BaseException) -> None:
        """Say at once what the next call will raise: there may be none."""
        log.error("%s: step %d was not saved: %s: %s", self._url, step, type(error).__name__, error)
        self._prune_local(step)  # a store that does not answer for long must not fill the disk

    def _prune_local(self, step: int) -> None:
        if self._local is not None:
            try:
                prune_local(self._local, self._settings.keep or _KEEP_LOCAL, step)
            except Exception as error:  # noqa: BLE001 - nothing is lost
                log.warning("%s: old local files were not deleted: %s", self._url, error)

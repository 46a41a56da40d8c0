"""How a rank writes what a plan of torch gives it: to a disk, a store, or a disk and the store behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardstream.checkpoint.dcp.items import Part
from shardstream.checkpoint.layout import MAX_FILE, FilePlan, plan_files, receipt_name, sums_name
from shardstream.checkpoint.staging import BlockPool
from shardstream.checkpoint.writing import PartWriter
from shardstream.storage.store import Store

__all__ = ["Destination"]

_DISK_MEMORY = 64 << 20  # bytes between the state and a disk
_STORE_FILE = 64 << 20  # bytes of a file that is sent: several are on their way at a time
_STORE_MEMORY = 4 * _STORE_FILE + (16 << 20)


@dataclass(frozen=True)
class Destination:
    """Where the files of a checkpoint go.

    folder: at its URL.  local: on a local disk, which is written first, or None.
    """

    folder: Store
    local: Store | None

    @property
    def _sends(self) -> bool:
        return self.folder.local_path("") is None or self.local is not None

    @property
    def memory(self) -> int:
        """Bytes between the state and what is written."""
        return _STORE_MEMORY if self._sends else _DISK_MEMORY

    @property
    def file_size(self) -> int:
        """Bytes of a file at most."""
        return _STORE_FILE if self._sends else MAX_FILE

    def write(
        self, content: Part, attempt: str, rank: int, pool: BlockPool, behind: Callable[[], None]
    ) -> tuple[PartWriter, bool]:
        """Write a part.

        Args:
            content: What this rank writes.
            attempt: The name of the attempt.
            rank: Which rank this is.
            pool: Memory.
            behind: Called in the background once all of it is at the URL.

        Returns:
            The writer of the part, and whether all of it lies on the local disk, synced, and is sent to the
            URL in the background. If not, it is at the URL.

        Raises:
            StateError: A tensor cannot be stored.
            StorageError: A disk or a store has failed, in whichever thread. What was written is deleted.
        """
        part = PartWriter(self.folder, attempt, rank, pool, self.local, then=lambda _: behind())
        files: list[FilePlan] = []
        try:
            files = plan_files(
                content.items(), lambda number: f"rank-{rank:05d}-{number:05d}.safetensors", self.file_size
            )
            for file in files:
                part.stage(file)
        except BaseException as error:
            part.abort(error)
            self._undo(part, files)
            raise
        part.close()
        on_disk = self.local is not None and part.stored() and part.error is None and not part.local_failed
        if not on_disk:
            part.wait()
        if part.error is not None:
            self._undo(part, files)
            raise part.error
        return part, on_disk

    def _undo(self, part: PartWriter, files: Sequence[FilePlan]) -> None:
        """Delete what this rank has written: a full disk would stay full."""
        part.wait()
        names = [name for file in files for name in (file.name, sums_name(file.name))]
        for store in (self.folder, *([] if self.local is None else [self.local])):
            for name in (*names, receipt_name(part.rank)):
                with contextlib.suppress(Exception):  # the error that is being raised says more
                    store.delete(f"{part.attempt}/{name}")

"""`Writer`: a StorageWriter and an AsyncStager for torch.distributed.checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from shardstream.checkpoint.commit import PATIENCE
from shardstream.checkpoint.dcp import background
from shardstream.checkpoint.dcp.commit import Attempt, Gathered, check_conditional, refuse_to_overwrite
from shardstream.checkpoint.dcp.items import Part
from shardstream.checkpoint.dcp.places import local_folder, step_in
from shardstream.checkpoint.dcp.staging import Stager
from shardstream.checkpoint.layout import (
    MAX_FILE,
    FilePlan,
    new_attempt,
    plan_files,
    receipt_name,
    sums_name,
)
from shardstream.checkpoint.staging import BlockPool
from shardstream.checkpoint.writing import PartWriter, receipt_of
from shardstream.counters.layout import stage
from shardstream.counters.recorder import span
from shardstream.errors import OptionError, StateError
from shardstream.format.sizes import parse_size
from shardstream.storage.store import Options, Store, absolute

__all__ = ["Writer"]

_SAVE = stage("save")
_DISK_MEMORY = 64 << 20  # bytes between the state and a disk
_STORE_FILE = 64 << 20  # bytes of a file that is sent: several are on their way at a time
_STORE_MEMORY = 4 * _STORE_FILE + (16 << 20)


@dataclass(frozen=True)
class _Assignment:
    """What the coordinator tells each rank, with its plan."""

    attempt: str
    rank: int
    world: int


@dataclass
class _Save:
    """One save. All calls of torch for it come from one thread."""

    url: str
    is_coordinator: bool
    attempt: str = ""
    world: int = 1
    part: PartWriter | None = None


class Writer(StorageWriter, AsyncStager):
    """Writes a checkpoint for `dcp.save` and `dcp.async_save`.

    `dcp.save(state, storage_writer=ss.dcp.Writer("s3://bucket/run/step-500", local="/nvme/ckpt"))`. A
    checkpoint is safetensors files of all ranks, with a checksum of every 8 MiB, and a manifest that is put
    last, once: readers see the whole checkpoint or none, and one that exists is never overwritten. Files and
    folders are synced.

    With `local`, a save returns when the files of all ranks are on their local disks and synced. They are
    sent and committed to `url` in the background. What fails there is raised by the next save of the process,
    by `wait`, and at the end of the program, which waits for it.

    It is also the stager of `dcp.async_save`: the call returns when the state is copied into memory that is
    kept for the next save. So use one Writer for all saves of a run, and give each save its `checkpoint_id`.

    Args:
        url: The checkpoint's folder: a path, or any URL of a store. `checkpoint_id` of a save replaces it.
        local: A folder on a local disk, in which the checkpoint gets a folder with the last name of `url`;
            or None.
        memory: Bytes that copies of `async_save` may have, such as "32GB"; None for two copies of the state.
        storage_options: For the store of `url`.
        single_writer: Whether you promise that nobody else writes to `url`. Needed for stores that cannot
            refuse to overwrite an object.
        patience: Seconds without any progress after which other ranks are taken for dead.

    Raises:
        OptionError: A URL or an option that cannot be.
    """

    # torch asks for it: `stage` returns when the copy is whole.
    _synchronize_after_execute = False

    def __init__(
        self,
        url: str | os.PathLike[str],
        local: str | os.PathLike[str] | None = None,
        *,
        memory: str | int | None = None,
        storage_options: Options = None,
        single_writer: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__()
        self.url = absolute(os.fspath(url))
        self.local = None if local is None else absolute(os.fspath(local))
        self._memory = None if memory is None else parse_size(memory, "memory")
        self._options, self._single_writer, self._patience = storage_options, single_writer, patience
        step_in(self.url)  # an URL without a name is refused here
        self._start()

    def _start(self) -> None:
        """What belongs to this process."""
        self._process = os.getpid()
        self._thread = threading.local()
        self._stager = Stager(self._memory, self._patience)
        self._pools: dict[int, BlockPool] = {}
        self._behind: list[background.Background] = []
        self._conditional: dict[str, bool] = {}
        self._plans: dict[int, SavePlan] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = ("url", "local", "_memory", "_options", "_single_writer", "_patience")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    # What users call.

    def wait(self) -> None:
        """Wait until all saves of this writer are committed at their URLs.

        Raises:
            StorageError: One was not; its cause says why.
        """
        self._own_process()
        behind, self._behind = self._behind, []
        background.wait_for(behind)

    def close(self) -> None:
        """Wait, as `wait` does, and give memory back."""
        self.wait()
        self._stager.close()
        for pool in self._pools.values():
            pool.drop()

    @property
    def memory_held(self) -> int:
        """Bytes that are kept for copies and on their way to disks and stores."""
        return self._stager.held + sum(pool.held for pool in self._pools.values())

    # The protocol of torch: staging.

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy a state. When this returns, the tensors of the state may change.

        Raises:
            OptionError: memory= is less than the state has.
            StateError: An object of the state cannot be copied, or earlier saves do not end.
            StorageError: What an earlier save has met in the background.
        """
        self._own_process()
        background.raise_untold()
        started = time.monotonic()
        staged = self._stager.stage(state_dict)
        span(_SAVE, started, time.monotonic())
        return staged

    def synchronize_staging(self) -> None:
        """Nothing: `stage` returns when the copy is whole."""

    # The protocol of torch: writing.

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint's folder."""
        return self.url

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path or URL with a name."""
        try:
            step_in(os.fspath(checkpoint_id))
        except OptionError:
            return False
        return True

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Save to another folder from now on, if `checkpoint_id` is one."""
        if checkpoint_id is not None:
            step_in(os.fspath(checkpoint_id))
            # Another thread may begin another save meanwhile.
            self.url = self._thread.url = absolute(os.fspath(checkpoint_id))

    def storage_meta(self) -> StorageMeta | None:
        """Where the checkpoint goes, for planners."""
        return StorageMeta(checkpoint_id=getattr(self._thread, "url", self.url))

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin a save.

        Raises:
            StorageError: What an earlier save has met in the background.
            OptionError: `use_collectives=False`.
        """
        self._own_process()
        if not kwargs.get("use_collectives", True):
            raise OptionError(
                "use_collectives=False is not supported: without collectives no rank knows when all have "
                "written, and so there is no moment of commit"
            )
        background.raise_untold()
        self._thread.save = _Save(getattr(self._thread, "url", self.url), is_coordinator)
        self._thread.__dict__.pop("url", None)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Refuse to overwrite a checkpoint.

        Raises:
            StateError: There is one.
            OptionError: The store cannot refuse to overwrite, and `single_writer` was not given.
        """
        save = self._save
        if save.is_coordinator:
            folder, local = self._folders(save)
            refuse_to_overwrite([folder] if local is None else [folder, local])
            if folder.url not in self._conditional:
                self._conditional[folder.url] = check_conditional(folder, self._single_writer)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give all ranks a name for this attempt."""
        save = self._save
        save.attempt, save.world = new_attempt(), len(plans)
        found = []
        for rank, plan in enumerate(plans):
            # A planner that caches plans says only that nothing has changed.
            kept = plan if plan.usable else self._plans.get(rank)
            if kept is None:
                raise OptionError(
                    "a planner with enable_plan_caching needs one Writer for all its saves: keep it, and "
                    "give each save its checkpoint_id"
                )
            self._plans[rank] = kept
            given = _Assignment(save.attempt, rank, len(plans))
            found.append(dataclasses.replace(kept, storage_data=given, usable=True))
        return found

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the part of this rank. The result is there when this returns.

        Raises:
            StateError: A tensor cannot be stored.
            StorageError: A disk or a store has failed, in whichever thread.
        """
        save, given = self._save, plan.storage_data
        assert isinstance(given, _Assignment)
        save.attempt, save.world = given.attempt, given.world
        folder, local = self._folders(save)
        sends = folder.local_path("") is None or local is not None
        limit = _STORE_FILE if sends else MAX_FILE
        content = Part(plan, planner, limit)
        pool = self._pool(_STORE_MEMORY if sends else _DISK_MEMORY)
        part = PartWriter(folder, given.attempt, given.rank, pool, local)
        files: list[FilePlan] = []
        try:
            files = plan_files(
                content.items(), lambda number: f"rank-{given.rank:05d}-{number:05d}.safetensors", limit
            )
            for file in files:
                part.stage(file)
        except BaseException as error:
            part.abort(error)
            self._undo(part, folder, local, files)
            raise
        part.close()
        on_disk = local is not None and part.stored() and part.error is None and not part.local_failed
        if not on_disk:
            part.wait()
        if part.error is not None:
            self._undo(part, folder, local, files)
            raise part.error
        self._stager.release(content.addresses)
        save.part = part
        if on_disk:
            self._remember(part, folder.url)
        done: Future[list[WriteResult]] = Future()
        done.set_result(content.results(receipt_of(given.rank, part.written), on_disk))
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit, once all ranks have written: to the local disk if there is one, and to `url` behind it.

        Raises:
            StateError: Somebody else has committed to this folder meanwhile.
            CorruptionError: Something that the plan names was not written.
            StorageError: A disk or a store has failed.
        """
        save, part = self._save, self._save.part
        assert part is not None
        folder, local = self._folders(save)
        gathered = Gathered.of(metadata, results, folder.url, save.world)
        conditional = self._conditional.get(folder.url, False)
        attempt = Attempt(save.url, self._options, save.attempt, save.world, conditional, self._patience)
        if local is None:
            attempt.put(folder, gathered.receipts, metadata, gathered)
        elif gathered.on_disk:
            attempt.put(local, gathered.receipts, metadata, gathered)
            work = functools.partial(attempt.put_behind, folder, part, metadata, gathered)
            self._remember(background.Committing(work, f"commit-{save.attempt}"), folder.url)
        else:
            attempt.put_behind(folder, part, metadata, gathered)
            if part.error is not None:
                raise part.error

    # Inside.

    @property
    def _save(self) -> _Save:
        save: _Save | None = getattr(self._thread, "save", None)
        if save is None:
            raise StateError("no save has begun in this thread: torch calls set_up_storage_writer first")
        return save

    def _own_process(self) -> None:
        if os.getpid() != self._process:
            self._start()  # the threads and memory of the parent are not ours

    def _folders(self, save: _Save) -> tuple[Store, Store | None]:
        local = None if self.local is None else Store.open(local_folder(self.local, save.url))
        return Store.open(save.url, self._options), local

    def _pool(self, limit: int) -> BlockPool:
        return self._pools.setdefault(limit, BlockPool(limit))

    def _remember(self, sending: background.Background, url: str) -> None:
        self._behind = [each for each in self._behind if not each.done]
        self._behind.append(sending)
        background.add(sending, url)

    def _undo(self, part: PartWriter, folder: Store, local: Store | None, files: Sequence[FilePlan]) -> None:
        """Delete what this rank has written: a full disk would stay full."""
        part.wait()
        names = [name for file in files for name in (file.name, sums_name(file.name))]
        for store in (folder, *([] if local is None else [local])):
            for name in (*names, receipt_name(part.rank)):
                with contextlib.suppress(Exception):  # the error that is being raised says more
                    store.delete(f"{part.attempt}/{name}")

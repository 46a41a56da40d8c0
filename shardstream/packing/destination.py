"""The destination of a pack: what is there already, what an unfinished pack has left, and the commit."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from shardstream.errors import CommitError, OptionError
from shardstream.format.manifest import NAME, Manifest
from shardstream.packing import receipts, reservation
from shardstream.packing.build_manifest import check_append, tool
from shardstream.packing.claim import Claim, claim_of, forget
from shardstream.packing.engines.nodes import MARK
from shardstream.packing.job import Job
from shardstream.packing.planned import FOLDER, StoredPlan, clear_plan
from shardstream.packing.rejects import REJECTS, write_rejects
from shardstream.packing.result import Result
from shardstream.packing.shard_check import wrong_tasks
from shardstream.packing.shard_names import clear_temporary, folders_of, is_shard, shard_entries, tag_of
from shardstream.packing.sources import Task
from shardstream.packing.spilled import clear_local, holds_spill, spilled_entries
from shardstream.packing.version_01 import is_continued
from shardstream.storage.manifests import commit_manifest, read_manifest, stored_manifest
from shardstream.storage.store import Entry, Options, Store
from shardstream.storage.transport.backends.base import LARGEST_CREATE

log = logging.getLogger("shardstream.packing")
_RECEIPTS = (
    ".pack-task-", ".pack-spill-", ".pack-scatter-", ".pack-gather-", ".pack-shard-", ".pack-part-",
)  # fmt: skip
_SPILL = ".spill"  # the folder of samples between the passes of a shuffle
# This takes the place of the version in the identity of a pack, so that newer versions continue a pack.
# Change it if the form of receipts or of spilled samples changes. Unfinished packs of older versions are then
# refused.
_FORM = "shardstream 0.1.0"


def identity(record: Mapping[str, Any], append: bool) -> str:
    """The identity of a pack: a checksum of its sources and options, as its provenance records them."""
    # A pack of version 0.1 with `keep` has written shards without columns, and is not continued.
    columns = ["columns"] if record.get("options", {}).get("keep") else []
    content = msgspec.json.encode([{**record, "tool": _FORM}, append, *columns], order="deterministic")
    return hashlib.sha256(content).hexdigest()


def manifest_at(dest: str, storage_options: Options) -> Manifest | None:
    """The manifest at a destination, or None. Raises CorruptionError if it is damaged."""
    return stored_manifest(Store.open(dest, storage_options))


class Destination:
    """The store that a pack writes to.

    Args:
        job: The pack.
        record: Its provenance.
        append: Whether it adds to a dataset.
        old: The provenance that version 0.1 would have recorded, or None.
        planned: Whether the plan of the pack is written there; see `planned`.

    Attributes:
        store: The store.
        plan: The identity of the pack.
        claim: By which this packer and its workers may write there, from `begin` on.
        tag: What stands in the names of shards, from `begin` on; see `Job`.
        copies: Whether two attempts at a task may run at once, from `begin` on: each object is put at once as
            a whole, and only one of both creates it.
        parts: In how many parts the pack was begun, from `begin` on. 0: in none.
        first: Of parts: whether this process has begun the pack.
    """

    claim: Claim
    tag: str
    parts: int
    copies: bool = False
    first: bool = False

    def __init__(
        self,
        job: Job,
        record: dict[str, Any],
        append: bool,
        old: dict[str, Any] | None = None,
        planned: bool = False,
    ) -> None:
        self.store = Store.open(job.dest, job.storage_options)
        self._job = job
        self._record = record
        self._append = append
        self._planned = planned
        self.plan = identity(record, append)
        # By the identity: the records that this pack may have, of this version and of 0.1.
        self._records = {identity(each, append): each for each in (record, old) if each is not None}
        self._old_names: set[str] = set()  # of the shards and indexes that are appended to
        self._present: Sequence[Entry] = ()  # what was there when the pack began, or at the last check
        self._checked: Sequence[Entry] = ()  # what was there at the last check
        self._names: list[str] = []  # of objects and folders, when the pack began
        self._folders: set[str] = set()  # of shards

    @property
    def spill_dir(self) -> str:
        """The local folder for samples between the passes of a shuffle. It is the same for the same plan."""
        local = self.store.local_path(_SPILL)
        if local is not None:
            return local
        # The same corpus may be packed to two stores at once.
        return f"{self._temporary}{hashlib.sha256(self.plan.encode()).hexdigest()[:16]}"

    @property
    def _temporary(self) -> str:
        """How the paths of the temporary folders of all plans for this store begin."""
        name = hashlib.sha256(self.store.url.encode()).hexdigest()[:16]
        return os.path.join(tempfile.gettempdir(), f"shardstream-spill-{name}-")

    def committed(self) -> Manifest | None:
        """The manifest, if this pack was committed already. Then at most `clean` is left to do. Else None."""
        found = reservation.read(self.store)
        if (found is not None and found.plan not in self._records) or not self.store.exists(NAME):
            return None
        manifest = self._manifest()
        last = _known((manifest.provenance.get("appended") or [manifest.provenance])[-1])
        mine = any(last == _known(msgspec.to_builtins(record)) for record in self._records.values())
        return manifest if mine and (found is None or manifest.fingerprint != found.base) else None

    def old_manifest(self) -> Manifest | None:
        """The manifest to append to; None if this pack makes a new dataset.

        Raises:
            OptionError: There is nothing to append to, or the samples differ in kind.
            CommitError: There is a dataset, and the pack does not add to it.
        """
        if not self.store.exists(NAME):
            if self._append:
                raise OptionError(
                    f"{self.store.url}: nothing to append to ({NAME} is missing); pack without append"
                )
            return None
        if not self._append:
            raise CommitError(
                f"{self.store.url} already holds a dataset; add to it with --append, or choose another target"
            )
        old = self._manifest()
        check_append(self._job, old, self.store.url, self._record)
        return old

    def _manifest(self) -> Manifest:
        return read_manifest(self.store)[0]

    def begin(self, old: Manifest | None, resume: bool, locked: bool) -> bool:
        """Reserve the store; returns whether an unfinished pack is continued, whose finished tasks count.

        Args:
            old: The manifest to append to, or None.
            resume: Whether to continue an unfinished pack.
            locked: Whether this machine's lock is held, so that no other packer is alive.

        Raises:
            OptionError: There are shards of no dataset, or the unfinished pack is another one.
            CommitError: Another packer has reserved the store, or has committed meanwhile.
        """
        present, foreign = self.look(old)
        base = old.fingerprint if old else ""
        plan = self.plan
        unfinished = reservation.read(self.store) if resume else None
        if unfinished is not None and unfinished.plan != plan and unfinished.plan in self._records:
            if not is_continued(self._record):
                raise OptionError(
                    f"{self.store.url}: version 0.1 began this pack, and this version names or shuffles its "
                    "samples otherwise; finish it with version 0.1, or start again without --resume"
                )
            plan = unfinished.plan
        mine = reservation.Reservation(plan, base, tool())
        granted, continued = reservation.reserve(self.store, mine, resume, locked)
        self.hold(granted)
        # The packer that made a reservation was perhaps killed before it asked the store.
        once = not granted.tagged and (not continued or reservation.creates_once(self.store))
        self.allow_copies(once)
        if old is None and self.store.exists(NAME):
            # Another packer has ended between the look at the target and the reservation.
            if not continued:
                self.store.delete(reservation.NAME)
            raise CommitError(f"{self.store.url}: another packer has just committed a dataset here")
        if not continued:
            left = sorted({*foreign, *(name for name in present if name.startswith(_RECEIPTS))})
            if left:
                self.claim.check(self.store, now=True)
                self.store.delete_many(left)
            self._present = ()
            self.clear_spill(self._names, of_all=True)
            self.clear_plan(self._names, of_all=True)
        return continued

    def look(self, old: Manifest | None) -> tuple[set[str], list[str]]:
        """See what is in the store; returns the names, and those of shards of no dataset.

        Args:
            old: The manifest to append to, or None.

        Raises:
            OptionError: There are such shards, and no reservation.
        """
        self._names = self.store.list()
        self._folders = folders_of(self._names)
        self._present = shard_entries(self.store, self._folders) if self._names else ()
        present = {entry.path for entry in self._present}
        self._old_names = {
            url for shard in (old.shards if old else ()) for url in (shard.url, shard.index_url)
        }
        foreign = self._new_shards(present)
        if foreign and reservation.NAME not in present:
            why = "but no dataset that it belongs to; choose an empty target"
            if old is not None:
                why = (
                    "which its manifest does not list: perhaps a packer left it that was stopped, and woke "
                    "when the dataset was complete; delete it"
                )
            raise OptionError(f"{self.store.url} holds {foreign[0]}{',' if old else ''} {why}")
        return present, foreign

    def hold(self, granted: reservation.Reservation) -> None:
        """Write by a reservation that is there: that of `begin`, or one that several packers share."""
        self.claim, self.tag = claim_of(granted), tag_of(granted.plan) if granted.tagged else ""
        self.parts = granted.parts

    def allow_copies(self, creates_once: bool) -> None:
        """Say that the store creates an object only once, so that a second attempt does no harm.

        Args:
            creates_once: Whether it does; see `reservation.creates_once`.
        """
        # A larger object is put without a condition. A shard holds a little more than it should.
        small = 2 * self._job.layout.shard_size <= LARGEST_CREATE
        self.copies = creates_once and (small or self.store.local_path("") is not None)

    def _new_shards(self, names: Iterable[str]) -> list[str]:
        """Those names that are shards or indexes, and not of the dataset that is appended to."""
        return [name for name in names if is_shard(name) and name not in self._old_names]

    def finished(self, stage: str, some: receipts.Some | None = None) -> tuple[dict[int, Result], set[int]]:
        """The results of the tasks that had finished when this packer began, and whose shards were there.

        Args:
            stage: The pass.
            some: Which tasks are asked for. None: all.

        Returns:
            (the results by the numbers of their tasks, the tasks whose receipts are objects of their own).
        """
        sizes = {entry.path: entry.size for entry in self._present}
        spilled = spilled_entries(self.store) if stage == "scatter" else {}

        def holds(result: Result) -> bool:
            return holds_spill(result, spilled) and all(
                sizes.get(shard.url) == shard.bytes and sizes.get(shard.index_url) == shard.index_bytes
                for shard in result.shards
            )

        return receipts.read_all(self.store, sizes, stage, self._records, some, holds)

    def forget(self, stage: str, tasks: Collection[int]) -> None:
        """Delete the receipts of tasks that are done again.

        Their shards stay. A worker replaces those that are not right, if it is still this packer's turn.

        Args:
            stage: The pass.
            tasks: The numbers of the tasks.
        """
        there = {entry.path for entry in self._present}
        left = there.intersection(receipts.receipt_name(stage, number) for number in tasks)
        if left:
            self.claim.check(self.store, now=True)
            self.store.delete_many(sorted(left))

    def wrong(self, results: Sequence[Result]) -> set[int]:
        """The tasks whose shards are missing, or not those of their receipts; see `wrong_tasks`."""
        urls = (shard.url for result in results for shard in result.shards)
        self._folders |= folders_of(urls)
        self._present = self._checked = shard_entries(self.store, self._folders)
        return wrong_tasks(self.store, self._present, results)

    def delete_receipts(self, names: Iterable[str]) -> None:
        """Delete those of the objects that are receipts, of any pack."""
        self.store.delete_many([name for name in names if name.startswith(_RECEIPTS)])

    def folds(self, stage: str, part: int | None = None) -> receipts.Folds:
        """Folds the receipts of a pass; see `Folds`."""
        return receipts.Folds(self.store, self.claim, stage, part)

    def put_plan(self, tasks: Sequence[Task], part: tuple[int, int] | None = None) -> None:
        """Write the plan, if it is not in memory. From then on workers can read what their tasks are.

        Args:
            tasks: All tasks of the pack.
            part: The number of the part of the pack that this process does, and how many there are; or None.
        """
        if isinstance(tasks, StoredPlan):
            # What is there of the same size may be of another pack, until the first part has replaced it.
            tasks.put(self.store, self.claim, None if self.first else part)

    def clear_plan(self, names: Collection[str], of_all: bool = False) -> None:
        """Delete the plan.

        Args:
            names: What is in the store.
            of_all: Whether to delete those of other packs, too, since it is this packer's turn.
        """
        # Another process may have written one before this one began.
        if self._planned or FOLDER in names or FOLDER in self._names:
            clear_plan(self.store, None if of_all else self._records, self.claim if of_all else None)

    def clear(self, manifest: Manifest) -> None:
        """Delete what killed workers left: temporary files, and shards that are not in the manifest."""
        listed = {url for shard in manifest.shards for url in (shard.url, shard.index_url)}
        names = self._new_shards(entry.path for entry in self._present)
        left = [name for name in names if name not in listed]
        if left:
            self.claim.check(self.store, now=True)
            self.store.delete_many(left)
        clear_temporary(self.store)

    @property
    def rejects(self) -> str:
        """Where the list of rejects is, for messages."""
        return self.store.where(REJECTS)

    def write_rejects(
        self, rejects: Sequence[tuple[str, str]], more: int = 0, skips: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Write the list of rejects, if there are any; see `write_rejects`."""
        if rejects or more or skips:
            self.claim.check(self.store)
        write_rejects(self.store, rejects, more, skips)

    def commit(self, old: Manifest | None, manifest: Manifest) -> None:
        """Write the manifest. From then on readers see the new shards.

        Raises:
            CommitError: The dataset has changed since the pack began, or it is another packer's turn.
        """
        self.claim.check(self.store, now=True)
        if old is not None:
            version = self.store.version(NAME)[0]
            now = self._manifest().fingerprint
            if now == manifest.fingerprint:
                return
            if now != old.fingerprint:
                raise CommitError(
                    f"{self.store.url}: the dataset was changed while this was appended; append again"
                )
            commit_manifest(self.store, manifest, old.fingerprint, version=version)
            return
        try:
            commit_manifest(self.store, manifest, None)
        except CommitError:
            # There was none when this pack began, and only this packer may write. So it is our own, or one
            # whose turn was over when it wrote it, and whose shards may be gone.
            self.claim.check(self.store, now=True)
            version = self.store.version(NAME)[0]
            found = self._manifest().fingerprint
            if found == manifest.fingerprint:
                return
            log.warning("%s: another packer, whose turn was over, has committed; replaced", self.store.url)
            commit_manifest(self.store, manifest, found, version=version)

    def clean(self) -> None:
        """Delete what only an unfinished pack needs, and the reservation with it."""
        # All receipts are there before `wrong` lists them.
        names = [entry.path for entry in self._checked] if self._checked else self.store.list()
        self.clear_spill(names if self._job.shuffle is None else [_SPILL])
        self.clear_plan(names)
        done = [name for name in names if name.startswith((*_RECEIPTS, MARK, reservation.TEST))]
        self.store.delete_many([*done, reservation.NAME])
        forget(self.store)

    def clear_spill(self, names: Collection[str], of_all: bool = False) -> None:
        """Delete the samples between the passes of a shuffle.

        Args:
            names: What is in the store.
            of_all: Whether to delete those of other packs, too, since it is this packer's turn.
        """
        tags = ("",) if of_all else tuple(map(tag_of, self._records))
        local = self.store.local_path(_SPILL)
        if local is not None:
            clear_local(local, tags)
            return
        every = glob.glob(f"{glob.escape(self._temporary)}*") if of_all else [self.spill_dir]
        for folder in every:
            shutil.rmtree(folder, ignore_errors=True)
        if _SPILL in names:
            mine = [name for name in self.store.list(_SPILL) if name.endswith(tags)]
            if of_all:  # what was listed while it is this packer's turn is not of the next one
                self.claim.check(self.store, now=True)
            self.store.delete_many([f"{_SPILL}/{name}" for name in mine])


def _known(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that is known before the pack, and that does not name the version."""
    return {name: record[name] for name in ("options", "sources", "classes", "tokenizer") if name in record}

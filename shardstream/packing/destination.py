"""The destination of a pack: what is there already, what an unfinished pack has left, and the commit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from shardstream.errors import CommitError, OptionError, StorageError
from shardstream.format.manifest import NAME, Manifest
from shardstream.packing import reservation
from shardstream.packing.build_manifest import check_append, tool
from shardstream.packing.job import Job, input_bytes
from shardstream.packing.result import Result
from shardstream.packing.sources import Task
from shardstream.packing.version_01 import is_continued
from shardstream.storage.manifests import commit_manifest, read_manifest, stored_manifest
from shardstream.storage.store import Options, Store

REJECTS = "rejects.jsonl"
_BEGIN = 64 << 10  # bytes of the list of rejects, in which the first ones are
# A number has six digits or more: `06d` writes the millionth shard with seven.
_OURS = re.compile(r"shard-\d{6,}(-\d+)?\.(tar|tar\.zst|index)\Z")
_RECEIPTS = (".pack-task-", ".pack-spill-", ".pack-shard-", ".pack-part-")
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


def first_rejects(dest: str, storage_options: Options, count: int) -> tuple[list[dict[str, Any]], str]:
    """The first rejects of the last pack that had some, and where all are listed.

    Args:
        dest: The dataset.
        storage_options: Options for its store.
        count: How many, at most.
    """
    store = Store.open(dest, storage_options)
    begin = bytes(store.read_range(REJECTS, 0, min(store.size(REJECTS), _BEGIN)))
    lines = [line for line in begin.splitlines(keepends=True) if line.endswith(b"\n")]
    rows = [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
    return [row for row in rows if not row.get("skipped")][:count], store.where(REJECTS)


def write_rejects(
    store: Store, rejects: Sequence[tuple[str, str]], more: int = 0, skips: Sequence[tuple[str, str]] = ()
) -> None:
    """Write the list of rejects, if there are any.

    Args:
        store: The dataset.
        rejects: Where each is, and why.
        more: How many there are beside them.
        skips: The harmless ones, which come last and are marked.
    """
    left = [("", f"{more:,} more, which are not listed")] if more else []
    rows: list[dict[str, str | bool]] = [{"where": where, "reason": why} for where, why in [*rejects, *left]]
    rows += [{"where": where, "reason": why, "skipped": True} for where, why in skips]
    if rows:
        store.write(REJECTS, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


class Destination:
    """The store that a pack writes to.

    Args:
        job: The pack.
        record: Its provenance.
        append: Whether it adds to a dataset.
        old: The provenance that version 0.1 would have recorded, or None.

    Attributes:
        store: The store.
        plan: The identity of the pack.
    """

    def __init__(
        self, job: Job, record: dict[str, Any], append: bool, old: dict[str, Any] | None = None
    ) -> None:
        self.store = Store.open(job.dest, job.storage_options)
        self._job = job
        self._record = record
        self._append = append
        self.plan = identity(record, append)
        # By the identity: the records that this pack may have, of this version and of 0.1.
        self._records = {identity(each, append): each for each in (record, old) if each is not None}

    @property
    def spill_dir(self) -> str:
        """The local folder for samples between the passes of a shuffle. It is the same for the same plan."""
        local = self.store.local_path(".spill")
        if local is not None:
            return local
        # The same corpus may be packed to two stores at once.
        name = hashlib.sha256(f"{self.plan}\0{self.store.url}".encode()).hexdigest()
        return os.path.join(tempfile.gettempdir(), f"shardstream-spill-{name[:16]}")

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
            CommitError: Another packer has reserved the store.
        """
        present = self.store.list()
        foreign = self.foreign(present, old)
        if foreign and reservation.NAME not in present:
            raise OptionError(
                f"{self.store.url} holds {foreign[0]} but no dataset that it belongs to; "
                "choose an empty target"
            )
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
        continued = reservation.reserve(self.store, mine, resume, locked)
        if not continued:
            for name in present:
                if name.startswith(_RECEIPTS) or name in foreign:
                    self.store.delete(name)
            shutil.rmtree(self.spill_dir, ignore_errors=True)
        return continued

    def foreign(self, present: Sequence[str], old: Manifest | None) -> list[str]:
        """Of the names in the store those of shards that are not in the manifest `old`."""
        listed = {url for shard in (old.shards if old else ()) for url in (shard.url, shard.index_url)}
        return [name for name in present if _OURS.match(name) and name not in listed]

    def receipts(self, stage: str, tasks: Sequence[Task]) -> dict[int, Result]:
        """The results of those of the tasks that have finished, by their numbers; see `receipt`."""
        found: dict[int, Result] = {}
        with ThreadPoolExecutor(self.store.concurrency) as pool:
            results = pool.map(lambda task: self.receipt(stage, task.number), tasks)
            for task, result in zip(tasks, results, strict=True):
                if result is not None and result.input_bytes == input_bytes(task):
                    found[task.number] = result
        return found

    def delete_receipts(self, names: Iterable[str]) -> None:
        """Delete those of the objects that are receipts."""
        for name in names:
            if name.startswith(_RECEIPTS):
                self.store.delete(name)

    def forget(self, stage: str, numbers: Iterable[int]) -> None:
        """Delete the receipts of some tasks."""
        self.delete_receipts(_receipt(stage, number) for number in numbers)

    def receipt(self, stage: str, number: int) -> Result | None:
        """The result of a task that has finished and whose shards are all there; else None."""
        name = _receipt(stage, number)
        if not self.store.exists(name):
            return None
        with contextlib.suppress(msgspec.DecodeError, StorageError):
            result = msgspec.json.decode(self.store.read(name), type=Result)
            if all(self.store.size(shard.url) == shard.bytes for shard in result.shards):
                return result
        return None

    def write_receipt(self, stage: str, result: Result) -> None:
        """Store the result of a task that has finished."""
        self.store.write(_receipt(stage, result.number), msgspec.json.encode(result))

    @property
    def rejects(self) -> str:
        """Where the list of rejects is, for messages."""
        return self.store.where(REJECTS)

    def write_rejects(
        self, rejects: Sequence[tuple[str, str]], more: int = 0, skips: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Write the list of rejects, if there are any; see `write_rejects` of this module."""
        write_rejects(self.store, rejects, more, skips)

    def commit(self, old: Manifest | None, manifest: Manifest) -> None:
        """Write the manifest. From then on readers see the new shards.

        Raises:
            CommitError: The dataset has changed since the pack began.
        """
        if old is not None and self._manifest().fingerprint != old.fingerprint:
            raise CommitError(
                f"{self.store.url}: the dataset was changed while this was appended; append again"
            )
        commit_manifest(self.store, manifest, None if old is None else old.fingerprint)

    def clean(self) -> None:
        """Delete what only an unfinished pack needs. The reservation is deleted last."""
        self.delete_receipts(self.store.list())
        shutil.rmtree(self.spill_dir, ignore_errors=True)
        self.store.delete(reservation.NAME)


def _known(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that is known before the pack, and that does not name the version."""
    return {name: record[name] for name in ("options", "sources", "classes", "tokenizer") if name in record}


def _receipt(stage: str, number: int) -> str:
    return f".pack-{stage}-{number:06d}.json"

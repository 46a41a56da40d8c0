"""The target of a pack: what lies there already, what an unfinished pack left, and the commit."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import msgspec

from shardstream.errors import CommitError, OptionError, StorageError
from shardstream.format.manifest import NAME, Manifest
from shardstream.pack import claim
from shardstream.pack.compose import check_append
from shardstream.pack.job import Job, Result
from shardstream.storage.remote import Store

REJECTS = "rejects.jsonl"
_OURS = re.compile(r"shard-\d{6}(-\d+)?\.(tar|tar\.zst|index)\Z")
_RECEIPTS = (".pack-task-", ".pack-spill-")


class Target:
    """The store that a job packs into. `plan` is the identity of the job and its sources."""

    def __init__(self, job: Job, plan: str) -> None:
        self.store = Store.open(job.dest, job.storage_options)
        self._job = job
        self._plan = plan

    @property
    def spill_dir(self) -> str:
        """Where a shuffle keeps what it has read: a local folder, the same for the same plan."""
        local = self.store.local_path(".spill")
        return local or os.path.join(tempfile.gettempdir(), f"shardstream-spill-{self._plan[:16]}")

    def committed(self, record: Mapping[str, Any]) -> Manifest | None:
        """The manifest, where this pack has committed already: at most cleaning is left."""
        found = claim.read(self.store)
        if (found is not None and found.plan != self._plan) or not self.store.exists(NAME):
            return None
        manifest = self._manifest()
        last = (manifest.provenance.get("appended") or [manifest.provenance])[-1]
        last = {name: value for name, value in last.items() if name != "images"}
        mine = {**last, "rejected": 0} == msgspec.to_builtins({**record, "rejected": 0})
        return manifest if mine and (found is None or manifest.fingerprint != found.base) else None

    def old_manifest(self, append: bool, record: dict[str, Any]) -> Manifest | None:
        """The manifest to append to; None where nothing is there, and nothing should be."""
        if not self.store.exists(NAME):
            if append:
                raise OptionError(
                    f"{self.store.url}: nothing to append to ({NAME} is missing); pack without append"
                )
            return None
        if not append:
            raise CommitError(
                f"{self.store.url} already holds a dataset; add to it with --append, or choose another target"
            )
        old = self._manifest()
        check_append(self._job, old, self.store.url, record)
        return old

    def _manifest(self) -> Manifest:
        return Manifest.from_bytes(self.store.read(NAME), self.store.where(NAME))

    def begin(self, old: Manifest | None, resume: bool, locked: bool) -> bool:
        """Claim the target; True where finished tasks of an earlier try count."""
        present = self.store.list()
        kept = {url for shard in (old.shards if old else ()) for url in (shard.url, shard.index_url)}
        foreign = [name for name in present if _OURS.match(name) and name not in kept]
        unfinished = claim.CLAIM in present
        if foreign and not unfinished:
            raise OptionError(
                f"{self.store.url} holds {foreign[0]} but no dataset that it belongs to; "
                "choose an empty target"
            )
        base = old.fingerprint if old else ""
        continued = claim.take(self.store, self._plan, resume, locked, base)
        if not continued:
            for name in present:
                if name.startswith(_RECEIPTS) or name in foreign:
                    self.store.delete(name)
            shutil.rmtree(self.spill_dir, ignore_errors=True)
        return continued

    def receipt(self, stage: str, number: int) -> Result | None:
        """What a task has made, if it has finished and its shards are there."""
        name = _receipt(stage, number)
        if not self.store.exists(name):
            return None
        with contextlib.suppress(msgspec.DecodeError, StorageError):
            result = msgspec.json.decode(self.store.read(name), type=Result)
            if all(self.store.size(shard.url) == shard.bytes for shard in result.shards):
                return result
        return None

    def write_receipt(self, stage: str, result: Result) -> None:
        """Note that a task has finished."""
        self.store.write(_receipt(stage, result.number), msgspec.json.encode(result))

    def commit(self, old: Manifest | None, manifest: Manifest, rejects: list[tuple[str, str]]) -> None:
        """Write the list of rejects, and then the manifest: from here on readers see the new shards."""
        if rejects:
            lines = (msgspec.json.encode({"where": where, "reason": reason}) for where, reason in rejects)
            self.store.write(REJECTS, b"\n".join(lines) + b"\n")
        if old is None:
            self.store.create(NAME, manifest.to_bytes())
            return
        if self._manifest().fingerprint != old.fingerprint:
            raise CommitError(
                f"{self.store.url}: the dataset was changed while this was appended; append again"
            )
        self.store.write(NAME, manifest.to_bytes())

    def clean(self) -> None:
        """Delete all that only a pack under way needs, the claim last."""
        for name in self.store.list():
            if name.startswith(_RECEIPTS):
                self.store.delete(name)
        shutil.rmtree(self.spill_dir, ignore_errors=True)
        self.store.delete(claim.CLAIM)


def _receipt(stage: str, number: int) -> str:
    return f".pack-{stage}-{number:06d}.json"

"""Where a stream of samples goes: the locks and the claim of its target, and the commit."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping

from shardstream.errors import OptionError, SourceError
from shardstream.format.manifest import Manifest, ShardInfo
from shardstream.format.numbers import whole_number
from shardstream.packing import parts, reservation
from shardstream.packing.build_manifest import assemble, next_number, provenance
from shardstream.packing.destination import Destination, identity
from shardstream.storage.inputs import FileInfo

__all__ = ["StreamTarget", "checked_part"]

_SOURCES = (FileInfo("python", 0, ""),)  # what stands for files in the provenance


class StreamTarget:
    """The target of one stream, from its claim to its commit.

    Args:
        job: The pack.
        options: Options of the stream that the job does not know, for the provenance.
        part: The number of this part and how many there are; None for a whole dataset.
        resume: Whether to continue an unfinished stream.
        append: Whether to add to the dataset that is there.

    Raises:
        OptionError: The unfinished stream, or the other parts, have other options.
        CommitError: The target holds a dataset, or another packer is at work there.
        StorageError: The target cannot be accessed.
    """

    def __init__(
        self,
        job: parts.StreamJob,
        options: Mapping[str, object],
        part: tuple[int, int] | None,
        resume: bool,
        append: bool,
    ) -> None:
        self._job = job
        self._part = part
        self._record = provenance(job, "python", _SOURCES)
        self._record["options"] |= {**options, "parts": 0 if part is None else part[1]}
        self._destination = Destination(job, self._record, append)
        self.store = self._destination.store
        self._owner = os.getpid()
        self._held = contextlib.ExitStack()
        try:
            self._claim(identity(self._record, append), resume, append)
        except BaseException:
            self._held.close()
            raise

    def _claim(self, plan: str, resume: bool, append: bool) -> None:
        if self._part is None:
            lock = self._held.enter_context(reservation.lock_machine(self.store))
            if lock is not None:
                self.store.clear_temporary()  # with the lock, no other packer of this machine is alive
            self.old = self._destination.old_manifest()
            self.resume = self._destination.begin(self.old, resume, lock is not None)
            return
        part = self._part[0]
        self._held.enter_context(parts.lock_part(self.store, part))
        self.old = self._destination.old_manifest()
        parts.claim_part(self.store, plan, self.old, self._part, self._record, self._job.kind)
        parts.forget_part(self.store, next_number(self.old) + part, part, keep_shards=resume)
        self.resume = resume

    def name(self, place: int) -> tuple[int, int]:
        """The number of a shard, and how many of that number come before it, by its place in the stream.

        So no two parts have a name in common, and the names do not depend on the time.
        """
        first = next_number(self.old)
        return (first + place, 0) if self._part is None else (first + self._part[0], place)

    def commit(
        self, shards: list[ShardInfo], dtype: parts.Dtype | None, rejects: list[tuple[str, str]]
    ) -> Manifest | None:
        """Commit the shards; returns the manifest. A part leaves its receipt, and None is returned.

        Raises:
            SourceError: There is no sample.
            CommitError: The dataset has changed since the claim.
        """
        if self._part is not None:
            parts.write_part(self.store, parts.PartReceipt(self._part[0], shards, dtype, rejects))
            return None
        if not shards and self.old is None:
            self._destination.clean()
            raise SourceError(f"{self.store.url}: no samples were given; nothing was packed")
        fields = parts.fields_of(self._job.kind, dtype, tuple(shards), self.old)
        record = {**self._record, "rejected": len(rejects)}
        manifest = assemble(self._job.kind, fields, self.old, tuple(shards), record)
        self._destination.write_rejects(rejects)
        self._destination.commit(self.old, manifest)
        self._destination.clean()
        return manifest

    def release(self) -> None:
        """Give the locks back. In a fork of the process this leaves those of the process alone."""
        self._held.close()

    @property
    def mine(self) -> bool:
        """Whether this is the process that made this, and no fork of it."""
        return os.getpid() == self._owner

    def warn_dropped(self) -> None:
        """Warn of a writer that was dropped without being closed."""
        warnings.warn(
            f"{self.store.url}: a Writer was dropped without being closed; nothing was committed",
            ResourceWarning,
            stacklevel=2,
        )


def checked_part(part: tuple[int, int] | None) -> tuple[int, int] | None:
    """`part` as two ints. Raises OptionError if it is no rank and world size."""
    if part is None:
        return None
    try:
        number, count = part
    except (TypeError, ValueError):
        raise OptionError(f"part={part!r} must be (rank, world), such as (0, 8)") from None
    count = whole_number("the number of parts", count, least=1)
    return whole_number("the part", number, least=0, most=count - 1), count

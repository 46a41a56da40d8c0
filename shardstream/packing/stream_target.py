"""Where a stream of samples goes: the locks and the claim of its target, and the commit."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Mapping

from shardstream.errors import OptionError, SourceError
from shardstream.format.manifest import Manifest, ShardInfo
from shardstream.format.numbers import whole_number
from shardstream.packing import parts, reservation
from shardstream.packing.build_manifest import assemble, next_number, provenance
from shardstream.packing.claim import Claim
from shardstream.packing.columns import check_columns, check_known
from shardstream.packing.destination import Destination, identity
from shardstream.packing.shard_names import clear_temporary
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

    Attributes:
        store: The store.
        old: The manifest that is appended to, or None.
        resume: Whether shards of an unfinished stream may be there.
        claim: By which the stream may write there.
        held: What is released with the locks: threads, a bar.

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
        self.part_number = 0 if part is None else part[0]
        self.held = contextlib.ExitStack()
        try:
            self._claim(identity(self._record, append), resume, append)
        except BaseException:
            self.held.close()
            raise

    def _claim(self, plan: str, resume: bool, append: bool) -> None:
        if self._part is None:
            lock = self.held.enter_context(reservation.lock_machine(self.store))
            if lock is not None:
                clear_temporary(self.store)  # with the lock, no other packer of this machine is alive
            self.old = self._destination.old_manifest()
            self.resume = self._destination.begin(self.old, resume, lock is not None)
            self.claim = self._destination.claim
            return
        part = self._part[0]
        self.held.enter_context(parts.lock_part(self.store, part))
        self.old = self._destination.old_manifest()
        self._destination.look(self.old)
        parts.claim_part(self.store, plan, self.old, self._part, self._record, self._job.kind)
        self.claim = Claim(plan)  # that of all parts
        parts.forget_part(self.store, next_number(self.old) + part, part, keep_shards=resume)
        self.resume = resume

    def spill_folder(self) -> str:
        """A folder of this stream alone on a local disk, which is deleted when the target is released."""
        folder = os.path.join(self._destination.spill_dir, f"part-{self.part_number:06d}")
        self.held.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def name(self, place: int) -> tuple[int, int]:
        """The number of a shard, and how many of that number come before it, by its place in the stream.

        So no two parts have a name in common, and the names do not depend on the time.
        """
        first = next_number(self.old)
        return (first + place, 0) if self._part is None else (first + self._part[0], place)

    def commit(
        self,
        shards: list[ShardInfo],
        dtype: parts.Dtype | None,
        rejects: list[tuple[str, str]],
        rejected: int,
        max_rejects: float,
        unknown: list[str] | None,
    ) -> Manifest | None:
        """Commit the shards; returns the manifest. A part leaves its receipt, and None is returned.

        Args:
            shards: The shards in order.
            dtype: How tokens are stored; None for samples.
            rejects: Where the bad samples are, and why they are bad; the first of very many.
            rejected: How many bad samples there are.
            max_rejects: The share of all samples that may be bad, 0 to 1. A part does not check it.
            unknown: The names in `keep` that no sample has; None if there was none.

        Raises:
            SourceError: There is no sample, or more are bad than may be; or no document has a value that
                `keep` named.
            OptionError: No sample has a name in `keep`.
            CommitError: The dataset has changed since the claim.
        """
        if self._part is not None:
            self.claim.check(self.store, now=True)
            parts.write_part(self.store, parts.PartReceipt(self._part[0], shards, dtype, rejects, unknown))
            return None
        self._destination.write_rejects(rejects, rejected - len(rejects))
        first = "; ".join(f"{where}: {reason}" for where, reason in rejects[:3])
        reasons = f"The first: {first}; all are in {self._destination.rejects}"
        if not shards and self.old is None:
            self._destination.clean()
            what = f"all {rejected:,} samples were rejected" if rejected else "no samples were given"
            raise SourceError(
                f"{self.store.url}: {what}; nothing was packed{f'. {reasons}' if rejected else ''}"
            )
        check_known([unknown])
        given = sum(shard.samples for shard in shards) + rejected
        if rejected > max_rejects * given:
            raise SourceError(
                f"{rejected:,} of {given:,} samples were rejected, more than max_rejects={max_rejects:g} "
                f"allows; nothing was committed. {reasons}. If they may be left out, the same pack with "
                "resume=True and a larger max_rejects commits the others"
            )
        fields = parts.fields_of(self._job.kind, dtype, tuple(shards), self.old)
        record = {**self._record, "rejected": rejected}
        manifest = assemble(self._job.kind, fields, self.old, tuple(shards), record)
        check_columns(manifest, record["options"].get("keep"))
        self._destination.clear(manifest)  # a stream that was killed may have got further than this one
        self._destination.commit(self.old, manifest)
        self._destination.clean()
        return manifest

    def release(self) -> None:
        """Give back the locks and all that is held. In a fork of the process this leaves them alone."""
        self.held.close()

    def drop(self) -> None:
        """Release it, and warn that a writer was dropped without being closed. A fork does nothing."""
        if os.getpid() != self._owner:
            return
        self.release()
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

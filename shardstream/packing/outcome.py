"""What the tasks of a pack found, taken together: may it be committed, and what is recorded of it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from shardstream.errors import CorruptionError, SourceError
from shardstream.packing.columns import check_known
from shardstream.packing.result import Result
from shardstream.packing.tally import total

_SHOWN = 3  # rejects that a message quotes

Rejects = Sequence[tuple[str, str]]


class Outcome:
    """The results of all tasks.

    Args:
        read: Of the tasks that read the input.
        written: Of the tasks that wrote shards. Without a shuffle they are the same tasks.
        unread: What the input has that no task could read: where it is, and why.
        beside: The harmless rejects that were no input of any task.
    """

    def __init__(
        self, read: Sequence[Result], written: Sequence[Result], unread: Rejects, beside: Rejects = ()
    ) -> None:
        self._read, self._written = read, written
        results = list(read) if read is written else [*read, *written]
        self.rejects = [*unread, *(reject for result in results for reject in result.rejects)]
        # Version 0.1 did not count, and a task lists a part of very many.
        self.rejected = len(unread) + sum(max(each.rejected, len(each.rejects)) for each in results)
        self.skips = [*beside, *(skip for result in read for skip in result.skips)]
        self.skipped = Counter(why for _, why in beside)
        for result in read:
            self.skipped.update(result.skipped)
        self.shards = tuple(shard for result in written for shard in result.shards)
        self.samples = sum(shard.samples for shard in self.shards)

    def check_keep(self) -> None:
        """Raise OptionError if `keep` has names that no row has."""
        found = [result.unknown for result in self._read if result.samples or result.unknown is not None]
        if not found or None in found:  # there were no rows; or version 0.1 read some, which did not count
            return
        check_known(each or () for each in found)

    def check_whole(self) -> None:
        """Raise CorruptionError if the shards hold other samples than the sources gave."""
        read = self._read if self._read is self._written else [*self._read, *self._written]
        given = [result.given for result in read]
        stored = [result.stored for result in self._written]
        if None in given or None in stored:  # version 0.1 did some tasks, which did not count
            return
        before, after = total(each for each in given if each), total(each for each in stored if each)
        if before != after:
            raise CorruptionError(
                f"the shards hold {after.count:,} samples with digest {after.digest:016x}, the sources gave "
                f"{before.count:,} with {before.digest:016x}; nothing was committed. Memory or a disk may be "
                "faulty: pack again without --resume, and if it happens again, on another machine"
            )

    def check_rejects(self, most: float, listed_at: str, again: str = "--resume") -> None:
        """Raise SourceError if nothing was packed of what was read, or too little.

        Args:
            most: The share that may be rejected, 0 to 1.
            listed_at: Where the list of rejects is.
            again: The option with which the same command commits the rest.
        """
        if self.rejected and self.rejected > most * (self.samples + self.rejected):
            raise SourceError(
                f"{self.rejected:,} of {self.samples + self.rejected:,} samples were rejected, more than "
                f"max_rejects={most:g} allows; nothing was committed. {self.reasons(listed_at)}. "
                f"If they may be left out, the same pack with {again} and a larger --max-rejects commits the "
                "others"
            )

    def reasons(self, listed_at: str) -> str:
        """The first rejects, and where all are, for a message."""
        first = "; ".join(f"{where}: {reason}" for where, reason in self.rejects[:_SHOWN])
        return f"The first: {first}; all are in {listed_at}"

    def record(self) -> dict[str, Any]:
        """What is known after a pack, for the provenance in the manifest."""
        counts: Counter[str] = Counter()
        for result in self._read:
            counts.update(result.counts)
        record: dict[str, Any] = {"rejected": self.rejected}
        if self.skipped:
            record["skipped"] = dict(sorted(self.skipped.items()))
        sizes = [result.sample_bytes for result in self._written if result.shards]
        if None not in sizes:  # else version 0.1 began the pack
            record["sample_bytes"] = sum(size or 0 for size in sizes)
        if counts:
            texts = {name: counts.pop(name) for name in ("lone_surrogates",) if name in counts}
            record |= {"counts": texts} if texts else {}
            record |= {"images": dict(counts)} if counts else {}
        return record

"""Which runs of a tar make a sample together, in some 50 bytes for each run. See tar_samples.py."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from typing import BinaryIO

import xxhash

from shardstream.format.names import SplitKey
from shardstream.format.tar import Member, scan
from shardstream.packing.tar_samples import Step, walk

__all__ = ["Place", "Survey"]

Place = tuple[int, int]  # the offset and the size of data in the uncompressed tar, in bytes


class Survey:
    """Which runs of an archive make a sample together. It is filled while the archive is read.

    Attributes:
        scattered: Whether a sample has several runs.
        links: The names that hard links refer to.
    """

    def __init__(self) -> None:
        self._starts = array("Q")
        self._before = array("q")  # the last run before with the same key, or -1
        self._more = bytearray()  # whether a later run has the same key
        self._last = _Runs()
        self._at = array("Q"), array("q")  # where hard links begin, and where their data is, or -1
        self._sizes = array("Q")
        self.scattered = False
        self.links: set[str] = set()

    @classmethod
    def of(cls, file: BinaryIO, size: int | None, where: str, split: SplitKey) -> Survey:
        """The survey of an archive whose members are not read yet. See `walk`."""
        survey = cls()
        for step in walk(file, size, where, split):
            survey.see(step)
        return survey

    def see(self, step: Step) -> None:
        """Take in the next member of the archive."""
        if step.member.link:
            self.links.add(step.member.link)
        if step.run == len(self):
            self._add(step.key, step.member.start)

    def __len__(self) -> int:
        return len(self._starts)

    def _add(self, key: str, start: int) -> None:
        run = len(self._starts)
        before = self._last.swap(xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape")), run)
        self._starts.append(start)
        self._before.append(before)
        self._more.append(0)
        if before >= 0:
            self._more[before] = 1
            self.scattered = True

    def find_links(self, file: BinaryIO, size: int | None, where: str) -> None:
        """Find the data of all hard links: that of the last member before with the name that a link has."""
        places: dict[str, Place] = {}
        for member in scan(file, size, where):
            if member.link:
                offset, length = places.get(member.link, (-1, 0))
                for column, value in zip(
                    (*self._at, self._sizes), (member.start, offset, length), strict=True
                ):
                    column.append(value)
                if member.name in self.links and offset >= 0:
                    places[member.name] = (offset, length)
            elif member.name in self.links and not member.problem:
                places[member.name] = (member.offset, member.size)

    def place(self, member: Member) -> Place | None:
        """Where the data of a member is. None for a hard link to nothing that was there before."""
        if not member.link:
            return member.offset, member.size
        at = bisect_right(self._at[0], member.start) - 1
        if at < 0 or self._at[0][at] != member.start or self._at[1][at] < 0:
            return None
        return self._at[1][at], self._sizes[at]

    def linked(self) -> dict[int, int]:
        """From where data begins that hard links share to how many links there are."""
        uses: dict[int, int] = {}
        for offset in self._at[1]:
            if offset >= 0:
                uses[offset] = uses.get(offset, 0) + 1
        return uses

    def start(self, run: int) -> int:
        """Where the first headers of a run begin."""
        return self._starts[run]

    def before(self, run: int) -> int:
        """The last run before that may be of the same sample, or -1."""
        return self._before[run]

    def is_last(self, run: int) -> bool:
        """Whether no later run may be of the same sample."""
        return not self._more[run]

    def together(self, run: int) -> list[int]:
        """All runs up to this one that may be of the same sample."""
        runs = [run]
        while (run := self._before[run]) >= 0:
            runs.append(run)
        return runs[::-1]

    def cuts(self) -> bytearray:
        """For each run whether no sample and no hard link has data both before and behind its beginning."""
        steps = array("q", bytes(8 * (len(self) + 1)))
        for run, (before, more) in enumerate(zip(self._before, self._more, strict=True)):
            if more and before < 0:  # the first of several
                steps[run + 1] += 1
            elif before >= 0 and not more:  # the last
                steps[run + 1] -= 1
        for start, offset in zip(*self._at, strict=True):
            first = self._run_at(offset) if offset >= 0 else -1
            if first >= 0:
                steps[first + 1] += 1
                steps[self._run_at(start) + 1] -= 1
        return bytearray(open_ == 0 for open_ in itertools.accumulate(steps[:-1]))

    def _run_at(self, position: int) -> int:
        return bisect_right(self._starts, position) - 1


class _Runs:
    """From the hash of a key to its last run: a hash table in two arrays. A dict is five times as large."""

    def __init__(self) -> None:
        self._slots = 1 << 10
        self._used = 0
        self._hashes, self._runs = self._empty()

    def _empty(self) -> tuple[array[int], array[int]]:
        return array("Q", bytes(8 * self._slots)), array("q", b"\xff" * (8 * self._slots))

    def swap(self, digest: int, run: int) -> int:
        """Set the last run of a key; returns the one before, or -1."""
        if self._used * 3 > self._slots * 2:
            self._grow()
        slot = self._slot(digest)
        before = self._runs[slot]
        self._hashes[slot], self._runs[slot] = digest, run
        self._used += before < 0
        return before

    def _slot(self, digest: int) -> int:
        mask = self._slots - 1
        slot = digest & mask
        while self._runs[slot] >= 0 and self._hashes[slot] != digest:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        hashes, runs = self._hashes, self._runs
        self._slots *= 2
        self._hashes, self._runs = self._empty()
        for digest, run in zip(hashes, runs, strict=True):
            if run >= 0:
                slot = self._slot(digest)
                self._hashes[slot], self._runs[slot] = digest, run

"""The index of one archive that stays where it is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, cast

import xxhash

from shardstream.errors import SourceError
from shardstream.format.names import SplitKey
from shardstream.format.tar import Member
from shardstream.packing.tar_samples import Piece, Step, settle, shown, walk
from shardstream.packing.tar_survey import Place, Survey

__all__ = ["MAX_REGROUPED", "Counted", "Rows", "Skips", "fill"]

MAX_REGROUPED = 64 << 20  # bytes of a frame that is larger since the members of its samples lie apart
_CHUNK = 1 << 20
_PENDING = 4 << 20  # bytes of the headers of one member, at most
Skips = list[tuple[str, str]]


class Counted:
    """A stream that counts and hashes the bytes that are read.

    Attributes:
        position: How many bytes were read.
        digest: The checksum of these bytes.
        pending: If it is not None, the bytes that are read are also added here.
        spill: Called with the first of them if they become many.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.digest = xxhash.xxh3_128()
        self.pending: bytearray | None = None
        self.spill: Callable[[bytearray], None] = lambda data: None

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        self.digest.update(data)
        if self.pending is not None:
            self.pending += data
            if len(self.pending) > 2 * _PENDING:
                self.spill(self.pending[:-_PENDING])
                del self.pending[:-_PENDING]
        return data

    def drain(self) -> None:
        """Read what is left, so that it counts."""
        self.pending = None
        while self.read(_CHUNK):
            pass


class Frame(NamedTuple):
    """A run of samples: where it lies in the uncompressed tar, its first sample and its checksum."""

    begin: int
    end: int
    first: int
    checksum: int


class Rows:
    """The rows of an index that is being made.

    Args:
        frame_size: Bytes, at which a frame ends.
        cuts: For each run whether a frame may begin there. None: it may at each.
        bounds: Where frames may begin, in bytes of the uncompressed tar, rising. None: anywhere.
    """

    def __init__(self, frame_size: int, cuts: bytearray | None, bounds: Bounds | None = None) -> None:
        self._frame_size, self._cuts, self._bounds = frame_size, cuts, bounds
        self.frames: list[Frame] = []
        self.columns: dict[str, int] = {}
        self.cells: list[tuple[int, int, int, int]] = []
        self.keys: list[bytes] = []
        self.rejects: Skips = []
        self.skips: Skips = []
        self.begin = -1
        self.end = -1  # of the last member
        self.too_large = 0  # bytes of the first frame that is, since samples lie apart
        self._forced = False
        self._first = 0
        self._digest = xxhash.xxh3_64()
        self._ahead: xxhash.xxh3_64 | None = None  # with bytes that only count if another member follows

    def feed(self, data: bytes | bytearray) -> None:
        """Add bytes to the open frame, if there is one."""
        if self.begin >= 0:
            self._digest, self._ahead = self._ahead or self._digest, None
            self._digest.update(data)

    def feed_ahead(self, data: bytes | bytearray) -> None:
        """Add bytes that are a part of the open frame if another member follows in it."""
        if self.begin >= 0:
            self._ahead = self._ahead or self._digest.copy()
            self._ahead.update(data)

    def begin_run(self, run: int, at: int) -> bool:
        """Begin a run at byte `at` of the tar; returns whether it begins a new frame."""
        if self.begin >= 0 and self.end - self.begin >= self._frame_size:
            cut = at if self._bounds is None else self._bounds.between(self.end, at)
            if cut >= 0 and (self._cuts is None or self._cuts[run]):
                self.close(cut if self._bounds else None)
            else:
                self._forced = True
        if self.begin >= 0:
            return False
        self.begin = at if self._bounds is None else self._bounds.before(at)
        self._first = len(self.keys)
        return True

    def add(self, key: str, pieces: list[Piece[Place]]) -> None:
        """Add a sample, all of whose data is in the open frame."""
        row = len(self.keys)
        self.keys.append(key.encode())
        for piece in pieces:
            column = self.columns.setdefault(piece.field, len(self.columns))
            offset, size = piece.payload
            self.cells.append((row, column, offset - self.begin, size))

    def close(self, end: int | None = None) -> None:
        """End the open frame, if there is one. A frame without samples is none."""
        if end is None:
            end = self.end if self._bounds is None else self._bounds.after(self.end)
        if self.begin >= 0 and len(self.keys) > self._first:
            self.frames.append(Frame(self.begin, end, self._first, self._digest.intdigest()))
            if self._forced and end - self.begin > MAX_REGROUPED:
                self.too_large = self.too_large or end - self.begin
        self._digest, self._ahead, self._forced = xxhash.xxh3_64(), None, False
        self.begin = -1


class Bounds:
    """Places in a file, in rising order."""

    def __init__(self, places: list[int]) -> None:
        self._places = places

    def between(self, first: int, last: int) -> int:
        """The last place in [first, last], or -1."""
        found = self.before(last)
        return found if found >= first else -1

    def before(self, at: int) -> int:
        """The last place up to `at`."""
        return self._places[bisect_right(self._places, at) - 1]

    def after(self, at: int) -> int:
        """The first place from `at` on."""
        return self._places[min(bisect_left(self._places, at), len(self._places) - 1)]


def fill(
    raw: Counted, size: int | None, where: str, split: SplitKey, rows: Rows, survey: Survey, known: bool
) -> None:
    """Read an archive, and fill the rows of its index.

    Args:
        raw: The uncompressed tar.
        size, where: See `scan`.
        split: See `split_name`.
        rows: The rows to fill.
        survey: Which members belong together.
        known: Whether `survey` is complete. Otherwise it is filled, and each run is taken for a sample.
    """
    waiting: dict[int, list[tuple[str, list[Piece[Place]]]]] = {}
    run, key, pieces = -1, "", list[Piece[Place]]()

    def end_of_run() -> None:
        if run < 0:
            return
        runs = [*waiting.pop(survey.before(run), []), (key, pieces)] if known else [(key, pieces)]
        if known and not survey.is_last(run):
            waiting[run] = runs
            return
        for found in settle(runs):
            if found.problem:
                rows.rejects.append((f"{where}:{shown(found.key)}", found.problem))
            else:
                rows.add(found.key, found.pieces)

    raw.pending, raw.spill = bytearray(), rows.feed_ahead
    for step in walk(cast(BinaryIO, raw), size, where, split):
        if not known:
            survey.see(step)
        if step.passed_over:
            rows.skips.append((f"{where}:{shown(step.member.name)}", step.passed_over))
        else:
            if step.run != run:
                end_of_run()
                run, key, pieces = step.run, step.key, []
                if rows.begin_run(run, step.member.start):
                    _keep_headers(raw, step.member, where)
            pieces.append(_piece(step, survey, rows))
        _take(raw, step.member, where, rows)
    end_of_run()
    rows.close()
    raw.pending = None


def _keep_headers(raw: Counted, member: Member, where: str) -> None:
    """Drop what lies before the headers of the member that begins a frame."""
    assert raw.pending is not None
    headers = member.offset - member.start
    if headers > len(raw.pending):
        raise SourceError(f"{where}: the headers of {shown(member.name)!r} have {headers} bytes")
    del raw.pending[: len(raw.pending) - headers]


def _piece(step: Step, survey: Survey, rows: Rows) -> Piece[Place]:
    member = step.member
    place, problem = survey.place(member), member.problem
    if not problem and place is None:
        problem = f"a hard link to {shown(member.link)!r}, which is not in the archive before it"
    elif not problem and place is not None and place[0] < rows.begin:
        problem = f"a hard link to {shown(member.link)!r}, which lies before all samples; pack the archive"
    return Piece(step.field, place or (0, 0), member.name, problem)


def _take(raw: Counted, member: Member, where: str, rows: Rows) -> None:
    """Add a member to the open frame, if there is one: the headers in `pending`, and its data."""
    rows.feed(raw.pending or b"")
    raw.pending = None
    left = member.size + -member.size % 512
    while left:
        chunk = raw.read(min(_CHUNK, left))
        if not chunk:
            raise SourceError(f"{where}: the tar ends inside {shown(member.name)!r}; is it cut off?")
        rows.feed(chunk)
        left -= len(chunk)
    rows.end = raw.position
    raw.pending = bytearray()

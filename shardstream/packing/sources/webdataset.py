"""Existing WebDataset archives: tars, plain or compressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as option
from typing import Any, BinaryIO, ClassVar

from shardstream.errors import OptionError, SourceError
from shardstream.format.names import SplitKey
from shardstream.format.tar import Member
from shardstream.packing.sources.base import (
    HUB_FILES,
    FileSpan,
    Reject,
    Sample,
    SourceOptions,
    Streamed,
    Task,
    whole_files,
)
from shardstream.packing.sources.file_keys import based
from shardstream.packing.sources.streams import SUFFIXES, open_stream
from shardstream.packing.tar_samples import Found, Piece, Step, settle, shown, walk
from shardstream.packing.tar_survey import Place, Survey
from shardstream.storage.inputs import FileInfo
from shardstream.storage.store import Options, redact

EXTENSIONS = (*(f".tar{suffix}" for suffix in SUFFIXES), ".tgz")
REGROUP_MEMORY = 256 << 20  # bytes of a compressed archive that wait for the rest of their samples
_CHUNK = 1 << 20
Data = bytes | Place


@dataclass(frozen=True)
class WebdatasetSource(Streamed):
    """WebDataset archives as samples: members with one key are a sample, wherever they lie in the archive.

    Each archive is read twice, the first time for the names of the members alone. In a plain tar the members
    of a sample are then read from where they are. In a compressed one they wait in memory, up to
    `REGROUP_MEMORY`, until the last one is there.

    Args:
        split_key: At which dot of the name of a member its key ends.
        key: "none": samples are numbered. None: their keys are those of the archive.
        storage_options: Options for the stores of the input.
    """

    split_key: SplitKey = "first"
    key: str | None = None
    storage_options: Options = option(default=None, repr=False)
    name: str = "webdataset"
    extensions: ClassVar[tuple[str, ...]] = EXTENSIONS
    # What tools write beside archives: img2dataset, and the indexes of DALI and WebDataset.
    left_out: ClassVar[tuple[str, ...]] = (".parquet", "_stats.json", ".idx", *HUB_FILES)
    keys: ClassVar[str] = "the name of the members without their extension"
    takes: ClassVar[frozenset[str]] = frozenset({"key", "split_key"})

    @classmethod
    def make(cls, options: SourceOptions) -> WebdatasetSource:
        if options.split_key not in ("first", "last"):
            raise OptionError(f"split_key={options.split_key!r} must be 'first' or 'last'")
        if options.key not in (None, "none"):
            raise OptionError(
                f"key={options.key!r}: samples of archives are named by their members, or numbered by 'none'"
            )
        return cls(options.split_key, options.key, options.storage_options)

    def options(self) -> dict[str, Any]:
        split = {} if self.split_key == "first" else {"split_key": self.split_key}
        return split | ({} if self.key is None else {"key": self.key})

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        """Archives are never cut. Small ones share a task."""
        return whole_files(based(files, self.extensions), target)

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """The samples of each archive, in the order of their last members."""
        for span in task.files:
            number = 0
            for item in _Archive(span, self.split_key, self.storage_options).read():
                if isinstance(item, Sample):
                    name = item.key if self.key is None else f"{span.key_base}-{number:012d}"
                    number += 1
                    item = item._replace(key=span.prefix + name)
                yield item

    def peek(self, task: Task) -> Iterator[Sample | Reject]:
        """Members as they come, to see what the data is like without reading the archive twice."""
        for span in task.files:
            with open_stream(span.url, self.storage_options) as file:
                size, where = span.size if file.seekable() else None, redact(span.url)
                for step in walk(file, size, where, self.split_key):
                    if not (step.passed_over or step.member.problem or step.member.link):
                        data = _take(file, step.member.size, step.member, where)
                        yield Sample(step.key, {step.field: data}, where)


class _Archive:
    """The samples of one archive."""

    def __init__(self, span: FileSpan, split: SplitKey, options: Options) -> None:
        self._span, self._split, self._options = span, split, options
        self._where = redact(span.url)
        self._waiting: dict[int, list[tuple[str, list[Piece[Data]]]]] = {}  # by the last run so far
        self._shared: dict[int, bytes] = {}  # of a compressed archive: data that hard links have, too
        self._held = 0  # bytes in both

    def read(self) -> Iterator[Sample | Reject]:
        where, url = self._where, self._span.url
        with open_stream(url, self._options) as file:
            self._seeks = file.seekable()
            self._size = self._span.size if self._seeks else None
            self._survey = Survey.of(file, self._size, where, self._split)
        if self._survey.links:
            with open_stream(url, self._options) as file:
                self._survey.find_links(file, self._size, where)
        self._uses = self._survey.linked()
        with open_stream(url, self._options) as self._file:
            yield from self._samples()

    def _samples(self) -> Iterator[Sample | Reject]:
        run, key, pieces = -1, "", list[Piece[Data]]()
        for step in walk(self._file, self._size, self._where, self._split):
            if step.passed_over:
                self._share(step.member, None)
                name = shown(step.member.name)
                yield Reject(f"{self._where}:{name}", step.passed_over, harmless=True)
                continue
            if step.run != run:
                yield from self._end_of_run(run, key, pieces)
                run, key, pieces = step.run, step.key, []
            pieces.append(self._piece(step, pieces))
        yield from self._end_of_run(run, key, pieces)

    def _piece(self, step: Step, before: Sequence[Piece[Data]]) -> Piece[Data]:
        member, survey = step.member, self._survey
        place, problem = survey.place(member), member.problem
        if place is None and not problem:
            problem = f"a hard link to {shown(member.link)!r}, which is not in the archive before it"
        twice = any(piece.field == step.field for piece in before)
        if problem or twice or place is None:
            self._share(member, None)
            return Piece(step.field, b"", member.name, problem)
        alone = survey.is_last(step.run) and survey.before(step.run) < 0
        if self._seeks:
            data = self._at(place, member) if alone else place
            return Piece(step.field, data, member.name, "")
        if member.link:
            return Piece(step.field, self._linked(place[0]), member.name, "")
        data = _take(self._file, member.size, member, self._where)
        self._share(member, data)
        return Piece(step.field, data, member.name, "")

    def _end_of_run(self, run: int, key: str, pieces: list[Piece[Data]]) -> Iterator[Sample | Reject]:
        if run < 0:
            return
        survey = self._survey
        if self._seeks:
            if not survey.is_last(run):
                return  # it is looked up again when the last one is there
            earlier = [self._earlier(one) for one in survey.together(run)[:-1]]
            runs = [*earlier, (key, pieces)]
        else:
            runs = self._waiting.pop(survey.before(run), [])
            runs.append((key, pieces))
            if not survey.is_last(run):
                self._waiting[run] = runs
                self._hold(sum(map(_bytes, pieces)), key)
                return
            self._held -= sum(_bytes(piece) for _, its in runs[:-1] for piece in its)
        for found in settle(runs):
            yield self._finished(found)

    def _earlier(self, run: int) -> tuple[str, list[Piece[Data]]]:
        pieces: list[Piece[Data]] = []
        key = ""
        for step in walk(self._file, self._size, self._where, self._split, self._survey.start(run)):
            if step.run > 0:
                break
            if not step.passed_over:
                key = step.key
                pieces.append(self._piece(step._replace(run=run), pieces))
        return key, pieces

    def _finished(self, found: Found[Data]) -> Sample | Reject:
        where = f"{self._where}:{shown(found.key)}"
        if found.problem:
            return Reject(where, found.problem)
        fields = {
            piece.field: piece.payload if isinstance(piece.payload, bytes) else self._at(piece.payload, piece)
            for piece in found.pieces
        }
        return Sample(found.key, fields, where)

    def _at(self, place: Place, member: Member | Piece[Data]) -> bytes:
        self._file.seek(place[0])
        return _take(self._file, place[1], member, self._where)

    def _share(self, member: Member, data: bytes | None) -> None:
        """Keep the data of a member of a compressed archive if hard links will want it."""
        if self._seeks or member.offset not in self._uses or member.link or member.problem:
            return
        if data is None:
            data = _take(self._file, member.size, member, self._where)
        self._shared[member.offset] = data
        self._hold(len(data), member.name)

    def _linked(self, offset: int) -> bytes:
        data = self._shared[offset]
        self._uses[offset] -= 1
        if not self._uses[offset]:
            del self._shared[offset]
            self._held -= len(data)
        return data

    def _hold(self, size: int, name: str) -> None:
        self._held += size
        if self._held > REGROUP_MEMORY:
            raise SourceError(
                f"{self._where}: the members of its samples lie too far apart: at {shown(name)!r} more than "
                f"{REGROUP_MEMORY >> 20} MiB wait for the rest of their samples. Decompress the archive and "
                "pack the plain tar, in which members are read from where they are"
            )


def _bytes(piece: Piece[Data]) -> int:
    return len(piece.payload) if isinstance(piece.payload, bytes) else 0


def _take(file: BinaryIO, size: int, member: Member | Piece[Data], where: str) -> bytes:
    # In pieces: memory for a size in a header must not be allocated before the bytes are there.
    parts, left = [], size
    while left and (part := file.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    if left:
        raise SourceError(f"{where}: cut off inside {shown(member.name)!r}")
    return parts[0] if len(parts) == 1 else b"".join(parts)

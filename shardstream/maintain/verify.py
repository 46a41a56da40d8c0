"""verify(): whether a dataset is as it was packed. Every problem is named; none is raised."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
import xxhash
import zstandard

from shardstream import progress as bars
from shardstream.errors import CorruptionError, ShardstreamError, SourceError, StorageError
from shardstream.format import frames
from shardstream.format.index import ShardIndex
from shardstream.format.manifest import NAME, Manifest, ShardInfo, is_inside
from shardstream.format.names import split_name
from shardstream.format.tar import scan
from shardstream.progress import Reporter, with_bar
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Options

_CHUNK = 8 << 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        shard, frame, sample: the name of the shard, the number of the frame and the key of the sample, as far
            as they are known.
        message: for a person.
    """

    shard: str | None
    frame: int | None
    sample: str | None
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass
class Report:
    """The outcome of verify().

    Args:
        problems: all that is wrong.
        shards, samples: how many there are.
        frames_checked: frames that were decompressed.
        bytes_checked: bytes of shards that were read.
    """

    problems: list[Problem] = field(default_factory=list)
    shards: int = 0
    samples: int = 0
    frames_checked: int = 0
    bytes_checked: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@with_bar("verifying")
def verify(
    url: str,
    deep: bool = False,
    storage_options: Options = None,
    progress: bars.Report = None,
) -> Report:
    """Check a dataset: the manifest, each index, and the size and checksum of each shard.

    Args:
        url: the dataset.
        deep: decompress every frame too, and compare every tar member with the index.
        storage_options: for fsspec.
        progress: True shows a bar on stderr; a function is called with a Progress after each shard.

    Returns:
        A report that names every problem. No problem is raised.

    Raises:
        StorageError: the dataset cannot be reached at all.
    """
    try:
        reader = DatasetReader.open(url, storage_options)
        reader.manifest.check(f"{reader.url.rstrip('/')}/{NAME}")  # with its fingerprint
    except CorruptionError as error:
        return Report([Problem(None, None, None, str(error))])
    return check(reader, deep, progress)


def check(reader: DatasetReader, deep: bool, progress: bars.Report = None) -> Report:
    """Check a dataset that is open. See `verify`."""
    report, tell = Report(), Reporter(progress)
    manifest = reader.manifest
    for number, info in enumerate(manifest.shards):
        _check_shard(reader, number, info, deep, report)
        report.shards += 1
        report.samples += info.samples
        tell(
            done_bytes=report.bytes_checked,
            total_bytes=manifest.bytes,
            samples=report.samples,
            total_samples=manifest.samples,
            done_tasks=report.shards,
            total_tasks=len(manifest.shards),
        )
    return report


def _check_shard(reader: DatasetReader, number: int, info: ShardInfo, deep: bool, report: Report) -> None:
    name = reader.shard_name(number)

    def problem(message: str, frame: int | None = None, sample: str | None = None) -> None:
        report.problems.append(Problem(name, frame, sample, message))

    index: ShardIndex | None = None
    try:
        index = reader.read_columns(number)[0] if info.columns else reader.index(number)
    except ShardstreamError as error:
        problem(str(error))
    try:
        size = reader.shard_size(number)
        if size != info.bytes:
            problem(f"{name}: {size} bytes, the manifest says {info.bytes}")
    except StorageError as error:
        problem(str(error))
        return
    try:
        if _digest(reader, number, min(size, info.bytes), report) != info.checksum and size == info.bytes:
            problem(f"{name}: the file's checksum is wrong")
    except StorageError as error:
        problem(str(error))
    if index is None:
        return
    try:
        _check_tokens(reader.manifest, info, index)
    except CorruptionError as error:
        problem(f"{name}: {error}")
    if deep:
        for frame in range(index.frames):
            try:
                _check_frame(reader, number, index, frame)
            except _SampleError as error:
                problem(f"{name}, frame {frame}: {error}", frame, error.sample)
            except ShardstreamError as error:
                problem(str(error), frame, index.key(int(index.frame_first[frame])))
            report.frames_checked += 1
        try:
            _check_whole(reader, number, info, name)
        except ShardstreamError as error:
            problem(str(error))


def _digest(reader: DatasetReader, number: int, size: int, report: Report) -> str:
    digest = xxhash.xxh3_128()
    for start in range(0, size, _CHUNK):
        chunk = reader.stored(number, start, min(_CHUNK, size - start))
        digest.update(chunk)
        report.bytes_checked += len(chunk)
    return digest.hexdigest()


def _check_tokens(manifest: Manifest, info: ShardInfo, index: ShardIndex) -> None:
    if manifest.kind != "tokens":
        return
    width = 2 if manifest.fields[0].dtype == "uint16" else 4
    sizes = np.asarray(index.field_size)
    if (sizes % width).any() or int(sizes.clip(0).sum()) // width != info.tokens:
        raise CorruptionError("the index's token counts are not the manifest's")


class _SampleError(CorruptionError):
    def __init__(self, sample: str, message: str) -> None:
        super().__init__(message)
        self.sample = sample


def _check_frame(reader: DatasetReader, number: int, index: ShardIndex, frame: int) -> None:
    """Compare the members of a frame with the index's rows for it."""
    raw = reader.frame(number, frame)
    begin, end = int(index.frame_first[frame]), int(index.frame_first[frame + 1])
    names = [info.name for info in reader.manifest.fields]
    split = reader.manifest.provenance.get("split_key", "first")
    # A frame ends at a member's end; two zero blocks make it a tar that the scanner accepts.
    archive = io.BytesIO(bytes(raw) + bytes(1024))
    try:
        members: dict[tuple[str, str], tuple[int, int]] = {}
        places: dict[str, tuple[int, int]] = {}
        for member in scan(archive, len(raw), "frame"):
            key, field = split_name(member.name, split)
            places[member.name] = places.get(member.link, (-1, -1)) if member.link else member[2:4]
            if not member.problem:
                members.setdefault((key, field.lower()), places[member.name])
    except SourceError as error:
        raise CorruptionError(f"{reader.shard_name(number)}, frame {frame}: {error}") from error
    if reader.manifest.kind == "tokens":
        _check_documents(index, begin, end, members)
        return
    for sample in range(begin, end):
        key = index.key(sample)
        for column, name in enumerate(names):
            size = int(index.field_size[sample, column])
            found = members.pop((key, name), None)
            expected = None if size < 0 else (int(index.field_offset[sample, column]), size)
            if found != expected:
                raise _SampleError(
                    key,
                    f"sample {key!r}, field {name!r}: the index says {expected}, the tar {found}",
                )
    if members and not reader.manifest.external:
        raise CorruptionError(f"frame {frame}: members that the index does not list: {sorted(members)[:3]}")


def _check_documents(
    index: ShardIndex, begin: int, end: int, members: dict[tuple[str, str], tuple[int, int]]
) -> None:
    spans = list(members.values())
    at = spans[0][0] if len(spans) == 1 else -1
    for sample in range(begin, end):
        if int(index.field_offset[sample, 0]) != at:
            raise _SampleError(
                index.key(sample), f"document {index.key(sample)!r} is not where the last ended"
            )
        at += int(index.field_size[sample, 0])
    if at != spans[0][0] + spans[0][1]:
        raise _SampleError(index.key(end - 1), "the documents do not fill their member")


def _check_whole(reader: DatasetReader, number: int, info: ShardInfo, name: str) -> None:
    """The end of a packed zstd shard: the trailer frame and the seek table."""
    if info.codec != "zstd" or not is_inside(info.url):  # an adopted archive may end otherwise
        return
    index = reader.index(number)
    end = int(index.frame_offset[-1] + index.frame_size[-1]) if index.frames else 0
    tail = reader.stored(number, end, info.bytes - end)
    try:
        size = zstandard.frame_header_size(tail)
        trailer = zstandard.ZstdDecompressor().decompressobj()
        content = trailer.decompress(tail)
        rest = trailer.unused_data
    except zstandard.ZstdError as error:
        raise CorruptionError(frames.damaged(name, "last frame", error)) from error
    if not size or content != bytes(1024):
        raise CorruptionError(f"{name}: it does not end in the two zero blocks of a tar")
    stored = len(tail) - len(rest)
    rows = []
    for offset, length, raw in zip(
        index.frame_offset.tolist(),
        index.frame_size.tolist(),
        index.frame_raw_size.tolist(),
        strict=True,
    ):
        rows.append((length, raw, bytes(reader.stored(number, offset + length - 4, 4))))
    rows.append((stored, 1024, bytes(tail[stored - 4 : stored])))
    if rest != frames.seek_table(rows):
        raise CorruptionError(frames.damaged(name, "seek table"))

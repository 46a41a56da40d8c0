"""index(): make a dataset of existing WebDataset tars, in place.

Only a manifest and indexes are written. Each archive is read once, in full, because every frame gets a
checksum.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import xxhash

from shardstream.cores import cores
from shardstream.errors import CommitError, OptionError, SourceError, StorageError
from shardstream.format.manifest import NAME, Manifest, ShardInfo
from shardstream.format.names import SplitKey
from shardstream.format.rows import FrameRow, index_bytes, is_sparse
from shardstream.format.seekable import StoredFrame
from shardstream.format.sizes import parse_size
from shardstream.packing import reservation
from shardstream.packing.adopt_archive import MAX_REGROUPED, Bounds, Counted, Rows, Skips, fill
from shardstream.packing.adopt_seekable import seekable_frames, stored_frames
from shardstream.packing.build_manifest import field_infos, tool, warn_of_many_fields
from shardstream.packing.engines.processes import run_tasks
from shardstream.packing.rejects import write_rejects
from shardstream.packing.shard_names import check_folder, clear_temporary, shard_stem
from shardstream.packing.sources import without_companions
from shardstream.packing.sources.streams import compression, decompress, open_stream, peek
from shardstream.packing.tar_survey import Survey
from shardstream.progress import Report, Reporter, with_bar
from shardstream.storage.inputs import expand, open_input
from shardstream.storage.manifests import commit_manifest
from shardstream.storage.store import Options, Store, absolute, is_private, redact
from shardstream.storage.transport.failures import is_unreachable


@dataclass(frozen=True)
class _Job:
    dest: str
    frame_size: int
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    split_key: SplitKey = "first"
    on_error: Literal["raise", "skip"] = "raise"


@dataclass(frozen=True)
class _Archive:
    number: int
    url: str
    size: int


@dataclass(frozen=True)
class _Adopted:
    """What became of an archive. It has no shard if it could not be read."""

    number: int
    shard: ShardInfo | None = None
    rejects: Skips = field(default_factory=list)
    skips: Skips = field(default_factory=list)


@with_bar("indexing")
def index(
    tars: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dest: str | os.PathLike[str],
    *,
    frame_size: str | int = "1MiB",
    split_key: SplitKey = "first",
    on_error: Literal["raise", "skip"] = "raise",
    max_rejects: float = 0.5,
    workers: int | None = None,
    storage_options: Options = None,
    progress: Report = None,
) -> Manifest:
    """Adopt existing tars as a dataset at `dest`. The tars stay where they are.

    A compressed tar can only be decompressed from its beginning. If a sample in it is read, the whole tar is
    decompressed, and stays in memory for a while. A .tar.zst with a seek table, as shardstream and t2sz write
    it, is different: only the frames of the sample are decompressed.

    The members of a sample may lie apart, within 64 MiB. If they lie farther apart, `pack` can bring them
    together.

    Args:
        tars: The path or URL of a WebDataset archive, plain, .gz or .zst; or a list of them. Globs and {0..9}
            are expanded.
        dest: Where the manifest and the indexes are written: a path, or a URL that fsspec knows.
        frame_size: Bytes of samples in a frame. A frame is the unit of reading and of checksums.
        split_key: At which dot of the last part of a name the key ends and the field begins, "first", as in
            WebDataset, or "last". With "last" the dots in a key become "%2E".
        on_error: "raise" ends at the first bad sample. "skip" leaves out bad samples, and archives that
            cannot be read, and lists them in rejects.jsonl beside the manifest.
        max_rejects: The share of samples that may be rejected, 0 to 1. If more are, nothing is committed.
        workers: How many processes work. None: one for each core.
        storage_options: Options for the stores of `tars` and of `dest`, as fsspec takes them.
        progress: True shows a bar on stderr. A function is called with a Progress at the start
            and after each archive.

    Returns:
        The manifest of the dataset.

    Raises:
        OptionError: An option is wrong, or a URL contains credentials.
        SourceError: An archive cannot be adopted. It has symbolic links or devices, samples that occur twice
            or lie too far apart, or it was cut off.
        StorageError: There is no access.
        CommitError: `dest` holds a dataset already, or another packer is at work there.
    """
    names = [tars] if isinstance(tars, (str, os.PathLike)) else list(tars)
    markers: list[tuple[str, str]] = []
    files = expand([os.fspath(name) for name in names], storage_options, markers=markers)
    for file in files:
        if redact(file.url) == file.url:
            continue
        if "://" not in file.url:
            raise SourceError(f"{redact(file.url)}: a manifest holds only names in UTF-8; rename the file")
        raise OptionError(
            f"{redact(file.url)}: a URL with credentials or a signature would be written into the "
            "manifest; pass them by storage_options"
        )
    if split_key not in ("first", "last") or on_error not in ("raise", "skip"):
        raise OptionError(f"split_key={split_key!r}, on_error={on_error!r}: first or last, raise or skip")
    files, beside = without_companions("webdataset", files)
    beside = markers + beside
    store = Store.open(os.fspath(dest), storage_options)
    size = parse_size(frame_size, "frame_size")
    job = _Job(os.fspath(dest), size, storage_options, split_key, on_error)
    tasks = [_Archive(number, file.url, file.size) for number, file in enumerate(files)]
    if is_private(job.dest) or any(is_private(file.url) for file in files):
        workers = 1
    with reservation.lock_machine(store) as lock:
        if store.exists(NAME):
            raise CommitError(f"{store.url} already holds a dataset; choose another target")
        mine = reservation.Reservation("index", tool=tool())
        reservation.reserve(store, mine, resume=False, locked=lock is not None)
        try:
            inherited = () if lock is None else (lock,)
            adopted = _adopt_all(job, tasks, workers or cores(), inherited, Reporter(progress))
            manifest = _manifest(job, adopted, beside, max_rejects)
            if lock is not None:
                clear_temporary(store)  # of workers that were killed
            commit_manifest(store, manifest, None)
        except BaseException:
            with contextlib.suppress(StorageError):  # an unfinished index cannot be continued
                store.delete(reservation.NAME)
            raise
        store.delete(reservation.NAME)
    return manifest


def _adopt_all(
    job: _Job, tasks: Sequence[_Archive], workers: int, inherited: Sequence[int], report: Reporter
) -> list[_Adopted]:
    """Write the indexes of all archives; returns what became of them, in their order."""
    total = {"total_bytes": sum(task.size for task in tasks), "total_tasks": len(tasks)}
    done: dict[int, _Adopted] = {}
    done_bytes = samples = 0
    report(**total)
    for adopted in run_tasks(_adopt, job, tasks, workers, inherited):
        done[adopted.number] = adopted
        done_bytes += tasks[adopted.number].size
        samples += adopted.shard.samples if adopted.shard else 0
        report(
            done_bytes=done_bytes,
            samples=samples,
            done_tasks=len(done),
            **total,
        )
    return [done[number] for number in sorted(done)]


def _manifest(job: _Job, adopted: list[_Adopted], beside: Skips, max_rejects: float) -> Manifest:
    shards = [each.shard for each in adopted if each.shard]
    rejects = [reject for each in adopted for reject in each.rejects]
    skips = [*beside, *(skip for each in adopted for skip in each.skips)]
    if not any(shard.samples for shard in shards):
        why = "no member is named KEY.EXTENSION"
        if rejects:
            why = f"{len(rejects):,} were rejected; the first: {rejects[0][0]}: {rejects[0][1]}"
        raise SourceError(f"the archives hold no samples: {why}")
    samples = sum(shard.samples for shard in shards)
    if len(rejects) > max_rejects * (samples + len(rejects)):
        raise SourceError(
            f"{len(rejects):,} of {samples + len(rejects):,} samples were rejected, more than "
            f"max_rejects={max_rejects:g} allows; the first: {rejects[0][0]}: {rejects[0][1]}. Nothing was "
            "committed; a larger --max-rejects leaves them out"
        )
    write_rejects(Store.open(job.dest, job.storage_options), rejects, 0, skips)
    provenance: dict[str, Any] = {"tool": tool(), "adopted": len(shards)}
    if job.split_key != "first":
        provenance["split_key"] = job.split_key
    if rejects:
        provenance["rejected"] = len(rejects)
    if skips:
        provenance["skipped"] = dict(sorted(Counter(why for _, why in skips).items()))
    manifest = Manifest.build("samples", field_infos(shards), tuple(shards), provenance, external=True)
    warn_of_many_fields(manifest)
    return manifest


def _adopt(job: _Job, task: _Archive) -> _Adopted:
    """Write the index of one archive."""
    try:
        return _adopted(job, task)
    except (SourceError, StorageError) as error:
        if job.on_error == "raise" or is_unreachable(error):
            raise
        return _Adopted(task.number, rejects=[(redact(task.url), str(error))])


def _adopted(job: _Job, task: _Archive) -> _Adopted:
    where, survey = redact(task.url), Survey()
    known = seekable_frames(task.url, task.size, job.storage_options)
    found = _read(job, task, survey, None, known)
    if survey.scattered or survey.links:
        if survey.links:
            with open_stream(task.url, job.storage_options) as file:
                survey.find_links(file, task.size if file.seekable() else None, where)
        found = _read(job, task, survey, survey.cuts(), known)
    rows = found.rows
    if known is not None and rows.too_large:  # it is read as a stream, as a whole
        found = _read(job, task, survey, survey.cuts(), None)
        rows = found.rows
    if rows.too_large:
        raise SourceError(
            f"{where}: the members of its samples lie apart, so that a frame would have "
            f"{rows.too_large >> 20} MiB, more than {MAX_REGROUPED >> 20}; `shardstream pack` it, which "
            "brings them together"
        )
    if job.on_error == "raise" and rows.rejects:
        place, reason = rows.rejects[0]
        raise SourceError(f"{place}: {reason}. To leave such samples out: --on-error skip")
    frames, grouped = found.frames(where, task.url, job.storage_options)
    data = index_bytes(frames, rows.cells, rows.keys, len(rows.columns))
    store = Store.open(job.dest, job.storage_options)
    name = f"{shard_stem(task.number)}.index"
    check_folder(store, name)
    store.write(name, data)
    info = ShardInfo(
        url=absolute(task.url),
        codec=found.codec,
        fields=tuple(rows.columns),
        bytes=found.stored.position,
        raw_bytes=found.raw.position,
        samples=len(rows.keys),
        tokens=0,
        frames=len(frames),
        checksum=found.stored.digest.hexdigest(),
        index_url=name,
        index_bytes=len(data),
        index_checksum=xxhash.xxh3_128_hexdigest(data),
        grouped=grouped,
        sparse=is_sparse(len(rows.keys), len(rows.columns), len(rows.cells)),
    )
    return _Adopted(task.number, info, rows.rejects, rows.skips)


class _Read(NamedTuple):
    """An archive that was read."""

    codec: Literal["none", "gzip", "zstd", "zstd-stream"]
    stored: Counted
    raw: Counted
    rows: Rows
    known: Sequence[StoredFrame] | None

    def frames(self, where: str, url: str, options: Options) -> tuple[list[FrameRow], bool]:
        """The frames of its index, and whether one of them is several frames of zstd."""
        found: list[FrameRow] = []
        if self.known is not None:
            return stored_frames(self.rows.frames, self.known, where, url, options)
        for begin, end, first, checksum in self.rows.frames:
            place = (begin, end - begin) if self.codec == "none" else (0, self.stored.position)
            found.append((*place, begin, end - begin, first, checksum))
        return found, False


def _read(
    job: _Job, task: _Archive, survey: Survey, cuts: bytearray | None, known: Sequence[StoredFrame] | None
) -> _Read:
    where = redact(task.url)
    with open_input(task.url, job.storage_options) as file:
        head = compression(peek(file))
        if head not in (None, "gzip", "zstd"):
            raise SourceError(f"{where}: archives that are compressed with {head} cannot be adopted; pack it")
        stored = Counted(file)
        raw = stored if head is None else Counted(decompress(cast(BinaryIO, stored), head, task.url))
        bounds = None if known is None else Bounds([frame.raw_begin for frame in known] + [known[-1].raw_end])
        rows = Rows(job.frame_size, cuts, bounds)
        fill(raw, task.size if head is None else None, where, job.split_key, rows, survey, cuts is not None)
        raw.drain()
        stored.drain()
    codec: Literal["none", "gzip", "zstd", "zstd-stream"]
    codec = (
        "none" if head is None else "gzip" if head == "gzip" else "zstd-stream" if known is None else "zstd"
    )
    return _Read(codec, stored, raw, rows, known)

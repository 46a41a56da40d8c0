"""pack(): plan the tasks, run them, commit the manifest last."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from shardstream.errors import OptionError, SourceError
from shardstream.format import frames
from shardstream.format.manifest import Manifest
from shardstream.format.sizes import parse_size
from shardstream.pack import claim
from shardstream.pack.compose import compose, next_number, provenance
from shardstream.pack.job import Bucket, Job, Result, input_bytes
from shardstream.pack.progress import Progress
from shardstream.pack.runner import Runner
from shardstream.pack.shrink import Shrink
from shardstream.pack.sources import Reject, Source, Task, make_source, recognise
from shardstream.pack.target import Target
from shardstream.pack.writer import Layout
from shardstream.storage.files import expand
from shardstream.storage.remote import Options, is_private

_PACKED_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "png", "webp", "gif", "avif", "heic", "jxl", "mp3", "m4a", "aac", "ogg", "opus"}
    | {"flac", "mp4", "mkv", "webm", "mov", "gz", "bz2", "xz", "zst", "zip", "npz", "parquet"}
)
_PEEK = 16


@dataclass(frozen=True)
class Plan:
    """What a pack would do: the answer of a dry run."""

    format: str
    files: int
    tasks: int
    input_bytes: int
    compression: str


def pack(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dest: str | os.PathLike[str],
    *,
    format: str | None = None,
    text_key: str = "text",
    keep: Sequence[str] | None = None,
    compression: str | None = None,
    level: int = 3,
    frame_size: str | int = "1MiB",
    shard_size: str | int = "64MiB",
    workers: int | None = None,
    shuffle: int | None = None,
    tokenizer: str | None = None,
    eos: int | None = None,
    limit: int | None = None,
    on_error: str = "raise",
    resume: bool = False,
    append: bool = False,
    dry_run: bool = False,
    resize: int | None = None,
    quality: int | None = None,
    storage_options: Options = None,
    progress: Callable[[Progress], None] | None = None,
) -> Any:
    """Pack sources into a dataset at `dest` (a path or any fsspec URL); returns its Manifest.

    The output is the same for any number of `workers`. Until the manifest is written, last, readers
    see what was there before. With `dry_run` nothing is written and a Plan is returned.

    resize: images whose shorter side is longer are made that small and encoded again, JPEG and WebP with
        `quality` (90); all are turned upright.

    Raises OptionError, SourceError (bad data, with file and line), StorageError (a full disk, no
    access), CommitError (the target is taken), CorruptionError (the dataset to append to, or the claim
    on it, is damaged) and MissingExtraError (a tokenizer or resize without its package).
    """
    names = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    files = expand([os.fspath(name) for name in names], storage_options)
    layout = Layout(
        level=level,
        frame_size=parse_size(frame_size, "frame_size"),
        shard_size=parse_size(shard_size, "shard_size"),
    )
    _check_options(layout, workers, limit, on_error, shuffle, tokenizer, eos)
    kind = format or recognise(files)
    if quality is not None and resize is None:
        raise OptionError("quality needs resize: images that are not resized stay the bytes they are")
    shrink = None if resize is None else Shrink(resize, 90 if quality is None else quality)
    source = make_source(kind, text_key=text_key, keep=keep, shrink=shrink, storage_options=storage_options)
    tasks = source.plan(files, layout.shard_size)
    layout = replace(layout, codec=_codec(compression, tokenizer, source, tasks))
    frames.compressor(layout.codec, level)  # refuses bad values before anything is written
    if dry_run:
        return Plan(kind, len(files), len(tasks), sum(map(input_bytes, tasks)), layout.codec)

    job = Job(
        source=source,
        dest=os.fspath(dest),
        layout=layout,
        tokenizer=tokenizer,
        eos=eos,
        limit=limit,
        on_error=on_error,
        shuffle=shuffle,
        storage_options=storage_options,
    )
    record = provenance(job, kind, files)
    plan = hashlib.sha256(msgspec.json.encode([record, append], order="deterministic")).hexdigest()
    if any(is_private(url) for url in (job.dest, *(file.url for file in files))):
        workers = 1
    target = Target(job, plan)
    runner = Runner(target, sum(map(input_bytes, tasks)), workers or os.cpu_count() or 1, progress)
    with claim.hold(target.store) as lock:
        if lock is not None:
            target.store.clear_temporary()  # the lock proves their writers dead
        if resume and (manifest := target.committed(record)):
            target.clean()
            return manifest
        return _pack(job, tasks, target, runner, record, resume, append, lock)


def _pack(
    job: Job, tasks: list[Task], target: Target, runner: Runner,
    record: dict[str, Any], resume: bool, append: bool, lock: int | None,
) -> Manifest:  # fmt: skip
    old = target.old_manifest(append, record)
    continued = target.begin(old, resume, lock is not None)
    job = replace(job, first_shard=next_number(old))
    keep = () if lock is None else (lock,)
    rejects: list[tuple[str, str]] = []
    if job.shuffle is None:
        read = results = runner.results(job, "task", tasks, continued, keep)
    else:
        buckets = max(1, -(-sum(map(input_bytes, tasks)) // job.layout.shard_size))
        job = replace(job, spill_dir=target.spill_dir, buckets=buckets)
        read = runner.results(job, "spill", tasks, continued, keep)
        rejects = [reject for result in read for reject in result.rejects]
        gathered = [Bucket(number, len(read)) for number in range(buckets)]
        results = runner.results(job, "task", gathered, continued, keep)
    rejects += [reject for result in results for reject in result.rejects]
    shards = tuple(shard for result in results for shard in result.shards)
    if not shards and old is None:
        target.clean()
        raise SourceError("no samples were found in the sources; nothing was packed")
    manifest = compose(job, old, shards, {**record, "rejected": len(rejects), **_counted(read)})
    target.commit(old, manifest, rejects)
    target.clean()
    return manifest


def _counted(results: Sequence[Result]) -> dict[str, Any]:
    """What the samples counted, for the manifest's provenance."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.counts)
    return {"images": dict(total)} if total else {}


def _check_options(
    layout: Layout, workers: int | None, limit: int | None, on_error: str, shuffle: int | None,
    tokenizer: str | None, eos: int | None,
) -> None:  # fmt: skip
    if layout.frame_size > 1 << 30:
        raise OptionError(f"frame_size={layout.frame_size} must be at most 1 GiB")
    if layout.frame_size > layout.shard_size:
        raise OptionError(f"frame_size={layout.frame_size} must be at most shard_size={layout.shard_size}")
    if workers is not None and workers < 1:
        raise OptionError(f"workers={workers} must be at least 1")
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit} must be at least 1")
    if on_error not in ("raise", "skip"):
        raise OptionError(f"on_error={on_error!r} must be 'raise' or 'skip'")
    if shuffle is not None and not 0 <= shuffle < 1 << 63:
        raise OptionError(f"shuffle={shuffle} must be a seed from 0 to 2**63 - 1")
    if eos is not None and tokenizer is None:
        raise OptionError(f"eos={eos} needs a tokenizer: it ends documents of tokens")
    if tokenizer is not None:
        from shardstream.pack.tokenize import load_tokenizer

        load_tokenizer(tokenizer).dtype(eos)


def _codec(compression: str | None, tokenizer: str | None, source: Source, tasks: Sequence[Task]) -> str:
    """The codec asked for, else "none" where the first samples are compressed already."""
    if compression is not None:
        return compression
    if tokenizer is not None or not tasks:
        return "zstd"
    packed = other = 0
    reading = source.read(tasks[0])
    for _, sample in zip(range(_PEEK), reading, strict=False):
        if isinstance(sample, Reject):
            continue
        for name, data in sample.fields.items():
            if name.rpartition(".")[2].lower() in _PACKED_EXTENSIONS:
                packed += len(data)
            else:
                other += len(data)
    return "none" if packed > other else "zstd"

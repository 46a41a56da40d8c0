"""pack(): plan the tasks, run them, commit the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from shardstream.errors import CommitError, OptionError, SourceError, StorageError
from shardstream.format import frames
from shardstream.format.manifest import NAME, Manifest
from shardstream.format.sizes import parse_size
from shardstream.pack import claim
from shardstream.pack.compose import check_append, compose, next_number, provenance
from shardstream.pack.engines.local import run_tasks
from shardstream.pack.job import Bucket, Job, Result, input_bytes, run
from shardstream.pack.progress import Progress
from shardstream.pack.shrink import Shrink
from shardstream.pack.sources import Reject, Source, Task, make_source, recognise
from shardstream.pack.writer import Layout
from shardstream.storage.files import expand
from shardstream.storage.remote import Options, Store, is_private

REJECTS = "rejects.jsonl"
_OURS = re.compile(r"shard-\d{6}(-\d+)?\.(tar|tar\.zst|index)\Z")
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
    access) and CommitError (the target is taken).
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
    packer = _Packer(job, tasks, workers or os.cpu_count() or 1, plan, progress)
    with claim.hold(packer.store) as lock:
        return packer.run(record, resume, append, lock)


class _Packer:
    """One pack under way: the state that its steps share."""

    def __init__(
        self, job: Job, tasks: list[Task], workers: int, plan: str,
        progress: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        self.store = Store.open(job.dest, job.storage_options)
        self._job = job
        self._tasks = tasks
        self._workers = workers
        self._plan = plan
        self._report = progress
        self._started = time.monotonic()
        self._total_bytes = sum(map(input_bytes, tasks))

    def run(self, record: dict[str, Any], resume: bool, append: bool, lock: int | None) -> Manifest:
        if lock is not None:
            self.store.clear_temporary()  # the lock proves their writers dead
        if resume and (manifest := self._committed(record)):
            self._clean()
            return manifest
        old = self._old_manifest(append, record)
        continued = self._begin(old, resume, lock is not None)
        job = replace(self._job, first_shard=next_number(old))
        keep = () if lock is None else (lock,)
        rejects: list[tuple[str, str]] = []
        read: list[Result] = []
        if job.shuffle is not None:
            job = replace(
                job,
                spill_dir=self._spill_dir(),
                buckets=max(1, -(-self._total_bytes // job.layout.shard_size)),
            )
            spills = self._results(job, "spill", self._tasks, continued, keep)
            rejects = [reject for result in spills for reject in result.rejects]
            read = spills
            buckets = [Bucket(number, len(spills)) for number in range(job.buckets)]
            results = self._results(job, "task", buckets, continued, keep)
        else:
            read = results = self._results(job, "task", self._tasks, continued, keep)
        rejects += [reject for result in results for reject in result.rejects]
        shards = tuple(shard for result in results for shard in result.shards)
        if not shards and old is None:
            self._clean()
            raise SourceError("no samples were found in the sources; nothing was packed")
        found = {**record, "rejected": len(rejects), **_counted(read)}
        manifest = compose(job, old, shards, found)
        self._commit(old, manifest, rejects)
        self._clean()
        return manifest

    def _committed(self, record: Mapping[str, Any]) -> Manifest | None:
        """The manifest, where this pack has committed already: at most cleaning is left."""
        found = claim.read(self.store)
        if (found is not None and found.plan != self._plan) or not self.store.exists(NAME):
            return None
        manifest = Manifest.from_bytes(self.store.read(NAME), self.store.where(NAME))
        last = (manifest.provenance.get("appended") or [manifest.provenance])[-1]
        last = {name: value for name, value in last.items() if name != "images"}
        mine = {**last, "rejected": 0} == msgspec.to_builtins({**record, "rejected": 0})
        return manifest if mine and (found is None or manifest.fingerprint != found.base) else None

    def _old_manifest(self, append: bool, record: dict[str, Any]) -> Manifest | None:
        if not self.store.exists(NAME):
            if append:
                raise OptionError(f"{self.store.url}: nothing to append to ({NAME} is missing)")
            return None
        if not append:
            raise CommitError(
                f"{self.store.url} already holds a dataset; add to it with --append, or choose another target"
            )
        old = Manifest.from_bytes(self.store.read(NAME), self.store.where(NAME))
        check_append(self._job, old, self.store.url, record)
        return old

    def _begin(self, old: Manifest | None, resume: bool, locked: bool) -> bool:
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
                if name.startswith((".pack-task-", ".pack-spill-")) or name in foreign:
                    self.store.delete(name)
            shutil.rmtree(self._spill_dir(), ignore_errors=True)
        return continued

    def _spill_dir(self) -> str:
        local = self.store.local_path(".spill")
        return local or os.path.join(tempfile.gettempdir(), f"shardstream-spill-{self._plan[:16]}")

    def _results(
        self,
        job: Job,
        stage: str,
        tasks: Sequence[Task | Bucket],
        continued: bool,
        keep: Sequence[int],
    ) -> list[Result]:
        """The results of all tasks in the order of their numbers; each leaves a receipt."""
        done: dict[int, Result] = {}
        if continued:
            for task in tasks:
                result = self._receipt(stage, task.number)
                if result is not None:
                    done[task.number] = result
        todo = [task for task in tasks if task.number not in done]
        self._progress(stage, done, tasks)
        if job.limit is not None and stage == ("task" if job.shuffle is None else "spill"):
            runs = _limited(job, tasks, done)
        else:
            runs = run_tasks(run, job, todo, self._workers, keep)
        for result in runs:
            self.store.write(f".pack-{stage}-{result.number:06d}.json", msgspec.json.encode(result))
            done[result.number] = result
            self._progress(stage, done, tasks)
        return [done[number] for number in sorted(done)]

    def _receipt(self, stage: str, number: int) -> Result | None:
        name = f".pack-{stage}-{number:06d}.json"
        if not self.store.exists(name):
            return None
        with contextlib.suppress(msgspec.DecodeError, StorageError):
            result = msgspec.json.decode(self.store.read(name), type=Result)
            if all(self.store.size(shard.url) == shard.bytes for shard in result.shards):
                return result
        return None

    def _progress(self, stage: str, done: Mapping[int, Result], tasks: Sequence[object]) -> None:
        if self._report is None:
            return
        bytes_done = sum(result.input_bytes for result in done.values())
        if self._job.shuffle is not None:  # each pass is half of the work
            bytes_done = (
                bytes_done // 2
                if stage == "spill"
                else (self._total_bytes + self._total_bytes * len(done) // max(1, len(tasks))) // 2
            )
        self._report(
            Progress(
                done_bytes=bytes_done,
                total_bytes=self._total_bytes,
                samples=sum(result.samples for result in done.values()),
                rejected=sum(len(result.rejects) for result in done.values()),
                done_tasks=len(done),
                total_tasks=len(tasks),
                seconds=time.monotonic() - self._started,
            )
        )

    def _commit(self, old: Manifest | None, manifest: Manifest, rejects: list[tuple[str, str]]) -> None:
        if rejects:
            lines = (msgspec.json.encode({"where": where, "reason": reason}) for where, reason in rejects)
            self.store.write(REJECTS, b"\n".join(lines) + b"\n")
        if old is None:
            self.store.create(NAME, manifest.to_bytes())
            return
        current = Manifest.from_bytes(self.store.read(NAME), self.store.where(NAME))
        if current.fingerprint != old.fingerprint:
            raise CommitError(f"{self.store.url}: the dataset was changed while this was appended")
        self.store.write(NAME, manifest.to_bytes())

    def _clean(self) -> None:
        for name in self.store.list():
            if name.startswith((".pack-task-", ".pack-spill-")):
                self.store.delete(name)
        shutil.rmtree(self._spill_dir(), ignore_errors=True)
        self.store.delete(claim.CLAIM)


def _counted(results: Sequence[Result]) -> dict[str, Any]:
    """What the samples counted, for the manifest's provenance."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.counts)
    return {"images": dict(total)} if total else {}


def _limited(job: Job, tasks: Sequence[Any], done: Mapping[int, Result]) -> Iterable[Result]:
    # The first N samples in the order of the input: each task must know what those before it gave.
    left = job.limit or 0
    for task in tasks:
        result = done.get(task.number)
        if result is None:
            if left <= 0:
                return
            result = run(replace(job, limit=left), task)
            yield result
        left -= result.samples


def _check_options(
    layout: Layout, workers: int | None, limit: int | None, on_error: str, shuffle: int | None,
    tokenizer: str | None, eos: int | None,
) -> None:  # fmt: skip
    if layout.frame_size > 1 << 30:
        raise OptionError(f"frame_size={layout.frame_size}: at most 1 GiB")
    if layout.frame_size > layout.shard_size:
        raise OptionError(f"frame_size={layout.frame_size} is more than shard_size={layout.shard_size}")
    if workers is not None and workers < 1:
        raise OptionError(f"workers={workers}: at least 1")
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit}: at least 1")
    if on_error not in ("raise", "skip"):
        raise OptionError(f"on_error={on_error!r}; choose 'raise' or 'skip'")
    if shuffle is not None and not 0 <= shuffle < 1 << 63:
        raise OptionError(f"shuffle={shuffle}: a seed from 0 to 2**63 - 1")
    if eos is not None and tokenizer is None:
        raise OptionError("eos needs a tokenizer")
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

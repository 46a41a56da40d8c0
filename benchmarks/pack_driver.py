"""What does a pack cost in the process that runs it, for each task: CPU, and requests to the target?

    python -m benchmarks.pack_driver [--tasks 1000 ...] [--out DIR]

The tasks are synthetic: no data is read, and their results, of one shard each, come at once. All else is the
code of a pack: running totals, folding of receipts, the check of the shards, the manifest, the commit and the
cleaning; then the same pack, killed at its commit, is continued. The target is a dict in memory, which counts
requests as S3 would bill them: a list shows 1,000 objects, a request deletes 1,000. What workers do is not
counted. Each cell is a new process.

Bars: 10 requests per 1,000 tasks, and 1 ms of CPU a task, for any number of tasks. Takes 5 minutes.
JSON and Markdown in DIR.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shardstream.errors import CommitError, StorageError
from shardstream.format.manifest import ShardInfo
from shardstream.packing.destination import Destination
from shardstream.packing.engines.engine import Counts
from shardstream.packing.job import Job
from shardstream.packing.layout import Layout
from shardstream.packing.passes import run_passes
from shardstream.packing.planned import StoredPlan, planned
from shardstream.packing.receipts import receipt_name
from shardstream.packing.result import Result
from shardstream.packing.runner import Runner
from shardstream.packing.sources import FileSpan, SourceOptions, Task, make_source
from shardstream.packing.tally import Tally
from shardstream.storage.store import Entry, Store
from shardstream.storage.transport.session import ReadSession

SIZES = [1000, 10_000, 100_000, 1_000_000]
REQUESTS, CPU_MS = 10.0, 1.0  # the bars: requests per 1,000 tasks, milliseconds of CPU a task
PAGE = 1000
Cell = dict[str, Any]


class Counted(Store):
    """A store in memory, which counts requests as S3 would bill them."""

    def __init__(self, objects: dict[str, tuple[int, bytes | None]]) -> None:
        self.url, self.session = "memory://pack-driver", ReadSession()
        self.objects = objects  # sizes, and contents if somebody reads them
        self.seen: Counter[str] = Counter()

    def read(self, path: str, most: int | None = None) -> bytes:
        self.seen["get"] += 1
        self._found(path)
        return self.objects[path][1] or b""

    def size(self, path: str) -> int:
        self.seen["head"] += 1
        return self._found(path)

    def exists(self, path: str) -> bool:
        self.seen["head"] += 1
        return path in self.objects

    def list(self, folder: str = "") -> list[str]:
        found = self._below(folder)
        self.seen["list"] += max(1, math.ceil(len(found) / PAGE))
        return sorted(found)

    def entries(self, folder: str = "") -> Sequence[Entry]:
        found = self._below(folder)
        self.seen["list"] += max(1, math.ceil(len(found) / PAGE))
        return sorted(Entry(name, size, "v") for name, size in found.items() if size >= 0)

    def _below(self, folder: str) -> dict[str, int]:
        """The sizes of the objects directly below a folder; -1 stands for a folder."""
        found: dict[str, int] = {}
        start = f"{folder}/" if folder else ""
        for name, (size, _) in self.objects.items():
            if name.startswith(start):
                first, slash, _ = name[len(start) :].partition("/")
                found[first] = -1 if slash else size
        return found

    def write(self, path: str, *parts: Any) -> None:
        self.seen["put"] += 1
        data = b"".join(parts)
        self.objects[path] = (len(data), data)

    def create(self, path: str, *parts: Any) -> str:
        if path in self.objects:
            self.seen["put"] += 1
            raise CommitError(f"{path} exists already")
        self.write(path, *parts)
        return "v"

    def replace(self, path: str, data: bytes, version: str) -> str:
        self.write(path, data)
        return "v"

    def delete(self, path: str) -> None:
        self.seen["delete"] += 1
        self.objects.pop(path, None)

    def delete_many(self, paths: Sequence[str]) -> None:
        self.seen["delete"] += math.ceil(len(paths) / PAGE)
        for path in paths:
            self.objects.pop(path, None)

    def _found(self, path: str) -> int:
        if path not in self.objects:
            raise StorageError(f"{path}: missing") from FileNotFoundError(path)
        return self.objects[path][0]


class Idle:
    """Stands for workers, of which this runner needs none."""

    counts = Counts()

    def run(self, *_: Any) -> Iterator[Any]:
        raise NotImplementedError


class Synthetic(Runner):
    """A runner whose tasks end at once. `workers_cpu`: seconds that stand for what workers would do."""

    workers_cpu = 0.0
    store: Counted

    def _run(self, job: Job, stage: str, tasks: Any, done: Any, *_: Any) -> Iterable[Result]:
        return self._ended((task for task in tasks if task.number not in done), job)

    def _ended(self, tasks: Iterable[Task], job: Job) -> Iterator[Result]:
        for task in tasks:
            started = time.process_time()
            result = result_of(task, job)
            name = receipt_name("task", task.number)
            data = msgspec.json.encode(result)
            self.store.objects[name] = (len(data), data)
            for shard in result.shards:
                self.store.objects[shard.url] = (shard.bytes, None)
                self.store.objects[shard.index_url] = (shard.index_bytes, None)
            answer = msgspec.msgpack.encode(result)
            self.workers_cpu += time.process_time() - started
            yield msgspec.msgpack.decode(answer, type=Result)  # the driver takes it from a pipe


def result_of(task: Task, job: Job) -> Result:
    """What a worker would tell of a task of 64 MiB."""
    stem, checksum = f"shard-{task.number:06d}", f"{task.number:032x}"
    shard = ShardInfo(
        url=f"{stem}.tar.zst", codec="zstd", fields=("txt", "json"), bytes=20 << 20, raw_bytes=70 << 20,
        samples=10_000, tokens=0, frames=70, checksum=checksum, index_url=f"{stem}.index",
        index_bytes=300_000, index_checksum=checksum,
    )  # fmt: skip
    given = Tally(10_000, task.number)
    plan = "" if job.claim is None else job.claim.plan
    versions = {shard.url: "v", shard.index_url: "v"}
    return Result(
        task.number, [shard], 10_000, 64 << 20, unknown=[], sample_bytes=64 << 20, given=given,
        stored=Tally(10_000, task.number), plan=plan, versions=versions,
    )  # fmt: skip


def pack(tasks: Sequence[Task], store: Counted, resume: bool, killed: bool) -> Cell:
    """One pack of synthetic tasks, and what it cost."""
    source = make_source("jsonl", SourceOptions())
    job = Job(source=source, dest="memory://pack-driver", layout=Layout.of_sizes(None, None, 3))
    record: dict[str, Any] = {"options": {}, "sources": {"files": 1}}
    destination = Destination(job, record, append=False, planned=isinstance(tasks, StoredPlan))
    destination.store = store
    if killed:
        destination.commit = _killed  # type: ignore[method-assign]
    runner = Synthetic(destination, len(tasks) * (64 << 20), Idle(), lambda _: None)
    runner.store = store
    store.seen.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        run_passes(job, tasks, [], [], destination, runner, record, resume, None, 0.5, False)
    except KeyboardInterrupt:
        assert killed
    spent = time.process_time() - cpu - runner.workers_cpu
    count = len(tasks)
    return {
        "requests": dict(store.seen),
        "requests per 1,000 tasks": round(sum(store.seen.values()) * 1000 / count, 2),
        "CPU ms a task": round(spent * 1e3 / count, 4),
        "wall s": round(time.perf_counter() - wall, 2),
    }


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def measured(count: int) -> Cell:
    """A pack of so many tasks; and one that is killed at its commit, and continued."""
    warnings.simplefilter("ignore")
    span = FileSpan("corpus.jsonl", 0, 64 << 20, 64 << 20, "corpus")
    tasks = planned(Task(number, (span,)) for number in range(count))
    whole = pack(tasks, Counted({}), resume=False, killed=False)
    objects: dict[str, tuple[int, bytes | None]] = {}
    pack(tasks, Counted(objects), resume=False, killed=True)
    resumed = pack(tasks, Counted(objects), resume=True, killed=False)
    left = [name for name in objects if name.startswith(".")]
    assert not left, left
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tasks": count, "pack": whole, "resume": resumed, "RSS MB": round(rss)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="*", default=SIZES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pack_driver"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        cells = [pool.apply(measured, (count,)) for count in options.tasks]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "load": load, "cells": cells}
    (options.out / "pack_driver.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n".join(lines(cells, f"{machine}, load {load:.1f} at the start"))
    (options.out / "pack_driver.md").write_text(text + "\n")
    print(text)


def lines(cells: Sequence[Cell], machine: str) -> Iterator[str]:
    """The report."""
    yield f"# The process that runs a pack\n\n{machine}; `python -m benchmarks.pack_driver`\n"
    yield "| tasks | | requests per 1,000 tasks | CPU ms a task | wall s | RSS MB | bars |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for cell in cells:
        for what in ("pack", "resume"):
            one = cell[what]
            requests, cpu = one["requests per 1,000 tasks"], one["CPU ms a task"]
            small = "" if cell["tasks"] >= PAGE else ", too few tasks for the bar"
            held = "held" if requests <= REQUESTS and cpu <= CPU_MS else f"missed{small}"
            yield (
                f"| {cell['tasks']:,} | {what} | {requests} | {cpu} | {one['wall s']} | "
                f"{cell['RSS MB']:,} | {held} |"
            )


if __name__ == "__main__":
    main()

"""What does the plan of a pack of very many small files cost: time, memory, and objects in the target?

    python -m benchmarks.pack_plan [--real 10000 100000] [--listed 10000 100000 1000000] [--out DIR]

real: a local folder of so many images, of a few bytes each, 1,000 in a folder; it is walked.
listed: as many images of 100 KB, as a store lists them: all of `pack` but the requests of the listing.

Each cell is a new process, which packs with dry_run, and then writes the plan to a local folder. The memory
is the peak of the process, and what it had before. Takes minutes. JSON and Markdown in DIR.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shardstream as ss
from shardstream.packing import packer
from shardstream.packing.claim import Claim
from shardstream.packing.planned import StoredPlan
from shardstream.packing.planning import plan_tasks
from shardstream.storage.inputs import FileInfo
from shardstream.storage.spool import gathered
from shardstream.storage.store import Store

REAL, LISTED = [10_000, 100_000], [10_000, 100_000, 1_000_000]
Cell = dict[str, Any]


def real(folder: Path, count: int) -> None:
    """Make a folder of so many images."""
    for number in range(count):
        place = folder / f"{number // 1000:06d}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"{number:09d}.jpg").write_bytes(b"\xff\xd8\xff" + str(number).encode())


def listed(count: int) -> Iterator[FileInfo]:
    """As many images as a store would list, in its order."""
    root = "/bucket/images"  # not there: the first bytes of the first file, which are compared, are none
    for number in range(count):
        yield FileInfo(f"{root}/{number // 1000:06d}/{number:09d}.jpg", 100_000, root)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(kind: str, count: int) -> Cell:
    """One plan."""
    plans: list[Any] = []

    def kept(*arguments: Any) -> Any:
        plans.append(plan_tasks(*arguments))
        return plans[-1]

    packer.plan_tasks = kept  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        url, options = "/bucket/images", {"shard_size": "64MiB"}
        if kind == "real":
            url, options = f"{folder}/in", {"shard_size": "64KiB", "frame_size": "64KiB"}
            real(Path(url), count)
        else:
            packer.input_files = lambda *_: gathered(listed(count), tuple, FileInfo._make)  # type: ignore[attr-defined]
        begin, cpu, wall = peak(), time.process_time(), time.perf_counter()
        # The codec is given: else the first samples are read.
        plan = ss.pack(url, f"{folder}/out", dry_run=True, compression="none", **options)  # type: ignore[call-overload]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        cell = {
            "kind": kind,
            "files": count,
            "tasks": plan.tasks,
            "CPU us a file": round(cpu / count * 1e6, 1),
            "wall s": round(wall, 1),
            "MB before": round(begin),
            "MB peak": round(peak()),
        }
        [found] = plans
        store = Store.open(f"{folder}/out")
        started = time.perf_counter()
        if isinstance(found, StoredPlan):
            Claim.check = lambda *_, **__: None  # type: ignore[method-assign, assignment] - nobody else is there
            found.put(store, Claim("benchmark"))
        sizes = [entry.size for entry in store.entries(".pack-plan")]
        written = {"objects": len(sizes), "plan MB": round(sum(sizes) / 1e6, 2)}
        return {**cell, **written, "written s": round(time.perf_counter() - started, 2)}


def lines(cells: list[Cell], machine: str) -> Iterator[str]:
    """The report."""
    yield f"# The plan of a pack of small files\n\n{machine}; `python -m benchmarks.pack_plan`\n"
    names = [*cells[0]]
    yield f"| {' | '.join(names)} |"
    yield "| --- " * len(names) + "|"
    for cell in cells:
        values = [f"{value:,}" if isinstance(value, int) else str(value) for value in cell.values()]
        yield f"| {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--real", type=int, nargs="*", default=REAL)
    parser.add_argument("--listed", type=int, nargs="*", default=LISTED)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pack_plan"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    wanted = [("real", count) for count in options.real] + [("listed", count) for count in options.listed]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        cells = [pool.apply(measured, each) for each in wanted]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "load": load, "cells": cells}
    (options.out / "pack_plan.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n".join(lines(cells, f"{machine}, load {load:.1f} at the start"))
    (options.out / "pack_plan.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

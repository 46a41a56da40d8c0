"""What does Ray cost a pack on one machine, beside the processes of the local engine?

    python -m benchmarks.pack_engines [--rounds 3] [--tasks 2] [--seconds 30] [--out DIR]

The Python that runs it has Ray. One JSONL file is packed with two workers to this disk, in turn (A B A B):
by the local engine, and by Ray that starts on this machine. The file holds the Python sources of this
interpreter, and zstd has level 19, so that a task takes `--seconds` or more: what takes less goes to Ray in
batches. The size of a task is found before, from a piece.

Two times are told: that of the tasks, from when the workers are there, and that of the whole pack, in which
Ray also starts and ends. Ratios are taken within each round: local / Ray, so that 1 is as fast. All files of
both are compared by SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zstandard

import shardstream as ss

WORKERS, LEVEL = 2, 19
BAR = 0.95
PIECE = 8 << 20


def make_corpus(path: Path, tasks: int, seconds: float) -> int:
    """Write Python sources as JSON Lines; returns the bytes of a task that takes so many seconds."""
    roots = dict.fromkeys(Path(root) for root in (sys.prefix, sys.base_prefix))
    files = [file for root in roots for file in sorted(root.rglob("*.py"))]
    task = size = number = 0
    with path.open("wb") as out:
        while not task or size < task * tasks - PIECE // 8:  # else there is a rest, which is a task, too
            text = files[number % len(files)].read_bytes().decode("utf-8", "replace")
            size += out.write(json.dumps({"id": f"{number:09d}", "text": text}).encode() + b"\n")
            number += 1
            if not task and size >= PIECE:
                out.flush()
                started, data = time.process_time(), path.read_bytes()
                for begin in range(0, size, 1 << 20):  # a frame
                    zstandard.ZstdCompressor(LEVEL).compress(data[begin : begin + (1 << 20)])
                # A tenth more, and whole MiB.
                task = int(seconds * 1.1 * size / (time.process_time() - started)) >> 20 << 20
    return task


def packed(source: Path, dest: Path, engine: Any, task: int) -> dict[str, Any]:
    """The seconds of a pack and of its tasks, and a digest of all its files."""
    last: list[Any] = []
    started = time.perf_counter()
    ss.pack(
        source, dest, format="jsonl", shard_size=task, level=LEVEL, workers=WORKERS, engine=engine,
        progress=last.append,
    )  # fmt: skip
    whole = time.perf_counter() - started
    found = hashlib.sha256()
    for path in sorted(dest.rglob("*")):
        if path.is_file():
            found.update(
                f"{path.relative_to(dest)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
            )
    shutil.rmtree(dest)
    os.sync()  # what one pack leaves to be written must not slow down the next one
    return {
        "whole": whole, "tasks": last[-1].seconds, "number": last[-1].total_tasks, "sha256": found.hexdigest()
    }  # fmt: skip


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="pack-engines-") as name:
        source, dest = Path(name, "corpus.jsonl"), Path(name, "packed")
        task = make_corpus(source, options.tasks, options.seconds)
        for _ in range(options.rounds):
            rounds.append({kind: packed(source, dest, kind, task) for kind in ("local", "ray")})
            print(json.dumps(rounds[-1]), flush=True)
            loads.append(os.getloadavg()[0])
    report = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": [round(load, 1) for load in loads],
        "task_bytes": task,
        "rounds": rounds,
    }
    text = told(report)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "pack_engines.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.out / "pack_engines.md").write_text(text)


def told(report: dict[str, Any]) -> str:
    """The report for people."""
    rounds = report["rounds"]
    about = (
        f"{report['machine']}; load before the rounds and after each: {report['load']}. "
        f"{rounds[0]['local']['number']} tasks of {report['task_bytes'] >> 20} MiB, {WORKERS} workers, "
        f"zstd level {LEVEL}; {len(rounds)} rounds, medians (least to most)."
    )
    lines = [
        "# Packing: Ray beside the local engine",
        "",
        about,
        "",
        "| | local | Ray | local / Ray |",
        "| --- | --- | --- | --- |",
    ]
    for what, name in (("tasks", "the tasks"), ("whole", "the whole pack, with the start and end of Ray")):
        columns = [[each[kind][what] for each in rounds] for kind in ("local", "ray")]
        ratios = [local / ray for local, ray in zip(*columns, strict=True)]
        cells = [f"{statistics.median(row):.1f} s ({min(row):.1f} to {max(row):.1f})" for row in columns]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
        if what == "tasks":
            bar = "met" if statistics.median(ratios) >= BAR else "MISSED"
    same = len({each[kind]["sha256"] for each in rounds for kind in each}) == 1
    equal = "yes" if same else "NO"
    lines += ["", f"Bar: the tasks on Ray at {BAR} of local or more: {bar}. All files equal: {equal}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Which engine feeds a training loop that holds the GIL?

    python -m benchmarks.busy_python DATASET [--tokens SEQ_LEN] [--runs 5] [--out DIR]

Each step takes a batch of 8 and then computes for some milliseconds in Python alone (the GIL is held, as by
a tokenizer or a metric written in Python), or in a matrix product of one thread (it is not). The same steps
without a loader, and with each engine, in turn. A row says how much longer a step takes than without data:
the median of the ratios within each round, with the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import shardstream as ss

BATCH = 8
MILLISECONDS = (2, 10)


def python(count: int) -> int:
    """Work that holds the GIL."""
    total = 0
    for number in range(count):
        total += number * number
    return total


def matrix(count: int) -> None:
    """Work that does not; one product takes some tenths of a millisecond."""
    square = torch.ones(256, 256)
    for _ in range(count):
        square = square @ square * 1e-3


def calibrated(work: Callable[[int], Any], milliseconds: float) -> int:
    """How much of a work takes so long."""
    count = 1
    while True:
        started = time.perf_counter()
        work(count)
        taken = time.perf_counter() - started
        if taken > 0.05:
            return max(1, int(count * milliseconds / 1e3 / taken))
        count *= 2


def step_time(batches: Iterator[Any] | None, work: Callable[[int], Any], count: int, steps: int) -> float:
    """Seconds of a step."""
    started = time.perf_counter()
    for _ in range(steps):
        if batches is not None:
            next(batches)
        work(count)
    return (time.perf_counter() - started) / steps


def forever(loader: ss.StreamingLoader) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def measure(url: str, seq_len: int | None, runs: int) -> list[dict[str, Any]]:
    """A row for each work and engine."""
    torch.set_num_threads(1)
    shuffle = ss.Shuffle(seed=0)
    rows = []
    for name, work in (("Python", python), ("matrix product", matrix)):
        for milliseconds in MILLISECONDS:
            count, steps = calibrated(work, milliseconds), max(50, 1000 // milliseconds)
            feeds: dict[str, Iterator[Any] | None] = {"none": None}
            for engine in ("thread", "process"):
                ds: Any = ss.StreamingDataset(url, shuffle=shuffle)
                if seq_len is not None:
                    ds = ss.TokenDataset(url, seq_len, shuffle=shuffle)
                feeds[engine] = forever(ss.StreamingLoader(ds, BATCH, engine=engine))
            seconds: dict[str, list[float]] = {feed: [] for feed in feeds}
            for number in range(runs + 1):
                for feed, batches in feeds.items():
                    taken = step_time(batches, work, count, steps)
                    if number:
                        seconds[feed].append(taken)
            for engine in ("thread", "process"):
                ratios = sorted(a / b for a, b in zip(seconds[engine], seconds["none"], strict=True))
                rows.append(
                    {"work": name, "milliseconds": milliseconds, "engine": engine, "ratios": ratios}
                    | {"seconds": seconds[engine], "without": seconds["none"]}
                )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| a step computes in | for | engine | step time to that without data |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        ratios = row["ratios"]
        figure = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(f"| {row['work']} | {row['milliseconds']} ms | {row['engine']} | {figure} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, help="read it as a TokenDataset of this seq_len")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = measure(options.dataset, options.tokens, options.runs)
    print(table(rows))
    if options.out:
        facts = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "seq_len": options.tokens,
            "rows": rows,
        }
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "busy_python.json").write_text(json.dumps(facts, indent=1) + "\n")
        (options.out / "busy_python.md").write_text(table(rows))


if __name__ == "__main__":
    main()

"""Which engine feeds a training loop that holds the GIL?

    python -m benchmarks.busy_python DATASET [--tokens SEQ_LEN] [--runs 5] [--out DIR]

Each step takes a batch of 8 and then computes for some milliseconds in Python alone (the GIL is held, as by
a tokenizer or a metric written in Python), or in a matrix product of one thread (it is not). The same steps
without a loader, and with each engine, in turn. A row says how much longer a step takes than without data:
the median of the ratios within each round, with the smallest and largest. Within a round they go in a random
order, and "the same again" is the loop without a loader a second time. The bar: with the better engine at
most 1.05 times as long.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import shardstream as ss
from benchmarks.steps import calibrated, forever, matrix, opened, options_of, python, write

BATCH = 8
MILLISECONDS = (2, 10)
ENGINES = ("thread", "process")
AGAIN = "the same again"
BAR = 1.05
WHAT = "ratios: a step with the engine to one without data, by round; seconds and without: those of a step"


def step_time(batches: Iterator[Any] | None, work: Callable[[int], Any], count: int, steps: int) -> float:
    """Seconds of a step."""
    started = time.perf_counter()
    for _ in range(steps):
        if batches is not None:
            next(batches)
        work(count)
    return (time.perf_counter() - started) / steps


def measure(url: str, seq_len: int | None, runs: int) -> list[dict[str, Any]]:
    """A row for each work and engine."""
    torch.set_num_threads(1)
    rows, draw = [], random.Random(0)
    for name, work in (("Python", python), ("matrix product", matrix)):
        for milliseconds in MILLISECONDS:
            count, steps = calibrated(work, milliseconds), max(50, 1000 // milliseconds)
            feeds: dict[str, Iterator[Any] | None] = {"none": None, AGAIN: None}
            for engine in ENGINES:
                feeds[engine] = forever(ss.StreamingLoader(opened(url, seq_len), BATCH, engine=engine))
            seconds: dict[str, list[float]] = {feed: [] for feed in feeds}
            for number in range(runs + 1):
                for feed in draw.sample([*feeds], len(feeds)):
                    taken = step_time(feeds[feed], work, count, steps)
                    if number:
                        seconds[feed].append(taken)
            for engine in (*ENGINES, AGAIN):
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
        figure = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        lines.append(f"| {row['work']} | {row['milliseconds']} ms | {row['engine']} | {figure} |")
    lines += ["", *verdicts(rows)]
    return "\n".join(lines) + "\n"


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """For each work the better engine, and whether it meets the bar."""
    found = []
    for name, milliseconds in dict.fromkeys((row["work"], row["milliseconds"]) for row in rows):
        middle = {
            row["engine"]: statistics.median(row["ratios"])
            for row in rows
            if (row["work"], row["milliseconds"]) == (name, milliseconds) and row["engine"] in ENGINES
        }
        engine = min(middle, key=lambda one: middle[one])
        met = "met" if middle[engine] <= BAR else "not met"
        found.append(
            f"- {name}, {milliseconds} ms: the {engine} engine, {middle[engine]:.3f}; at most {BAR}: {met}."
        )
    return found


def main() -> None:
    """The command line."""
    parser = options_of(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    rows = measure(options.dataset, options.tokens, options.runs)
    write(options.out, "busy_python", table(rows), {"what": WHAT, "seq_len": options.tokens, "rows": rows})


if __name__ == "__main__":
    main()

"""What does the order cost at scale, and does a seek cost the same wherever it goes?

    python -m benchmarks.order_scale [--runs 7] [--out DIR]

Synthetic manifests, so only the order is measured, not the reading of indexes. Each row: building the order
of an epoch (the time and the peak of memory that it takes), then `locate` of the first global batch of 512 at
1 %, 50 % and 99 % by an order made anew, so that nothing is remembered ("resume" is both together), then of
100 further batches. Medians with the smallest and largest of the runs, in milliseconds of CPU
time (one thread; nothing waits); the runs take turns.
JSON and Markdown in DIR.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shardstream.order.lanes import Order
from shardstream.order.mixture import MixtureOrder, Schedule, shares
from shardstream.order.shuffle import Shuffle

BATCH = 512
PLACES = (0.01, 0.5, 0.99)
FRAMES = 64


def order(shards: int, samples: int, scope: str, lanes: int) -> Order:
    """An order of `shards` shards of `samples` samples each, in 64 frames."""
    sizes = np.full(shards, samples, np.int64)
    bounds = np.linspace(0, samples, FRAMES + 1).astype(np.int64)
    return Order(sizes, lambda _: bounds, Shuffle(seed=1, scope=scope), 3, lanes)


def mixture(total: int, lanes: int) -> MixtureOrder:
    """An endless mixture of four datasets of a quarter of the samples each."""
    schedule = Schedule(shares([0.671, 0.15, 0.104, 0.075]))
    return MixtureOrder(schedule, [total // 4] * 4, lanes, "never")


CASES: dict[str, tuple[int, Callable[[], Any]]] = {
    "10^9 samples, 10^5 shards": (10**9, partial(order, 10**5, 10**4, "epoch", 64)),
    "10^10 samples, 10^5 shards": (10**10, partial(order, 10**5, 10**5, "epoch", 64)),
    "10^10 samples, 10^5 shards, 512 lanes": (10**10, partial(order, 10**5, 10**5, "epoch", 512)),
    "10^10 samples, 10^5 shards, scope lane": (10**10, partial(order, 10**5, 10**5, "lane", 64)),
    "mixture of 4, 10^10 samples": (10**10, partial(mixture, 10**10, 64)),
}


def once(total: int, build: Callable[[], Any]) -> dict[str, float]:
    """The milliseconds of each step."""
    found = {}
    for place in PLACES:
        started = time.process_time()
        made = build()
        built = time.process_time()
        start = int(total * place) // BATCH * BATCH
        made.locate(np.arange(start, start + BATCH))
        found["build"] = 1e3 * (built - started)
        found[f"seek {place:.0%}"] = 1e3 * (time.process_time() - built)
        found[f"resume {place:.0%}"] = 1e3 * (time.process_time() - started)
    started = time.process_time()
    for number in range(1, 101):
        made.locate(np.arange(start + number * BATCH, start + (number + 1) * BATCH) % total)
    found["next batch"] = 1e3 * (time.process_time() - started) / 100
    return found


def memory(build: Callable[[], Any]) -> tuple[float, float]:
    """MiB that building takes at its peak, and that stay."""
    tracemalloc.start()
    made = build()
    stays, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return peak / 2**20, stays / 2**20


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "order_scale")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for number in range(options.runs + 1):
        for name, case in CASES.items():
            figures = once(*case)
            if number:  # the first round warms up
                runs[name].append(figures)
    rows = {}
    for name, figures in runs.items():
        rows[name] = {
            step: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for step in figures[0]
            if (values := [run[step] for run in figures])
        }
        peak, stays = memory(CASES[name][1])
        rows[name]["memory"] = {"peak": peak, "stays": stays}
    versions = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"versions": versions, "runs": options.runs, "batch": BATCH, "rows": rows}
    (options.out / "order_scale.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "order_scale.md").write_text(table(rows, options.runs, versions))
    print(table(rows, options.runs, versions))


def table(rows: dict[str, dict[str, dict[str, float]]], runs: int, versions: dict[str, str]) -> str:
    """The report as Markdown."""
    steps = ["build", *(f"resume {place:.0%}" for place in PLACES), "next batch"]
    headline = (
        f"`python -m benchmarks.order_scale`: milliseconds of CPU time, median (min to max) of {runs}; "
        f"Python {versions['python']}, numpy {versions['numpy']}."
    )
    lines = [
        headline,
        "",
        f"| | {' | '.join(steps)} | MiB at the peak | MiB held |",
        "| --- |" + " ---: |" * (len(steps) + 2),
    ]
    for name, row in rows.items():
        cells = [f"{row[s]['median']:.3g} ({row[s]['min']:.3g} to {row[s]['max']:.3g})" for s in steps]
        memory = [f"{row['memory']['peak']:.1f}", f"{row['memory']['stays']:.1f}"]
        lines.append(f"| {name} | {' | '.join([*cells, *memory])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

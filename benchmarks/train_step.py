"""What does the loader cost a training step? Batches in memory against both engines.

    python -m benchmarks.train_step DATASET --tokens SEQ_LEN [--runs 7] [--steps 20] [--out DIR]

The steps of a small transformer (tools/train/model.py), forward, backward and AdamW, on one thread: with
batches that are in memory already, and with each engine, in turn. A row says how much longer a step takes:
the median of the ratios within each round, with quartiles, the same of the CPU time of its process, and the
share of the time that the loop waited for its batch. On a busy machine use many short rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import shardstream as ss
from benchmarks.busy_python import forever

BATCH = 8
ENGINES = ("thread", "process")


def steps(model: Any, optimizer: Any, batches: Iterator[Any], count: int) -> tuple[float, float, float]:
    """Seconds of a step, those of them that it waited for its batch, and CPU seconds of the process."""
    from model import next_token_loss

    started, cpu, waited = time.perf_counter(), time.process_time(), 0.0
    for _ in range(count):
        before = time.perf_counter()
        tokens = next(batches)["tokens"]
        waited += time.perf_counter() - before
        optimizer.zero_grad(set_to_none=True)
        next_token_loss(model, tokens % 1024).backward()
        optimizer.step()
    taken, cpu = time.perf_counter() - started, time.process_time() - cpu
    return taken / count, waited / count, cpu / count


def measure(url: str, seq_len: int, runs: int, count: int, width: int) -> list[dict[str, Any]]:
    """A row for each engine."""
    from model import Transformer

    torch.set_num_threads(1)
    model = Transformer(1024, seq_len, width)
    optimizer = torch.optim.AdamW(model.parameters())
    loaders = [
        ss.StreamingLoader(ss.TokenDataset(url, seq_len, shuffle=ss.Shuffle(0)), BATCH, engine=engine)
        for engine in ENGINES
    ]
    kept = list(itertools.islice(forever(loaders[0]), 64))
    feeds = {"memory": itertools.cycle(kept), **dict(zip(ENGINES, map(forever, loaders), strict=True))}
    found: dict[str, list[tuple[float, float, float]]] = {feed: [] for feed in feeds}
    for number in range(runs + 1):
        for feed, batches in feeds.items():
            taken = steps(model, optimizer, batches, count)
            if number:  # the first round warms up
                found[feed].append(taken)
    memory = found["memory"]
    return [
        {
            "engine": engine,
            "milliseconds": 1e3 * statistics.median(row[0] for row in memory),
            "ratios": sorted(a[0] / b[0] for a, b in zip(found[engine], memory, strict=True)),
            "cpu": sorted(a[2] / b[2] for a, b in zip(found[engine], memory, strict=True)),
            "stall": statistics.median(waited / taken for taken, waited, _ in found[engine]),
        }
        for engine in ENGINES
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| engine | step in memory | step time to that (quartiles) | CPU time of it to that | stall |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        time_ratio, cpu_ratio = (
            "{1:.3f} ({0:.3f}, {2:.3f})".format(*statistics.quantiles(row[name], n=4))
            for name in ("ratios", "cpu")
        )
        memory = f"{row['milliseconds']:.1f} ms"
        lines.append(f"| {row['engine']} | {memory} | {time_ratio} | {cpu_ratio} | {row['stall']:.2%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, default=256, help="seq_len")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = measure(options.dataset, options.tokens, options.runs, options.steps, options.width)
    print(table(rows))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "train_step.json").write_text(json.dumps(rows, indent=1) + "\n")


# The model is that of the training scripts, which lie beside each other and not in a package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools" / "train"))

if __name__ == "__main__":
    main()

"""What does the loader cost a training step? Batches in memory against both engines.

    python -m benchmarks.train_step DATASET --tokens SEQ_LEN [--runs 25] [--steps 20] [--out DIR]

The steps of a small transformer (tools/train/model.py), forward, backward and AdamW, on one thread: with
batches that are in memory already, and with each engine, in turn. A row says how much longer a step takes:
the median of the ratios within each round, with quartiles, the same of the CPU time of its process, and the
share of the time that the loop waited for its batch. Within a round they go in a random order. "the same
again" is the batches in memory a second time: what it differs by is chance. On a busy machine use many short
rounds. The bar: the better engine takes at most 1.01 times as long.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import shardstream as ss
from benchmarks.steps import forever, opened, options_of, write

BATCH = 8
ENGINES = ("thread", "process")
AGAIN = "the same again"
BAR = 1.01


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
    loaders = [ss.StreamingLoader(opened(url, seq_len), BATCH, engine=engine) for engine in ENGINES]
    kept = list(itertools.islice(forever(loaders[0]), 64))
    feeds = {"memory": itertools.cycle(kept), **dict(zip(ENGINES, map(forever, loaders), strict=True))}
    feeds[AGAIN] = itertools.cycle(kept)
    draw = random.Random(0)
    found: dict[str, list[tuple[float, float, float]]] = {feed: [] for feed in feeds}
    for number in range(runs + 1):
        for feed in draw.sample([*feeds], len(feeds)):
            taken = steps(model, optimizer, feeds[feed], count)
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
        for engine in (*ENGINES, AGAIN)
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
    best = min(statistics.median(row["ratios"]) for row in rows if row["engine"] in ENGINES)
    lines += ["", f"The better engine: {best:.3f}; at most {BAR}: {'met' if best <= BAR else 'not met'}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = options_of(__doc__)
    parser.set_defaults(tokens=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    rows = measure(options.dataset, options.tokens, options.runs, options.steps, options.width)
    facts = {
        "what": "ratios, cpu: a step with the loader to one without, by round; stall: the share that waits",
        "seq_len": options.tokens,
        "width": options.width,
        "steps of a round": options.steps,
        "rows": rows,
    }
    write(options.out, "train_step", table(rows), facts)


# The model is that of the training scripts, which lie beside each other and not in a package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools" / "train"))

if __name__ == "__main__":
    main()

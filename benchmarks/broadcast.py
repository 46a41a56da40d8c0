"""Ranks that share data: does each read, or does one read and broadcast?

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.broadcast DATASET
        [--tokens SEQ_LEN] [--batch 8] [--runs 7] [--seconds 1]

Batches per second of the slowest rank in a loop that does nothing else, and the CPU seconds that all ranks
together spend on 1,000 batches. Both ways in turn; medians with the smallest and largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

import shardstream as ss
from benchmarks.steps import forever

CHUNK = 50  # batches between two looks at the clock, which all ranks take together


def rate(batches: Any, seconds: float) -> list[float]:
    """Batches per second, and CPU seconds of all ranks per 1,000."""
    started, cpu, count = time.perf_counter(), time.process_time(), 0
    while True:
        for _ in range(CHUNK):
            next(batches)
        count += CHUNK
        state = torch.tensor([time.perf_counter() - started, time.process_time() - cpu], dtype=torch.float64)
        rows = [torch.empty_like(state) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, state)
        slowest = max(float(row[0]) for row in rows)
        if slowest > seconds:
            return [count / slowest, 1e3 * sum(float(row[1]) for row in rows) / count]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    feeds = {}
    for name, group in (("each reads", None), ("one reads, broadcast", dist.group.WORLD)):
        shuffle, same = ss.Shuffle(0), ss.Topology()
        if options.tokens:
            ds: Any = ss.TokenDataset(options.dataset, options.tokens, shuffle=shuffle, topology=same)
        else:
            ds = ss.StreamingDataset(options.dataset, shuffle=shuffle, topology=same, decode=False)
        feeds[name] = forever(ss.StreamingLoader(ds, options.batch, broadcast=group))
    found: dict[str, list[list[float]]] = {name: [] for name in feeds}
    for number in range(options.runs + 1):
        for name, batches in feeds.items():
            taken = rate(batches, options.seconds)
            if number:
                found[name].append(taken)
    if dist.get_rank() == 0:
        print("| | batches/s | CPU seconds for 1,000 batches |\n| --- | --- | --- |")
        for name, rows in found.items():
            cells = [
                f"{statistics.median(column):,.2f} ({min(column):,.2f} to {max(column):,.2f})"
                for column in zip(*rows, strict=True)
            ]
            print(f"| {name} | {cells[0]} | {cells[1]} |")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Does a loader dip where one epoch ends and the next begins?

    python -m benchmarks.epoch_boundary DATASET [--tokens SEQ_LEN] [--batch 32] [--epochs 9] [--step 0]

Epochs follow each other as in a training script, `for epoch: for batch in loader`, and the time of each
batch is taken. An epoch is cut into tenths of its batches; the first one begins with the end of the epoch
before. The dip is the rate of that first tenth to the median of the other tenths of the same epoch: 1 is
none. With `--step`, which may be given several times, a step of so many milliseconds, in products of
matrices, follows each batch: what is left of a dip is then what a training loop would see. The first epoch,
which begins with nothing, is given by itself.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import shardstream as ss
from benchmarks.steps import calibrated, matrix, opened, options_of, write

TENTHS = 10


def timeline(loader: ss.StreamingLoader, epochs: int, work: int) -> list[dict[str, Any]]:
    """Of each epoch: seconds from its start to the arrival of each batch, to its end, and of CPU."""
    found = []
    for _ in range(epochs):
        started, cpu, at = time.perf_counter(), time.process_time(), []
        for _batch in loader:
            at.append(time.perf_counter() - started)
            if work:
                matrix(work)
        found.append({"at": at, "seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu})
    return found


def dip(epoch: dict[str, Any]) -> float:
    """The rate of the first tenth of an epoch to the median rate of the others."""
    ends = [*epoch["at"][1:], epoch["seconds"]]  # when the loop was through with each batch
    size = len(ends) // TENTHS
    marks = [0.0] + [ends[size * number - 1] for number in range(1, TENTHS + 1)]
    tenths = [end - begin for begin, end in pairwise(marks)]
    return statistics.median(tenths[1:]) / tenths[0]


def row(loader: ss.StreamingLoader, epochs: int, step: float) -> dict[str, Any]:
    """The figures of one loader and one length of steps."""
    work = calibrated(matrix, step) if step else 0
    first, *others = timeline(loader, epochs, work)

    def spread(values: list[float]) -> list[float]:
        return [statistics.median(values), min(values), max(values)]

    return {
        "step": step,
        "batches": len(first["at"]),
        "first_epoch_dip": dip(first),
        "first_epoch_cpu": first["cpu"],
        "dip": spread([dip(epoch) for epoch in others]),
        "first_batch": spread([1e3 * epoch["at"][0] for epoch in others]),
        "seconds": spread([epoch["seconds"] for epoch in others]),
        "cpu": spread([epoch["cpu"] for epoch in others]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    columns = (
        "dataset",
        "step",
        "first tenth to the others",
        "first batch",
        "seconds an epoch",
        "CPU s an epoch",
    )
    lines = [
        f"| {' | '.join(columns)} | first epoch: first tenth, CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in rows:
        ratio, first, seconds, cpu = (
            "{:.2f} [{:.2f} .. {:.2f}]".format(*found[name])
            for name in ("dip", "first_batch", "seconds", "cpu")
        )
        before = f"{found['first_epoch_dip']:.2f}, {found['first_epoch_cpu']:.2f}"
        lines.append(
            f"| {found['dataset']} | {found['step']:g} ms | {ratio} | {first} ms | {seconds} | {cpu} "
            f"| {before} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = options_of(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--step", type=float, action="append", help="milliseconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, dataset = [], Path(options.dataset).name
    for step in options.step or [0]:
        collate = None if options.tokens else list
        loader = ss.StreamingLoader(opened(options.dataset, options.tokens), options.batch, collate=collate)
        rows.append(row(loader, options.epochs, step) | {"dataset": dataset})
    facts = {"batch": options.batch, "tokens": options.tokens, "rows": rows}
    write(options.out, f"epoch_boundary_{dataset}", table(rows), facts)


if __name__ == "__main__":
    main()

"""Checkpoint, stop, and resume on another number of ranks: the samples of each step stay the same.

    torchrun --standalone --nproc-per-node 2 examples/resume_ranks.py --out run --stop-at 10
    python examples/resume_ranks.py --out run

The first command trains on two ranks, saves in the background every few steps, and leaves after step 10 of
20. The second one finds the newest checkpoint in `run`, and goes on from it as one rank;
`torchrun --standalone --nproc-per-node 4` would be four. The size of the global batch stays: each rank takes
its part.

At the end the samples of all steps, which both runs wrote to run/steps.jsonl, are compared with those that a
single rank reads without a stop. They are equal, step by step. Losses are equal as far as sums of numbers in
another order are. Kill it at any moment and run it again: it goes on from the last checkpoint that is whole.
Run it again after the end, and there is nothing to do; another --out begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import shardstream as ss

GLOBAL_BATCH = 24  # samples of a step, of all ranks together; 1, 2, 3, 4, 6, 8, 12 and 24 ranks divide it
SAVE_EVERY = 5  # steps


def make(url: str) -> None:
    """Samples to try it on: features and a number that depends on them."""
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 8)).astype(np.float32)
    targets = np.tanh(features @ random.normal(size=8)).astype(np.float32)
    ss.pack(
        ({"__key__": f"{n:03d}", "x.npy": features[n], "y.npy": targets[n]} for n in range(len(targets))), url
    )


def loader_of(url: str, topology: ss.Topology) -> ss.StreamingLoader:
    """This rank's part of each global batch."""
    each, left = divmod(GLOBAL_BATCH, topology.dp_size)
    if left:
        raise SystemExit(f"{topology.dp_size} ranks do not divide a global batch of {GLOBAL_BATCH}")
    dataset = ss.StreamingDataset(url, shuffle=ss.Shuffle(seed=0), topology=topology)
    return ss.StreamingLoader(dataset, batch_size=each)


def train(options: argparse.Namespace) -> None:
    """Train from the newest checkpoint to `--steps`, or to `--stop-at`."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = loader_of(os.path.join(options.out, "data"), ss.Topology.detect())

    saves = ss.Checkpoints(os.path.join(options.out, "checkpoints"), keep=2, busy="wait")
    # The loader's place is in the checkpoint, of the same step as the weights.
    state = {"model": model, "optim": optimizer, "data": loader}
    step = saves.load(state) or 0
    last = max(step, min(options.stop_at or options.steps, options.steps))
    log = StepLog(os.path.join(options.out, "steps.jsonl"), step) if rank == 0 else None
    if rank == 0:
        print(f"{world} ranks, from step {step} to step {last} of {options.steps}", flush=True)
    batches = forever(loader)
    while step < last:
        batch = next(batches)
        loss = (model(batch["x.npy"])[:, 0] - batch["y.npy"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        rows = gathered({"loss": loss.item(), "keys": list(batch["__key__"])})
        if log is not None:
            log.write(step, rows)
        if step == last or step % SAVE_EVERY == 0:
            saves.save(step, state)  # copies, and returns; threads write while training goes on
    saves.wait()
    if log is not None:
        log.close()


def forever(loader: ss.StreamingLoader) -> Any:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


def gathered(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all ranks."""
    rows: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(rows, row)
    return rows


class StepLog:
    """A line for each step: its loss, and the keys of its samples.

    Args:
        path: Of the file.
        step: The step that was loaded. Lines of later ones are of a run that was killed: they are done again.
    """

    def __init__(self, path: str, step: int) -> None:
        kept = [row for row in read_log(path) if row["step"] <= step]
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        os.replace(f"{path}.new", path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Add a step."""
        loss = sum(row["loss"] for row in rows) / len(rows)
        # Rank r of R has the samples r, r + R, r + 2R, ... of the global batch.
        keys = [key for some in zip(*(row["keys"] for row in rows), strict=True) for key in some]
        self._file.write(json.dumps({"step": step, "ranks": len(rows), "loss": loss, "keys": keys}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: str) -> list[dict[str, Any]]:
    """The whole lines of a log; none if there is no file."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]  # a kill may leave half a line


def compare(options: argparse.Namespace) -> None:
    """Compare what was trained on with what one rank reads from the beginning, without a stop."""
    log = read_log(os.path.join(options.out, "steps.jsonl"))
    batches = forever(loader_of(os.path.join(options.out, "data"), ss.Topology(0, 1)))
    for number, (row, batch) in enumerate(zip(log, batches, strict=False), start=1):
        if row["step"] != number or row["keys"] != batch["__key__"]:
            raise SystemExit(f"step {number} was trained on other samples")
    ranks = [row["ranks"] for row in log]
    shown = ", ".join(f"{ranks.count(each)} on {each}" for each in dict.fromkeys(ranks))
    print(f"loss {log[0]['loss']:.4f} -> {log[-1]['loss']:.4f}")
    print(
        f"steps by ranks: {shown}; the samples of all {len(log)} steps are those of one rank without a stop"
    )


def main() -> None:
    """Make the data if it is not there, train, and compare if all steps are done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="the folder of this run: data, checkpoints, steps.jsonl")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps in all")
    parser.add_argument("--stop-at", type=int, help="save and leave after this step")
    options = parser.parse_args()

    # torchrun stops ranks by SIGTERM: leave as at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        if dist.get_rank() == 0 and not os.path.exists(os.path.join(options.out, "data", "manifest.json")):
            make(os.path.join(options.out, "data"))
        dist.barrier()
        train(options)
        if dist.get_rank() == 0 and not options.stop_at:
            compare(options)
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

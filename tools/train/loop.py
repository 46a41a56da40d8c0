"""The loop that the training scripts share: mixed precision, checkpoints, and what each step was.

A checkpoint holds model, optimizer, scaler and the place in the data, of one and the same step. It is written
in the background, and counts once its last file, `manifest.json`, is there.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import shardstream as ss

KEEP = 2  # checkpoints: while one is written, the one before is whole


def arguments(text: str) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="a packed dataset, a path or URL")
    parser.add_argument("--cache", help="directory for what is downloaded")
    parser.add_argument("--out", type=Path, required=True, help="directory of checkpoints and of log.jsonl")
    parser.add_argument("--checkpoints", help="path or URL of the checkpoints; --out by default")
    parser.add_argument("--disk", help="a folder on a disk of this machine, which is written first")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps in all")
    parser.add_argument("--save-every", type=int, default=0, help="steps between checkpoints; 0: at the end")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step, over all ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--engine", default="thread", choices=("thread", "process"))
    parser.add_argument(
        "--precision",
        default="bf16",
        choices=("bf16", "fp16", "fp32"),
        help="of the computation; weights stay fp32. CPUs without bfloat16 are quicker in fp32",
    )
    parser.add_argument("--plot", type=Path, help="save a picture of loss and stall (needs matplotlib)")
    return parser


def token_arguments(text: str) -> argparse.ArgumentParser:
    """The options of the scripts that train on tokens."""
    parser = arguments(text)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=257, help="257: bytes and an end token")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    return parser


def on_this_rank(work: Callable[[torch.device], None]) -> None:
    """Do the work of a rank that torchrun has started, from the begin to the end of its process group.

    What `work` makes is freed before the group is. A DDP model that outlives its group frees it while it has
    the GIL, and that hangs if a thread of gloo needs the GIL to end its last work.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    # One thread per process where processes share the cores: more would only compete.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))
    # gloo beside nccl: checkpoints and batches go from one CPU to another.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=datetime.timedelta(minutes=5))
    work(device)
    gc.collect()
    dist.barrier()  # a rank that leaves early takes its connections with it
    dist.destroy_process_group()


def tokens(options: argparse.Namespace, topology: ss.Topology, broadcast: Any = None) -> ss.StreamingLoader:
    """Batches of token blocks: each data-parallel rank gets its part of the global batch."""
    ds = ss.TokenDataset(
        options.data,
        options.seq_len,
        shuffle=ss.Shuffle(seed=options.seed),
        cache=options.cache,
        topology=topology,
    )
    each, left = divmod(options.batch, topology.dp_size)
    if left:
        raise SystemExit(f"--batch {options.batch} does not divide among {topology.dp_size} ranks")
    return ss.StreamingLoader(ds, each, engine=options.engine, broadcast=broadcast)


def train(
    options: argparse.Namespace,
    device: torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: ss.StreamingLoader | ss.DaliLoader,
    loss_of: Callable[[nn.Module, Any], Tensor],
    count: Callable[[Any], int],
    unit: str,
) -> None:
    """Train to `options.steps`, from the last checkpoint on; rank 0 writes a line for each step.

    loss_of: the mean loss of a batch.  count: how many of `unit` a batch has.
    """
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[options.precision]
    # fp16 has few exponents: small gradients would be lost without a scale. The others need none.
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    saves = ss.Checkpoints(
        options.checkpoints or str(options.out), keep=KEEP, local=options.disk, busy="wait"
    )
    state = {"model": model, "optim": optimizer, "scaler": scaler, "data": loader}
    step = saves.load(state) or 0
    log = Log(options.out / "log.jsonl", step) if dist.get_rank() == 0 else None
    batches = forever(loader)
    while step < options.steps:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        with torch.autocast(device.type, precision, enabled=options.precision != "fp32"):
            loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        step += 1
        mine = [loss.item(), time.perf_counter() - started, waited, count(batch), fingerprint(batch)]
        everyone = gathered(mine, device)
        if log is not None:
            log.write(step, everyone)
        if step == options.steps or (options.save_every and step % options.save_every == 0):
            saves.save(step, state)
    saves.wait()
    if log is not None:
        log.close(unit, len(loader))
        if options.plot:
            plot(options.out / "log.jsonl", options.plot, unit)


def forever(loader: ss.StreamingLoader | ss.DaliLoader) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    if not len(loader):
        raise SystemExit("the dataset is too small for one batch: use a smaller --batch")
    while True:
        yield from loader


def fingerprint(batch: dict[str, Any]) -> int:
    """A number that says what the batch was."""
    named = batch.get("__key__")
    data = batch["tokens"].cpu().numpy() if named is None else "\n".join(named).encode()
    return zlib.crc32(data)


def gathered(row: list[float], device: torch.device) -> list[list[float]]:
    """The rows of all ranks."""
    mine = torch.tensor(row, dtype=torch.float64, device=device)
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, mine)
    return [other.tolist() for other in rows]


class Log:
    """A line of JSON for each step: loss, seconds, stall share, units, and what each rank's batch was.

    After a kill it may be ahead of the last checkpoint: those steps are done again, the same.
    """

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.exists():
            # A kill may have left half a line.
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)
        self._file = path.open("a")
        self._rows: list[dict[str, Any]] = []
        print(f"{'resumed' if step else 'started'} at step {step}", flush=True)

    def write(self, step: int, ranks: list[list[float]]) -> None:
        """One step, from the rows of `gathered`."""
        losses, seconds, waits, counts, prints = zip(*ranks, strict=True)
        row = {
            "step": step, "loss": sum(losses) / len(losses), "seconds": max(seconds),
            "stall": max(waits) / max(seconds), "count": sum(counts), "batches": [int(p) for p in prints],
        }  # fmt: skip
        self._rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if step % 10 == 0:
            last = self._rows[-10:]
            rate = sum(r["count"] for r in last) / sum(r["seconds"] for r in last)
            print(f"step {step:5d}  loss {row['loss']:.4f}  {rate:,.0f}/s", flush=True)

    def close(self, unit: str, epoch: int) -> None:
        """Print how it went. The first steps are left out: there, threads and caches start."""
        self._file.close()
        rows = self._rows[5:]
        if rows:
            seconds = sum(row["seconds"] for row in rows)
            rate = sum(row["count"] for row in rows) / seconds
            stall = sum(row["stall"] * row["seconds"] for row in rows) / seconds
            print(
                f"{rate:,.0f} {unit}/s, stall {stall:.2%} of the time, {epoch} batches per epoch", flush=True
            )


def plot(log: Path, picture: Path, unit: str) -> None:
    """A picture of loss, rate and stall by step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [row["step"] for row in rows]
    figure, (upper, lower) = plt.subplots(2, sharex=True, figsize=(8, 5), dpi=80)
    upper.plot(steps, [row["loss"] for row in rows])
    upper.set_ylabel("loss")
    lower.plot(steps, [100 * row["stall"] for row in rows], color="#b33")
    lower.set_ylabel("waiting for data, %")
    lower.set_ylim(0, 100)
    lower.set_xlabel(f"step; {sum(r['count'] for r in rows) / sum(r['seconds'] for r in rows):,.0f} {unit}/s")
    figure.tight_layout()
    figure.savefig(picture)
    plt.close(figure)

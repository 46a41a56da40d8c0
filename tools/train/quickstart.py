"""Train a small byte-level transformer on a packed text dataset, stop, and resume exactly.

Run by tools/quickstart, with two processes:

    python -m torch.distributed.run --standalone --nproc-per-node 2 tools/train/quickstart.py \
        --data DATASET --checkpoint checkpoint.pt --steps 120 --stop-at 60
    (the same again with --resume in place of --stop-at)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from model import Transformer, next_token_loss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import shardstream as ss

SEQ = 128
BATCH = 8
VOCAB = 256
WARMUP_STEPS = 10
# Losses are compared as means over this many steps: a single batch is too noisy.
WINDOW = 5


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Cut one window of SEQ + 1 bytes from each text; shorter texts are padded with zeros."""
    tokens = torch.zeros(len(samples), SEQ + 1, dtype=torch.int64)
    for row, sample in zip(tokens, samples, strict=True):
        data = sample["txt"].encode()
        # The place depends on the key alone, so that a resumed run reads the very same bytes.
        start = zlib.crc32(sample["__key__"].encode()) % max(1, len(data) - SEQ)
        window = bytearray(data[start : start + SEQ + 1])
        if window:
            row[: len(window)] = torch.frombuffer(window, dtype=torch.uint8)
    return {"tokens": tokens, "keys": [sample["__key__"] for sample in samples]}


def forever(loader: Any) -> Iterator[dict[str, Any]]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint such that a crash leaves the old one or the whole new one."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def gather_keys(keys: list[str]) -> list[str]:
    """The keys that all ranks trained on."""
    parts: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, keys)
    return [key for part in parts for key in part]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="a dataset packed with --format text")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to save to and resume from")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps in all")
    parser.add_argument("--stop-at", type=int, help="save and leave after this step")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--log-every", type=int, default=10, help="steps between lines")
    return parser.parse_args()


def train(options: argparse.Namespace) -> bool:
    """Train as the options say; True if the loss fell and no sample came twice."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(Transformer(VOCAB, SEQ))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))

    dataset = ss.StreamingDataset(options.data, shuffle=ss.Shuffle(seed=0), topology="auto")
    loader = ss.StreamingLoader(dataset, batch_size=BATCH, collate=collate)

    step, losses, seen = 0, [], []
    if options.resume:
        saved = torch.load(options.checkpoint, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        # The same small state on every rank: where the data stood when the checkpoint was made.
        loader.load_state_dict(json.loads(saved["data"]))
        step, losses, seen = saved["step"], saved["losses"], saved["keys"]

    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    first, last = step, options.stop_at or options.steps
    if first >= last:
        say(f"nothing to do: the checkpoint is at step {first} of {last}")
        return True
    say(
        f"{'resumed at' if options.resume else 'started at'} step {step} of {options.steps}, "
        f"{world} processes, {len(loader)} batches per epoch"
    )

    keys: list[str] = []
    batches = forever(loader)
    started = marked = time.perf_counter()
    while step < last:
        batch = next(batches)
        tokens = batch["tokens"]
        keys += batch["keys"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = next_token_loss(model, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        step += 1

        shared = loss.detach().clone()
        dist.all_reduce(shared)
        losses.append(shared.item() / world)
        if step % options.log_every == 0:
            now = time.perf_counter()
            rate = options.log_every * world * BATCH * SEQ / (now - marked)
            marked = now
            say(f"step {step:4d}  loss {mean(losses[-options.log_every :]):.3f}  {rate:,.0f} tokens/s")
    seconds = time.perf_counter() - started

    seen = seen + gather_keys(keys)
    if rank == 0:
        save(
            options.checkpoint,
            {
                "model": model.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "data": json.dumps(loader.state_dict()),
                "step": step,
                "losses": losses,
                "keys": seen,
            },
        )

    stall = loader.stats()["wait_seconds"] / seconds
    rate = (step - first) * world * BATCH * SEQ / seconds
    before, after = mean(losses[first : first + WINDOW]), mean(losses[-WINDOW:])
    say(
        f"steps {first + 1}-{step}: loss {before:.3f} -> {after:.3f}, {rate:,.0f} tokens/s, "
        f"waited for data {stall:.2%} of the time"
    )

    sound = mean(losses[-WINDOW:]) < mean(losses[:WINDOW])
    if not sound:
        say("the loss did not fall")
    # Within the first epoch no sample may come twice, the stop and the resume included.
    repeated = len(seen) - len(set(seen))
    if len(seen) <= len(loader) * BATCH * world:
        say(f"{len(seen)} samples so far, {repeated} of them twice")
        sound = sound and not repeated
    return sound


def main() -> int:
    options = parse()
    # One thread per process where processes share the cores: more would only compete.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", "1"))))
    dist.init_process_group("gloo")
    try:
        return 0 if train(options) else 1
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())

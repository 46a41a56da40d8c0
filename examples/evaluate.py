"""Evaluation: every sample counts exactly once, on any number of ranks.

    torchrun --standalone --nproc-per-node 3 examples/evaluate.py

1,003 samples do not divide among 3 ranks, nor among batches. With `last="short"` every rank gets the same
number of batches, so that no rank waits for another at the end; where a rank has no sample left, one is given
again, and `batch["__pad__"]` marks it. What is marked is left out of the sums. Any number of ranks of
one machine prints the same metric; the data lies in a temporary folder of rank 0.
`python examples/evaluate.py` is one rank.

With `--data DATASET` it evaluates a packed dataset of yours that has features in `npy` and classes in `cls`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import shardstream as ss

FEATURES, CLASSES = 8, 4


def make(url: str) -> None:
    """Samples to try it on: features, and the class that a linear rule gives them; some classes are wrong."""
    random = np.random.default_rng(0)
    features = random.normal(size=(1003, FEATURES)).astype(np.float32)
    right = (features @ rule()).argmax(1)
    wrong = random.random(len(right)) < 0.1
    classes = np.where(wrong, random.integers(0, CLASSES, len(right)), right)
    ss.pack(
        ({"__key__": f"{n:04d}", "npy": features[n], "cls": int(classes[n])} for n in range(len(classes))),
        url,
    )


def rule() -> np.ndarray:
    """The weights of the model that is evaluated, float32 [FEATURES, CLASSES]; yours is loaded instead."""
    return np.random.default_rng(1).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def evaluate(url: str, batch_size: int) -> tuple[int, int, float]:
    """How many samples are right, how many there are, and the sum of their losses, over all ranks."""
    weights = torch.from_numpy(rule()).double()
    dataset = ss.StreamingDataset(url)  # not shuffled
    loader = ss.StreamingLoader(dataset, batch_size=batch_size, last="short")
    sums = torch.zeros(3, dtype=torch.float64)  # right, all, loss
    keys: list[str] = []
    with torch.inference_mode():
        for batch in loader:
            counts = ~batch["__pad__"]  # bool [B]: False where a sample only fills up the batch
            logits = batch["npy"].double() @ weights
            losses = F.cross_entropy(logits, batch["cls"], reduction="none")
            right = logits.argmax(1) == batch["cls"]
            sums += torch.stack([(right & counts).sum(), counts.sum(), losses[counts].sum()])
            keys += [key for key, one in zip(batch["__key__"], counts.tolist(), strict=True) if one]
    dist.all_reduce(sums)

    # That each sample counted once can be seen: the keys of all ranks.
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, keys)
    if dist.get_rank() == 0:
        seen = [key for one in everyone for key in one]
        print(f"samples of each rank: {[len(one) for one in everyone]}")
        if len(seen) != dataset.total or len(set(seen)) != len(seen):
            raise SystemExit(
                f"{len(seen)} samples counted, {len(set(seen))} different ones of {dataset.total}"
            )
        print(f"each of {dataset.total} samples counted once")
    return int(sums[0]), int(sums[1]), float(sums[2])


def main() -> None:
    """Evaluate on all ranks; rank 0 says what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a packed dataset of yours; a small one is made without it")
    parser.add_argument("--batch-size", type=int, default=16, help="samples of a batch of one rank")
    options = parser.parse_args()

    # torchrun stops ranks by SIGTERM: leave as at Ctrl-C, so that the temporary folder goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with tempfile.TemporaryDirectory(prefix="shardstream-") as folder:
            place = [options.data or os.path.join(folder, "data")]
            if dist.get_rank() == 0 and not options.data:
                make(place[0])
            dist.broadcast_object_list(place)  # the other ranks wait until the data is there
            right, count, loss = evaluate(place[0], options.batch_size)
            if dist.get_rank() == 0:
                print(f"accuracy {right / count:.6f} ({right} of {count}), loss {loss / count:.6f}")
            dist.barrier()  # rank 0 deletes the data when all are done with it
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

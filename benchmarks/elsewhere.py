"""Questions that programs of their own measure: what they ask, and where their results are."""

from __future__ import annotations

import re
from typing import NamedTuple

_VERDICT = re.compile(
    r"(?:\| |: )\**(yes|met|held|not met|missed|no)\**(?= \||[,.:]|$)", re.MULTILINE | re.IGNORECASE
)


class Other(NamedTuple):
    """A program, and the file of its results below `results/`."""

    name: str
    program: str
    file: str
    asks: str


OTHERS = (
    Other("memory", "memory", "memory/results.md", "what a process holds, beside its limits"),
    Other(
        "DLIO", "dlio", "dlio/results.md", "accelerator utilisation, beside DLIO's own loader, cold and warm"
    ),
    Other("stalls", "train_stall", "train_stall/train_stall.md", "how long a training loop waits for data"),
    Other(
        "epochs",
        "epoch_boundary",
        "epoch_boundary/epoch_boundary.md",
        "where one epoch ends and the next begins",
    ),
    Other("growth", "growth", "growth/growth.md", "costs by shards, samples and ranks"),
    Other(
        "rates", "growth_rates", "growth_rates/rates.md", "rates of 10^3 to 10^7 samples, of 1 to 8 processes"
    ),
    Other("the GIL", "busy_python", "busy_python/busy_python.md", "engines beside loops that hold the GIL"),
    Other("steps", "train_step", "train_step/train_step.md", "what the loader costs a training step"),
    Other("order", "order_scale", "order_scale/order_scale.md", "the order of 10^9 samples and more"),
    Other("simulation", "simulate", "simulate/simulate.md", "jobs of up to 4,096 ranks"),
    Other("advice", "advise", "advise/results.md", "whether `shardstream advise` is right"),
    Other("counters", "counters", "counters/counters.md", "what counting and tracing cost, by the clock"),
    Other(
        "instructions",
        "counters --instructions",
        "counters/instructions.md",
        "what counting costs, in instructions",
    ),
    Other("watching", "watching", "watching/watching.md", "what a scrape of metrics costs"),
    Other(
        "other packing", "packing", "packing_others/packing.md", "Parquet, tokens, short rows, writers, plans"
    ),
    Other("plans", "pack_plan", "pack_plan/pack_plan.md", "the plan of a pack of up to 10^6 small files"),
    Other("driver", "pack_driver", "pack_driver/pack_driver.md", "the process that runs a pack"),
    Other("shuffled packs", "pack_shuffle", "pack_shuffle/pack_shuffle.md", "what `pack --shuffle` costs"),
    Other("Ray", "pack_engines", "pack_engines/pack_engines.md", "what Ray costs a pack"),
    Other("clusters", "cluster", "cluster/results.md", "requests and costs of 1 to 100 TB, by arithmetic"),
    Other("weights", "weights", "weights/weights.md", "safetensors to tensors, beside other loaders"),
    Other("DCP", "dcp", "dcp/results.md", "`ss.dcp` beside torch's and Hugging Face's writers"),
    Other("checkpoints", "checkpoints", "checkpoints/results.md", "saves and loads of 2 GB, local and S3"),
    Other("resharding", "resharding", "resharding/results.md", "bytes read by another number of ranks"),
    Other("logs", "logs", "logs/results.md", "what a row of a log costs, beside other loggers"),
)


def verdicts(text: str) -> tuple[int, int]:
    """How many bars the results of a program say are met, and how many there are."""
    found = _VERDICT.findall(text)
    return sum(word.lower() in ("yes", "met", "held") for word in found), len(found)

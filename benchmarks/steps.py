"""What programs share that measure a loop beside a loader: steps, datasets, options and files of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import shardstream as ss

__all__ = ["calibrated", "forever", "matrix", "opened", "options_of", "python", "write"]


def python(count: int) -> int:
    """Work that holds the GIL."""
    total = 0
    for number in range(count):
        total += number * number
    return total


def matrix(count: int) -> None:
    """Work that does not; one product takes some tenths of a millisecond."""
    square = torch.ones(256, 256)
    for _ in range(count):
        square = square @ square * 1e-3


def calibrated(work: Callable[[int], Any], milliseconds: float) -> int:
    """How much of a work takes so long."""
    count = 1
    while True:
        started = time.perf_counter()
        work(count)
        taken = time.perf_counter() - started
        if taken > 0.05:
            return max(1, int(count * milliseconds / 1e3 / taken))
        count *= 2


def opened(url: str, seq_len: int | None) -> Any:
    """A shuffled dataset, of token blocks if there is a `seq_len`."""
    shuffle = ss.Shuffle(seed=0)
    if seq_len is None:
        return ss.StreamingDataset(url, shuffle=shuffle)
    return ss.TokenDataset(url, seq_len, shuffle=shuffle)


def forever(loader: ss.StreamingLoader) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def options_of(about: str | None) -> argparse.ArgumentParser:
    """A command line with the options that all have.

    Args:
        about: The docstring of the program, whose first line is shown.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, help="read it as a TokenDataset of this seq_len")
    parser.add_argument("--out", type=Path)
    return parser


def write(out: Path | None, name: str, table: str, facts: dict[str, Any]) -> None:
    """Print a table; with `out` write it there, and the facts beside those of the machine as JSON."""
    print(table)
    if out is None:
        return
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        **facts,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / f"{name}.md").write_text(table)

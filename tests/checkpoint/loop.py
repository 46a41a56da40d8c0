"""A small job that saves, as a program of its own: what it is killed in, and what it leaves.

python -m tests.checkpoint.loop URL FIRST LAST [--local DIR] [--leave]
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

import shardstream as ss


def state(step: int) -> dict[str, object]:
    """What a step saves; no torch, so that the program begins at once."""
    return {"w": np.full(3000, step), "step": step, "more": {f"t{n}": np.full(50, step) for n in range(3)}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--local")
    parser.add_argument("--leave", action="store_true", help="end without waiting for the last save")
    parser.add_argument("--options", default="null")
    given = parser.parse_args()
    saves = ss.Checkpoints(
        given.url, local=given.local, keep=2, memory="32MiB", storage_options=json.loads(given.options)
    )
    print("begun", flush=True)
    for step in range(given.first, given.last):
        saves.save(step, state(step), busy="wait")
        print(step, flush=True)
    if not given.leave:
        saves.wait()
    print("torch" in sys.modules, flush=True)


if __name__ == "__main__":
    main()

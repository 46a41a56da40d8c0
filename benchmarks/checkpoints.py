"""ss.Checkpoints beside torch.save, torch.distributed.checkpoint and s3torchconnector: on a disk and on S3.

    python -m benchmarks.checkpoints [--size 2GB] [--rounds 2] [--data DIR] [--out DIR]

Four questions: saves and loads of a model on a local disk; saves beside a training loop; saves to an object
store 20 ms away, and loads from it. Each way runs in a process of its own, in turn with the others, and does
its work more than once: the best figures count, for what else the machine does only adds. The first save of a
process makes buffers and does not count. s3torchconnector runs if it can be imported.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.checkpoints_store import CONNECTOR, GET, OURS, PUT, checkpoints, measure_store
from benchmarks.saves import (
    Loop,
    Watch,
    bars,
    best,
    heading,
    in_process,
    load_raw,
    save_raw,
    state_of,
    synced,
    table,
    turns,
    write_results,
)
from shardstream.format.sizes import human_size, parse_size

RAW, READ = "raw write + fsync", "raw preadv, 4 threads"
COPY = "memcpy into warm memory"
KEPT = "dcp.async_save, DefaultStager kept"
SAVES = (RAW, "torch.save + fsync", "dcp.save", OURS)
LOADS = {READ: RAW, "torch.load": "torch.save + fsync", "dcp.load": "dcp.save", OURS: OURS}
STALLS = (COPY, "torch.save + fsync", "dcp.save", "dcp.async_save", KEPT, OURS)
BARS = (
    ("save: seconds, of a raw write and fsync", "save", "seconds", OURS, RAW, 1.05),
    ("save: CPU, of dcp.save", "save", "cpu", OURS, "dcp.save", 0.70),
    ("load, verified: seconds, of a raw preadv", "load", "seconds", OURS, READ, 1.10),
    ("stall, of a memcpy into warm memory", "stall", "stall", OURS, COPY, 1.20),
    ("stall, of dcp.async_save", "stall", "stall", OURS, "dcp.async_save", 0.60),
    ("lost until durable, of dcp.async_save", "stall", "lost", OURS, "dcp.async_save", 0.50),
    ("load from S3: seconds, of bare obstore", "S3 load", "seconds", OURS, GET, 1.15),
    ("load from S3: seconds, of s3torchconnector", "S3 load", "seconds", OURS, CONNECTOR, 0.50),
)


def saver(way: str, folder: str, state: dict[str, Any], pause: float) -> Callable[[int], Callable[[], bool]]:
    """From a step to a function that says whether its checkpoint is durable; the call itself is the stall.

    The function waits for that at most `pause` seconds.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    handle = checkpoints(folder) if way == OURS else None
    options: dict[str, Any] = {}
    if way == KEPT:
        options["async_stager"] = DefaultStager(StagingOptions(False, False, False, False))
    kept = {name: tensor.clone() for name, tensor in state.items()} if way == COPY else {}

    def save(step: int) -> Callable[[], bool]:
        place = f"{folder}/{step}"
        if handle is not None:
            handle.save(step, {"state": state})
            return lambda: bool(handle.wait(pause))
        if way == COPY:
            for name, tensor in state.items():
                kept[name].copy_(tensor)
        elif way == RAW:
            save_raw(place, state)
        elif way == "torch.save + fsync":
            torch.save(state, place)
            synced(place)
        elif way == "dcp.save":
            dcp.save(state, checkpoint_id=place, no_dist=True)
        else:
            future: Any = dcp.async_save(state, checkpoint_id=place, no_dist=True, **options)
            return lambda: bool(future.done() and future.result())
        return lambda: True

    return save


def saved(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: saves; the last one is left for loads."""
    state, rows = state_of(size), []
    os.makedirs(folder)
    save = saver(way, folder, state, 60.0)
    for step in range(3):
        os.sync()
        with Watch() as watch:
            durable = save(step)
            assert durable()
        rows.append(watch.found)
        if step:
            for old in (f"{folder}/{step - 1}", f"{folder}/step-{step - 1}"):
                shutil.rmtree(old, ignore_errors=True)
                Path(old).unlink(missing_ok=True)
    return {**best(rows[1:]), "memory": max(row["memory"] for row in rows)}


def loaded(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: loads, the first of which fills the page cache."""
    import torch
    import torch.distributed.checkpoint as dcp

    state, rows = state_of(size, filled=False), []
    for _ in range(3):
        with Watch() as watch:
            if way == READ:
                load_raw(f"{folder}/2", state)
            elif way == "torch.load":
                state.update(torch.load(f"{folder}/2", weights_only=True))
            elif way == "dcp.load":
                dcp.load(state, checkpoint_id=f"{folder}/2", no_dist=True)
            else:
                assert checkpoints(folder).load({"state": state}) == 2
        rows.append(watch.found)
    assert all(bool(tensor.any()) for tensor in state.values())
    return best(rows[1:])


def stalled(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: saves beside a loop."""
    os.makedirs(folder)
    save = saver(way, folder, state_of(size), 0.0)
    loop = Loop()
    rows = [loop.beside(lambda step=step: save(step)) for step in range(4)]  # type: ignore[misc]
    return best(rows[1:])


def measure(data: Path, size: int, rounds: int, out: Path) -> None:
    """All tables."""
    found: dict[str, Any] = {name: {} for name in ("save", "load", "stall", "S3 save", "S3 load")}
    beside, small = min(size, 350_000_000), min(size, 160_000_000)
    shutil.rmtree(data, ignore_errors=True)
    for _ in turns(rounds, 150.0):
        for way in SAVES:
            folder = data / way.replace(" ", "_")
            shutil.rmtree(folder, ignore_errors=True)
            found["save"].setdefault(way, []).append(in_process(saved, way, str(folder), size))
        for way, writer in LOADS.items():
            folder = data / writer.replace(" ", "_")
            found["load"].setdefault(way, []).append(in_process(loaded, way, str(folder), size))
        for way in STALLS:
            shutil.rmtree(data / "stall", ignore_errors=True)
            found["stall"].setdefault(way, []).append(in_process(stalled, way, str(data / "stall"), beside))
    shutil.rmtree(data)
    measure_store(found, small, rounds)
    lines = ["# Checkpoints", "", heading("Loads of local files are warm."), ""]
    both, columns = ("seconds", "cpu", "memory"), ("stall", "lost", "durable", "cpu", "memory")
    lines += table(f"save, {human_size(size)}, local", found["save"], both, RAW)
    lines += table(f"load, {human_size(size)}, local", found["load"], both, READ)
    lines += table(f"beside training, {human_size(beside)}", found["stall"], columns, COPY)
    lines += table(f"save, {human_size(small)}, S3 20 ms away", found["S3 save"], both, PUT)
    lines += table(f"load, {human_size(small)}, S3 20 ms away", found["S3 load"], both, GET)
    lines += bars(found, BARS)
    write_results(out, lines, {"size": size, "found": found})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/tmp/benchmarks-checkpoints"))
    parser.add_argument("--size", default="2GB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoints"))
    given = parser.parse_args()
    measure(given.data, parse_size(given.size), given.rounds, given.out)


if __name__ == "__main__":
    main()

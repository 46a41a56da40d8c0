"""Checkpoints of torch.distributed.checkpoint: our Writer and Reader beside torch's, on a local disk.

    python -m benchmarks.dcp [--size 500MB] [--rounds 3] [--data /tmp/dcp] [--out benchmarks/results/dcp]

Each way runs in a process of its own, in turn with the others. A process does its work three times, and its
best figures count: what else the machine does only adds. Before each time, the machine's dirty pages are
written. CPU seconds are those of the process, kernel included; memory is the peak above what it had.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

RAW, READ, COPY = "raw write + fsync", "raw preadv, 4 threads", "memcpy into warm memory"
ONE, KEPT, OURS = "FileSystemWriter, 1 thread", "dcp.async_save, DefaultStager kept", "ss.dcp.Writer"
SAVES = (
    RAW, "torch.save + fsync", "safetensors + fsync", ONE, "FileSystemWriter, 2 threads", "FsspecWriter",
    "HuggingFaceStorageWriter", OURS,
)  # fmt: skip
LOADS = {
    READ: RAW, "torch.load": "torch.save + fsync", "safetensors load_file + copy": "safetensors + fsync",
    "FileSystemReader": ONE, "ss.dcp.Reader of torch's folder": ONE, "ss.dcp.Reader": OURS,
}  # fmt: skip
STALLS = (COPY, "dcp.async_save", KEPT, OURS)
BARS = (
    ("save: seconds, of a raw write and fsync", "save", "seconds", OURS, RAW, 1.05),
    ("save: CPU, of a raw write and fsync", "save", "cpu", OURS, RAW, 1.10),
    ("save: CPU, of FileSystemWriter", "save", "cpu", OURS, ONE, 0.70),
    ("load, verified: seconds, of a raw preadv", "load", "seconds", "ss.dcp.Reader", READ, 1.10),
    ("stall, of a memcpy into warm memory", "stall", "stall", OURS, COPY, 1.20),
    ("stall, of dcp.async_save", "stall", "stall", OURS, "dcp.async_save", 0.60),
    ("lost until durable, of dcp.async_save", "stall", "lost", OURS, "dcp.async_save", 0.50),
)
TIMES = 3


def save(way: str, folder: str, state: dict[str, Any]) -> None:
    """Save a state in one way."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    import shardstream as ss

    os.makedirs(folder, exist_ok=True)
    if way == RAW:
        save_raw(f"{folder}/all", state)
    elif way == "torch.save + fsync":
        with open(f"{folder}/all", "wb") as file:
            torch.save(state, file)
            os.fsync(file.fileno())
    elif way == "safetensors + fsync":
        from safetensors.torch import save_file

        save_file(state, f"{folder}/all")
        synced(f"{folder}/all")
    else:
        writers: dict[str, Callable[[], Any]] = {
            ONE: lambda: dcp.FileSystemWriter(folder),
            "FileSystemWriter, 2 threads": lambda: dcp.FileSystemWriter(folder, thread_count=2),
            "FsspecWriter": lambda: FsspecWriter(f"file://{folder}"),
            "HuggingFaceStorageWriter": lambda: dcp.HuggingFaceStorageWriter(folder),
            OURS: lambda: ss.dcp.Writer(f"{folder}/step-1"),
        }
        dcp.save(state, storage_writer=writers[way](), no_dist=True)


def load(way: str, folder: str, state: dict[str, Any]) -> None:
    """Load a state that was saved in this folder."""
    import torch
    import torch.distributed.checkpoint as dcp

    import shardstream as ss

    if way == READ:
        load_raw(f"{folder}/all", state)
    elif way == "torch.load":
        state.update(torch.load(f"{folder}/all", weights_only=True))
    elif way == "safetensors load_file + copy":
        from safetensors.torch import load_file

        for name, tensor in load_file(f"{folder}/all").items():
            state[name].copy_(tensor)
    else:
        reader = {
            "FileSystemReader": lambda: dcp.FileSystemReader(folder),
            "ss.dcp.Reader of torch's folder": lambda: ss.dcp.Reader(folder),
            "ss.dcp.Reader": lambda: ss.dcp.Reader(f"{folder}/step-1"),
        }[way]()
        dcp.load(state, storage_reader=reader, no_dist=True)


def saved(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: saves; the last one is left for loads."""
    state, small = state_of(size), state_of(1)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as other:
        save(way, other, small)  # modules that are imported at the first use
    rows = []
    for _ in range(TIMES):
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        with Watch() as watch:
            save(way, folder, state)
        rows.append(watch.found)
    return best(rows)


def loaded(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: loads, the first of which fills the page cache."""
    rows = []
    state = state_of(size, filled=False)
    for _ in range(TIMES + 1):
        with Watch() as watch:
            load(way, folder, state)
        rows.append(watch.found)
    assert all(bool(tensor.any()) for tensor in state.values())
    return best(rows[1:])


def stalled(way: str, folder: str, size: int) -> dict[str, float]:
    """In a process of its own: saves beside a loop; the first one makes buffers."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    import shardstream as ss

    state = state_of(size)
    writer = ss.dcp.Writer(f"{folder}/step-0")
    stager = DefaultStager(StagingOptions(False, False, False, False))
    kept = {name: tensor.clone() for name, tensor in state.items()}
    rows, number = [], 0

    def begin() -> Callable[[], bool]:
        place = f"{folder}/step-{number}"
        if way == COPY:
            for name, tensor in state.items():
                kept[name].copy_(tensor)
            return lambda: True
        options: dict[str, Any] = {"storage_writer": writer}
        if way != OURS:
            options = {"storage_writer": dcp.FileSystemWriter(place)}
            if way == KEPT:
                options["async_stager"] = stager
        future: Any = dcp.async_save(state, checkpoint_id=place, no_dist=True, **options)
        return lambda: bool(future.done() and future.result())

    loop = Loop()
    for number in range(TIMES + 1):
        rows.append(loop.beside(begin))
        shutil.rmtree(f"{folder}/step-{number}", ignore_errors=True)
    return best(rows[1:])


def measure(data: Path, size: int, rounds: int, out: Path) -> None:
    """All tables; they are written after each round."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"save": {}, "load": {}, "stall": {}}
    data.mkdir(parents=True, exist_ok=True)
    third = size // 3
    for _ in turns(rounds):
        for way in SAVES:
            folder = data / way.replace(" ", "_")
            found["save"].setdefault(way, []).append(in_process(saved, way, str(folder), size))
        for way, writer in LOADS.items():
            folder = data / writer.replace(" ", "_")
            found["load"].setdefault(way, []).append(in_process(loaded, way, str(folder), size))
        for way in STALLS:
            found["stall"].setdefault(way, []).append(in_process(stalled, way, str(data / "stall"), third))
            shutil.rmtree(data / "stall", ignore_errors=True)
        lines = [f"# torch.distributed.checkpoint, {human_size(size)} on a local disk", ""]
        lines += [heading("Load is warm."), ""]
        both = ("seconds", "cpu", "memory")
        lines += table("save", found["save"], both, RAW) + table("load", found["load"], both, READ)
        columns = ("stall", "lost", "durable", "cpu", "memory")
        lines += table(f"stall, {human_size(third)}", found["stall"], columns, COPY)
        lines += bars(found, BARS)
        write_results(out, lines, {"size": size, "found": found})
    shutil.rmtree(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/tmp/benchmarks-dcp"))
    parser.add_argument("--size", default="500MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dcp"))
    given = parser.parse_args()
    measure(given.data, parse_size(given.size), given.rounds, given.out)


if __name__ == "__main__":
    main()

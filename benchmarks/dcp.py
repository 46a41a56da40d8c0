"""Checkpoints of torch.distributed.checkpoint: our Writer and Reader beside torch's, on a local disk.

    python -m benchmarks.dcp --data /tmp/dcp --size 1GB --rounds 3 --out benchmarks/results/dcp

Each way runs in a process of its own, in turn with the others, after the machine's dirty pages are written.
Seconds are wall time; CPU seconds are those of the process, kernel included. Memory is the peak above what
the process had.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardstream.format.sizes import human_size, parse_size

SAVES = [
    "raw write + fsync", "torch.save + fsync", "safetensors + fsync", "FileSystemWriter, 1 thread",
    "FileSystemWriter, 2 threads", "FsspecWriter", "HuggingFaceStorageWriter", "ss.dcp.Writer",
]  # fmt: skip
LOADS = {
    "raw preadv, 4 threads": "raw write + fsync", "torch.load": "torch.save + fsync",
    "safetensors load_file + copy": "safetensors + fsync", "FileSystemReader": "FileSystemWriter, 1 thread",
    "ss.dcp.Reader of torch's folder": "FileSystemWriter, 1 thread", "ss.dcp.Reader": "ss.dcp.Writer",
}  # fmt: skip
STALLS = ["memcpy into warm memory", "dcp.async_save", "dcp.async_save, DefaultStager kept", "ss.dcp.Writer"]
TENSOR = 5_000_000  # elements of bfloat16


def state_of(size: int, filled: bool = True) -> dict[str, Any]:
    import torch

    count = max(1, size // (2 * TENSOR))
    one = torch.randn(TENSOR).bfloat16() if filled else torch.zeros(TENSOR, dtype=torch.bfloat16)
    return {f"layers.{number}.weight": one.clone().reshape(1000, -1) for number in range(count)}


class Watch:
    """Wall seconds, CPU seconds and the peak of memory of a part of a program."""

    def __enter__(self) -> Watch:  # noqa: PYI034, Self came with Python 3.11
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _kilobytes("VmRSS")
        self._cpu = _cpu()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.found = {
            "seconds": time.perf_counter() - self._start,
            "cpu": _cpu() - self._cpu,
            "memory": (_kilobytes("VmHWM") - self._before) * 1024,
        }


def _kilobytes(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def save(way: str, folder: str, state: dict[str, Any]) -> None:
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    import shardstream as ss

    os.makedirs(folder, exist_ok=True)
    if way == "raw write + fsync":
        with open(f"{folder}/all", "wb") as file:
            file.writelines(
                memoryview(tensor.reshape(-1).view(torch.uint8).numpy()) for tensor in state.values()
            )
            file.flush()
            os.fsync(file.fileno())
    elif way == "torch.save + fsync":
        with open(f"{folder}/all", "wb") as file:
            torch.save(state, file)
            os.fsync(file.fileno())
    elif way == "safetensors + fsync":
        from safetensors.torch import save_file

        save_file(state, f"{folder}/all")
        descriptor = os.open(f"{folder}/all", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    else:
        writers: dict[str, Callable[[], Any]] = {
            "FileSystemWriter, 1 thread": lambda: dcp.FileSystemWriter(folder),
            "FileSystemWriter, 2 threads": lambda: dcp.FileSystemWriter(folder, thread_count=2),
            "FsspecWriter": lambda: FsspecWriter(f"file://{folder}"),
            "HuggingFaceStorageWriter": lambda: dcp.HuggingFaceStorageWriter(folder),
            "ss.dcp.Writer": lambda: ss.dcp.Writer(f"{folder}/step-1"),
        }
        dcp.save(state, storage_writer=writers[way](), no_dist=True)


def load(way: str, folder: str, state: dict[str, Any]) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    import shardstream as ss

    if way == "raw preadv, 4 threads":
        _preadv(f"{folder}/all", [tensor.reshape(-1).view(torch.uint8).numpy() for tensor in state.values()])
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


def _preadv(path: str, arrays: list[Any]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    descriptor = os.open(path, os.O_RDONLY)
    starts = [sum(array.nbytes for array in arrays[:number]) for number in range(len(arrays))]
    with ThreadPoolExecutor(4) as pool:
        for count, array in zip(
            pool.map(
                lambda pair: os.preadv(descriptor, [pair[0]], pair[1]), zip(arrays, starts, strict=True)
            ),
            arrays,
            strict=True,
        ):
            assert count == array.nbytes
    os.close(descriptor)


def stall(way: str, folder: str, state: dict[str, Any], saves: int = 4) -> dict[str, float]:
    """Medians over saves but the first: how long the call takes, and what steps lose until all is durable."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    import shardstream as ss

    torch.set_num_threads(1)
    a = torch.randn(400, 400)

    def step() -> None:
        for _ in range(4):
            a @ a

    def steps(seconds: float) -> float:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            step()
            count += 1
        return (time.perf_counter() - start) / count

    quiet = min(steps(0.5) for _ in range(3))
    writer = ss.dcp.Writer(f"{folder}/step-0")
    stager = DefaultStager(StagingOptions(False, False, False, False))
    kept = {name: tensor.clone() for name, tensor in state.items()}
    found = []
    for number in range(saves):
        os.sync()
        begin = time.perf_counter()
        if way == "memcpy into warm memory":
            for name, tensor in state.items():
                kept[name].copy_(tensor)
            stalled = lost = time.perf_counter() - begin
            found.append((stalled, lost, 0.0))
            continue
        options: dict[str, Any] = {"storage_writer": writer}
        if way != "ss.dcp.Writer":
            options = {"storage_writer": dcp.FileSystemWriter(f"{folder}/step-{number}")}
            if "kept" in way:
                options["async_stager"] = stager
        future = dcp.async_save(state, checkpoint_id=f"{folder}/step-{number}", no_dist=True, **options)
        stalled = time.perf_counter() - begin
        count = 0
        while not future.done():
            step()
            count += 1
        future.result()
        durable = time.perf_counter() - begin
        found.append((stalled, durable - count * quiet, durable))
        shutil.rmtree(f"{folder}/step-{number}")
    names = ("stall", "lost", "durable")
    return dict(
        zip(names, (statistics.median(column) for column in zip(*found[1:], strict=True)), strict=True)
    )


def one(what: str, way: str, folder: str, size: int) -> dict[str, Any]:
    """In a process of its own."""
    warnings.filterwarnings("ignore")
    threading.excepthook = lambda error: os._exit(3)
    state = state_of(size, filled=what != "load")
    # Imports are not part of what is measured.
    for module in ("torch.distributed.checkpoint", "torch.distributed.tensor", "shardstream.checkpoint.dcp"):
        importlib.import_module(module)
    if what == "stall":
        return stall(way, folder, state)
    # So are the modules that are imported at the first use.
    small = state_of(1)
    with tempfile.TemporaryDirectory() as other:
        save(LOADS[way] if what == "load" else way, other, small)
        if what == "load":
            load(way, other, small)
    os.sync()
    with Watch() as watch:
        (save if what == "save" else load)(way, folder, state)
    if what == "load":
        assert all(bool(tensor.any()) for tensor in state.values())
    return watch.found


def run(what: str, way: str, folder: Path, size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.dcp", "--one", what, way, str(folder), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} {way}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(data: Path, size: int, rounds: int, out: Path) -> None:
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"save": {}, "load": {}, "stall": {}}
    for number in range(rounds):
        for way in SAVES:
            folder = data / way.replace(" ", "_")
            shutil.rmtree(folder, ignore_errors=True)
            found["save"].setdefault(way, []).append(run("save", way, folder, size))
        for way, saved in LOADS.items():
            folder = data / saved.replace(" ", "_")
            run("load", way, folder, size)  # so that the page cache has it
            found["load"].setdefault(way, []).append(run("load", way, folder, size))
        for way in STALLS:
            folder = data / "stall"
            shutil.rmtree(folder, ignore_errors=True)
            found["stall"].setdefault(way, []).append(run("stall", way, folder, size // 3))
        print(f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps({"size": size, "found": found}, indent=1) + "\n")
        (out / "results.md").write_text(table(size, found))
    shutil.rmtree(data)


def table(size: int, found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Medians, with the least and the most of all rounds."""
    lines = [f"# torch.distributed.checkpoint, {human_size(size)} on a local disk", ""]
    lines += [f"{os.cpu_count()} processors. Medians of the rounds (least to most). Load is warm.", ""]
    for what, columns in (
        ("save", ("seconds", "cpu", "memory")),
        ("load", ("seconds", "cpu", "memory")),
        ("stall", ("stall", "lost", "durable")),
    ):
        heads = {"seconds": "s", "cpu": "CPU s", "memory": "memory"}
        title = f"{what}, {human_size(size // 3)}" if what == "stall" else what
        lines += [
            f"| {title} | {' | '.join(heads.get(each, each) for each in columns)} |",
            "| --- " * 4 + "|",
        ]
        for way, rounds in found[what].items():
            cells = [_cell(each, [one[each] for one in rounds]) for each in columns]
            lines.append(f"| {way} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(name: str, values: list[float]) -> str:
    shown = (lambda value: human_size(max(0, value))) if name == "memory" else (lambda value: f"{value:.2f}")
    return f"{shown(statistics.median(values))} ({shown(min(values))} to {shown(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4)
    parser.add_argument("--data", type=Path, default=Path("/tmp/benchmarks-dcp"))
    parser.add_argument("--size", default="1GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dcp"))
    given = parser.parse_args()
    if given.one:
        what, way, folder, size = given.one
        print(json.dumps(one(what, way, folder, int(size))))
        return
    measure(given.data, parse_size(given.size), given.rounds, given.out)


if __name__ == "__main__":
    main()

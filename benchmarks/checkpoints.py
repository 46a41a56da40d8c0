"""Saves while a loop trains: ss.Checkpoints beside torch.save, dcp.save and dcp.async_save, on a local disk.

    python -m benchmarks.checkpoints --folder /tmp/checkpoints --size 350MB --rounds 3

Each way runs in a process of its own, in turn with the others. A step of the loop is a matrix product of one
thread, about 7 ms. Of each save after the first: how long the call takes (stall), how much longer the steps
took until the checkpoint is durable (lost), the time until then, CPU seconds of the process, and how much its
resident memory grew at its peak. "raw" writes and syncs the same bytes in the foreground.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardstream.format.sizes import parse_size

WAYS = ("raw", "torch.save", "dcp.save", "dcp.async_save", "dcp.async_save kept", "ss.Checkpoints")


def state_of(size: int) -> dict[str, Any]:
    """Tensors of 2 MB, as many as make the size."""
    import torch

    return {f"layer{n}.weight": torch.rand(512, 1024) for n in range(max(1, size // (512 * 1024 * 4)))}


def saver(way: str, folder: Path, state: dict[str, Any]) -> Callable[[int], Callable[[], bool]]:
    """From a step to a function that says whether its checkpoint is durable; the call itself is the stall."""
    import torch
    import torch.distributed.checkpoint as dcp

    if way == "ss.Checkpoints":
        import shardstream as ss

        saves = ss.Checkpoints(str(folder), keep=1, memory="8GB", busy="wait")

        def ours(step: int) -> Callable[[], bool]:
            saves.save(step, {"state": state})
            return lambda: saves.wait(0.0)

        return ours
    if way == "raw":

        def raw(step: int) -> Callable[[], bool]:
            with (folder / f"{step}.raw").open("wb", buffering=0) as file:
                for tensor in state.values():
                    file.write(tensor.numpy().data)
                os.fsync(file.fileno())
            return lambda: True

        return raw
    if way == "torch.save":

        def plain(step: int) -> Callable[[], bool]:
            with (folder / f"{step}.pt").open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            return lambda: True

        return plain
    if way == "dcp.save":

        def sync(step: int) -> Callable[[], bool]:
            dcp.save(state, checkpoint_id=str(folder / str(step)))
            return lambda: True

        return sync
    options: dict[str, Any] = {}
    if way.endswith("kept"):
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        options["async_stager"] = DefaultStager(StagingOptions(True, True, False, False))

    def asynchronous(step: int) -> Callable[[], bool]:
        future: Any = dcp.async_save(state, checkpoint_id=str(folder / str(step)), **options)
        done = getattr(future, "upload_completion", future)
        return lambda: bool(done.done() and done.result() is not False)

    return asynchronous


def measured(way: str, folder: Path, size: int, saves: int) -> dict[str, float]:
    """The medians of one process."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
    folder.mkdir(parents=True)
    dist.init_process_group("gloo", f"file://{folder}/group", world_size=1, rank=0)
    state = state_of(size)
    one = torch.rand(500, 500)

    loop = [0.0]  # CPU seconds of the steps

    def step() -> float:
        started, cpu = time.perf_counter(), time.thread_time()
        for _ in range(2):
            torch.mm(one, one)
        loop[0] += time.thread_time() - cpu
        return time.perf_counter() - started

    for _ in range(30):
        step()
    usual = statistics.median(step() for _ in range(60))
    save = saver(way, folder, state)
    rows: list[dict[str, float]] = []
    for number in range(saves + 1):
        os.sync()
        memory, stop = [resident()], threading.Event()
        watch = threading.Thread(target=lambda m=memory, s=stop: watched(m, s))
        watch.start()
        before, started = time.process_time(), time.perf_counter()
        loop[0] = 0.0
        durable = save(number)
        stall, lost = time.perf_counter() - started, 0.0
        while not durable():
            lost += max(0.0, step() - usual)
        seconds = time.perf_counter() - started
        cpu = time.process_time() - before - loop[0]
        stop.set()
        watch.join()
        if number:  # the first one makes buffers
            row = {"stall": stall, "lost": stall + lost, "durable": seconds, "cpu": cpu}
            rows.append(row | {"memory": max(memory) - memory[0]})
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def watched(found: list[int], stop: threading.Event) -> None:
    """The peak of the resident memory."""
    while not stop.wait(0.01):
        found.append(resident())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", default="350MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--one", help="used by this program itself")
    given = parser.parse_args()
    size = parse_size(given.size)
    if given.one:
        print(json.dumps(measured(given.one, given.folder, size, given.saves)), flush=True)
        os._exit(0)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in given.ways}
    for number in range(given.rounds):
        for way in given.ways:
            folder = given.folder / f"{number}-{way.replace(' ', '-')}"
            shutil.rmtree(folder, ignore_errors=True)
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.checkpoints",
                "--folder",
                str(folder),
            ]
            command += ["--size", given.size, "--saves", str(given.saves), "--one", way]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)
            if done.returncode:
                print(f"{way}: {done.stderr[-500:]}", file=sys.stderr)
                continue
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    names = ("stall", "lost", "durable", "cpu", "memory")
    print("| way | stall, s | training time lost until durable, s | durable after, s | CPU, s | memory, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, rows in found.items():
        if rows:
            cells = []
            for name in names:
                values = [row[name] / (1e6 if name == "memory" else 1) for row in rows]
                form = "{:.0f}" if name == "memory" else "{:.2f}"
                low, middle, high = min(values), statistics.median(values), max(values)
                cells.append(f"{form.format(middle)} ({form.format(low)}-{form.format(high)})")
            print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""What the benchmarks of checkpoints share: a state, processes of their own, what a call takes, tables."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardstream.format.sizes import human_size

__all__ = [
    "PRELOAD", "Loop", "Watch", "bars", "best", "heading", "in_process", "load_raw", "save_raw", "state_of",
    "synced", "table", "turns", "views", "write_results",
]  # fmt: skip

TENSOR = 5_000_000  # elements of bfloat16
PRELOAD = (
    "torch", "torch.distributed.checkpoint", "torch.distributed.tensor", "safetensors.torch", "fsspec.asyn",
    "shardstream.checkpoint.dcp", "shardstream.checkpoint.checkpoints", "benchmarks.saves",
)  # fmt: skip


def state_of(size: int, filled: bool = True) -> dict[str, Any]:
    """Tensors of 10 MB, in memory that is in use already."""
    import torch

    torch.set_num_threads(1)
    count = max(1, round(size / (2 * TENSOR)))
    one = torch.randn(TENSOR).bfloat16() if filled else torch.zeros(TENSOR, dtype=torch.bfloat16)
    return {f"layers.{number}.weight": one.clone().reshape(1000, -1) for number in range(count)}


def views(state: Mapping[str, Any]) -> list[memoryview]:
    """The memory of the tensors of a state."""
    import torch

    return [tensor.reshape(-1).view(torch.uint8).numpy().data for tensor in state.values()]


def save_raw(path: str, state: Mapping[str, Any]) -> None:
    """Write and sync the bytes: what the machine can do."""
    with open(path, "wb", buffering=0) as file:
        for view in views(state):
            assert file.write(view) == len(view)
        os.fsync(file.fileno())


def synced(path: str) -> None:
    """Sync a file that a library has written."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def load_raw(path: str, state: Mapping[str, Any]) -> None:
    """Read the bytes into the tensors by four threads: what the machine can do."""
    from concurrent.futures import ThreadPoolExecutor

    file, start = os.open(path, os.O_RDONLY), 0
    parts = []
    for view in views(state):
        parts.append((start, view))
        start += len(view)
    with ThreadPoolExecutor(4) as pool:
        for (_, view), count in zip(
            parts, pool.map(lambda part: os.preadv(file, [part[1]], part[0]), parts), strict=True
        ):
            assert count == len(view)
    os.close(file)


class Watch:
    """Wall seconds, CPU seconds and the peak of memory of a part of a program."""

    def __enter__(self) -> Watch:  # noqa: PYI034, Self came with Python 3.11
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _kilobytes("VmRSS")
        self._cpu = _cpu()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.found: dict[str, float] = {
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


class Loop:
    """A training loop beside which something is saved: a step is a matrix product of one thread."""

    def __init__(self) -> None:
        import torch

        self._one = torch.rand(500, 500)
        self._cpu = 0.0
        for _ in range(20):
            self._step()
        self._usual = statistics.median(self._step() for _ in range(60))

    def _step(self) -> float:
        import torch

        started, cpu = time.perf_counter(), time.thread_time()
        for _ in range(2):
            torch.mm(self._one, self._one)
        self._cpu += time.thread_time() - cpu
        return time.perf_counter() - started

    def beside(self, save: Callable[[], Callable[[], bool]]) -> dict[str, float]:
        """One save: how long the call takes (stall), what steps lose until it is durable, when that is, and
        the CPU seconds of all but the steps.

        Args:
            save: Begins a save; returns a function that says whether it is durable.
        """
        os.sync()
        with Watch() as watch:
            self._cpu = 0.0
            started = time.perf_counter()
            durable = save()
            stall, lost = time.perf_counter() - started, 0.0
            while not durable():
                lost += max(0.0, self._step() - self._usual)
        found = watch.found
        return {
            "stall": stall, "lost": stall + lost, "durable": found["seconds"],
            "cpu": found["cpu"] - self._cpu, "memory": found["memory"],
        }  # fmt: skip


def best(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The least of each figure: what else the machine does only adds. Of memory, the most."""
    return {name: (max if name == "memory" else min)(row[name] for row in rows) for name in rows[0]}


def in_process(work: Callable[..., dict[str, float]], *given: Any) -> dict[str, Any]:
    """What work finds in a process of its own, which has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, work, given))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(180) else {"failed": "not done in 180 s"}
    except EOFError:
        return {"failed": "it has ended without an answer"}
    finally:
        process.kill()
        process.join()


def _run(sender: Any, work: Callable[..., dict[str, float]], given: tuple[Any, ...]) -> None:
    import warnings

    warnings.filterwarnings("ignore")
    threading.excepthook = lambda error: None
    try:
        sender.send(work(*given))
    except BaseException as error:  # noqa: BLE001 - it is shown in the table
        sender.send({"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]})


Rounds = Mapping[str, Sequence[Mapping[str, Any]]]
_HEADS = {"seconds": "s", "cpu": "CPU s", "lost": "lost until durable", "durable": "durable after"}


def table(title: str, rounds: Rounds, columns: Sequence[str], ceiling: str) -> list[str]:
    """Medians with the least and the most of all rounds, and how often the ceiling's, taken within rounds."""
    heads = [
        _HEADS.get(each, each) + (", s" if each in ("stall", "lost", "durable") else "") for each in columns
    ]
    lines = [
        f"| {title} | {' | '.join(heads)} | {heads[0]}, x | CPU, x |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for way, all_rows in rounds.items():
        rows = [row for row in all_rows if "failed" not in row]
        if not rows:
            why = all_rows[0]["failed"] if all_rows else "not run"
            lines.append(f"| {way} | failed: {why} {'| ' * (len(columns) + 2)}|")
            continue
        cells = [_cell(each, [row[each] for row in rows]) for each in columns]
        cells += [_number(ratio(rounds, way, ceiling, each)) for each in (columns[0], "cpu")]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return [*lines, ""]


def ratio(rounds: Rounds, way: str, other: str, name: str) -> float | None:
    """The median of how many times another way's figure one has in the same round."""
    pairs = [
        (row[name], base[name])
        for row, base in zip(rounds.get(way, ()), rounds.get(other, ()), strict=False)
        if "failed" not in row and "failed" not in base
    ]
    found = [one / two for one, two in pairs if two > 0]
    return statistics.median(found) if found else None


def bars(found: Mapping[str, Rounds], wanted: Sequence[tuple[str, str, str, str, str, float]]) -> list[str]:
    """What is wanted, and what was found.

    Args:
        found: Rounds, by the names of tables.
        wanted: (text, table, figure, way, other way, how many times the other's at most).
    """
    lines = ["| bar | at most | found | |", "| --- | --- | --- | --- |"]
    for text, where, name, way, other, most in wanted:
        value = ratio(found.get(where, {}), way, other, name)
        met = "not run" if value is None else "met" if value <= most else "not met"
        lines.append(f"| {text} | {most:.2f} | {_number(value)} | {met} |")
    return [*lines, ""]


def _cell(name: str, values: list[float]) -> str:
    shown = (lambda value: human_size(max(0, value))) if name == "memory" else (lambda value: f"{value:.2f}")
    return f"{shown(statistics.median(values))} ({shown(min(values))} to {shown(max(values))})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def heading(more: str) -> str:
    """What the figures of the tables are."""
    return (
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}. Medians of the rounds (least to most) "
        f"of the best of each process. x: times the first row, within rounds. {more}"
    )


def turns(rounds: int, seconds: float = 230.0) -> Iterator[int]:
    """So many rounds; fewer if another one would end after so many seconds."""
    started = time.monotonic()
    for number in range(rounds):
        passed = time.monotonic() - started
        if number and passed * (number + 1) / number > seconds:
            print(f"stopped after {number} rounds and {passed:.0f} s", flush=True)
            return
        yield number


def write_results(out: Path, lines: Sequence[str], found: Mapping[str, Any]) -> None:
    """Write results.md and results.json, and print the first."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "results.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines), flush=True)

"""What does a row of a log cost the training loop, and which rows are there after a kill?

    python -m benchmarks.logs [--rounds 5] [--seconds 4] [--out DIR]

Each contender is a process of its own, and rounds go through all of them in turn. A row has five numbers.

- burst: microseconds of a call, 1,000 rows one after another.
- cost: the same, one row each millisecond, so that the processor has done something else meanwhile.
- slow: the same where each write of the sink takes 20 ms, as on a network disk: how many rows were taken,
  and the longest call. "never answers": neither the store nor a sink ever returns.
- killed: SIGKILL after row 1,000: how many rows can be read afterwards. For ours, after the next start.
- memory: how much a process has grown after 200,000 rows, one after another, with the slow sink.

loguru and tensorboard have to be installed for their rows: requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.log_contenders import CONTENDERS, Write

ROWS = 1000
FLOOD = 200_000
TASKS = ("burst", "cost", "slow", "killed", "flood")
ONCE = ("killed", "flood")  # they hardly differ between rounds


def paced(write: Write, seconds: float) -> dict[str, Any]:
    """One row each millisecond, as far as calls return in time."""
    for step in range(20):
        write(step)
    took: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        begun = time.perf_counter_ns()
        write(len(took))
        took.append((time.perf_counter_ns() - begun) / 1000)
        time.sleep(max(0.0, started + len(took) / 1000 - time.perf_counter()))
    took.sort()
    return {
        "rows": len(took), "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100],
        "p99.9": took[len(took) * 999 // 1000], "worst": took[-1],
    }  # fmt: skip


def burst(write: Write) -> dict[str, Any]:
    """Rows one after another."""
    for step in range(20):
        write(step)
    took: list[float] = []
    for step in range(ROWS):
        begun = time.perf_counter_ns()
        write(step)
        took.append((time.perf_counter_ns() - begun) / 1000)
    took.sort()
    return {"p50": took[ROWS // 2], "p99.9": took[ROWS * 999 // 1000]}


def flood(write: Write, seconds: float) -> dict[str, Any]:
    """How much memory is taken by many rows, or by those that were taken in time."""
    before, limit, step = 0, time.monotonic() + seconds, 0
    while step < FLOOD and time.monotonic() < limit:
        write(step)
        step += 1
        if step == 10:
            before = _resident()
    return {"rows": step, "grown": (_resident() - before) / 2**20}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def child(name: str, task: str, folder: str, seconds: float) -> None:
    """One contender, one task; prints what it found as JSON."""
    make, options = CONTENDERS[name]
    slow = task in ("slow", "flood") or options.get("dead", False)
    write = make(folder, slow, **options)
    if task == "killed":
        for step in range(ROWS):
            write(step)
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "burst":
        found = burst(write)
    else:
        found = flood(write, seconds) if task == "flood" else paced(write, seconds)
    print(json.dumps(found), flush=True)
    os._exit(0)


def after_kill(name: str, folder: str) -> int:
    """How many rows can be read."""
    if name.startswith("ss.Log"):
        import shardstream as ss
        from shardstream.logs import read

        url = f"{folder}/log"
        ss.Log(url, rank=0).close()
        return sum("step" in row for row in read(url))
    if name == "TensorBoard":
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        [path] = Path(folder).glob("events*")
        return sum(bool(event.summary.value) for event in EventFileLoader(str(path)).Load()) // 5
    where = Path(folder) / "where"
    path = Path(where.read_text() if where.exists() else f"{folder}/rows")
    return path.read_bytes().count(b"\n") if path.exists() else 0


def once(name: str, task: str, seconds: float) -> dict[str, Any] | None:
    """The figures of one contender in one round; None if it cannot run."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "benchmarks.logs", "--child", name, task, folder, str(seconds)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return None
        if task == "killed" and done.returncode == -signal.SIGKILL:
            return {"rows": after_kill(name, folder)}
        if done.returncode:
            print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
            return None
        return json.loads(done.stdout)  # type: ignore[no-any-return]


def spread(found: list[dict[str, Any]], key: str) -> str:
    """Median (least to most) of the rounds."""
    values = [each[key] for each in found]
    if not values:
        return "-"
    middle, least, most = (
        f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({least} to {most})"


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """The report as Markdown."""
    columns = {
        "burst: p50, us": ("burst", "p50"),
        "p99.9, us ": ("burst", "p99.9"),
        "cost: p50, us": ("cost", "p50"),
        "p99.9, us": ("cost", "p99.9"),
        "slow: rows taken": ("slow", "rows"),
        "longest call, us": ("slow", "worst"),
        "rows after SIGKILL": ("killed", "rows"),
        "memory, MiB": ("flood", "grown"),
    }
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, tasks in results.items():
        cells = [spread(tasks[task], key) for task, key in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    if "--child" in sys.argv:
        name, task, folder, seconds = sys.argv[2:]
        child(name, task, folder, float(seconds))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "logs")
    options = parser.parse_args()
    results: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {task: [] for task in TASKS} for name in CONTENDERS
    }
    loads = []
    for number in range(options.rounds):
        for task in TASKS:
            if number and task in ONCE:
                continue
            for name in CONTENDERS:
                if task == "killed" and name == "ss.Log, never answers":
                    continue  # the next start would need the store
                found = once(name, task, options.seconds)
                loads.append(os.getloadavg()[0])
                if found is not None:
                    results[name][task].append(found)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": f"python -m benchmarks.logs --rounds {options.rounds} --seconds {options.seconds:g}",
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}",
        "load": f"{statistics.median(loads):.1f} ({min(loads):.1f} to {max(loads):.1f})",
        "date": time.strftime("%Y-%m-%d"),
    }
    text = (
        f"`{facts['command']}`: median (least to most) of {options.rounds} rounds in turn, "
        f"{' and '.join(ONCE)} of one; "
        f"Python {facts['python']}, {facts['machine']}, load {facts['load']}, {facts['date']}.\n\n"
    )
    text += table(results)
    everything = {"facts": facts, "results": results}
    (options.out / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    (options.out / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""What does it cost to watch a node: a scrape of the endpoint, and a look of `shardstream top`?

    python -m benchmarks.watching [--rounds 100] [--out DIR]

Processes with full counter files, all stages in use, are there and do nothing. One more serves, one asks.

- scrape: milliseconds from the request of a client on this machine until it has the whole text.
- server: milliseconds of processor time of that in the process that serves.
- look: milliseconds of processor time in which `top` reads all files, and draws its tables.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console

from shardstream.counters.snapshots import read_all
from shardstream.observe.exposition import render
from shardstream.observe.history import History
from shardstream.observe.metrics import families
from shardstream.observe.tables import load_table

BAR = 10.0  # milliseconds of a scrape of 16 processes

_COUNT = """
import random, sys
from shardstream.counters import page, recorder
from shardstream.counters.layout import COUNTERS, STAGES, slot
page.begin("loader", "s3://bucket/corpus")
for stage in range(len(STAGES)):
    for _ in range(2000):
        recorder.observe(stage, random.lognormvariate(-5, 2) * (1e7 if STAGES[stage].unit == "bytes" else 1))
for counter in COUNTERS:
    recorder.add(slot(counter.name), random.randrange(1 << 40))
recorder.put(slot("waiting_since"), 0)
print("ready", flush=True)
sys.stdin.read()
"""
_SERVE = """
import sys
from shardstream.observe.serving import serve
with serve(0) as endpoint:
    print(endpoint.url, flush=True)
    sys.stdin.read()
"""


def _started(code: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def _cpu(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(processes: int, rounds: int) -> dict[str, Any]:
    """The figures for so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SHARDSTREAM_COUNTERS"] = folder
        running = [_started(_COUNT, RANK=str(n), SHARDSTREAM_JOB="train.py") for n in range(processes)]
        server = None
        try:
            for each in running:
                assert each.stdout is not None
                each.stdout.readline()
            server = _started(_SERVE)
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            took = []
            for number in range(rounds + 5):
                if number == 5:
                    before = _cpu(server.pid)
                begun = time.perf_counter()
                with urllib.request.urlopen(url) as answer:
                    size = len(answer.read())
                took.append(1e3 * (time.perf_counter() - begun))
            cpu = 1e3 * (_cpu(server.pid) - before) / rounds
            took = sorted(took[5:])
            history, console = History(), Console(file=io.StringIO(), width=200)
            begun = time.process_time()
            for _ in range(rounds):
                rows = [process.row() for process in history.update(read_all())]
                console.print(load_table(rows, 200, "wait", 40))
            look = 1e3 * (time.process_time() - begun) / rounds
            begun = time.process_time()
            for _ in range(rounds):
                render(families())
            text = 1e3 * (time.process_time() - begun) / rounds
        finally:
            for each in [*running, *filter(None, [server])]:
                each.communicate()
    return {
        "processes": processes,
        "bytes": size,
        "scrape_p50_ms": statistics.median(took),
        "scrape_p99_ms": took[min(len(took) - 1, len(took) * 99 // 100)],
        "server_cpu_ms": cpu,
        "text_cpu_ms": text,
        "look_cpu_ms": look,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", default="benchmarks/results/watching")
    options = parser.parse_args()
    rows = [measured(processes, options.rounds) for processes in (1, 16)]
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, {options.rounds} scrapes."
    head = "| processes | bytes | scrape p50, ms | p99, ms | server CPU, ms | look of top, CPU ms |"
    lines = ["# Watching a node", "", machine, "", head, "| ---: | ---: | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row['processes']} | {row['bytes']:,} | {row['scrape_p50_ms']:.1f} | {row['scrape_p99_ms']:.1f} "
        f"| {row['server_cpu_ms']:.1f} | {row['look_cpu_ms']:.1f} |"
        for row in rows
    ]
    met = "yes" if rows[1]["scrape_p50_ms"] <= BAR else "no"
    lines += ["", f"Bar: a scrape of 16 processes takes at most {BAR:.0f} ms. Met: {met}."]
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "watching.md").write_text("\n".join(lines) + "\n")
    (out / "watching.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""How long does training wait for its data: local, and from a store that is 20 ms away, warmed and not?

    python -m benchmarks.train_stall DATASET [--vocab 257] [--steps 40] [--rounds 3] [--latency 0.02]

DATASET is a local packed dataset of tokens. tools/train/ddp.py trains on it with two processes under
torchrun, each run a new one: from the local files; from SeaweedFS behind a proxy that adds the latency to
each connection and each request, with a cache that `shardstream warm` has filled; and the same with an empty
cache. The cases take turns. A line tells the share of the time that the slower rank waited for its batch, the
median of the rounds with the least and the largest: after the first 5 steps, in which threads start, and of
all steps. Requests and bytes are those of the training, past the warm-up. After each training one request
over a new connection is timed: it shows that the latency was on. --out DIR takes JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT

BAR = 0.02
STARTING = 5  # steps, as in the script's own summary
LOCAL, WARMED, COLD = "local", "remote, warmed", "remote, empty cache"


@dataclass(frozen=True)
class Model:
    """What is trained: the options of the script."""

    steps: int
    vocab: int
    seq_len: int

    def options(self) -> list[str]:
        named = {"steps": self.steps, "vocab": self.vocab, "seq-len": self.seq_len, "precision": "fp32"}
        return [text for name, value in named.items() for text in (f"--{name}", str(value))]


def run(command: list[str], environment: dict[str, str]) -> None:
    """Carry out a command of this Python; its output is shown if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        cwd=ROOT, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-4000:]}")


def trained(
    url: str, cache: str | None, out: Path, model: Model, environment: dict[str, str]
) -> dict[str, Any]:
    """What a run of the script logged of its steps, summed up."""
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "tools/train/ddp.py"]
    command += ["--data", url, "--out", str(out), *model.options(), *(["--cache", cache] if cache else [])]
    run(command, environment)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(rows) == model.steps, f"{len(rows)} steps instead of {model.steps}"

    def share(steps: list[Any]) -> float:
        waited = sum(row["stall"] * row["seconds"] for row in steps)
        return float(waited / sum(row["seconds"] for row in steps))

    return {
        "stall": share(rows[STARTING:]),
        "stall_of_all": share(rows),
        "first_wait": rows[0]["stall"] * rows[0]["seconds"],
        "step": statistics.median(row["seconds"] for row in rows[STARTING:]),
    }


def trip(endpoint: str) -> float:
    """Seconds of one request over a new connection, which the store refuses."""
    started = time.monotonic()
    try:
        urllib.request.urlopen(endpoint, timeout=30).close()
    except urllib.error.HTTPError as refused:
        refused.close()
    return time.monotonic() - started


def measure(dataset: str, model: Model, rounds: int, latency: float, scratch: Path) -> dict[str, list[Any]]:
    """The rounds of each case."""
    from benchmarks.store import Remote

    found: dict[str, list[Any]] = {LOCAL: [], WARMED: [], COLD: []}
    with Remote(scratch) as remote:
        for number in range(rounds):
            for case, rows in found.items():
                place = remote.ready(dataset, latency)
                environment = {
                    "AWS_ACCESS_KEY_ID": place["key"],
                    "AWS_SECRET_ACCESS_KEY": place["secret"],
                    "AWS_ENDPOINT_URL": place["endpoint"],
                }
                url, cache = (dataset, None) if case == LOCAL else (place["url"], place["cache"])
                if case == WARMED:
                    order = ["--seq-len", str(model.seq_len), "--seed", "0"]
                    run(["shardstream", "warm", url, "--cache", cache, *order], environment)
                remote.passed()  # what the training asks for counts from here on
                row = trained(url, cache, scratch / f"{number}-{len(rows)}-{case}", model, environment)
                passed = remote.passed()
                row["trip"] = trip(place["endpoint"])
                # Two round trips, less what a clock is off.
                assert row["trip"] > 1.9 * latency, f"the store is not {latency} s away: {row['trip']} s"
                rows.append(row | {name: passed[name] for name in ("requests", "body_bytes")})
    return found


def report(found: dict[str, list[Any]], model: Model, latency: float, load: float) -> Iterator[str]:
    """The lines of the results."""
    yield "# How long training waits for its data"
    yield ""
    yield f"Made by `python -m benchmarks.train_stall`: {len(found[LOCAL])} rounds of {model.steps} steps,"
    yield f"{os.cpu_count()} cores, load {load:.1f} at the start,"
    yield f"{1e3 * latency:g} ms for each connection and each request."
    yield ""
    names = ["data", f"waited, after {STARTING} steps", "in all steps", "first batch, s", "step, ms"]
    names += ["requests", "MB", "one request, ms"]
    yield f"| {' | '.join(names)} |"
    yield f"|{' --- |' * len(names)}"
    for case, rows in found.items():
        middle = {name: float(statistics.median(row[name] for row in rows)) for name in rows[0]}
        shares = [row["stall"] for row in rows]
        yield (
            f"| {case} | {middle['stall']:.2%} ({min(shares):.2%} to {max(shares):.2%}) | "
            f"{middle['stall_of_all']:.2%} | {middle['first_wait']:.2f} | {1e3 * middle['step']:.0f} | "
            f"{middle['requests']:,.0f} | {middle['body_bytes'] / 1e6:,.1f} | {1e3 * middle['trip']:.0f} |"
        )


def line(case: str, rows: list[dict[str, Any]]) -> str:
    """One case in words."""

    def middle(name: str) -> float:
        return float(statistics.median(row[name] for row in rows))

    shares, megabytes = [row["stall"] for row in rows], middle("body_bytes") / 1e6
    return (
        f"{case}: stall {middle('stall'):.2%} ({min(shares):.2%} to {max(shares):.2%}) of the time, "
        f"{middle('stall_of_all'):.2%} with the first {STARTING} steps; first batch after "
        f"{middle('first_wait'):.2f} s, step {1e3 * middle('step'):.0f} ms, "
        f"{middle('requests'):,.0f} requests, {megabytes:,.1f} MB"
    ) + ("" if middle("stall") <= BAR else f"; ABOVE {BAR:.0%}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--vocab", type=int, default=257, help="257: bytes and an end token")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds for each round trip")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.steps <= STARTING:
        parser.error(f"--steps must be more than {STARTING}")
    model = Model(options.steps, options.vocab, options.seq_len)
    dataset = str(Path(options.dataset).resolve())
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(dataset, model, options.rounds, options.latency, Path(scratch))
    for case, rows in found.items():
        print(line(case, rows))
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "train_stall.json").write_text(json.dumps(found, indent=1) + "\n")
        lines = report(found, model, options.latency, load)
        (options.out / "train_stall.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Does `shardstream advise` tell the truth? Its prediction beside the loader alone with a clock.

    python -m benchmarks.advise [--only CELL...] [--again] [--out benchmarks/results/advise]

Twelve settings: latency 0, 20 and 100 ms x tokens and JPEG x 1 and 4 ranks. SeaweedFS on this machine, behind
a proxy that adds the latency to each request. Each latency is probed once for each dataset. Then the ranks,
processes of their own, read an epoch without a cache, from opening the dataset to the last batch. A clock of
this benchmark says how long the slowest one took. For the knee, a program of this benchmark doubles the
concurrency, with requests of obstore. For the setting, the `prefetch` and `threads` that are advised run
beside a grid.

A cell is a dataset at a latency, or a grid; it is a file in DIR. What is there is not measured again, unless
other programs disturbed it. So run it again on a machine that is not always quiet.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from benchmarks.advise_data import make
from benchmarks.advise_report import DISTURBED, line, report
from benchmarks.advise_sweep import own_sweep
from benchmarks.others import Watch, still
from benchmarks.processes import ROOT
from shardstream.observe.probe_profile import Profile

T = TypeVar("T")

LATENCIES, KINDS, RANKS = (0.0, 0.02, 0.1), ("tokens", "jpeg"), (1, 4)
BATCH = 32
SIZE: dict[str, Any] = {"tokens": None, "jpeg": 224}
DATA = Path.home() / ".cache" / "shardstream-bench" / "advise"
GRID_LATENCY = 0.02  # seconds
PATIENCE = 4.0  # seconds to wait for that
LANES, WINDOW = 16, 2  # small datasets: the frames of 64 lanes would be all of them
GRID = [("16MiB", 2), ("64MiB", 2), ("256MiB", 1), ("256MiB", 2), ("256MiB", 4), ("1GiB", 2)]


def rank() -> None:
    """One rank: `ready`, then at each line on stdin an epoch, whose seconds it prints."""
    import shardstream as ss
    from shardstream import StreamingDataset, TokenDataset
    from shardstream.decode.images import Train
    from shardstream.storage.transport.backends import obstore

    told = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    for wanted in sys.stdin:
        options = {name: value for name, value in json.loads(wanted).items() if value is not None}
        obstore._made.cache_clear()  # noqa: SLF001 - a job begins without connections
        gc.collect()
        began, cpu = time.perf_counter(), time.process_time()
        common = {
            "shuffle": ss.Shuffle(0, LANES, WINDOW),
            "topology": ss.Topology(told["rank"], told["world"]),
            "storage_options": told["options"],
        }
        ds: Any = (
            TokenDataset(told["url"], 2048, **common) if told["kind"] == "tokens"
            else StreamingDataset(told["url"], decode=Train(SIZE["jpeg"]), **common)
        )  # fmt: skip
        for _ in ss.StreamingLoader(ds, BATCH, last="short", **options):
            pass
        print(json.dumps([time.perf_counter() - began, time.process_time() - cpu]), flush=True)


class Ranks:
    """Processes of ranks that wait for an epoch to read."""

    def __init__(self, kind: str, url: str, options: dict[str, Any], world: int) -> None:
        self.epochs = 0
        self._all = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.advise", "--rank"], cwd=ROOT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
            ) for _ in range(world)
        ]  # fmt: skip
        for number, one in enumerate(self._all):
            told = {"kind": kind, "url": url, "options": options, "rank": number, "world": world}
            one.stdin.write(json.dumps(told) + "\n")  # type: ignore[union-attr]
            one.stdin.flush()  # type: ignore[union-attr]
        for one in self._all:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"

    def epoch(self, **options: Any) -> dict[str, float]:
        """Seconds of the slowest rank; seconds of cores of all ranks, and of the store and the proxy."""
        self.epochs += 1
        watch = Watch()
        for one in self._all:
            one.stdin.write(json.dumps(options) + "\n")  # type: ignore[union-attr]
            one.stdin.flush()  # type: ignore[union-attr]
        found = [json.loads(one.stdout.readline()) for one in self._all]  # type: ignore[union-attr]
        cpu = sum(cpu for _, cpu in found)
        wall = max(wall for wall, _ in found)
        return {"seconds": wall, "cpu": cpu, "store_cpu": max(0.0, watch.ours() - cpu)}

    def close(self) -> None:
        for one in self._all:
            one.stdin.close()  # type: ignore[union-attr]
        for one in self._all:
            one.wait(60)


def measure(kind: str, latency: float, rounds: int, seconds: float, data: Path, tries: int) -> dict[str, Any]:
    """One cell: a dataset at a latency. The probe, the sweep, the predictions, and then the epochs."""
    from benchmarks.store import Remote
    from shardstream.format.manifest import Manifest
    from shardstream.observe.advise import advise
    from shardstream.observe.probe import probe

    place, rows, common = data / kind, [], _common(kind)
    with tempfile.TemporaryDirectory() as scratch, Remote(Path(scratch)) as remote:
        there = remote.ready(str(place), latency)
        url = there["url"]
        options = {"key": there["key"], "secret": there["secret"], "endpoint_url": there["endpoint"]}
        profile, disturbed = quietest(
            lambda: probe(url, seconds=seconds, storage_options=options, **common), 1, tries
        )[0]
        manifest = Manifest.from_bytes((place / "manifest.json").read_bytes())
        objects = [(shard.url, shard.bytes) for shard in manifest.shards if shard.bytes > 2 << 20]
        sweep, sweep_disturbed = quietest(lambda: own_sweep(url, options, objects), 1, tries)[0]
        for world in RANKS:
            advice = advise(url, profile, world=world, storage_options=options, **common)
            ranks = Ranks(kind, url, options, world)
            try:
                ranks.epoch()  # threads, imports and the server's own cache
                remote.passed()
                ranks.epochs = 0
                times = quietest(ranks.epoch, rounds, tries * rounds)
                passed = {
                    name: value / ranks.epochs for name, value in remote.passed().items()
                    if name in ("connections", "requests", "body_bytes")
                }  # fmt: skip
            finally:
                ranks.close()
            rows.append({
                "kind": kind, "latency": latency, "ranks": world,
                "seconds": [one["seconds"] for one, _ in times], "others": [other for _, other in times],
                "probe_others": disturbed,
                "cpu": statistics.median(one["cpu"] for one, _ in times),
                "store_cpu": statistics.median(one["store_cpu"] for one, _ in times),
                "load": os.getloadavg()[0], "passed": passed,
                "predicted_cpu": advice.prediction["cpu_seconds"],
                "predicted": advice.prediction["epoch_seconds"], "bound": advice.prediction["bound"],
                "stages": advice.prediction["stages"],
            })  # fmt: skip
            print(line(rows[-1]), flush=True)
    assert profile.store.throughput is not None
    knee = {
        "kind": kind, "latency": latency, "knee": profile.store.throughput.knee, "sweep": sweep,
        "others": [disturbed, sweep_disturbed],
    }  # fmt: skip
    return {"rows": rows, "knees": [knee], "profile": profile.as_dict()}


def _common(kind: str) -> dict[str, Any]:
    return {"batch": BATCH, "image_size": SIZE[kind], "lanes": LANES, "window": WINDOW}


def quietest(measured: Callable[[], T], wanted: int, most: int) -> list[tuple[T, float]]:
    """Measure until other programs have disturbed `wanted` rounds little, at most `most` times.

    Returns:
        The rounds that were disturbed least, with the cores that other programs took on the average. What was
        measured does not decide.
    """
    found: list[tuple[T, float]] = []
    while len(found) < most and sum(other <= DISTURBED for _, other in found) < wanted:
        still(DISTURBED, PATIENCE)
        watch = Watch()
        one = measured()
        found.append((one, round(watch.others(), 3)))
    return sorted(found, key=lambda pair: pair[1])[:wanted]


def grid(kind: str, rounds: int, data: Path, profile: Profile, tries: int) -> Iterator[dict[str, Any]]:
    """What is advised by an earlier profile, beside other settings; one rank. Told after each round."""
    from benchmarks.store import Remote
    from shardstream.observe.advise import advise

    with tempfile.TemporaryDirectory() as scratch, Remote(Path(scratch)) as remote:
        there = remote.ready(str(data / kind), GRID_LATENCY)
        options = {"key": there["key"], "secret": there["secret"], "endpoint_url": there["endpoint"]}
        found = advise(there["url"], profile, storage_options=options, **_common(kind)).settings
        cases = [("advised", (found["prefetch"], found["threads"])), *(("grid", case) for case in GRID)]
        rows: list[dict[str, Any]] = [
            {
                "kind": kind, "latency": GRID_LATENCY, "case": name, "prefetch": prefetch,
                "threads": threads, "seconds": [], "others": [],
            } for name, (prefetch, threads) in cases
        ]  # fmt: skip
        ranks = Ranks(kind, there["url"], options, 1)
        try:
            ranks.epoch()
            for _ in range(rounds):  # in turn
                for row in rows:
                    settings = {name: row[name] for name in ("prefetch", "threads")}
                    [(one, others)] = quietest(partial(ranks.epoch, **settings), 1, tries)
                    row["seconds"].append(one["seconds"])
                    row["others"].append(others)
                yield {"grid": rows, "load": os.getloadavg()[0]}
        finally:
            ranks.close()


def calm(found: dict[str, Any]) -> bool:
    """Whether other programs disturbed neither the probe nor the rounds of a cell."""
    rows = [*found.get("rows", ()), *found.get("knees", ()), *found.get("grid", ())]
    return all(max(row["others"]) <= DISTURBED for row in rows)


def cell(kind: str, latency: float) -> str:
    """The name of a dataset at a latency."""
    return f"{kind}-{1e3 * latency:.0f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=2, help="of what other programs disturbed")
    parser.add_argument(
        "--seconds", type=float, default=60, help="of each probe; the default is the command's own"
    )
    parser.add_argument(
        "--only", nargs="*", metavar="CELL", help='such as "jpeg-20" or "jpeg-grid"; by default all'
    )
    parser.add_argument(
        "--again", action="store_true", help="also cells that are in DIR, and were not disturbed"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="where the datasets are, or are made")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("benchmarks/results/advise"))
    options = parser.parse_args()
    if options.rank:
        rank()
        return
    options.out.mkdir(parents=True, exist_ok=True)
    make(options.data)
    if options.only == []:
        return  # the datasets alone

    def wanted(name: str) -> Path | None:
        path = options.out / f"{name}.json"
        again = options.again or not path.exists() or not calm(json.loads(path.read_text()))
        return path if again and name in (options.only or [name]) else None

    for kind, latency in itertools.product(KINDS, LATENCIES):
        if path := wanted(cell(kind, latency)):
            found = measure(kind, latency, options.rounds, options.seconds, options.data, options.tries)
            path.write_text(json.dumps(found, indent=1) + "\n")
    for kind in KINDS:
        if path := wanted(f"{kind}-grid"):
            known = json.loads((options.out / f"{cell(kind, GRID_LATENCY)}.json").read_text())["profile"]
            profile = msgspec.convert(known, Profile)
            for found in grid(kind, options.rounds, options.data, profile, options.tries):
                path.write_text(json.dumps(found, indent=1) + "\n")
    cells = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    text = report({
        part: [row for one in cells for row in one.get(part, ())] for part in ("rows", "knees", "grid")
    })  # fmt: skip
    print(text)
    (options.out / "results.md").write_text(text)


if __name__ == "__main__":
    main()

"""Does a rank's start and its next batch cost the same, however large the dataset and the job are?

    python -m benchmarks.growth [--rounds 3] [--out DIR]

One rank reads from SeaweedFS on this machine, behind a proxy that adds 10 ms to each round trip and counts
requests and bytes. Each cell is a new process: it opens the dataset, takes the first batch of 32, then 25
more; opened anew, it goes on from a state in the middle of the epoch. The shards of a cell are copies of one
shard under up to 64 names; each has a checksum of its own in the manifest, so that nothing takes one for
another.

Sweeps: shards of 4,096 samples, and samples in 100 shards, read as by one of many ranks, a lane each; ranks
at 10^4 shards, in the default lanes. An exponent is fitted to each (cost ~ size^exponent).

Then the start of 8 processes that share an SSD cache, at 10^5 shards, which gives bytes and requests of a
node; and the arithmetic for 8,192 processes. Takes 4 minutes. JSON and Markdown in DIR.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import shardstream as ss
from benchmarks.forked import Row, forked, memory
from benchmarks.growth_data import COPIES, manifest_of, pack, realistic
from shardstream.format.manifest_files import make_body, make_stub
from shardstream.storage.manifests import commit_manifest
from shardstream.storage.store import Store
from tests.proxy import Proxy
from tests.servers import Weed

LATENCY = 0.01  # seconds
BATCH, BATCHES = 32, 25
PER_SHARD = 4096
Cell = dict[str, Any]
SWEEPS: dict[str, list[Cell]] = {
    "shards": [{"shards": 10**n, "samples": PER_SHARD, "ranks": 1, "lanes": 1} for n in range(6)],
    "samples": [
        *({"shards": 100, "samples": n, "ranks": 1, "lanes": 1} for n in (10, 10**3, 10**5)),
        {"shards": 10**5, "samples": 10**5, "ranks": 1, "lanes": 1},
    ],
    "ranks": [{"shards": 10**4, "samples": PER_SHARD, "ranks": 4**n, "lanes": None} for n in range(6)],
}
BARS = {  # the largest exponent, by sweep and cost
    ("shards", "first batch seconds"): 0.1,
    ("shards", "next batch seconds"): 0.1,
    ("shards", "resume seconds"): 0.1,
    ("shards", "first batch requests"): 0.1,
    ("samples", "RSS MB"): 0.03,
    ("shards", "RSS MB"): 0.03,
}
PROCESSES, OF_NODE, GIGABYTES, REQUESTS = 8192, 8, 4.0, 3


def prepare(weed: Weed, urls: dict[int, str]) -> None:
    """Write all datasets to the store."""
    with tempfile.TemporaryDirectory() as folder:
        cells = [cell for sweep in SWEEPS.values() for cell in sweep]
        for samples in sorted({cell["samples"] for cell in cells}):
            shard = pack(Path(folder), samples)
            files = [Path(folder) / str(samples) / name for name in (shard.url, shard.index_url)]
            for shards in sorted({cell["shards"] for cell in cells if cell["samples"] == samples}):
                store = Store.open(f"{urls[samples]}/{shards}", weed.options())
                for number in range(min(COPIES, shards)):
                    for file, suffix in zip(files, ("tar.zst", "index"), strict=True):
                        store.write(f"{samples}/{number:02d}.{suffix}", file.read_bytes())
                commit_manifest(store, manifest_of(shard, shards), None)


def phases(url: str, options: dict[str, Any], cell: Cell) -> Iterator[str]:
    """What one rank does; each name is given when the phase of this name has ended."""
    ranks = ss.Topology(dp_rank=cell["ranks"] // 2, dp_size=cell["ranks"])

    def dataset() -> ss.StreamingDataset[Any]:
        return ss.StreamingDataset(
            url, shuffle=ss.Shuffle(seed=1, lanes=cell["lanes"]), decode=False, storage_options=options,
            topology=ranks,
        )  # fmt: skip

    ds = dataset()
    yield "open"
    loader = ss.StreamingLoader(ds, batch_size=BATCH, last="short")
    batches = iter(loader)
    next(batches)
    yield "first batch"
    for _, _ in zip(range(BATCHES), batches, strict=False):
        pass
    yield "next batch"
    state = loader.state_dict()
    step = BATCH * cell["ranks"]
    state["position"] = min(ds.total // 2, max(0, ds.total - step)) // step * step
    state["epoch"] = 0
    del batches, loader, ds
    ds = dataset()  # as another process does, with nothing in memory
    yield "open again"
    again = ss.StreamingLoader(ds, batch_size=BATCH, last="short")
    again.load_state_dict(state)
    batches = iter(again)
    next(batches)
    yield "resume"


def once(proxy: Proxy, url: str, options: dict[str, Any], cell: Cell) -> dict[str, float]:
    """The costs of one cell, in one round."""

    def work(tell: Callable[[str, dict[str, float]], None]) -> None:
        base = memory()
        running = phases(url, options, cell)
        while True:
            wall, cpu = time.perf_counter(), time.process_time()
            phase = next(running, None)
            if phase is None:
                return
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            tell(phase, {"seconds": wall, "cpu": cpu, "memory": memory() - base, "rss": memory("VmRSS")})

    found: dict[str, float] = {}
    for row in forked(proxy, work):
        if row["phase"] == "open again":
            continue
        phase, part = row["phase"], BATCHES if row["phase"] == "next batch" else 1
        for name in ("seconds", "cpu", "requests", "bytes"):
            found[f"{phase} {name}"] = row[name] / part
        found["memory MB"] = max(found.get("memory MB", 0.0), row["memory"])
        found["RSS MB"] = max(found.get("RSS MB", 0.0), row["rss"])
    return found


def node(proxy: Proxy, url: str, options: dict[str, Any]) -> list[Row]:
    """The start of the processes of one node in turn, and then of one more after them: its first start."""
    folder = tempfile.mkdtemp()
    rows = []
    for rank in range(OF_NODE):

        def work(tell: Callable[[str, dict[str, float]], None], rank: int = rank) -> None:
            ds = ss.StreamingDataset(
                url, shuffle=ss.Shuffle(seed=1), storage_options=options, cache=folder,
                topology=ss.Topology(dp_rank=rank, dp_size=PROCESSES),
            )  # fmt: skip
            disk = ds.cache.open_disk()
            disk.flush(60)
            tell("open", {})

        rows += forked(proxy, work)
    shutil.rmtree(folder)
    return rows


def exponent(sizes: list[float], costs: list[float]) -> float:
    """The slope of the logarithm of the costs over that of the sizes, by least squares."""
    xs, ys = [math.log(size) for size in sizes], [math.log(max(cost, 1e-9)) for cost in costs]
    middle, mean = statistics.mean(xs), statistics.mean(ys)
    over = sum((x - middle) * (y - mean) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - middle) ** 2 for x in xs)


def size_of(sweep: str, cell: Cell) -> float:
    return float(cell["shards"] * cell["samples"] if sweep == "samples" else cell[sweep])


def fitted(found: dict[str, list[Row]]) -> dict[str, dict[str, float]]:
    """The exponents, by sweep and cost."""
    result = {}
    for sweep, rows in found.items():
        sizes = [size_of(sweep, row["cell"]) for row in rows]
        names = [name for name in rows[0]["costs"] if not name.endswith("bytes")]
        result[sweep] = {name: exponent(sizes, [row["costs"][name] for row in rows]) for name in names}
    return result


def storm(of_node: list[Row]) -> dict[str, Any]:
    """The arithmetic of a first start of all processes."""
    large = realistic(10**5)
    body = make_body(large)
    stub = make_stub(large, body).to_bytes()
    one = len(large.to_bytes())
    nodes = PROCESSES // OF_NODE
    requests = [row["requests"] for row in of_node]
    measured = [row["bytes"] for row in of_node]
    return {
        "manifest in one file, bytes": one,
        "body, bytes": len(body),
        "stub, bytes": len(stub),
        "requests of each process of a node": requests,
        "bytes of each process of a node (of copies, whose manifest compresses better)": measured,
        "GB before": PROCESSES * one / 1e9,
        "GB": (PROCESSES * len(stub) + nodes * len(body)) / 1e9,
        "GB without an SSD tier": PROCESSES * (len(stub) + len(body)) / 1e9,
        "requests of a process": max(requests),
    }


_HEADINGS = (
    "| shards | samples | ranks | open, CPU s | its requests | its KB | first batch, s | its requests | "
    "next batch, ms | its CPU, ms | resume, s | MB added | RSS, MB |"
)


def markdown(result: Row) -> str:
    """The report."""
    lines = ["# Growth", "", result["machine"], ""]
    for sweep, rows in result["cells"].items():
        lines += [
            f"## By {sweep}", "",
            _HEADINGS,
            "|" + " --- |" * 13,
        ]  # fmt: skip
        for row in rows:
            cell, c = row["cell"], row["costs"]
            lines.append(
                f"| {cell['shards']:,} | {cell['shards'] * cell['samples']:,} | {cell['ranks']:,} "
                f"| {c['open cpu']:.3f} | {c['open requests']:.0f} | {c['open bytes'] / 1e3:,.0f} "
                f"| {c['first batch seconds']:.3f} | {c['first batch requests']:.0f} "
                f"| {1e3 * c['next batch seconds']:.2f} | {1e3 * c['next batch cpu']:.2f} "
                f"| {c['resume seconds']:.3f} | {c['memory MB']:.0f} | {c['RSS MB']:.0f} |"
            )
        found = result["exponents"][sweep]
        lines += ["", "Exponents: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), ""]
    lines += ["## Bars", "", "| by | cost | exponent | at most | met |", "| --- | --- | --- | --- | --- |"]
    for (sweep, name), most in BARS.items():
        value = result["exponents"][sweep][name]
        lines.append(f"| {sweep} | {name} | {value:.3f} | {most} | {'yes' if value <= most else 'no'} |")
    lines += ["", f"## The start of {PROCESSES:,} processes, {OF_NODE} a node, 100,000 shards", ""]
    lines += [f"- {name}: {_shown(value)}" for name, value in result["storm"].items()]
    storm = result["storm"]
    for name, most in (("GB", GIGABYTES), ("requests of a process", REQUESTS)):
        met = "yes" if storm[name] <= most else "no"
        lines.append(f"- bar: {name} {_shown(storm[name])}, at most {most}: {met}")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return (
        f"{value:,.2f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def main() -> None:
    ss.StreamingLoader, ss.StreamingDataset  # noqa: B018 - loaded once, before there are processes
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "growth")
    chosen = parser.parse_args()
    found: dict[str, list[Row]] = {}
    with Weed() as weed, Proxy(weed.address) as proxy:
        urls = {
            samples: weed.bucket() for samples in sorted({c["samples"] for s in SWEEPS.values() for c in s})
        }
        forked(proxy, lambda tell: prepare(weed, urls))
        proxy.set(latency=LATENCY)
        options = weed.options(proxy.url)
        for sweep, cells in SWEEPS.items():
            rounds: list[list[dict[str, float]]] = [[] for _ in cells]
            for _ in range(chosen.rounds):
                for number, cell in enumerate(cells):
                    url = f"{urls[cell['samples']]}/{cell['shards']}"
                    rounds[number].append(once(proxy, url, options, cell))
            found[sweep] = [
                {
                    "cell": cell,
                    "costs": {name: statistics.median(one[name] for one in each) for name in each[0]},
                }
                for cell, each in zip(cells, rounds, strict=True)
            ]
            print(sweep, json.dumps(found[sweep][-1]), flush=True)
        of_node = node(proxy, f"{urls[PER_SHARD]}/{10**5}", options)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    machine += f", medians of {chosen.rounds} rounds, {LATENCY * 1e3:.0f} ms a round trip"
    result: Row = {"machine": machine, "cells": found, "exponents": fitted(found), "storm": storm(of_node)}
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    (chosen.out / "growth.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()

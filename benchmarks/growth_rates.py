"""Are rates the same for 10^3 and 10^7 samples, and what do more processes of one machine give?

    python -m benchmarks.growth_rates [--most 10000000] [--rounds 3] [--seconds 1.5] [--data DIR]
        [--plots PYTHON] [--out DIR]

Blocks of 65 tokens, documents of 60 bytes as dict samples, and JPEGs of 16 x 16 as bytes, so small that
10^7 of them are a few GB: what is measured is the cost of a sample, not that of its bytes. They are read
shuffled, from local files that are in the page cache. Shards have up to 100,000 samples and are copies of
one shard.

One process reads 10^3 to 10^7 samples; 1, 2, 4 and 8 processes read 10^6 samples, each as a rank of its
own. Each cell is forked anew, reads for half a second, and is then measured; an epoch that ends is followed
by the next one, whose start counts. Rounds go through all cells in turn. Takes 6 minutes and 5 GB. JSON,
Markdown and a picture in DIR.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

import shardstream as ss
from benchmarks.forked import memory
from benchmarks.growth import exponent
from benchmarks.page_cache import files_below, read
from benchmarks.processes import ROOT
from shardstream.format.manifest import Manifest

SEQ = 64
PER_SHARD = 10**5
BATCHES = {"tokens": 64, "documents": 256, "JPEG bytes": 256}
KINDS, PROCESSES = tuple(BATCHES), (1, 2, 4, 8)
OF_PROCESSES = 10**6  # samples that several processes read
WARM = 0.5  # seconds before the measurement
FLAT_FROM = 10**4  # fewer samples are hardly more than the start of an epoch

Cell = dict[str, Any]


def _jpegs() -> list[bytes]:
    from PIL import Image

    random, found = np.random.default_rng(5), []
    for _ in range(2000):
        data = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(data, "JPEG", quality=50)
        found.append(data.getvalue())
    return found


def _rows(kind: str, count: int) -> Iterator[dict[str, Any]]:
    """What is packed; a row of tokens makes one block."""
    random = np.random.default_rng(3)
    letters = bytes(random.integers(97, 123, 1 << 20, np.uint8)).decode()
    pictures = _jpegs() if kind == "JPEG bytes" else []
    for number, at in enumerate(random.integers(0, (1 << 20) - SEQ, count)):
        if pictures:
            yield {"__key__": f"{number:08d}", "jpg": pictures[number % len(pictures)]}
        else:
            yield {"__key__": f"{number:08d}", "txt": letters[at : at + (SEQ if kind == "tokens" else 60)]}


def prepare(place: Path, kind: str, samples: int) -> Path:
    """A dataset of so many samples: one packed shard, and copies of its files."""
    folder = place / f"{kind.replace(' ', '-')}-{samples}"
    if (folder / "manifest.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    packed = place / f"{kind.replace(' ', '-')}-one-{min(samples, PER_SHARD)}"
    if not (packed / "manifest.json").exists():
        options: dict[str, Any] = {"shard_size": "1GiB"}
        small: dict[str, Any] = {"compression": "zstd", "level": 1}
        options |= {"tokenizer": "bytes", "eos": 256, "compression": "none"} if kind == "tokens" else small
        ss.pack(_rows(kind, min(samples, PER_SHARD)), packed, **options)
    manifest = Manifest.from_bytes((packed / "manifest.json").read_bytes())
    (shard,) = manifest.shards
    folder.mkdir()
    shards = []
    for number in range(max(1, samples // PER_SHARD)):
        names = [f"{number:04d}.{name.partition('.')[2]}" for name in (shard.url, shard.index_url)]
        for name, source in zip(names, (shard.url, shard.index_url), strict=True):
            shutil.copyfile(packed / source, folder / name)
        checksum = xxhash.xxh3_128_hexdigest(f"{number}".encode())  # so that none is taken for another
        shards.append(msgspec.structs.replace(shard, url=names[0], index_url=names[1], checksum=checksum))
    whole = Manifest.build(manifest.kind, manifest.fields, tuple(shards), {})
    (folder / "manifest.json").write_bytes(whole.to_bytes())
    return folder


def _loader(url: str, kind: str, rank: int, ranks: int) -> ss.StreamingLoader:
    options: dict[str, Any] = {
        "shuffle": ss.Shuffle(seed=1),
        "topology": ss.Topology(dp_rank=rank, dp_size=ranks),
    }
    if kind == "tokens":
        return ss.StreamingLoader(ss.TokenDataset(url, SEQ, **options), BATCHES[kind], last="short")
    ds = ss.StreamingDataset(url, decode=kind != "JPEG bytes", **options)
    collate = list if kind == "documents" else None
    return ss.StreamingLoader(ds, BATCHES[kind], last="short", collate=collate)


def _forever(loader: ss.StreamingLoader) -> Iterator[int]:
    """The samples of each batch, epoch after epoch."""
    while True:
        for batch in loader:
            yield len(batch) if isinstance(batch, list) else len(next(iter(batch.values())))


def _read(url: str, cell: Cell, rank: int, seconds: float, go: int) -> dict[str, float]:
    """What one process measures, after the parent has let all of them go."""
    base = memory()
    batches = _forever(_loader(url, cell["kind"], rank, cell["processes"]))
    next(batches)
    os.read(go, 1)
    until = time.perf_counter() + WARM
    while time.perf_counter() < until:
        next(batches)
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < began + seconds:
        count += next(batches)
    return {
        "samples/s": count / (now - began),
        "CPU us/sample": 1e6 * (time.process_time() - cpu) / count,
        "MB": memory() - base,
    }


def once(url: str, cell: Cell, seconds: float) -> dict[str, float]:
    """One round of a cell: the sum of the rates of its processes, CPU time a sample, memory of a process."""
    (go, let_go), (told, tell) = os.pipe(), os.pipe()
    children, began = [], time.perf_counter()
    for rank in range(cell["processes"]):
        child = os.fork()
        if not child:
            try:
                os.close(let_go)
                found = _read(url, cell, rank, seconds, go)
                os.write(tell, json.dumps(found).encode() + b"\n")
            except BaseException:  # noqa: BLE001 - it is a process of its own
                traceback.print_exc()
            finally:
                os._exit(0)
        children.append(child)
    os.close(tell)
    os.close(go)
    os.write(let_go, b"." * len(children))
    with os.fdopen(told) as file:
        rows = [json.loads(line) for line in file]
    os.close(let_go)
    for child in children:
        os.waitpid(child, 0)
    if len(rows) != len(children):
        raise RuntimeError(f"{cell}: {len(children) - len(rows)} processes failed")
    return {
        "samples/s": sum(row["samples/s"] for row in rows),
        "CPU us/sample": statistics.mean(row["CPU us/sample"] for row in rows),
        "MB": max(row["MB"] for row in rows),
        "took seconds": time.perf_counter() - began,
    }


def cells(most: int) -> list[Cell]:
    """All cells, in the order of a round."""
    sizes = [10**n for n in range(3, 11) if 10**n <= most]
    more = [(min(OF_PROCESSES, most), count) for count in PROCESSES]
    both = dict.fromkeys([(size, 1) for size in sizes] + more)
    return [{"kind": kind, "samples": size, "processes": n} for kind in KINDS for size, n in both]


def summary(rows: list[Cell]) -> dict[str, dict[str, float]]:
    """By kind: how costs grow with samples, and the rate of more processes to that of one."""
    found = {}
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        sizes = [row for row in mine if row["processes"] == 1 and row["samples"] >= FLAT_FROM]
        at = [float(row["samples"]) for row in sizes]
        each = {}
        if len(sizes) > 1:
            for name in ("samples/s", "CPU us/sample", "MB"):
                each[f"exponent of {name}"] = exponent(at, [middle(row, name) for row in sizes])
        of_processes = max(row["samples"] for row in mine if row["processes"] == max(PROCESSES))
        rates = {row["processes"]: middle(row, "samples/s") for row in mine if row["samples"] == of_processes}
        each |= {f"{count} processes / 1": rates[count] / rates[1] for count in PROCESSES[1:]}
        found[kind] = each
    return found


def middle(row: Cell, name: str) -> float:
    """The median of the rounds."""
    return statistics.median(one[name] for one in row["rounds"])


def markdown(result: dict[str, Any]) -> str:
    """The report."""
    lines = ["# Rates by samples and by processes", "", result["what"], "", result["machine"], ""]
    lines += [
        "| | samples | processes | samples/s | CPU us a sample | MB of a process |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for row in result["cells"]:
        rates = [one["samples/s"] for one in row["rounds"]]
        lines.append(
            f"| {row['kind']} | {row['samples']:,} | {row['processes']} | {middle(row, 'samples/s'):,.0f} "
            f"({min(rates):,.0f} to {max(rates):,.0f}) | {middle(row, 'CPU us/sample'):.2f} "
            f"| {middle(row, 'MB'):.0f} |"
        )
    lines += [
        "",
        f"Exponents are over samples, from {FLAT_FROM:,} on: 0 is no growth, 1 is in proportion.",
        "",
    ]
    for kind, each in result["summary"].items():
        lines.append(f"- {kind}: " + ", ".join(f"{name} {value:.2f}" for name, value in each.items()))
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=10**7, help="samples of the largest dataset")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a measurement")
    parser.add_argument("--data", type=Path, help="where datasets are made, and stay; else they go")
    parser.add_argument("--prepare", action="store_true", help="make the datasets, measure nothing")
    parser.add_argument("--plots", metavar="PYTHON", default=sys.executable, help="that has matplotlib")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "growth")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shardstream-growth-") as temporary:
        place = chosen.data or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        rows = [cell | {"rounds": []} for cell in cells(chosen.most)]
        # A fork has no threads but its own, so what starts threads happens in a process that ends.
        _in_a_fork(place, rows)
        if chosen.prepare:
            return
        for number in range(chosen.rounds):
            for row in rows:
                url = str(prepare(place, row["kind"], row["samples"]))
                read(files_below(url))  # into the page cache
                row["rounds"].append(once(url, row, chosen.seconds))
            _write(rows, number + 1, chosen)
    print((chosen.out / "rates.md").read_text())
    chosen.out = chosen.out.resolve()
    results, picture = str(chosen.out / "rates.json"), str(chosen.out / "rates.png")
    code = f"from benchmarks.plots import rates; rates({results!r}, {picture!r})"
    done = subprocess.run([chosen.plots, "-c", code], check=False, stderr=subprocess.DEVNULL, cwd=ROOT)
    if done.returncode:
        print(f"no picture: {chosen.plots} has no matplotlib", file=sys.stderr)


def _write(rows: list[Cell], rounds: int, chosen: argparse.Namespace) -> None:
    """Write what was measured so far."""
    result = {
        "what": " ".join((__doc__ or "").split("\n\n")[2].split()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"medians of {rounds} rounds of {chosen.seconds:g} s, with the least and the largest",
        "date": time.strftime("%Y-%m-%d"),
        "cells": rows,
        "summary": summary(rows),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "rates.json").write_text(json.dumps(result, indent=1) + "\n")
    (chosen.out / "rates.md").write_text(markdown(result))


def _in_a_fork(place: Path, rows: list[Cell]) -> None:
    """Make all datasets."""
    child = os.fork()
    if not child:
        code = 1
        try:
            for row in rows:
                prepare(place, row["kind"], row["samples"])
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("the datasets could not be made")


if __name__ == "__main__":
    main()

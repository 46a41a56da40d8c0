"""What does `pack --shuffle` cost, and does its bookkeeping stay small for a corpus of 1 TiB?

    python -m benchmarks.pack_shuffle [--text FILE.jsonl] [--size 512] [--rounds 3] [--out DIR]

Wall: one JSONL file of `--size` MiB is packed with two workers to this disk, in turn (A B C A B C ...): not
shuffled, shuffled over the local disk, and shuffled through the store in groups, as a large pack would be.
Ratios are taken within each round. Without `--text` the file holds the Python sources of this interpreter,
again and again until it is large enough.

Bookkeeping: spills of T tasks for B = T buckets, one real spill under T names, with 512 samples of 128 bytes
in each, so almost no data. The CPU time of one task of the first pass times T, and of one task of the second
pass times their number. All of it counts as bookkeeping, the samples too. It stands beside the CPU time that
the pack above needs for as many bytes as T tasks have. On S3 (SeaweedFS here) a piece is a request; the
cost is measured of 400 real spills there, and multiplied.

JSON and Markdown in DIR.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import shardstream as ss
from shardstream.packing import disk_shuffle, shuffle_passes, store_shuffle
from shardstream.packing.sources import Sample
from shardstream.storage.store import Store
from tests.servers import Weed

SIZES = (1_000, 4_000, 16_000)  # tasks, and buckets
ON_S3 = ((16_000, 64 << 20), (4_000, 256 << 20))  # the same, and the bytes of a shard
SHARD = 64 << 20
SAMPLES, BYTES = 512, 128
REAL = 400  # spills on S3
WORKERS = 2
WALL, SHARE = 3.0, 0.02  # bars


def met(good: bool) -> str:
    """How a bar is said to be met, or not."""
    return "met" if good else "MISSED"


def make_corpus(path: Path, size: int) -> None:
    """Write Python sources as JSON Lines until the file has `size` bytes."""
    roots = dict.fromkeys(Path(root) for root in (sys.prefix, sys.base_prefix))
    files = [file for root in roots for file in sorted(root.rglob("*.py"))]
    with path.open("wb") as out:
        number = 0
        while out.tell() < size:
            text = files[number % len(files)].read_bytes().decode("utf-8", "replace")
            out.write(json.dumps({"id": f"{number:09d}", "text": text}).encode() + b"\n")
            number += 1


def timed(source: Path, dest: Path, shuffle: int | None, grouped: bool) -> tuple[float, float]:
    """Seconds and CPU seconds of a pack, with those of its workers."""
    few = shuffle_passes.MOST_ON_DISK, shuffle_passes.MOST_SINGLE
    if grouped:
        shuffle_passes.MOST_ON_DISK = shuffle_passes.MOST_SINGLE = 0
    started, before = time.perf_counter(), os.times()
    try:
        ss.pack(source, dest, format="jsonl", shuffle=shuffle, workers=WORKERS)
    finally:
        shuffle_passes.MOST_ON_DISK, shuffle_passes.MOST_SINGLE = few
    seconds, now = time.perf_counter() - started, os.times()
    shutil.rmtree(dest)
    os.sync()  # what one pack leaves to be written must not slow down the next one
    return seconds, sum(now[:4]) - sum(before[:4])


def wall(source: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """The packs, in turn, after a round to warm up."""
    kinds = {"not shuffled": (None, False), "on a disk": (3, False), "through the store": (3, True)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, (seed, grouped) in kinds.items():
            one = timed(source, folder / "out", seed, grouped)
            if number:
                found[name].append(one)
    rows = []
    for name, runs in found.items():
        ratios = [run[0] / plain[0] for run, plain in zip(runs, found["not shuffled"], strict=True)]
        rows.append(
            {
                "name": name,
                "seconds": [round(run[0], 2) for run in runs],
                "cpu_seconds": [round(run[1], 2) for run in runs],
                "wall_ratios": [round(ratio, 2) for ratio in ratios],
            }
        )
    return rows


def spilled() -> Iterator[Sample]:
    """The samples of one task."""
    for number in range(SAMPLES):
        yield Sample(f"k{number}", {"txt": bytes(BYTES)}, "here")


def cpu(work: Callable[[], object]) -> float:
    """The CPU seconds of a call."""
    before = time.process_time()
    work()
    return time.process_time() - before


def on_disk(folder: Path, count: int) -> tuple[float, float]:
    """CPU seconds of all tasks of both passes, on a local disk without groups."""
    first = cpu(lambda: disk_shuffle.scatter(spilled(), str(folder), 0, 0, count, SHARD))
    for suffix in ("bin", "npy"):
        for task in range(1, count):
            os.link(folder / f"spill-000000.{suffix}", folder / f"spill-{task:06d}.{suffix}")
    second = cpu(lambda: sum(1 for _ in disk_shuffle.gather(str(folder), 0, count // 2, count)))
    return first * count, second * count


def gathered(store: Store, count: int, counts: list[int], ends: list[bytes]) -> float:
    """CPU seconds of the second pass over one group of buckets, without what opening connections takes."""
    group = math.isqrt(count - 1) + 1
    regions = -(-count // group)
    region = regions // 2
    spans = [(bucket, bucket + 1) for bucket in range(region * group, region * group + group)]

    def gather() -> None:
        objects = store_shuffle.Objects(counts, group)
        bounds = store_shuffle.all_bounds(ends, regions)[:, region : region + 2]
        for _, samples in store_shuffle.gather(store, objects, bounds, 0, spans[0][0], spans, None):
            for _ in samples:
                pass

    gather()
    return cpu(gather)


def in_groups(folder: Path, count: int) -> tuple[float, float]:
    """CPU seconds of all tasks of both passes, through a store that is a directory."""
    store, group = Store.open(str(folder)), math.isqrt(count - 1) + 1
    ends: list[bytes] = []
    first = cpu(lambda: ends.extend(store_shuffle.scatter(spilled(), store, 0, 0, count, SHARD, group)[1]))
    for task in range(1, count):
        os.link(folder / ".spill" / "000000", folder / ".spill" / f"{task:06d}")
    return first * count, gathered(store, count, [1] * count, ends * count) * -(-count // group)


def on_s3(count: int) -> tuple[float, float]:
    """The same on S3, from fewer spills."""
    group = math.isqrt(count - 1) + 1
    with Weed() as weed:
        store = Store.open(weed.bucket(), weed.options())
        ends: list[bytes] = []

        def scatter() -> None:
            for task in range(REAL):
                ends.extend(store_shuffle.scatter(spilled(), store, 0, task, count, SHARD, group)[1])

        Store.open(store.url, weed.options() | {"config_kwargs": {}}).write("x", b"")  # makes the bucket
        first = cpu(scatter) / REAL
        second = gathered(store, count, [1] * REAL, ends) / REAL * -(-count // group)
    return first * count, second * count


def bookkeeping(folder: Path, cpu_per_byte: float) -> list[dict[str, Any]]:
    """For each size, both ways."""
    found: list[tuple[str, int, int, tuple[float, float]]] = []
    for count in SIZES:
        for name, measure in (("on a disk", on_disk), ("in groups", in_groups)):
            below = Path(tempfile.mkdtemp(dir=folder))
            found.append((name, count, SHARD, measure(below, count)))
            shutil.rmtree(below)
    found += [("in groups, S3", count, shard, on_s3(count)) for count, shard in ON_S3]
    return [
        {
            "tasks": count,
            "shard_mib": shard >> 20,
            "tebibytes": round(count * shard / 2**40, 3),
            "name": name,
            "first_pass_cpu_hours": round(first / 3600, 4),
            "second_pass_cpu_hours": round(second / 3600, 4),
            "share_of_all_cpu": round(own / (own + cpu_per_byte * count * shard), 4),
        }
        for name, count, shard, (first, second) in found
        for own in [first + second]
    ]


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    where = f"{result['machine']}, {result['date']}, load {result['load']}"
    lines = [
        f"{where}; {result['corpus']}, {WORKERS} workers.",
        "",
        "| pack | seconds, median (min to max) | CPU seconds, median | wall / not shuffled, median |",
        "| --- | --- | --- | --- |",
    ]
    for row in result["wall"]:
        seconds, median = row["seconds"], statistics.median
        lines.append(
            f"| {row['name']} | {median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | "
            f"{median(row['cpu_seconds']):.1f} | {median(row['wall_ratios']):.2f} |"
        )
    lines += [
        "",
        "| tasks = buckets | shard | TiB | samples wait | first pass, CPU h | second pass, CPU h | share |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["bookkeeping"]:
        lines.append(
            f"| {row['tasks']:,} | {row['shard_mib']} MiB | {row['tebibytes']} | {row['name']} | "
            f"{row['first_pass_cpu_hours']} | {row['second_pass_cpu_hours']} | "
            f"{100 * row['share_of_all_cpu']:.1f} % |"
        )
    lines += ["", *(f"- {line}" for line in result["bars"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--size", type=int, default=512, help="MiB, without --text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pack_shuffle"))
    options = parser.parse_args()
    load = f"{os.getloadavg()[0]:.1f}"
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        source = options.text
        if source is None:
            source = folder / "corpus.jsonl"
            make_corpus(source, options.size << 20)
        rows = wall(source, folder, options.rounds)
        plain = statistics.median(rows[-1]["cpu_seconds"]) / source.stat().st_size
        counted = bookkeeping(folder, plain)
        size = source.stat().st_size >> 20
    ratios = {row["name"]: statistics.median(row["wall_ratios"]) for row in rows[1:]}
    worst = max(ratios.values())
    counted_last = next(row for row in counted if (row["tasks"], row["name"]) == (SIZES[-1], "in groups"))
    share, size_of = counted_last["share_of_all_cpu"], counted_last["tebibytes"]
    bars = [
        f"shuffled / not shuffled, wall: {worst:.2f} at most, bar {WALL}: {met(worst <= WALL)}",
        f"bookkeeping at {size_of} TiB: {100 * share:.1f} % of all CPU, bar 2 %: {met(share <= SHARE)}",
    ]
    result = {
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load": load,
        "corpus": f"{options.text.name if options.text else 'Python sources'} of {size} MiB",
        "wall": rows,
        "bookkeeping": counted,
        "bars": bars,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "pack_shuffle.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "pack_shuffle.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()

"""Does `shardstream advise` tell the truth? Its prediction beside the loader alone with a clock.

    python -m benchmarks.advise [--rounds 3] [--out benchmarks/results/advise]

Twelve settings: latency 0, 20 and 100 ms x tokens and JPEG x 1 and 4 ranks. SeaweedFS on this machine, behind
a proxy that adds the latency to each request. Each latency is probed once for each dataset. Then the ranks,
processes of their own, read an epoch without a cache, from opening the dataset to the last batch. A clock of
this benchmark says how long the slowest one took. For the knee, a program of this benchmark doubles the
concurrency, with requests of obstore. For the setting, the `prefetch` and `threads` that are advised run
beside a grid.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.advise_report import line, report
from benchmarks.processes import ROOT

LATENCIES, KINDS, RANKS = (0.0, 0.02, 0.1), ("tokens", "jpeg"), (1, 4)
BATCH = 32
SIZE = {"tokens": None, "jpeg": 224}
LANES, WINDOW = 16, 2  # small datasets: the frames of 64 lanes would be all of them
GRID = [("32MiB", 1), ("32MiB", 2), ("256MiB", 1), ("256MiB", 2), ("256MiB", 4), ("1GiB", 2)]


def make(folder: Path) -> dict[str, Path]:
    """The two datasets: 128 M tokens in zstd, and 2,000 JPEGs of about 90 KB."""
    import shardstream as ss

    draw = np.random.default_rng(0)
    tokens = np.minimum(draw.zipf(1.3, 128_000_000), 50_000).astype(np.uint16)
    tokens[::1000] = 0
    tokens.tofile(folder / "tokens.bin")
    common: dict[str, Any] = {"shard_size": "8MiB", "frame_size": "256KiB", "workers": 2}
    ss.pack(folder / "tokens.bin", folder / "tokens", format="bin", dtype="uint16", eos=0, **common)
    (folder / "tokens.bin").unlink()
    ss.pack(_images(draw), folder / "jpeg", **common)
    return {kind: folder / kind for kind in KINDS}


def _images(draw: Any) -> Iterator[dict[str, Any]]:
    from PIL import Image

    y, x = np.mgrid[0:400, 0:500]
    files = []
    for _ in range(40):
        waves = [np.sin(x / draw.uniform(10, 60) + y / draw.uniform(10, 60)) for _ in range(3)]
        pixels = 127 + 100 * np.stack(waves, -1) + draw.normal(0, 18, (400, 500, 1))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    for number in range(2000):
        yield {"__key__": f"{number:06d}", "jpg": files[number % len(files)], "cls": number % 10}


def rank() -> None:
    """One rank: `ready`, then at each line on stdin an epoch, whose seconds it prints."""
    import shardstream as ss
    from shardstream import StreamingDataset, TokenDataset
    from shardstream.decode.images import Train

    told = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    for wanted in sys.stdin:
        options = {name: value for name, value in json.loads(wanted).items() if value is not None}
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

    def epoch(self, **options: Any) -> tuple[float, float]:
        """Seconds of the slowest rank, and seconds of cores of all ranks."""
        for one in self._all:
            one.stdin.write(json.dumps(options) + "\n")  # type: ignore[union-attr]
            one.stdin.flush()  # type: ignore[union-attr]
        found = [json.loads(one.stdout.readline()) for one in self._all]  # type: ignore[union-attr]
        return max(wall for wall, _ in found), sum(cpu for _, cpu in found)

    def close(self) -> None:
        for one in self._all:
            one.stdin.close()  # type: ignore[union-attr]
        for one in self._all:
            one.wait(60)


def own_sweep(url: str, options: dict[str, Any], objects: list[tuple[str, int]]) -> dict[int, float]:
    """Bytes per second of 1 MiB ranges at each concurrency, by obstore alone: no code of the package."""
    import obstore
    from obstore.store import S3Store

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    store = S3Store(
        bucket, prefix=prefix, endpoint=options["endpoint_url"], access_key_id=options["key"],
        secret_access_key=options["secret"], client_options={"allow_http": True}, region="us-east-1",
        virtual_hosted_style_request=False,
    )  # fmt: skip
    found = {}
    for power in range(7):
        workers = 2**power
        count = max(24, 4 * workers)
        wanted = [(objects[n % len(objects)], n // len(objects)) for n in range(count)]
        with ThreadPoolExecutor(workers) as pool:
            began = time.perf_counter()
            sizes = pool.map(
                lambda one: len(
                    obstore.get_range(
                        store, one[0][0], start=(one[1] << 20) % (one[0][1] - (1 << 20)), length=1 << 20
                    )
                ),
                wanted,
            )
            total = sum(sizes)
            found[workers] = total / (time.perf_counter() - began)
    return found


def measure(rounds: int, seconds: float, scratch: Path) -> dict[str, Any]:
    """All settings."""
    from benchmarks.store import Remote
    from shardstream.format.manifest import Manifest
    from shardstream.observe.advise import advise
    from shardstream.observe.probe import probe

    places = make(scratch)
    rows, knees, grid = [], [], []
    with Remote(scratch) as remote:
        for kind in KINDS:
            place = remote.ready(str(places[kind]), 0.0)
            options = {
                name: place[key]
                for name, key in (("key", "key"), ("secret", "secret"), ("endpoint_url", "endpoint"))
            }
            for latency in LATENCIES:
                remote.ready(str(places[kind]), latency)
                profile = probe(
                    place["url"],
                    batch=BATCH,
                    image_size=SIZE[kind],
                    lanes=LANES,
                    window=WINDOW,
                    seconds=seconds,
                    storage_options=options,
                )
                manifest = Manifest.from_bytes((places[kind] / "manifest.json").read_bytes())
                objects = [(shard.url, shard.bytes) for shard in manifest.shards if shard.bytes > 2 << 20]
                sweep = own_sweep(place["url"], options, objects)
                knees.append(
                    {"kind": kind, "latency": latency, "knee": profile.store.throughput.knee, "sweep": sweep}
                )  # type: ignore[union-attr]
                for world in RANKS:
                    advice = advise(
                        place["url"],
                        profile,
                        batch=BATCH,
                        world=world,
                        image_size=SIZE[kind],
                        lanes=LANES,
                        window=WINDOW,
                        link="10GB",  # of the loopback device, which is no network card
                        storage_options=options,
                    )
                    ranks = Ranks(kind, place["url"], options, world)
                    try:
                        ranks.epoch()  # threads, imports and the server's own cache
                        times = [ranks.epoch() for _ in range(rounds)]
                        if latency == 0.02 and world == 1:
                            grid += _grid(ranks, kind, latency, advice.settings)
                    finally:
                        ranks.close()
                    rows.append({
                        "kind": kind, "latency": latency, "ranks": world,
                        "seconds": [wall for wall, _ in times],
                        "cpu": statistics.median(cpu for _, cpu in times), "load": os.getloadavg()[0],
                        "predicted_cpu": advice.prediction["cpu_seconds"],
                        "predicted": advice.prediction["epoch_seconds"],
                        "bound": advice.prediction["bound"],
                    })  # fmt: skip
                    print(line(rows[-1]), flush=True)
    return {"rows": rows, "knees": knees, "grid": grid}


def _grid(ranks: Ranks, kind: str, latency: float, settings: dict[str, Any]) -> list[dict[str, Any]]:
    ours = {"prefetch": settings["prefetch"], "threads": settings["threads"]}
    cases = [
        ("advised", ours),
        *(("grid", {"prefetch": ahead, "threads": threads}) for ahead, threads in GRID),
    ]
    found: list[dict[str, Any]] = [
        {"kind": kind, "latency": latency, "case": name, **case, "seconds": []} for name, case in cases
    ]
    for _ in range(3):  # in turn
        for row, (_, case) in zip(found, cases, strict=True):
            row["seconds"].append(ranks.epoch(**case)[0])
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of each probe")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.rank:
        rank()
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options.rounds, options.seconds, Path(scratch))
    text = report(found)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "results.md").write_text(text)


if __name__ == "__main__":
    main()

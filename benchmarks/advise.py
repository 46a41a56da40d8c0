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
import gc
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.advise_report import line, report
from benchmarks.others import Watch, still
from benchmarks.processes import ROOT

T = TypeVar("T")

LATENCIES, KINDS, RANKS = (0.0, 0.02, 0.1), ("tokens", "jpeg"), (1, 4)
BATCH = 32
SIZE: dict[str, Any] = {"tokens": None, "jpeg": 224}
DATA = Path.home() / ".cache" / "shardstream-bench" / "advise"
GRID_LATENCIES = (0.02,)  # seconds
DISTURBED = 0.1  # cores that other programs may take, on the average
PATIENCE = 10.0  # seconds to wait for that
LANES, WINDOW = 16, 2  # small datasets: the frames of 64 lanes would be all of them
GRID = [("16MiB", 2), ("64MiB", 2), ("256MiB", 1), ("256MiB", 2), ("256MiB", 4), ("1GiB", 2)]


def make(folder: Path) -> None:
    """The two datasets: 384 M tokens in zstd, and 4,000 JPEGs of about 90 KB; each is made once."""
    import shardstream as ss

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    common: dict[str, Any] = {"shard_size": "8MiB", "frame_size": "256KiB", "workers": 2}
    if not (folder / "tokens").exists():
        tokens = np.minimum(draw.zipf(1.3, 384_000_000), 50_000).astype(np.uint16)
        tokens[::1000] = 0
        tokens.tofile(folder / "tokens.bin")
        ss.pack(folder / "tokens.bin", folder / "tokens", format="bin", dtype="uint16", eos=0, **common)
        (folder / "tokens.bin").unlink()
    if not (folder / "jpeg").exists():
        ss.pack(_images(draw), folder / "jpeg", **common)


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
    for number in range(4000):
        yield {"__key__": f"{number:06d}", "jpg": files[number % len(files)], "cls": number % 10}


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


def measure(kind: str, latency: float, rounds: int, seconds: float, data: Path) -> dict[str, Any]:
    """One cell: a dataset at a latency. The probe, the sweep, the predictions, and then the epochs."""
    from benchmarks.store import Remote
    from shardstream.format.manifest import Manifest
    from shardstream.observe.advise import advise
    from shardstream.observe.probe import probe

    place, grid, rows = data / kind, [], []
    common: dict[str, Any] = {
        "batch": BATCH, "image_size": SIZE[kind], "lanes": LANES, "window": WINDOW
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, Remote(Path(scratch)) as remote:
        there = remote.ready(str(place), latency)
        url = there["url"]
        options = {"key": there["key"], "secret": there["secret"], "endpoint_url": there["endpoint"]}
        profile, disturbed = quietest(
            lambda: probe(url, seconds=seconds, storage_options=options, **common), 1, 2
        )[0]
        manifest = Manifest.from_bytes((place / "manifest.json").read_bytes())
        objects = [(shard.url, shard.bytes) for shard in manifest.shards if shard.bytes > 2 << 20]
        sweep, sweep_disturbed = quietest(lambda: own_sweep(url, options, objects), 1, 2)[0]
        for world in RANKS:
            advice = advise(url, profile, world=world, storage_options=options, **common)
            ranks = Ranks(kind, url, options, world)
            try:
                ranks.epoch()  # threads, imports and the server's own cache
                remote.passed()
                ranks.epochs = 0
                times = quietest(ranks.epoch, rounds, 2 * rounds)
                passed = {
                    name: value / ranks.epochs for name, value in remote.passed().items()
                    if name in ("connections", "requests", "body_bytes")
                }  # fmt: skip
                if latency in GRID_LATENCIES and world == 1:
                    grid += _grid(ranks, advice.settings)
            finally:
                ranks.close()
            rows.append({
                "kind": kind, "latency": latency, "ranks": world,
                "seconds": [one["seconds"] for one, _ in times], "others": [other for _, other in times],
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
    grid = [{"kind": kind, "latency": latency, **row} for row in grid]
    return {"rows": rows, "knees": [knee], "grid": grid, "profile": profile.as_dict()}


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


def _grid(ranks: Ranks, settings: dict[str, Any]) -> list[dict[str, Any]]:
    ours = {"prefetch": settings["prefetch"], "threads": settings["threads"]}
    cases = [
        ("advised", ours),
        *(("grid", {"prefetch": ahead, "threads": threads}) for ahead, threads in GRID),
    ]
    found: list[dict[str, Any]] = [{"case": name, **case, "seconds": []} for name, case in cases]
    for _ in range(3):  # in turn
        for row, (_, case) in zip(found, cases, strict=True):
            still(DISTURBED, PATIENCE)
            row["seconds"].append(ranks.epoch(**case)["seconds"])
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of each probe")
    parser.add_argument("--only", nargs="*", metavar="CELL", help='such as "jpeg-20"; by default all')
    parser.add_argument("--again", action="store_true", help="also cells that are in DIR")
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
    for kind, latency in itertools.product(KINDS, LATENCIES):
        name = f"{kind}-{1e3 * latency:.0f}"
        path = options.out / f"{name}.json"
        if name in (options.only or [name]) and (options.again or not path.exists()):
            found = measure(kind, latency, options.rounds, options.seconds, options.data)
            path.write_text(json.dumps(found, indent=1) + "\n")
    cells = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    text = report({
        part: [row for cell in cells for row in cell[part]] for part in ("rows", "knees", "grid")
    })  # fmt: skip
    print(text)
    (options.out / "results.md").write_text(text)


if __name__ == "__main__":
    main()

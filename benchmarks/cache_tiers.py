"""What do the cache tiers save? Bytes over the wire, hit rates, and a warm epoch beside a local one.

    python -m benchmarks.cache_tiers DATASET [--out DIR]

DATASET is a local packed dataset. It is uploaded to SeaweedFS and read through a proxy that counts, by 1, 2
and 8 processes as so many ranks that share one empty cache directory; then from a warm cache and from the
local files in turn, three times each; then three times by one process whose cache holds half of it.
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
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from shardstream.dataset import contents_of
from shardstream.read.reader import DatasetReader

LATENCY = 0.02


def child(job: dict[str, Any]) -> None:
    """Some epochs of one rank; prints the counters and the seconds of each."""
    import shardstream as ss

    topology = ss.Topology(dp_rank=job["rank"], dp_size=job["ranks"])
    cache = ss.Cache(job["cache"], disk=job.get("disk")) if job["cache"] else None
    ds = ss.StreamingDataset(
        job["url"], shuffle=ss.Shuffle(seed=1), decode=False, cache=cache, topology=topology,
        storage_options=job["options"],
    )  # fmt: skip
    # Frames that the shuffle has open stay in memory as they do for local files; the RAM tier is left out.
    reader = contents_of(ds).reader
    reader.blocks.tiers.memory = None
    loader = ss.StreamingLoader(ds, batch_size=32, last="short")
    before: dict[str, Any] = {}
    rows = []
    for _ in range(job["epochs"]):
        started = time.perf_counter()
        for _ in loader:
            pass
        seconds, stats = time.perf_counter() - started, loader.stats()
        names = ("remote_bytes", "disk_bytes", "requests")
        rows.append({name: stats.get(name, 0) - before.get(name, 0) for name in names} | {"seconds": seconds})
        before = stats
        if reader.blocks.tiers.disk is not None:
            reader.blocks.tiers.disk.flush(60)
    print(json.dumps(rows))


def start(**job: Any) -> subprocess.Popen[str]:
    """A process that carries out a job."""
    command = [sys.executable, "-m", "benchmarks.cache_tiers", "--job", json.dumps(job)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def ended(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What it printed."""
    out, _ = process.communicate(timeout=600)
    if process.returncode:
        sys.exit(f"a reader failed with {process.returncode}")
    return json.loads(out)  # type: ignore[no-any-return]


def needed(dataset: str) -> int:
    """The bytes of all frames and indexes."""
    reader = DatasetReader.open(dataset)
    shards = enumerate(reader.manifest.shards)
    return sum(info.index_bytes + int(reader.index(shard).frame_size.sum()) for shard, info in shards)


def measure(dataset: str, scratch: Path) -> dict[str, Any]:
    """All figures."""
    from benchmarks.store import Remote

    total, found = needed(dataset), {}
    with Remote(scratch) as remote:
        for ranks in (1, 2, 8):
            place = remote.ready(dataset, LATENCY)
            options = {"key": place["key"], "secret": place["secret"], "endpoint_url": place["endpoint"]}
            job = {
                "url": place["url"],
                "options": options,
                "cache": place["cache"],
                "epochs": 1,
                "ranks": ranks,
            }
            rows = [ended(p)[0] for p in [start(**job, rank=rank) for rank in range(ranks)]]
            found[f"wire_ratio_{ranks}"] = sum(row["remote_bytes"] for row in rows) / total
            found[f"requests_{ranks}"] = remote.passed()["requests"]
        warm, local = [], []
        for _ in range(3):
            [row] = ended(start(**job | {"ranks": 1}, rank=0))
            warm.append(row)
            [row] = ended(start(url=dataset, options=None, cache=None, epochs=1, ranks=1, rank=0))
            local.append(row)
        found["warm_remote_bytes"] = max(row["remote_bytes"] for row in warm)
        ratios = [mine["seconds"] / cached["seconds"] for cached, mine in zip(warm, local, strict=True)]
        found["warm_to_local"] = statistics.median(ratios)
        found["warm_to_local_all"] = ratios
        place = remote.ready(dataset, 0.0)
        half = {"cache": place["cache"], "epochs": 3, "disk": total // 2, "ranks": 1}
        rows = ended(start(**job | half, rank=0))
        found["half_hit_rates"] = [1 - row["remote_bytes"] / total for row in rows]
    return found | {"bytes": total, "load_at_end": os.getloadavg()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        child(options.job)
        return
    if options.dataset is None:
        parser.error("which DATASET?")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(str(Path(options.dataset).resolve()), Path(scratch))
    print(json.dumps(found, indent=1))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "cache_tiers.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The jobs that `simulate` makes of 8 to 8,192 ranks: a base, and others that differ in one thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.simulate_data import synthetic
from benchmarks.simulate_job import Job, simulate
from benchmarks.simulate_reader import Dataset
from benchmarks.simulate_settings import PLAN, UNIT, Costs, Settings
from benchmarks.simulate_store import Answers
from shardstream.decode.images import Evaluate
from shardstream.order.shuffle import Shuffle

__all__ = ["BASE", "RANKS", "cases", "run"]

RANKS = (8, 64, 512, 4096, 8192)
SAMPLE, FRAMES, PER_FRAME = (
    110_000,
    128,
    10,
)  # bytes of a photograph; frames of a shard of 141 MB; samples of one
PREFIXES = 64  # of the base, enough for all: the store has split its names

STORE = Answers.by_percentiles(0.03, 0.08, 0.15, connect=0.03)
SLOW = Answers.by_percentiles(0.03, 0.2, 1.0, connect=0.03)

IMAGES = Settings(
    batch=32, threads=12, decode=Evaluate(224), batch_bytes=32 * 3 * 224 * 224, shared_manifest=True
)
COSTS = Costs(opening=0.06, per_shard=2.2e-6, fetch=1e-4, build=2e-3, consume=5e-6, plan=PLAN, unit=UNIT)
# A node of 8 ranks, 96 cores and 100 Gbit/s; photographs of 110 KB; a step of a quarter of a second.
BASE = Job(
    8, STORE, of_node=8, cores=96, step=0.25, steps=32, node_rate=12.5e9, stream=90e6, prefixes=PREFIXES,
    costs=COSTS, settings=IMAGES,
)  # fmt: skip


def cases() -> dict[str, tuple[Job, dict[str, int]]]:
    """By name: a job, and how its dataset differs from the base's."""
    found: dict[str, tuple[Job, dict[str, int]]] = {}
    for ranks in RANKS:
        # At many ranks, the network is looked at each millisecond at most: see `Network`.
        large = {"grain": 1e-3, "steps": 24} if ranks > 512 else {}
        job = BASE.but(ranks=ranks, **large)
        found[f"base {ranks}"] = job, {}
        found[f"one prefix {ranks}"] = job.but(prefixes=1), {}
    # 64 ranks: an eighth of 512 ranks, with an eighth of the requests that a prefix answers.
    some = BASE.but(ranks=64, per_prefix=BASE.per_prefix / 8)

    def with_(settings: Settings = IMAGES, **changes: Any) -> Job:
        return some.but(settings=settings, **changes)

    demand = some.ranks * IMAGES.batch * SAMPLE / some.step  # bytes per second
    small, large = replace(IMAGES, prefetch=16 << 20), {"frames": FRAMES // 4, "per_frame": 4 * PER_FRAME}
    refusing = replace(STORE, refused=0.01), replace(STORE, refused=0.1)
    found |= {
        "slow tail": (with_(answers=SLOW), {}),
        "slow tail, small prefetch": (with_(small, answers=SLOW), {}),
        "1 % refused": (with_(answers=refusing[0]), {}),
        "10 % refused": (with_(answers=refusing[1]), {}),
        "store of 1.5 x the demand": (with_(store_rate=1.5 * demand), {}),
        "store of 1.1 x the demand": (with_(store_rate=1.1 * demand), {}),
        "store of 1.1 x, small prefetch": (with_(small, store_rate=1.1 * demand), {}),
        "small prefetch": (with_(small), {}),
        "4 lanes a rank": (with_(replace(IMAGES, shuffle=Shuffle(lanes=4 * some.ranks))), {}),
        "window 16": (with_(replace(IMAGES, shuffle=Shuffle(window=16))), {}),
        "one prefix": (with_(prefixes=1), {}),
        "one prefix, small prefetch": (with_(small, prefixes=1), {}),
        "one prefix, frames of 4 MB": (with_(prefixes=1), large),
        "one prefix, frames of 4 MB, small prefetch": (with_(small, prefixes=1), large),
        "4 prefixes": (with_(prefixes=4), {}),
        "manifest by each process": (with_(replace(IMAGES, shared_manifest=False)), {"shards": 50_000}),
        "manifest once a node": (with_(), {"shards": 50_000}),
    }
    return found


def _dataset(job: Job, differs: dict[str, int]) -> Dataset:
    shards = max(64, 2 * job.ranks)
    shape = {"shards": shards, "frames": FRAMES, "per_frame": PER_FRAME, "sample": SAMPLE}
    return synthetic(**shape | differs, prefixes=job.prefixes)


def run(name: str) -> dict[str, Any]:
    """Simulate one case."""
    job, differs = cases()[name]
    found = simulate(job, _dataset(job, differs))
    samples = job.ranks * job.settings.batch
    return {
        **found, "needed GB per second": samples * SAMPLE / job.step / 1e9, "prefixes": job.prefixes,
    }  # fmt: skip

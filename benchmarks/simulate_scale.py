"""The jobs that `simulate` makes of 8 to 8,192 ranks: a base, and others that differ in one thing."""

from __future__ import annotations

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
REFUSING = Answers.by_percentiles(0.03, 0.08, 0.15, connect=0.03, refused=0.01)

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
    some = BASE.but(ranks=512)

    def with_(settings: Settings = IMAGES, **changes: Any) -> Job:
        return some.but(settings=settings, **changes)

    def images(**changes: Any) -> Settings:
        return Settings(**{**{name: getattr(IMAGES, name) for name in vars(IMAGES)}, **changes})

    demand = 512 * 32 * SAMPLE / 0.25  # bytes per second
    found |= {
        "slow tail 512": (with_(answers=SLOW), {}),
        "slow tail, small prefetch 512": (with_(images(prefetch=16 << 20), answers=SLOW), {}),
        "1 % refused 512": (with_(answers=REFUSING), {}),
        "10 % refused 512": (with_(answers=Answers(STORE.points, STORE.connect, 0.1)), {}),
        "store of 1.5 x the demand 512": (with_(store_rate=1.5 * demand), {}),
        "store of 1.1 x the demand 512": (with_(store_rate=1.1 * demand), {}),
        "small prefetch 512": (with_(images(prefetch=16 << 20)), {}),
        "4 lanes a rank 512": (with_(images(shuffle=Shuffle(lanes=4 * 512))), {}),
        "window 16 512": (with_(images(shuffle=Shuffle(window=16))), {}),
        "4 prefixes 512": (with_(prefixes=4), {}),
        "one prefix, small prefetch 512": (with_(images(prefetch=16 << 20), prefixes=1), {}),
        "one prefix, frames of 4 MB 512": (
            with_(prefixes=1),
            {"frames": FRAMES // 4, "per_frame": 4 * PER_FRAME},
        ),
        "4 prefixes, frames of 4 MB 512": (
            with_(prefixes=4),
            {"frames": FRAMES // 4, "per_frame": 4 * PER_FRAME},
        ),
        "manifest by each process 512": (with_(images(shared_manifest=False)), {"shards": 50_000}),
        "manifest once a node 512": (with_(), {"shards": 50_000}),
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

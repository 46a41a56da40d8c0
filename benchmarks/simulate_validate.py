"""The simulation beside real processes: the same job, predicted from what `shardstream probe` measures."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.simulate_data import packed
from benchmarks.simulate_job import Job, simulate
from benchmarks.simulate_link import Link
from benchmarks.simulate_reader import Dataset
from benchmarks.simulate_real import LANES, SIZE, WINDOW, Ranks, busy, make, work
from benchmarks.simulate_settings import PLAN, UNIT, Costs, Settings
from benchmarks.simulate_store import Answers
from shardstream.observe.probe import probe
from shardstream.observe.probe_profile import Profile
from shardstream.observe.probe_ranges import Ranges, objects_below, unhedged
from shardstream.order.shuffle import Shuffle

__all__ = ["SETTINGS", "Setting", "again", "validate"]

MIB = 1 << 20
_READERS = 4  # threads
_SEEDS = 3  # simulations of each setting; their median counts


@dataclass(frozen=True)
class Setting:
    """One job on one kind of network.

    Args:
        ranks: How many there are.
        latency: Seconds of a round trip.
        rate: Bytes per second of the link.
        step: Seconds of a step.
        steps: How many there are.
        batch: Samples of 16 KiB of a batch.
        prefetch: Bytes.
        slow: The share of answers that come a second late.
        refused: The share of requests that are answered with 503.
        transform: Whether each sample takes a core for some milliseconds.
    """

    ranks: int
    latency: float
    rate: float
    step: float
    steps: int = 24
    batch: int = 32
    prefetch: int = 32 * MIB
    slow: float = 0.0
    refused: float = 0.0
    transform: bool = False

    @property
    def network(self) -> str:
        """What is probed once: the name of this network, without refusals."""
        return f"{self.latency} {self.rate} {self.slow}"

    @property
    def faults(self) -> dict[str, Any]:
        """As the proxy takes them, without the rate."""
        chance = {"slow": self.slow, "slow_by": 0.3, "status": [503], "share": self.refused}
        return {"latency": self.latency, **chance}


SETTINGS = (
    *(Setting(ranks, 0.02, 40e6, 0.02 * ranks) for ranks in (1, 2, 4, 8, 16)),
    *(Setting(ranks, 0.1, 40e6, 0.02 * ranks) for ranks in (1, 2, 4, 8, 16)),
    Setting(4, 0.02, 20e6, 0.05),
    Setting(8, 0.1, 80e6, 0.4, slow=0.02),
    Setting(4, 0.02, 40e6, 0.1, refused=0.05),
    Setting(4, 0.02, 100e6, 0.0, steps=16, transform=True),
)


def measure(setting: Setting, link: Link, told: dict[str, Any], rounds: int) -> dict[str, Any]:
    """What real processes do."""
    found = []
    for _ in range(rounds):
        names = ("steps", "step", "batch", "prefetch", "transform")
        with Ranks(told | {name: getattr(setting, name) for name in names}, setting.ranks) as ranks:
            link.set(setting.rate, **setting.faults)
            cpu, wall = busy(), time.monotonic()
            rows = ranks.run()
            cpu, wall = busy() - cpu, time.monotonic() - wall
            passed = link.set(setting.rate, **setting.faults)
        began = min(row["asked"][0] for row in rows)
        ends = [max(row["times"][step] for row in rows) for step in range(setting.steps)]
        found.append({
            "first batch": ends[0] - began,
            "steps per second": (setting.steps - 1) / (ends[-1] - ends[0]),
            "requests": passed["requests"], "connections": passed["connections"], "GB": passed["bytes"] / 1e9,
            "cores busy": cpu / wall / (os.cpu_count() or 1),
        })  # fmt: skip
    return {name: statistics.median(one[name] for one in found) for name in found[0]} | {
        "rounds": [[one["first batch"], one["steps per second"]] for one in found]
    }


def first_bytes(url: str, options: dict[str, Any], seconds: float) -> list[float]:
    """How long 4 KiB take, as `shardstream probe` reads them; without the first ones, for connections."""
    ranges = Ranges(objects_below(url, unhedged(options, 60.0))[0])
    until, found = time.monotonic() + seconds, []

    def read() -> list[float]:
        times = []
        while time.monotonic() < until:
            began = time.monotonic()
            ranges.read(4 << 10)
            times.append(time.monotonic() - began)
        return times[1:]

    with ThreadPoolExecutor(_READERS) as pool:
        for future in [pool.submit(read) for _ in range(_READERS)]:
            found += future.result()
    return found


def predict(
    setting: Setting, profiles: Iterable[Profile], answers: Answers, dataset: Dataset, hashing: float
) -> dict[str, Any]:
    """What the simulation says.

    Args:
        setting: Of what.
        profiles: Of the same machine and dataset, on some networks. Processor times count of the one in which
            they are least: other programs, and what waits for a slow network, make them larger.
        answers: Of the network of the setting.
        dataset: What is read.
        hashing: Seconds of a core for a sample of the transform.
    """
    _, rates, best = min(
        (one.rates.cold_seconds_per_sample, one.rates, one.store.throughput.best)
        for one in profiles
        if one.rates is not None and one.store.throughput is not None
    )
    # The store, the proxy and the ranks share the cores.
    beside = max(0.0, best.machine_seconds_per_gb - best.cpu_seconds_per_gb) / 1e9 * SIZE
    costs = Costs(
        opening=rates.open_seconds,
        fetch=max(0.0, rates.cold_seconds_per_sample - rates.consumer_seconds_per_sample) + beside,
        build=hashing if setting.transform else 0.0,
        consume=0.0 if setting.transform else rates.consumer_seconds_per_sample,
        plan=PLAN,
        unit=UNIT,
    )
    settings = Settings(
        setting.batch, Shuffle(0, LANES, WINDOW), setting.prefetch, os.cpu_count() or 1, False,
        2 * setting.batch * SIZE if setting.transform else 0, transform=work if setting.transform else None,
    )  # fmt: skip
    job = Job(
        setting.ranks, replace(answers, refused=setting.refused), of_node=setting.ranks,
        cores=os.cpu_count() or 1, step=setting.step, steps=setting.steps, store_rate=setting.rate,
        costs=costs, settings=settings,
    )  # fmt: skip
    found = [simulate(job.but(seed=seed), dataset) for seed in range(_SEEDS)]
    numbers = [name for name, value in found[0].items() if isinstance(value, (int, float))]
    return {name: statistics.median(one[name] for one in found) for name in numbers} | {
        "by kind": found[0]["by kind"]
    }


def validate(rounds: int, seconds: float, chosen: Iterable[Setting]) -> Iterator[dict[str, Any]]:
    """Measure and simulate some settings; after each of them, all that is known so far."""
    from tests.servers import Weed

    rows: list[dict[str, Any]] = []
    profiles: dict[str, Profile] = {}
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, Weed() as weed, Link(weed.address) as link:
        folder, hashing = make(Path(scratch)), _hashing()
        dataset = packed(folder)
        url = _upload(folder, weed)
        options = weed.options(link.url)
        told = {"url": url, "options": options, "link": link.url, "past": weed.url, "threads": os.cpu_count()}
        for setting in chosen:
            key = setting.network
            if key not in profiles:
                # Without refusals: these are told to the simulation.
                link.set(setting.rate, **setting.faults | {"share": 0.0})
                profiles[key] = probe(
                    url, batch=setting.batch, decode=False, lanes=LANES, window=WINDOW, seconds=seconds,
                    storage_options=options,
                )  # fmt: skip
                times[key] = first_bytes(url, options, seconds / 2)
            real = measure(setting, link, told, rounds)
            simulated = predict(
                setting, profiles.values(), _answers(profiles[key], times[key]), dataset, hashing
            )
            rows.append({"setting": asdict(setting), "real": real, "simulated": simulated})
            print(_line(rows[-1]), flush=True)
            yield {
                "rows": rows,
                "profiles": {name: one.as_dict() for name, one in profiles.items()},
                "times": times,
                "hashing": hashing,
                "load": os.getloadavg()[0],
            }


def again(found: dict[str, Any]) -> dict[str, Any]:
    """The same measurements, and what the simulation as it is now says from what was probed then."""
    with tempfile.TemporaryDirectory() as scratch:
        dataset = packed(make(Path(scratch)))
    for part in found.values():
        profiles = [msgspec.convert(one, Profile) for one in part["profiles"].values()]
        for row in part["rows"]:
            setting = Setting(**row["setting"])
            profile = msgspec.convert(part["profiles"][setting.network], Profile)
            answers = _answers(profile, part["times"].get(setting.network))
            row["simulated"] = predict(setting, profiles, answers, dataset, part["hashing"])
            print(_line(row), flush=True)
    return found


def _answers(profile: Profile, times: list[float] | None) -> Answers:
    """How a network answers: by what was seen of it, or else by the percentiles of the probe."""
    if times:
        return Answers.seen(times, min(times))
    least = profile.store.latencies[0]
    p50, p95, p99 = (ms / 1e3 for ms in (least.p50_ms, least.p95_ms, least.p99_ms))
    return Answers.by_percentiles(p50, p95, p99, connect=p50)


def _hashing() -> float:
    """Seconds of a core that the transform takes."""
    times = []
    for _ in range(20):
        began = time.thread_time()
        work({})
        times.append(time.thread_time() - began)
    return statistics.median(times)


def _upload(folder: Path, weed: Any) -> str:
    import s3fs

    url = str(weed.bucket())
    s3fs.S3FileSystem(**weed.options(), skip_instance_cache=True).put(str(folder), url, recursive=True)
    return url


def _line(row: dict[str, Any]) -> str:
    real, simulated = row["real"], row["simulated"]
    parts = [
        f"{name}: {real[name]:.3f} / {simulated[name]:.3f} ({simulated[name] / real[name] - 1:+.0%})"
        for name in ("first batch", "steps per second", "requests", "connections", "GB")
    ]
    told = {name: value for name, value in row["setting"].items() if value}
    return f"{told}\n  {'; '.join(parts)}; cores {real['cores busy']:.0%} / {simulated['cores busy']:.0%}"

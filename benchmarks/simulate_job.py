"""A simulated job: nodes, ranks, a store, and a barrier at each step."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks.simulate_network import UNLIMITED, Clock, Cores, Network
from benchmarks.simulate_rank import Rank
from benchmarks.simulate_reader import Dataset
from benchmarks.simulate_settings import Costs, Settings
from benchmarks.simulate_store import Answers, Client, Counts, Prefixes
from shardstream.storage.options import RequestOptions
from shardstream.storage.transport import retry

__all__ = ["Job", "simulate"]

_BEFORE = 0.25  # of the processor time of opening: before the manifest is asked for; measured
_POLL = 0.05  # seconds between two looks of a process at the lock of another one, at most


@dataclass(frozen=True)
class Job:
    """A job and the machines that it runs on.

    Args:
        ranks, of_node: How many ranks there are, and on each node.
        cores: Of a node.
        step: Seconds of a step, after the barrier.
        steps: How many are simulated.
        answers: Of the store.
        node_rate, store_rate, stream: Bytes per second of a node's link, of the store, of one request.
        per_prefix: Requests per second of one part of the store's names.
        prefixes: How many parts there are.
        costs, settings: Of a rank.
        options: Of its requests.
        seed: Of all chance.
        grain: See `Network`.
    """

    ranks: int
    answers: Answers
    of_node: int = 8
    cores: int = 96
    step: float = 0.25
    steps: int = 40
    node_rate: float = UNLIMITED
    store_rate: float = UNLIMITED
    stream: float = UNLIMITED
    per_prefix: float = 5500.0
    prefixes: int = 1
    costs: Costs = field(default_factory=Costs)
    settings: Settings = field(default_factory=Settings)
    options: RequestOptions = field(default_factory=RequestOptions)
    seed: int = 0
    grain: float = 0.0

    def but(self, **changes: Any) -> Job:
        """The same with other values."""
        return replace(self, **changes)


@dataclass
class _Run:
    """What happens in one simulation."""

    job: Job
    dataset: Dataset
    clock: Clock = field(default_factory=Clock)
    ends: list[float] = field(default_factory=list)  # when all ranks had the batch of each step
    here: int = 0
    waits: list[float] = field(default_factory=list)  # of all ranks, for the batch of a step but the first

    def __post_init__(self) -> None:
        job, clock = self.job, self.clock
        nodes = -(-job.ranks // job.of_node)
        self.network = Network(clock, nodes, job.node_rate, job.store_rate, job.stream, job.grain)
        self.prefixes, self.counts = Prefixes(clock, job.prefixes, job.per_prefix), Counts()
        self.cores = [Cores(clock, job.cores) for _ in range(nodes)]
        drawn = random.Random(job.seed)
        retry._random.seed(job.seed)
        self.ranks = [
            Rank(
                number, job.ranks, self.dataset, job.settings, job.costs, clock,
                self.cores[number // job.of_node],
                Client(
                    clock, self.network, self.prefixes, number // job.of_node, job.answers, job.options,
                    random.Random(drawn.getrandbits(64)), self.counts,
                ),
            )
            for number in range(job.ranks)
        ]  # fmt: skip
        self.bodies: dict[int, list[Callable[[], object]]] = {}  # by node: who waits for the manifest's body
        self.drawn = drawn

    def measured(self) -> dict[str, Any]:
        """Run it, and say what is measured of jobs."""
        for number in range(self.job.ranks):
            self.clock.after(0.0, partial(self.open, number))
        self.clock.run(lambda: len(self.ends) == self.job.steps or self.counts.failed > 0)
        return _measured(self)

    def open(self, number: int) -> None:
        """A process opens the dataset."""
        rank, dataset = self.ranks[number], self.dataset
        node = number // self.job.of_node
        for _ in range(rank.connections):
            rank.client.warm_up(0)

        def stub() -> None:
            if not dataset.body_bytes:
                decode()
            elif not self.job.settings.shared_manifest:
                rank.client.get(dataset.body_bytes, 0, "manifests", decode)
            elif node in self.bodies:
                self.bodies[node].append(lambda: self.clock.after(self.drawn.uniform(0, _POLL), decode))
            else:
                self.bodies[node] = []
                rank.client.get(dataset.body_bytes, 0, "manifests", body)

        def body() -> None:
            waiting = self.bodies[node]
            self.bodies[node] = _Now()
            for call in waiting:
                call()
            decode()

        def decode() -> None:
            seconds = rank.costs.per_shard * len(dataset.manifest.shards)
            rank.cores.work(seconds, begin)

        def begin() -> None:
            rank.begin()
            left = 2  # the batch, and the work of opening that goes on while frames are on their way

            def one() -> None:
                nonlocal left
                left -= 1
                if not left:
                    self.came(rank, first=True)

            rank.take(one)
            rank.cores.work((1 - _BEFORE) * rank.costs.opening, one)

        rank.cores.work(
            _BEFORE * rank.costs.opening,
            lambda: rank.client.get(dataset.manifest_bytes, 0, "manifests", stub),
        )

    def came(self, rank: Rank, first: bool = False) -> None:
        """A rank has its batch, and waits at the barrier."""
        if first:
            rank.first = self.clock.now
        else:
            wait = self.clock.now - self.began
            rank.waited += wait
            self.waits.append(wait)
        self.here += 1
        if self.here == len(self.ranks):
            self.here = 0
            self.ends.append(self.clock.now)
            if len(self.ends) < self.job.steps:
                self.clock.after(self.job.step, self.next_step)

    def next_step(self) -> None:
        """All ranks have made their step, and ask for the next batch."""
        self.began = self.clock.now
        for rank in self.ranks:
            rank.take(lambda rank=rank: self.came(rank))  # type: ignore[misc]


class _Now(list[Callable[[], object]]):
    """Who comes later does not wait."""

    def append(self, call: Callable[[], object]) -> None:
        call()


def simulate(job: Job, dataset: Dataset) -> dict[str, Any]:
    """Simulate a job from the start of its processes to its last step; returns what is measured of jobs.

    It ends earlier if a request has failed as often as it is tried: the job would end with a StorageError.
    """
    real = time.perf_counter()
    gc.disable()  # very many objects that live long: a collection takes seconds, and frees little
    try:
        found = _Run(job, dataset).measured()
    finally:
        gc.enable()
    return found | {"simulated in": time.perf_counter() - real}


def _measured(run: _Run) -> dict[str, Any]:
    """What is measured of jobs."""
    job = run.job
    firsts = sorted(rank.first or run.clock.now for rank in run.ranks)
    ends = run.ends or [run.clock.now]
    seconds = ends[-1] - ends[0]
    ideal = job.step * (len(ends) - 1)
    waits = sorted(run.waits)
    at = _percentiles(waits)
    counts = run.counts
    return {
        "ranks": job.ranks,
        "first batch": firsts[-1],
        "first batch median": firsts[len(firsts) // 2],
        "opened": max(rank.opened for rank in run.ranks),
        "steps": len(run.ends),
        "seconds": seconds,
        "total seconds": run.clock.now,
        "steps per second": (len(ends) - 1) / seconds if seconds else 0.0,
        "of ideal": ideal / seconds if seconds else 0.0,
        "wait p50": at(0.5), "wait p99": at(0.99), "wait most": at(1.0),
        "requests": counts.requests, "refused": counts.refused, "hedges": counts.hedges,
        "failed": counts.failed, "connections": counts.connections, "by kind": dict(counts.ranges),
        "busiest prefix": run.prefixes.busiest,
        "GB": run.network.bytes / 1e9,
        "GB per second": run.network.bytes / 1e9 / run.clock.now,
        "transfers at a time": run.network.most,
        "cores busy": sum(one.busy for one in run.cores) / (len(run.cores) * job.cores * run.clock.now),
    }  # fmt: skip


def _percentiles(waits: list[float]) -> Callable[[float], float]:
    return lambda share: waits[min(len(waits) - 1, int(share * len(waits)))] if waits else 0.0

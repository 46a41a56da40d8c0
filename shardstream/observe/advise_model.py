"""The arithmetic of advise: from data, a machine and a job to rates by stage, and to seconds of an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardstream.packing.layout import fitting_shard_size

__all__ = ["Data", "Job", "Machine", "Prediction", "little", "predict", "shard_bytes"]

MOST_REQUESTS = 64  # that one process has on its way
LARGEST = 8 << 20  # bytes of a request of the loader
ROUND_TRIPS = 5  # that nothing overlaps: connection, manifest, indexes, the first frames, the last ones
SHARDS_A_RANK, LEAST_SHARD = 8, 1 << 20  # bytes of a shard, however many ranks there are


@dataclass(frozen=True)
class Data:
    """A dataset, in items: samples, or blocks of tokens.

    Args:
        items: How many there are.
        stored: Bytes of an item in the store.
        raw: Bytes of an item after decompression.
        frames, shards: How many there are.
        local: Whether it lies on this machine.
    """

    items: int
    stored: float
    raw: float
    frames: int
    shards: int
    local: bool = False

    @property
    def bytes(self) -> float:
        """Bytes in the store."""
        return self.items * self.stored

    @property
    def frame(self) -> float:
        """Bytes of a frame in the store, on the average."""
        return self.bytes / max(1, self.frames)

    @property
    def raw_frame(self) -> float:
        """Bytes of a frame after decompression, on the average."""
        return self.items * self.raw / max(1, self.frames)


@dataclass(frozen=True)
class Machine:
    """One machine and its store.

    Args:
        cores: Of the machine, as many as are free.
        base: Seconds of a request without its bytes.
        stream: Bytes per second of one request after that.
        best: Bytes per second of one process with many requests.
        request: Bytes of a request.
        opening: Seconds of a core until a process has its first batch.
        cold: Seconds of a core for an item that comes from the store.
        warm: Seconds of a core for an item that is in memory.
        serial: The part of `cold` that one process does one after the other.
        consumer: Seconds of the training loop's thread for an item.
        fetch: Seconds of a core for a byte from the store; of the store itself, too, if it runs here.
        store_only: The part of `fetch` that other processes take.
        decompress: Seconds of a core for a byte after decompression.
        link: Bytes per second that come to the machine, for all of its ranks together.
    """

    cores: float
    base: float
    stream: float
    best: float
    request: float
    opening: float
    cold: float
    warm: float
    serial: float
    consumer: float
    fetch: float
    store_only: float
    decompress: float
    link: float = math.inf

    def request_seconds(self, size: float) -> float:
        """Seconds of one request for so many bytes, if nothing else is on its way."""
        return self.base + (size / self.stream if self.stream else 0.0)


@dataclass(frozen=True)
class Job:
    """How the data is read.

    Args:
        batch: Items of a batch of a rank.
        world: The data-parallel ranks that read different batches.
        here: Those of them on this machine.
        step: Seconds of a step without data; 0 for the loader alone.
        prefetch: Bytes of look-ahead.
        lanes, window: Of the shuffle; 0 lanes for the natural order.
    """

    batch: int
    world: int
    here: int
    step: float
    prefetch: int
    lanes: int
    window: int

    @property
    def demand(self) -> float:
        """Items per second that the ranks on this machine ask for; infinite without a step."""
        return self.here * self.batch / self.step if self.step else math.inf


@dataclass(frozen=True)
class Prediction:
    """What is going to happen on one machine.

    Attributes:
        stages: Items per second that each stage allows, all ranks of this machine together.
        cached: The same if the data is in memory or on a fast disk.
        epoch_seconds: From opening the dataset to the last batch, with an empty cache and without a model.
        first_batch_seconds: Until the first batch.
        cpu_seconds: Of cores, of all ranks on this machine, for that epoch.
        requests: On their way for one rank.
        amplification: Bytes that are read, divided by the bytes of the items: frames at the borders of lanes
            are read by two ranks.
        open_bytes: Of the frames, decompressed, that the shuffle of one rank mixes at a time.
    """

    stages: dict[str, float]
    cached: dict[str, float]
    epoch_seconds: float
    first_batch_seconds: float
    cpu_seconds: float
    requests: float
    amplification: float
    open_bytes: float

    @property
    def bound(self) -> str:
        """The stage that allows least."""
        return min(self.stages, key=lambda name: self.stages[name])

    @property
    def rate(self) -> float:
        """Items per second on this machine, with an empty cache."""
        return min(self.stages.values())

    @property
    def rate_without_step(self) -> float:
        """The same, however fast the job takes it."""
        return min(rate for name, rate in self.stages.items() if name != "step")

    @property
    def cached_rate(self) -> float:
        """Items per second on this machine from the cache."""
        return min(self.cached.values())


def little(bytes_per_second: float, size: float, seconds: float) -> float:
    """How many requests of `size` bytes have to be on their way (Little's law)."""
    return bytes_per_second / size * seconds


def shard_bytes(total: float, ranks: int) -> int:
    """The size of shards: as `pack` chooses it, or smaller, so that there are at least 8 for each rank."""
    size = fitting_shard_size(math.ceil(total), 0)
    while size > LEAST_SHARD and total / size < SHARDS_A_RANK * ranks:
        size //= 2
    return size


def predict(data: Data, machine: Machine, job: Job) -> Prediction:
    """Rates by stage: each allows c / D, its capacity over what an item demands of it; the least counts."""
    amplification = 1.0
    if job.lanes and job.world > 1:
        # A lane ends within a window of frames, which the rank of the next lane reads, too.
        amplification = min(float(job.world), 1 + job.lanes * job.window / data.frames)
    stored = data.stored * amplification
    more = (amplification - 1) * (
        data.stored * (machine.fetch - machine.store_only) + data.raw * machine.decompress
    )
    # Of the store's own work, if it runs here, every byte costs.
    cold, warm = machine.cold + more, machine.warm + (amplification - 1) * data.raw * machine.decompress
    beside = stored * machine.store_only
    size = min(machine.request, LARGEST) or data.frame
    # What is on its way counts as it will be after decompression, and comes in whole frames.
    charged = max(1.0, data.raw_frame, size * data.raw / data.stored if data.stored else 0.0)
    requests = min(MOST_REQUESTS, max(1.0, job.prefetch / charged))
    store = min(machine.best, requests * size / max(machine.request_seconds(size), 1e-9))
    demand = {"step": job.demand} if job.step else {}
    stages = {
        # The ranks of a machine share its link.
        "store": min(job.here * store, machine.link) / stored,
        "cores": machine.cores / (cold + beside),
        "one process": job.here / machine.serial,
        "training loop": job.here / machine.consumer if machine.consumer else math.inf,
        **demand,
    }
    cached = {
        "cores": machine.cores / warm,
        "one process": job.here / min(machine.serial, warm),
        "training loop": stages["training loop"],
        **demand,
    }
    items = data.items * job.here / job.world
    lanes = max(1.0, job.lanes / job.world)
    opened = lanes * job.window * data.raw_frame
    share = min(1.0, job.here * opened / max(1.0, items * data.raw)) if job.lanes else 0.0
    fetching = items / stages["store"]
    others = min(rate for name, rate in stages.items() if name not in ("store", "step"))
    # Until the frames of all lanes are there, hardly anything can be built.
    busy = max(fetching, share * fetching + (1 - share) * items / others, items / others)
    trips = 0.0 if data.local else ROUND_TRIPS * machine.base
    # All processes open the dataset at the same time.
    opening = machine.opening * max(1.0, job.here / machine.cores)
    first = trips + opening + min(job.batch, lanes) * data.frame / min(store, machine.link / job.here)
    cpu = items * cold + job.here * machine.opening  # of free cores
    return Prediction(stages, cached, trips + opening + busy, first, cpu, requests, amplification, opened)

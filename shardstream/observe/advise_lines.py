"""The lines of advise: each number with its origin and its arithmetic, and the settings that follow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shardstream.format.sizes import human_size
from shardstream.observe.advise_facts import Facts, Origin
from shardstream.observe.advise_model import MOST_REQUESTS, Job, Prediction, little, shard_bytes

__all__ = ["PREFETCH", "Line", "Plan", "memory_here"]

PREFETCH = 256 << 20  # bytes: the loader's default
_RAM = 1 << 30  # bytes: the cache's default
_LOOK_AHEAD = 2  # times what has to be on its way
_OF_MEMORY = 0.25  # the part of a machine's memory that look-ahead and caches of all ranks may take
_MOST_FRAME, _LEAST_FRAME = 8 << 20, 256 << 10
_LINK = 1e11  # bytes per second between GPUs of a machine, assumed
_MIXED = 2.0  # times that a step is shorter in 16 bits than in 32, assumed


@dataclass(frozen=True)
class Line:
    """One number.

    Attributes:
        topic: What it is about, such as "requests".
        name: What it is.
        value: The number, in `unit`.
        unit: Such as "bytes/s".
        origin: "measured", "given" or "assumed".
        how: The arithmetic, or where it comes from.
    """

    topic: str
    name: str
    value: float
    unit: str
    origin: Origin
    how: str

    @property
    def shown(self) -> str:
        """The value for people."""
        if self.unit == "bytes":
            return human_size(self.value)
        if self.unit == "bytes/s":
            return f"{human_size(self.value)}/s"
        if self.unit == "share":
            return f"{self.value:.1%}"
        if self.unit == "s" and self.value < 1:
            return f"{1e3 * self.value:,.3g} ms"
        digits = f"{self.value:,.0f}" if abs(self.value) >= 100 else f"{self.value:,.3g}"
        return f"{digits} {self.unit}".rstrip()


def memory_here() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _power(value: float) -> int:
    """The least power of two that is not below."""
    return 1 << max(0, math.ceil(math.log2(max(1.0, value))))


def _size(value: float) -> str:
    """A power of two as the options write it: "512MiB"."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{int(value) // size}{unit}"
    return str(int(value))


@dataclass(frozen=True)
class Plan:
    """A job, its facts and what is predicted of it."""

    facts: Facts
    job: Job
    prediction: Prediction
    world: int
    share: int
    epochs: int
    nodes: int
    memory: int
    memory_given: bool
    disk: int | None
    model: int | None
    images: int | None

    @property
    def _rank_bytes(self) -> float:
        """Bytes per second that a rank asks the store for; without a step, what it can get."""
        job, data = self.job, self.facts.data
        rate = min(job.demand, self.prediction.rate) if not job.step else job.demand
        return rate / job.here * data.stored * self.prediction.amplification

    def _request(self) -> tuple[float, float]:
        """(bytes of a request, its seconds)."""
        size = self.facts.machine.request
        return size, self.facts.machine.request_seconds(size)

    def settings(self) -> dict[str, Any]:
        """The arguments that follow from the numbers."""
        job, data, machine = self.job, self.facts.data, self.facts.machine
        size, seconds = self._request()
        wanted = _LOOK_AHEAD * little(self._rank_bytes, size, seconds) * max(data.raw_frame, size * data.raw / data.stored)
        most = self.memory * _OF_MEMORY / job.here
        ahead = PREFETCH if data.local else max(PREFETCH, _power(wanted))
        while ahead > PREFETCH and ahead > most:
            ahead //= 2
        ram = max(_RAM, _power(2 * self.prediction.open_bytes))
        while ram > _RAM and ram > most:
            ram //= 2
        frame = min(_MOST_FRAME, max(1 << 20, _power(machine.base * machine.stream / 2)))
        return {
            "prefetch": _size(ahead),
            "threads": max(1, min(16, int(machine.cores))),
            "ram": _size(ram),
            "shard_size": _size(shard_bytes(data.bytes, job.world)),
            "frame_size": _size(max(_LEAST_FRAME, 1 << 20 if data.local else frame)),
        }

    def lines(self, settings: dict[str, Any]) -> Iterator[Line]:
        """All numbers, topic by topic."""
        yield from self._data()
        yield from self._stages()
        if not self.facts.data.local:
            yield from self._requests()
        yield from self._shards(settings)
        yield from self._caches()
        yield from self._parallel()
        yield from self._precision()
        if self.model is not None:
            yield from self._model(self.model)

    def _data(self) -> Iterator[Line]:
        data, of, job = self.facts.data, self.facts.of, self.job
        yield Line("data", "samples (of tokens: blocks)", data.items, "", of("items"), "the manifest")
        yield Line("data", "bytes in the store", data.bytes, "bytes", of("stored"), "the manifest")
        yield Line("data", "bytes of a sample, stored", data.stored, "bytes", of("stored"), "bytes / samples")
        yield Line("data", "bytes of a sample, decompressed", data.raw, "bytes", of("raw"), "bytes / samples")
        yield Line("data", "bytes of a frame, stored", data.frame, "bytes", of("frames"), "bytes / frames")
        yield Line(
            "data", "read / needed", self.prediction.amplification, "x", of("frames"),
            f"1 + lanes {job.lanes} x window {job.window} / frames {data.frames}, if ranks share frames at the ends of lanes",
        )  # fmt: skip
        if job.step:
            yield Line(
                "demand", "samples/s of a machine", job.demand, "samples/s", "given",
                f"{job.here} ranks x batch {job.batch} / step {1e3 * job.step:g} ms",
            )  # fmt: skip
            rate = job.demand * data.stored * self.prediction.amplification
            yield Line("demand", "bytes/s of a machine", rate, "bytes/s", of("stored"), "samples/s x bytes x read / needed")
            yield Line("demand", "bytes/s of the job", rate * job.world / job.here, "bytes/s", of("stored"), "of all machines: what the store has to give")

    def _stages(self) -> Iterator[Line]:
        machine, of, job = self.facts.machine, self.facts.of, self.job
        yield Line("machine", "cores", machine.cores, "", of("cores"), "of a machine of the job")
        yield Line("machine", "a sample from the store", machine.cold, "s", of("cold"), "of a core, all stages")
        yield Line("machine", "a sample from memory", machine.warm, "s", of("warm"), "of a core")
        how = {
            "store": ("best", "ranks x min(best rate, requests x bytes / latency) / bytes of a sample"),
            "cores": ("cold", "cores / seconds of a core for a sample"),
            "one process": ("cores_used", "ranks x cores that a process can use / seconds of a core for a sample"),
            "training loop": ("consumer", "ranks / seconds of the loop's thread for a sample"),
            "step": ("step", "ranks x batch / step"),
        }
        for name, rate in self.prediction.stages.items():
            if rate != math.inf:
                yield Line("stages", name, rate, "samples/s", of(how[name][0], "cold" if name != "step" else "step"), how[name][1])
        yield Line("stages", "the least: " + self.prediction.bound, self.prediction.rate, "samples/s", of("cold", "best"), "X <= min(c / D)")
        yield Line("stages", "from a full cache", self.prediction.cached_rate, "samples/s", of("warm"), "the same without the store")
        if job.step:
            share = max(0.0, 1 - self.prediction.rate_without_step / job.demand)
            yield Line("stages", "share of the time that the job waits", share, "share", of("cold", "best"), "1 - what comes / what is asked for")
            yield Line("stages", "the most that work on the data can give", 1 / max(1e-9, 1 - share), "x", of("cold", "best"), "Amdahl: 1 / (1 - share)")
            yield Line(
                "stages", "threads for a rank", max(1, math.ceil(job.demand / job.here * machine.cold)), "", of("cold"),
                "samples/s of a rank x seconds of a core for a sample; the loader has as many as cores",
            )  # fmt: skip
        yield Line("start", "first batch after", self.prediction.first_batch_seconds, "s", of("base", "best"), "4 round trips + the frames of the first batch")
        yield Line("start", "an epoch without a model", self.prediction.epoch_seconds, "s", of("cold", "best"), "of the samples of this machine, empty cache")

    def _requests(self) -> Iterator[Line]:
        machine, of, data = self.facts.machine, self.facts.of, self.facts.data
        size, seconds = self._request()
        loaded, why = seconds, "base + bytes / rate of a stream"
        profile = self.facts.profile
        if profile is not None and profile.store.throughput is not None:
            sweep = profile.store.throughput
            level = next(one for one in sweep.levels if one.concurrency == sweep.knee)
            yield Line("requests", "knee of the concurrency", sweep.knee, "requests", "measured", f"least with 90 % of the best rate, {human_size(sweep.bytes)} each")
            loaded, why = max(seconds, level.p50_ms / 1e3), f"median at the knee, {sweep.knee} at a time"
        yield Line("requests", "latency without bytes", machine.base, "s", of("base"), "the line through the medians by size")
        yield Line("requests", "rate of a stream", machine.stream, "bytes/s", of("stream"), "the slope of this line")
        yield Line("requests", "bytes of a request", size, "bytes", of("request"), "bytes / requests of the loader")
        yield Line("requests", "latency at load", loaded, "s", of("base", "stream"), why)
        flight = little(self._rank_bytes, size, loaded)
        yield Line(
            "requests", "on their way for a rank", flight, "requests", of("base", "request", "stored"),
            f"Little: {human_size(self._rank_bytes)}/s / {human_size(size)} x {1e3 * loaded:.3g} ms; a rank has at most {MOST_REQUESTS}",
        )  # fmt: skip
        yield Line("requests", "least useful bytes of a request", machine.base * machine.stream, "bytes", of("base", "stream"),
                   "latency x rate of a stream: smaller ones mostly wait")  # fmt: skip
        if data.frame < machine.base * machine.stream / 8:
            yield Line("requests", "bytes of a frame", data.frame, "bytes", of("frames"), "small for this latency: neighbours come together only if one rank needs them all; pack with a larger --frame-size")

    def _shards(self, settings: dict[str, Any]) -> Iterator[Line]:
        data, of, world = self.facts.data, self.facts.of, self.job.world
        yield Line("shards", "shards", data.shards, "", of("shards"), "the manifest; wanted: at most 50,000")
        yield Line("shards", "shards for a rank", data.shards / world, "", of("shards"), "shards / ranks that read; wanted: at least 8, for shuffling and even loads")
        size = shard_bytes(data.bytes, world)
        yield Line("shards", f"--shard-size {settings['shard_size']} gives", data.bytes / size, "shards", of("stored"), "a power of two, by both wishes")

    def _caches(self) -> Iterator[Line]:
        data, of, job = self.facts.data, self.facts.of, self.job
        opened = self.prediction.open_bytes
        yield Line("caches", "open frames of a rank", opened, "bytes", of("frames", "raw"), "lanes of a rank x window x frame, decompressed: half of Cache(ram=) holds them")
        yield Line("caches", "memory of a machine", self.memory, "bytes", "given" if self.memory_given else "measured", "a quarter of it for look-ahead and caches of all ranks, at most")
        share = data.bytes / self.nodes
        yield Line("caches", "disk that an epoch needs, scope=\"lane\"", share, "bytes", of("stored"), "bytes / machines: each reads the same shards in every epoch")
        yield Line("caches", "disk that all epochs need, scope=\"epoch\"", data.bytes, "bytes", of("stored"), "each machine reads other shards in each epoch")
        if self.disk is not None:
            hits = min(1.0, self.disk / data.bytes) if job.lanes else min(1.0, self.disk / share)
            yield Line("caches", "hits in later epochs", hits, "share", of("stored"), "disk / bytes, scope=\"epoch\"")
        cold = data.items / self.nodes / self.prediction.rate
        warm = data.items / self.nodes / self.prediction.cached_rate
        saved = cold - warm
        filled = share / max(1.0, job.here * min(self.facts.machine.best, 1e15))
        yield Line("warm-up", "seconds to fill the caches before the job", filled, "s", of("best", "stored"), "bytes / machines / rate of the store")
        yield Line(
            "warm-up", "waiting that it saves", max(0.0, saved), "s", of("cold", "warm", "best"),
            "epoch with an empty cache - epoch with a full one: it pays if no GPU is rented while it runs, "
            + ("and the job waits" if saved > 0 else "but the job does not wait")
            + ("; from the second epoch on the cache is full anyway" if self.epochs > 1 else "; with one epoch each byte is read once, and a cache alone saves nothing"),
        )  # fmt: skip

    def _parallel(self) -> Iterator[Line]:
        of, job, data = self.facts.of, self.job, self.facts.data
        yield Line("parallel", "ranks that read different batches", job.world, "", "given", f"{self.world} ranks / {self.share} that share batches")
        if self.share > 1:
            batch = job.batch * data.raw
            each = self.facts.machine.cold * job.batch * (self.share - 1)
            yield Line("parallel", "bytes to the ranks that share a batch", batch * (self.share - 1), "bytes", of("raw"), f"broadcast: {human_size(batch)} x {self.share - 1}")
            yield Line("parallel", "time of that broadcast", batch * (self.share - 1) / _LINK, "s", "assumed", "at 100 GB/s between GPUs of a machine")
            yield Line("parallel", "core time if each of them reads", each, "s", of("cold"), "per step; use broadcast= where it is the larger one, and one rank of each group reads")

    def _precision(self) -> Iterator[Line]:
        job, data = self.job, self.facts.data
        if self.images is not None:
            pixels = job.batch * 3 * self.images**2
            for name, size in (("uint8", 1), ("16 bits", 2), ("32 bits", 4)):
                yield Line("precision", f"a batch of images to the device, {name}", pixels * size, "bytes", "given", f"batch x 3 x {self.images}^2 x {size}: bytes in the store stay the same")
        if job.step:
            rate = job.demand * _MIXED * data.stored
            yield Line("precision", "bytes/s of a machine with steps half as long", rate, "bytes/s", "assumed", "16 bits instead of 32 may halve a step: the data has to come twice as fast")

    def _model(self, size: int) -> Iterator[Line]:
        of, best = self.facts.of, self.facts.machine.best
        yield Line("model", "bytes of the weights", size, "bytes", "given", "read by each machine once, if the ranks load slices or share a cache")
        yield Line("model", "seconds to load them", size / best, "s", of("best"), "bytes / best rate of one process")
        yield Line("model", "all machines", size * self.nodes, "bytes", "given", f"{self.nodes} machines x bytes: what the store gives at the start")
        yield Line("model", "bytes of a checkpoint with AdamW", 7 * size, "bytes", "assumed", "weights of 16 bits, and 32 bits for a copy and two moments of each: (2 + 12) / 2")

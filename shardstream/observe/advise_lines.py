"""The lines of advise: each number with its origin and its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shardstream.format.sizes import human_size
from shardstream.observe.advise_facts import Origin
from shardstream.observe.advise_model import MOST_REQUESTS, SHARDS_A_RANK, little, shard_bytes
from shardstream.observe.advise_plan import Plan
from shardstream.packing.layout import TOO_MANY_SHARDS

__all__ = ["Line", "lines_of"]

_LINK = 1e11  # bytes per second between GPUs of a machine, assumed
_MIXED = 2.0  # times that a step is shorter in 16 bits than in 32, assumed
_ADAM = 7  # times the bytes of weights of 16 bits: 2 for these, 4 for a copy and 4 for each of two moments
_SMALL = 8  # a frame is small if so many of them are the least useful request

# Name, value, unit, the names of the facts that it depends on (or its origin), and the arithmetic.
_Row = tuple[str, float, str, str, str]
_STAGES = {
    "store": (
        "best base link",
        "min(ranks x min(best rate, requests x bytes / latency), link) / bytes of a sample",
    ),
    "cores": ("cold", "cores / seconds of a core for a sample"),
    "one process": (
        "serial",
        "ranks / seconds of a sample that a process does one after the other",
    ),
    "training loop": ("consumer", "ranks / seconds of the loop's thread for a sample"),
    "step": ("given", "ranks x batch / step"),
}


@dataclass(frozen=True)
class Line:
    """One number.

    Attributes:
        topic: What it is about, such as "requests".
        name: What it is.
        value: The number, in `unit`.
        unit: Such as "bytes/s"; "x" for a factor, "share" for a part of 1.
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


def lines_of(plan: Plan) -> Iterator[Line]:
    """All numbers, topic by topic."""
    topics: dict[str, Iterable[_Row]] = {
        "data": _data(plan), "demand": _demand(plan), "machine": _machine(plan), "stages": _stages(plan),
        "start": _start(plan), "requests": _requests(plan), "shards": _shards(plan), "caches": _caches(plan),
        "warm-up": _warm_up(plan), "parallel": _parallel(plan), "precision": _precision(plan),
        "model": _model(plan),
    }  # fmt: skip
    origins: dict[str, Origin] = {"given": "given", "measured": "measured", "assumed": "assumed"}
    for topic, rows in topics.items():
        for name, value, unit, facts, how in rows:
            yield Line(topic, name, value, unit, origins.get(facts) or plan.facts.of(*facts.split()), how)


# fmt: off
def _data(plan: Plan) -> Iterator[_Row]:
    data, job = plan.facts.data, plan.job
    yield "samples (of tokens: blocks)", data.items, "", "items", "the manifest"
    yield "bytes in the store", data.bytes, "bytes", "stored", "the manifest"
    yield "bytes of a sample, stored", data.stored, "bytes", "stored", "bytes / samples"
    yield "bytes of a sample, decompressed", data.raw, "bytes", "raw", "bytes / samples"
    yield "bytes of a frame, stored", data.frame, "bytes", "frames", "bytes / frames"
    yield ("read / needed", plan.prediction.amplification, "x", "frames",
           f"1 + lanes {job.lanes} x window {job.window} / frames {data.frames:,}: ranks share lanes' ends")


def _demand(plan: Plan) -> Iterator[_Row]:
    data, job = plan.facts.data, plan.job
    if not job.step:
        return
    rate = job.demand * data.stored * plan.prediction.amplification
    yield ("samples/s of a machine", job.demand, "samples/s", "given",
           f"{job.here} ranks x batch {job.batch} / step {1e3 * job.step:g} ms")
    yield "bytes/s of a machine", rate, "bytes/s", "stored", "samples/s x bytes x read / needed"
    yield ("bytes/s of the job", rate * job.world / job.here, "bytes/s", "stored",
           "of all machines: what the store has to give")


def _machine(plan: Plan) -> Iterator[_Row]:
    machine = plan.facts.machine
    yield "cores of a machine", machine.cores, "", "cores", "of the job"
    yield "opening the dataset", machine.opening, "s", "opening", "of a core, in each process"
    yield "a sample from the store", machine.cold, "s", "cold", "of a core while all are busy, all stages"
    yield "the serial part of it", machine.serial, "s", "serial", "all but decompression and decoders"
    yield "a sample from memory", machine.warm, "s", "warm", "of a core while all are busy, without requests"
    if machine.link != math.inf:
        given = plan.facts.origins["link"] == "given"
        how = "for all ranks" if given else "as much as one process gets: give --link"
        yield "link of the machine", machine.link, "bytes/s", "link", how


def _stages(plan: Plan) -> Iterator[_Row]:
    found, job = plan.prediction, plan.job
    for name, rate in found.stages.items():
        if rate != math.inf:
            yield name, rate, "samples/s", *_STAGES[name]
    yield f"the least: {found.bound}", found.rate, "samples/s", "cold best link", "X <= min(c / D)"
    yield "from a full cache", found.cached_rate, "samples/s", "warm", "the same without the store"
    if job.step:
        share = plan.wait_share
        yield "share of the time that the job waits", share, "share", "cold best link", "1 - comes / taken"
        yield ("the most that free data would give", 1 / max(1e-9, 1 - share), "x", "cold best link",
               "Amdahl: 1 / (1 - share)")
        threads = max(1, math.ceil(job.demand / job.here * plan.facts.machine.cold))
        yield ("threads for a rank", threads, "", "cold",
               "samples/s of a rank x seconds of a core; the loader has as many as cores")


def _start(plan: Plan) -> Iterator[_Row]:
    found = plan.prediction
    yield ("first batch after", found.first_batch_seconds, "s", "base best link",
           "5 round trips + opening + the frames of the first batch")
    yield ("an epoch without a model", found.epoch_seconds, "s", "cold best link",
           "of the samples of this machine, with an empty cache")


def _requests(plan: Plan) -> Iterator[_Row]:
    machine, data, profile = plan.facts.machine, plan.facts.data, plan.facts.profile
    if data.local:
        return
    size = machine.request
    loaded, why = machine.request_seconds(size), "latency without bytes + bytes / rate of a stream"
    if profile is not None and (sweep := profile.store.throughput) is not None:
        level = next(one for one in sweep.levels if one.concurrency == sweep.knee)
        yield ("knee of the concurrency", sweep.knee, "requests", "measured",
               f"the least with 90 % of the best rate, {human_size(sweep.bytes)} each")
        if level.p50_ms / 1e3 > loaded:
            loaded, why = level.p50_ms / 1e3, f"median at the knee, {sweep.knee} at a time"
    yield "latency without bytes", machine.base, "s", "base", "the line through the medians by size"
    yield "rate of a stream", machine.stream, "bytes/s", "stream", "the slope of this line"
    yield "bytes of a request", size, "bytes", "request", "bytes / requests of the loader"
    yield "latency at load", loaded, "s", "base stream", why
    law = f"{human_size(plan.rank_bytes)}/s / {human_size(size)} x {1e3 * loaded:.3g} ms"
    flight = little(plan.rank_bytes, size, loaded)
    yield ("on their way for a rank", flight, "requests", "base request stored",
           f"Little: {law}; at most {MOST_REQUESTS}")
    least = machine.base * machine.stream
    yield ("least useful bytes of a request", least, "bytes", "base stream",
           "latency x rate of a stream: smaller ones mostly wait")
    if data.frame < least / _SMALL:
        yield ("bytes of a frame: small for that", data.frame, "bytes", "frames",
               "neighbours come together only if one rank needs them all: pack with a larger --frame-size")


def _shards(plan: Plan) -> Iterator[_Row]:
    data, world = plan.facts.data, plan.job.world
    size = shard_bytes(data.bytes, world)
    yield "shards", data.shards, "", "shards", f"the manifest; wanted: fewer than {TOO_MANY_SHARDS:,}"
    yield "shards for a rank", data.shards / world, "", "shards", f"wanted: at least {SHARDS_A_RANK}"
    yield (f"shards of {human_size(size)} would be", data.bytes / size, "", "stored",
           "bytes / a power of two that fits both")


def _caches(plan: Plan) -> Iterator[_Row]:
    data, job = plan.facts.data, plan.job
    share = data.bytes / plan.nodes
    yield ("open frames of a rank", plan.prediction.open_bytes, "bytes", "frames raw",
           "lanes of a rank x window x frame, decompressed: half of Cache(ram=) holds them")
    yield ("memory of a machine", plan.memory, "bytes", "given" if plan.memory_given else "measured",
           "at most a quarter of it for look-ahead and caches of all ranks")
    yield ('disk for all epochs, scope="lane"', share, "bytes", "stored",
           "bytes / machines: each reads the same shards in every epoch")
    yield ('disk for all epochs, scope="epoch"', data.bytes, "bytes", "stored",
           "each machine reads other shards in each epoch")
    if plan.disk is not None:
        yield ('hits in later epochs, scope="lane"', min(1.0, plan.disk / share), "share", "stored",
               "disk / its bytes")
        if job.lanes:
            yield ('hits in later epochs, scope="epoch"', min(1.0, plan.disk / data.bytes), "share", "stored",
                   "disk / bytes")


def _warm_up(plan: Plan) -> Iterator[_Row]:
    data, found, machine = plan.facts.data, plan.prediction, plan.facts.machine
    if data.local:
        return
    items, size = data.items / plan.nodes, data.bytes / plan.nodes
    filling = size / min(plan.job.here * machine.best, machine.link)
    yield ("filling the caches before the job takes", filling, "s", "best link stored",
           "bytes / machines / rate of the store, at most the link")
    saved = items / found.rate - items / found.cached_rate
    later = ("from the second epoch on the cache is full without it" if plan.epochs > 1
             else "in one epoch each byte is read once, and a cache that is not warmed saves nothing")
    verdict = "it pays where this time costs less than GPUs that wait" if saved > 0 else "it does not pay"
    yield ("waiting that it saves", max(0.0, saved), "s", "cold warm best link",
           f"first epoch with an empty cache - with a full one: {verdict}; {later}")


def _parallel(plan: Plan) -> Iterator[_Row]:
    job, batch = plan.job, plan.job.batch * plan.facts.data.raw
    yield ("ranks that read different batches", job.world, "", "given",
           f"{plan.world} ranks / {plan.share} that share batches")
    if plan.share > 1:
        sent = batch * (plan.share - 1)
        each = plan.facts.machine.cold * job.batch * (plan.share - 1)
        yield ("bytes to the ranks that share a batch", sent, "bytes", "raw",
               f"broadcast=: {human_size(batch)} x {plan.share - 1}, a step")
        yield "time of that broadcast", sent / _LINK, "s", "assumed", "at 100 GB/s between GPUs of a machine"
        better = "more: let one of them read and broadcast" if each > sent / _LINK else "less: let each read"
        yield "core time if each of them reads", each, "s", "cold", f"a step: {better}"


def _precision(plan: Plan) -> Iterator[_Row]:
    job, side = plan.job, plan.image_size
    for name, size in (("uint8", 1), ("16 bits", 2), ("32 bits", 4)) if side is not None else ():
        pixels = job.batch * 3 * (side or 0) ** 2
        yield (f"images of a batch to the device, {name}", pixels * size, "bytes", "given",
               f"batch x 3 x {side}^2 x {size}; the bytes in the store stay the same")
    if job.step:
        rate = job.demand * _MIXED * plan.facts.data.stored
        yield ("bytes/s of a machine, steps half as long", rate, "bytes/s", "assumed",
               "16 bits instead of 32 may halve a step: then data has to come twice as fast")


def _model(plan: Plan) -> Iterator[_Row]:
    size = plan.model
    if size is None:
        return
    yield "bytes of the weights", size, "bytes", "given", "each machine reads them once, with a cache"
    seconds = size / min(plan.facts.machine.best, plan.facts.machine.link)
    yield "seconds to load them", seconds, "s", "best link", "bytes / best rate of one process"
    yield "all machines at the start", size * plan.nodes, "bytes", "given", f"{plan.nodes} machines x bytes"
    yield ("bytes of a checkpoint with AdamW", _ADAM * size, "bytes", "assumed",
           "weights of 16 bits, and of 32 bits a copy and two moments: (2 + 12) / 2")
# fmt: on

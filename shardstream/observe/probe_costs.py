"""The arithmetic of a probe's rates: from passes over samples to seconds of a core for each of them.

A pass opens the dataset, fetches bytes, decompresses frames and makes samples of them:

    seconds = opening + fetched x fetch + opened x decompress + samples x build

An epoch and the first batch of the same samples open the same, and so their difference has the other three.
What a byte costs to decompress is measured alone. An epoch from memory fetches nothing, which tells `build`.
Then an epoch from the store tells `fetch`, and a first batch of the whole dataset tells what opening costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardstream.format.manifest import Manifest
from shardstream.observe.bench_work import Work
from shardstream.observe.probe_limits import Limits
from shardstream.observe.probe_profile import Rates

__all__ = ["Costs", "Measured", "Pass", "Passes", "costs_of"]

_MOST_FIXED = 0.8  # of an epoch's seconds are for opening, at most
_LEAST_SERIAL = 0.05  # of a sample's work, at least, that only one thread of a process does at a time
_LEAST_CAME = 0.5  # of an epoch's bytes come after its first batch, or it does not tell what a byte costs


@dataclass
class Pass:
    """An epoch, or its beginning.

    Args:
        samples: How many samples, or blocks, came.
        wall: Seconds that it took.
        seconds: Seconds of cores of this process.
        consumer: Those of this thread.
        busy: Those of all processes of the machine; 0 if the system does not tell.
        fetched: Bytes that came from the store, also for samples that were not taken; 0 of local data.
        opened: Bytes of the frames that were decompressed, also for samples that were not taken.
    """

    samples: int
    wall: float
    seconds: float
    consumer: float = 0.0
    busy: float = 0.0
    fetched: int = 0
    opened: int = 0


@dataclass(frozen=True)
class Costs:
    """Seconds of a core.

    Args:
        cold: For a sample from the store.
        warm: For a sample from memory.
        opening: Until the first batch, without what its samples cost.
        fetch: For a byte from the store; 0 of local data.
        by_sweep: Whether fetching costs what it did in the sweep of the store, since the passes did not tell.
        at_most: Whether fetching costs at most so much, since neither told it.
    """

    cold: float
    warm: float
    opening: float
    fetch: float
    by_sweep: bool
    at_most: bool = False


@dataclass(frozen=True)
class Passes:
    """What was measured.

    Args:
        memory, memory_first: An epoch from memory, and its first batch.
        store, store_first: An epoch of the same samples from the store, and its first batch.
        whole_first: The first batch of the whole dataset, from the store.
    """

    memory: Pass
    memory_first: Pass
    store: Pass
    store_first: Pass
    whole_first: Pass


@dataclass(frozen=True)
class Measured:
    """What was measured with a dataset; `rates` follows from it, and from what the store was found to do.

    Args:
        work: How samples were read.
        manifest: Of the dataset.
        items: How many samples, or blocks of tokens, the dataset has.
        codec: Of the frames.
        decompress: Seconds of a core for a byte after decompression.
        passes: Over samples.
        plain: The epoch from memory, with fields as they are stored.
        request: The mean size of a request; 0 of local data.
        limits: Where it is noted how sure the rates are.
    """

    work: Work
    manifest: Manifest
    items: int
    codec: str
    decompress: float
    passes: Passes
    plain: Pass
    request: int
    limits: Limits

    def rates(self, fetch: float) -> Rates:
        """The rates.

        Args:
            fetch: Seconds of a core for a byte that only the client of the store fetches; 0 if not known.
        """
        warm, cold = self.passes.memory, self.passes.store
        costs = costs_of(self.passes, self.decompress, fetch)
        if costs.by_sweep:
            self.limits.note(
                "processor time of fetching: the samples did not tell it, so it is that of the large ranges"
            )
        if costs.at_most:
            self.limits.note(
                "processor time of fetching: neither samples nor ranges told it, so it is the most it can be"
            )
        raw = self.manifest.raw_bytes / self.items
        # Without decoders it is another reader, which may have had to fetch once more.
        plain = (self.plain.seconds - costs.fetch * self.plain.fetched) / self.plain.samples
        decode = max(0.0, warm.seconds / warm.samples - plain)
        serial = costs.cold - decode - self.decompress * raw
        consumer = warm.consumer / warm.samples
        shape = ("batch", "seq_len", "image_size", "decode", "seed", "lanes", "window")
        return Rates(
            work={name: getattr(self.work, name) for name in shape},
            codec=self.codec,
            decompress_bytes_per_second=1 / self.decompress if self.decompress else 0.0,
            open_seconds=costs.opening,
            cold_seconds_per_sample=costs.cold,
            seconds_per_sample=costs.warm,
            serial_seconds_per_sample=max(serial, consumer, _LEAST_SERIAL * costs.cold),
            consumer_seconds_per_sample=consumer,
            busy_cores=max(cold.busy, cold.seconds) / cold.wall,
            samples=cold.samples,
            stored_bytes=self.manifest.bytes / self.items,
            raw_bytes=raw,
            range_bytes=self.request,
        )


def costs_of(passes: Passes, decompress: float, sweep: float) -> Costs:
    """What samples and opening cost.

    Args:
        passes: What was measured.
        decompress: Seconds of a core for a byte after decompression.
        sweep: Seconds of a core for a byte that the client of the store fetches, and nothing else.
    """
    memory, store, first = passes.memory, passes.store, passes.whole_first
    build = _building(memory, passes.memory_first, decompress)
    warm = build + decompress * memory.opened / memory.samples
    fetch = _fetching(store, passes.store_first, build, decompress)
    # The loader fetches by the same client, and does more: checks, and the plan of what is next.
    known = max(sweep, fetch or 0.0)
    by_sweep = at_most = False
    if store.fetched:
        at_most = not known
        by_sweep = not at_most and (fetch is None or fetch < sweep)
        if at_most:  # as if opening cost nothing
            spent = store.seconds - build * store.samples - decompress * store.opened
            known = max(0.0, spent) / store.fetched
        more = known * store.fetched / store.samples
        opening = first.seconds - known * first.fetched
    else:
        known = 0.0
        more = _local(store, passes.store_first, build, decompress)
        opening = first.seconds - more * first.samples
    opening -= build * first.samples + decompress * first.opened
    # Not `warm`: memory may hold frames decompressed.
    cold = build + decompress * store.opened / store.samples + more
    return Costs(max(cold, warm), warm, max(0.0, opening), known, by_sweep, at_most)


def _building(whole: Pass, first: Pass, decompress: float) -> float:
    """Seconds of a core to make a sample of an open frame."""
    average = max(0.0, whole.seconds - decompress * whole.opened) / whole.samples
    if whole.samples <= first.samples:  # one batch is all that there is
        return average
    # A disturbed first batch must not make samples look free, nor dearer than all that the epoch took.
    found = _rest(whole, first, 0.0, decompress) / (whole.samples - first.samples)
    return min(average, max(found, (1 - _MOST_FIXED) * average))


def _fetching(whole: Pass, first: Pass, build: float, decompress: float) -> float | None:
    """Seconds of a core for a byte from the store; None if the first batch fetched most of them."""
    came = whole.fetched - first.fetched
    if came <= 0 or came < _LEAST_CAME * whole.fetched:
        return None
    return max(0.0, _rest(whole, first, build, decompress) / came)


def _local(whole: Pass, first: Pass, build: float, decompress: float) -> float:
    """Seconds of a core for what a sample costs beside decompressing and building, if nothing is fetched."""
    left = whole.samples - first.samples
    return max(0.0, _rest(whole, first, build, decompress) / left) if left > 0 else 0.0


def _rest(whole: Pass, first: Pass, build: float, decompress: float) -> float:
    """The seconds of an epoch after its first batch, without those for building and decompressing."""
    built, opened = whole.samples - first.samples, max(0, whole.opened - first.opened)
    return whole.seconds - first.seconds - build * built - decompress * opened

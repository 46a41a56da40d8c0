"""Where the numbers of advise come from: measured by a probe, given, or assumed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from shardstream.cores import cores as cores_here
from shardstream.dataset import contents_of
from shardstream.errors import OptionError
from shardstream.format.manifest import Manifest
from shardstream.observe.advise_model import Data, Machine
from shardstream.observe.bench_work import Work
from shardstream.observe.probe_profile import Profile, Rates

__all__ = ["Facts", "Origin", "facts_of"]

Origin = Literal["measured", "given", "assumed"]

# What is assumed without a profile: an object store in the same region, and one core of a recent server.
BASE, STREAM, BEST = 0.03, 90e6, 1.2e9  # seconds; bytes per second; bytes per second of 10 Gbit/s
DECOMPRESS, FETCH = 800e6, 1.2e-9  # bytes per second of a core; seconds of a core per byte
PIXELS = 770.0  # JPEGs of about 100 KB that a core decodes in a second
ITEM, BYTE = 5e-6, 1e-9  # seconds of a core per item, and per byte that is copied
REQUEST = 2 << 20  # bytes: what a loader asks for at first
OPENING, SERIAL = 0.1, 0.5  # seconds of a core; the part of the work beside decoders that is serial


@dataclass
class Facts:
    """The numbers that advise starts from.

    Attributes:
        data: The dataset.
        machine: The machine and its store.
        origins: By name of a field of these: where it comes from.
        profile: If there is one.
    """

    data: Data
    machine: Machine
    origins: dict[str, Origin] = field(default_factory=dict)
    profile: Profile | None = None

    def of(self, *names: str) -> Origin:
        """The origin of what is computed of some numbers: that of the least certain one."""
        found = [self.origins.get(name, "given") for name in names]
        return "assumed" if "assumed" in found else "measured" if "measured" in found else "given"


def facts_of(
    work: Work, manifest: Manifest, profile: Profile | None, dataset_bytes: int | None, cores: int | None,
    link: int | None, here: int,
) -> Facts:  # fmt: skip
    """The facts of a dataset, and of a machine.

    Args:
        work: How the dataset is read.
        manifest: Of the dataset.
        profile: What a probe measured, or None.
        dataset_bytes: What if the dataset had so many bytes in the store, of the same samples.
        cores: Of the machine; by default those of the profile, or of this machine.
        link: Bytes per second that come to the machine; by default not more than one process gets.
        here: The ranks on the machine that read different batches.
    """
    origins: dict[str, Origin] = dict.fromkeys(("items", "stored", "raw", "frames", "shards"), "given")
    ds = work.dataset()
    items = max(1, int(contents_of(ds).total))
    factor = dataset_bytes / manifest.bytes if dataset_bytes and manifest.bytes else 1.0
    frames = sum(shard.frames for shard in manifest.shards)
    data = Data(
        max(1, round(items * factor)), manifest.bytes / items, manifest.raw_bytes / items,
        max(1, round(frames * factor)), max(1, round(len(manifest.shards) * factor)),
        not contents_of(ds).remote,
    )  # fmt: skip
    machine = _machine(work, manifest, data, profile, cores, origins)
    if link is not None:
        origins["link"], machine = "given", replace(machine, link=float(link))
    elif here > 1:
        # A probe is one process: it does not tell what several of them get through the same link.
        origins["link"], machine = "assumed", replace(machine, link=machine.best)
    else:
        origins["link"] = origins["best"]
    return Facts(data, machine, origins, profile)


def _machine(
    work: Work, manifest: Manifest, data: Data, profile: Profile | None, cores: int | None,
    origins: dict[str, Origin],
) -> Machine:  # fmt: skip
    def note(origin: Origin, *names: str) -> None:
        origins.update(dict.fromkeys(names, origin))

    known = float(cores_here()) if profile is None else profile.free_cores
    count = float(cores) if cores else max(known, 0.1)
    # A machine of the job, which the user describes, is taken to be free.
    share = 1.0 if cores or profile is None else max(profile.free_core, 0.1)
    note("given" if cores else "measured", "cores")
    rates = None if profile is None else profile.rates
    if rates is not None:
        _same(work, rates)
    store: dict[str, float] = {
        "base": BASE,
        "stream": STREAM,
        "best": BEST,
        "fetch": FETCH,
        "store_only": 0.0,
    }
    note("assumed", *store)
    if data.local:
        store["base"] = 1e-4
    if profile is not None and profile.store.throughput is not None:
        found, best = profile.store, profile.store.throughput.best
        both = best.machine_seconds_per_gb if found.beside else best.cpu_seconds_per_gb
        store = {
            "base": found.base_ms / 1e3,
            "stream": found.stream_bytes_per_second,
            "best": best.bytes_per_second,
            "fetch": both / 1e9,
            "store_only": max(0.0, both - best.cpu_seconds_per_gb) / 1e9,
        }
        note("measured", *store)
    if profile is not None and rates is not None:
        note("measured", "opening", "cold", "warm", "serial", "consumer", "decompress", "request")
        decompress = rates.decompress_bytes_per_second
        all_busy = slowdown(profile, profile.cores)
        # The probe kept fewer cores busy than a job that is bound by them.
        more = all_busy / slowdown(profile, rates.busy_cores)
        return Machine(
            cores=count, **store, request=rates.range_bytes or data.frame, opening=rates.open_seconds / share,
            cold=rates.cold_seconds_per_sample * more, warm=rates.seconds_per_sample * more,
            serial=rates.serial_seconds_per_sample * more / share,
            consumer=rates.consumer_seconds_per_sample * more / share,
            decompress=all_busy / decompress if decompress else 0.0,
        )  # fmt: skip
    note("assumed", "opening", "cold", "warm", "serial", "consumer", "decompress", "request")
    packed = any(shard.codec != "none" for shard in manifest.shards)
    images = work.decode and any(info.codec in ("jpg", "jpeg") for info in manifest.fields)
    per_byte = 1 / DECOMPRESS if packed else 0.0
    fetching = data.stored * (store["fetch"] - store["store_only"])
    copying = ITEM + data.raw * BYTE
    warm = copying + data.raw * per_byte + (data.raw / 100e3 / PIXELS if images else 0.0)
    return Machine(
        cores=count, **store, request=float(REQUEST), opening=OPENING, cold=fetching + warm, warm=warm,
        serial=SERIAL * (fetching + copying), consumer=ITEM, decompress=per_byte,
    )  # fmt: skip


def slowdown(profile: Profile, busy: float) -> float:
    """How much longer a core takes for the same work while so many cores are busy, than alone.

    Between one core and all of them, each further one is taken to cost as much as the one before.
    """
    others = min(1.0, max(0.0, (busy - 1) / (profile.cores - 1))) if profile.cores > 1 else 0.0
    return 1 + others * (1 / profile.shared_work - 1)


def _same(work: Work, rates: Rates) -> None:
    """Refuse a profile of samples that were read in another way: its rates say nothing here."""
    for name in ("seq_len", "image_size", "decode"):
        if rates.work.get(name) != getattr(work, name):
            raise OptionError(
                f"the profile was measured with {name}={rates.work.get(name)}, and here it is "
                f"{getattr(work, name)}: probe again with the same options, or leave the profile out"
            )

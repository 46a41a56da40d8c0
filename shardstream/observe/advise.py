"""advise(): which settings a job needs, with the arithmetic; it changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.format.sizes import parse_size
from shardstream.observe.advise_facts import facts_of
from shardstream.observe.advise_lines import Line, lines_of
from shardstream.observe.advise_model import Job, Prediction, predict
from shardstream.observe.advise_plan import PREFETCH, Plan, memory_here
from shardstream.observe.bench_work import Work
from shardstream.observe.probe_profile import Profile

__all__ = ["Advice", "advise"]

_LITTLE_WAIT = 0.05  # of the time: below it, work on the data is not worth its while
_REMEDIES = {
    "store": "The store gives too little: warm a cache (`shardstream warm`), or use more machines.",
    "cores": "The cores are too slow: smaller images, fields as they are stored, DALI, or more machines.",
    "one process": "One process for each rank is too slow: cheaper decoding and transforms, or DALI.",
    "training loop": "The loop's own thread is too slow: larger batches, with fewer Python objects in them.",
}


@dataclass(frozen=True)
class Advice:
    """What advise() found.

    Attributes:
        verdict: What to do, in a sentence.
        lines: The arithmetic: each number, with "measured", "given" or "assumed". A computed number has the
            origin of the least certain number in it.
        settings: Arguments that fit the job, by name: `prefetch` and `threads` of the loader, `ram` of the
            cache, and `shard_size` and `frame_size` of a pack.
        prediction: `samples_per_second` of the ranks on this machine; `wait_share` of a job with a step;
            `epoch_seconds`, `first_batch_seconds` and `cpu_seconds` of the loader alone, cold; `bound`, the
            stage that allows least; `stages`, samples per second by stage; `cached_per_second`.
    """

    verdict: str
    lines: tuple[Line, ...]
    settings: dict[str, Any]
    prediction: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it as dicts, lists and numbers."""
        return {
            "verdict": self.verdict, "settings": self.settings, "prediction": self.prediction,
            "given": self.given, "lines": [vars(line) for line in self.lines],
        }  # fmt: skip


def advise(
    url: str | os.PathLike[str],
    profile: Profile | str | os.PathLike[str] | None = None,
    *,
    batch: int = 32,
    world: int = 1,
    ranks_per_node: int | None = None,
    share: int = 1,
    step_ms: float | None = None,
    epochs: int = 1,
    seq_len: int | None = None,
    image_size: int | None = None,
    decode: bool = True,
    seed: int | None = 0,
    lanes: int | None = None,
    window: int | None = None,
    prefetch: str | int | None = None,
    cores: int | None = None,
    memory: str | int | None = None,
    disk: str | int | None = None,
    link: str | int | None = None,
    model_bytes: str | int | None = None,
    dataset_bytes: str | int | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Advice:
    """Compute what a job needs of its store, its caches and its cores, and what it will wait.

    Nothing is changed, and of the data only the manifest and the index of a shard or two is read.

    Args:
        url: A dataset.
        profile: What `probe` measured on the machine of the job, or where that was saved. None: numbers of a
            common object store and of a recent core are assumed.
        batch: Samples of a batch of a rank.
        world: How many ranks the job has.
        ranks_per_node: Those of them on a machine; by default 8, or all if they are fewer.
        share: How many ranks get the same batches, because they split the model (tensor or pipeline
            parallelism).
        step_ms: Milliseconds of a step without data, as `bench` or a `Replay` tells. None: the loader alone.
        epochs: How many epochs the job reads.
        seq_len: Of blocks of tokens; see `probe`.
        image_size: Of decoded images; see `probe`.
        decode: Whether fields are decoded; see `probe`.
        seed: Of the order.
        lanes: Of the order; see `Shuffle`.
        window: Of the order; see `Shuffle`.
        prefetch: Bytes of look-ahead that the job uses; by default the loader's.
        cores: Of a machine of the job; by default those that the profile has seen.
        memory: Bytes of a machine of the job; by default those of this machine.
        disk: Bytes of a cache on a disk of each machine.
        link: Bytes per second that come to a machine, for all of its ranks: "12.5GB" for 100 Gbit/s. By
            default several ranks get together what one process gets, which is assumed.
        model_bytes: Of the weights, which each rank loads at its start.
        dataset_bytes: What if the dataset had so many bytes in the store, of such samples.
        storage_options: Of the store.

    Returns:
        The verdict, the prediction, settings, and each number with how it was found.

    Raises:
        OptionError: An argument cannot be, or the profile is of another way to read.
        StorageError: The store does not answer, or there is no dataset or profile.
        CorruptionError: The manifest or the profile is damaged.
    """
    for name, value in (("world", world), ("share", share), ("epochs", epochs)):
        whole_number(name, value, 1)
    if cores is not None:
        whole_number("cores", cores, 1)
    here = min(world, 8) if ranks_per_node is None else whole_number("ranks_per_node", ranks_per_node, 1)
    if here > world or world % share:
        raise OptionError(f"ranks_per_node={here} and share={share} must go into world={world}")
    if step_ms is not None and (isinstance(step_ms, bool) or not 0 < step_ms < 1e9):
        raise OptionError(f"step_ms={step_ms!r} must be a number above 0")
    rate = None if link is None else parse_size(link, "link")
    ahead = None if prefetch is None else parse_size(prefetch, "prefetch")
    work = Work(
        os.fspath(url), batch, seq_len, image_size, decode, seed, lanes, window, ahead,
        storage_options=storage_options,
    )  # fmt: skip
    manifest = work.opened().manifest
    if not manifest.samples:
        raise OptionError(f"{work.url}: the dataset has no samples, so there is nothing to advise")
    work = work.resolved(manifest.kind)
    known = Profile.load(profile) if isinstance(profile, (str, os.PathLike)) else profile
    size = None if dataset_bytes is None else parse_size(dataset_bytes, "dataset_bytes")
    # Ranks that share batches read them once, and one of them sends them to the others.
    reading = max(1, world // share)
    shuffle = work.shuffle
    job = Job(
        batch, reading, max(1, min(here // share or 1, reading)), (step_ms or 0.0) / 1e3,
        ahead or PREFETCH, 0 if shuffle is None else shuffle.lanes_for(reading),
        1 if shuffle is None else shuffle.window,
    )  # fmt: skip
    facts = facts_of(work, manifest, known, size, cores, rate, job.here)
    plan = Plan(
        facts, job, predict(facts.data, facts.machine, job), world=world, share=share, epochs=epochs,
        nodes=-(-world // here),
        memory=memory_here() if memory is None else parse_size(memory, "memory"),
        memory_given=memory is not None,
        disk=None if disk is None else parse_size(disk, "disk"),
        model=None if model_bytes is None else parse_size(model_bytes, "model_bytes"),
        image_size=image_size,
    )  # fmt: skip
    settings = plan.settings()
    return Advice(
        _verdict(plan), tuple(lines_of(plan)), settings, _numbers(plan.prediction, job),
        {"batch": batch, "world": world, "ranks_per_node": here, "share": share, "step_ms": step_ms},
    )  # fmt: skip


def _verdict(plan: Plan) -> str:
    """What to do, in a few sentences."""
    prediction, job = plan.prediction, plan.job
    origin = plan.facts.of("cold", "best", "base", "link")
    if not job.step:
        return (
            f"The loader alone gives {prediction.rate:,.0f} samples/s on a machine ({origin}), bound by: "
            f"{prediction.bound}. Give --step-ms to hear whether that is enough."
        )
    waits, bound = (
        plan.wait_share,
        min(prediction.stages, key=lambda name: (name == "step", prediction.stages[name])),
    )
    gain = 1 / max(1e-9, 1 - waits)
    if waits <= _LITTLE_WAIT:
        return (
            f"Do nothing: data comes {prediction.rate_without_step / job.demand:.3g} times as fast as the "
            f"job takes it. With free data a step is {gain:.2f} times as fast, not more ({origin})."
        )
    text = (
        f"The job waits {waits:.0%} of its time, and would run {gain:.2f} times as fast with free data "
        f"({origin}). {_REMEDIES[bound]}"
    )
    if bound == "store":
        cached = max(0.0, 1 - min(prediction.cached_rate, job.demand) / job.demand)
        text += f" From a full cache it waits {cached:.0%}."
        if job.here > 1 and plan.facts.origins["link"] == "assumed":
            text += " The link of the machine is assumed: give --link."
    return text


def _numbers(prediction: Prediction, job: Job) -> dict[str, Any]:
    return {
        "samples_per_second": prediction.rate,
        "cached_per_second": prediction.cached_rate,
        "wait_share": max(0.0, 1 - prediction.rate_without_step / job.demand) if job.step else None,
        "epoch_seconds": prediction.epoch_seconds,
        "first_batch_seconds": prediction.first_batch_seconds,
        "cpu_seconds": prediction.cpu_seconds,
        "bound": prediction.bound,
        "stages": {name: rate for name, rate in prediction.stages.items() if rate != float("inf")},
    }

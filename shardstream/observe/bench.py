"""bench(): the loader of a job without its model, in three phases, which tell what its data costs."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from shardstream.errors import OptionError, ShardstreamError, StorageError
from shardstream.format.numbers import whole_number
from shardstream.observe.bench_work import Work
from shardstream.order.topology import Topology
from shardstream.read.reader import DatasetReader

__all__ = ["Bench", "Phase", "bench"]

COLD, CACHED, REPLAYED = "cold", "cached", "replayed"
_REPLAYED = 50  # batches


class Phase(msgspec.Struct, frozen=True):
    """One phase, all ranks together.

    Args:
        name: "replayed", "cached" or "cold".
        samples: How many samples all ranks got.
        seconds: From the common start until the last rank was done.
        per_second: Samples per second of all ranks, after the first batch of each.
        first_batch_seconds: Until the slowest rank had its first batch.
        wait_share: The part of the time in which the ranks waited for a batch, on the average.
        cpu_seconds: Of all processes of the ranks.
        store_bytes: Bytes that came from the store.
        ranks: Samples per second of each rank.
    """

    name: str
    samples: int
    seconds: float
    per_second: float
    first_batch_seconds: float
    wait_share: float
    cpu_seconds: float
    store_bytes: int
    ranks: tuple[float, ...]


class Bench(msgspec.Struct, frozen=True):
    """What bench() found.

    Args:
        url: The dataset, without credentials.
        batch: Samples of a batch of a rank.
        ranks: The ranks that ran here.
        world: How many ranks the job has.
        step_ms: Milliseconds of a step without data.
        replayed: The ceiling G: the same batches again and again.
        cached: P: an epoch from the cache.
        cold: S: the same epoch with an empty cache.
    """

    url: str
    batch: int
    ranks: tuple[int, ...]
    world: int
    step_ms: float
    replayed: Phase
    cached: Phase
    cold: Phase

    @property
    def preparation_stall(self) -> float | None:
        """1 - P / G: the part of the time that preparation costs; None if a step takes no time."""
        return _stall(self.cached, self.replayed) if self.step_ms else None

    @property
    def fetch_stall(self) -> float:
        """1 - S / P: the part of the time that the store costs as long as the cache is empty."""
        return _stall(self.cold, self.cached)

    def as_dict(self) -> dict[str, Any]:
        """All of it as dicts, lists and numbers."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found | {"preparation_stall": self.preparation_stall, "fetch_stall": self.fetch_stall}


def _stall(slow: Phase, fast: Phase) -> float:
    return max(0.0, 1 - slow.per_second / fast.per_second) if fast.per_second else 0.0


def bench(
    url: str | os.PathLike[str],
    batch: int,
    *,
    ranks: Iterable[int] = (0,),
    world: int | None = None,
    step_ms: float = 0.0,
    seconds: float = 20.0,
    seq_len: int | None = None,
    image_size: int | None = None,
    decode: bool = True,
    cache: str | os.PathLike[str] | None = None,
    prefetch: int | None = None,
    threads: int | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Bench:
    """Run the loader of some ranks in three phases, each rank in a process of its own.

    The phases are those of DS-Analyzer (Mohan et al., "Analyzing and Mitigating Data Stalls in DNN Training",
    2021). Cold: the first epoch with an empty cache, in a temporary folder. Cached: the same batches again.
    Replayed: 50 batches again and again. After each batch a rank sleeps for `step_ms`, where a job computes.

    Args:
        url: A dataset. A local one is dropped from the page cache before the cold phase.
        batch: Samples of a batch of a rank.
        ranks: The data-parallel ranks of this machine.
        world: How many ranks the job has; by default those of this machine are all.
        step_ms: Milliseconds of a step without data.
        seconds: How long a phase takes at most, beyond its first batch.
        seq_len: Of a dataset of tokens; 2048 by default.
        image_size: Crop images to this size, as `images.Train(size)` does. By default they stay whole.
        decode: Whether fields are decoded.
        cache: Below this folder is the temporary one; by default below that of the system.
        prefetch: Bytes of look-ahead of the loader.
        threads: Of the loader.
        storage_options: Of the store.

    Raises:
        OptionError: An argument cannot be, or a rank gets no batch.
        StorageError: The store does not answer, or a process of a rank ended.
        CorruptionError: The dataset is damaged.
    """
    chosen = tuple(sorted(set(ranks)))
    if not chosen:
        raise OptionError("ranks is empty: name at least one")
    size = whole_number("world", max(chosen) + 1 if world is None else world, 1)
    for rank in chosen:
        Topology(rank, size)  # refuses ranks that cannot be
    for name, value, least in (("step_ms", step_ms, 0.0), ("seconds", seconds, 0.1)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value < 1e9:
            raise OptionError(f"{name}={value!r} must be a number, at least {least}")
    work = Work(
        os.fspath(url), batch, seq_len, image_size, decode, prefetch=prefetch, threads=threads,
        storage_options=storage_options,
    )  # fmt: skip
    work = work.resolved(DatasetReader.open(work.url, storage_options).manifest.kind)
    with (
        _folder(cache) as folder,
        _Processes(work, folder, chosen, size, step_ms / 1e3, seconds) as processes,
    ):
        cold = processes.run(COLD)
        cached = processes.run(CACHED)
        replayed = processes.run(REPLAYED)
    return Bench(processes.url, batch, chosen, size, float(step_ms), replayed, cached, cold)


@contextlib.contextmanager
def _folder(below: str | os.PathLike[str] | None) -> Iterator[str]:
    """A temporary folder for a cache, which is deleted whatever happens."""
    try:
        if below is not None:
            os.makedirs(below, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="shardstream-bench-", dir=below)
    except OSError as error:
        raise StorageError(f"the cache {below or tempfile.gettempdir()}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Processes(contextlib.AbstractContextManager["_Processes"]):
    """The processes of the ranks; they are killed when the block is left."""

    def __init__(
        self, work: Work, folder: str, ranks: tuple[int, ...], world: int, step: float, seconds: float
    ) -> None:
        self.url = ""
        self._batch = work.batch
        self._begun: list[subprocess.Popen[bytes]] = []
        # Another Python finds the package where this one has it.
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "shardstream.observe.bench_rank"]
        try:
            for rank in ranks:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
                self._begun.append(process)
                told = {"work": work, "cache": folder, "rank": rank, "world": world}
                pickle.dump(
                    told | {"step": step, "seconds": seconds, "replayed": _REPLAYED}, _pipe(process.stdin)
                )
                _pipe(process.stdin).flush()
            self.url = str(self._answers()[0]["url"])
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def run(self, phase: str) -> Phase:
        """One phase of all ranks, which prepare, and then begin together."""
        self._tell(phase)
        self._answers()
        self._tell("go")
        found = self._answers()
        rates = tuple(float(one["per_second"]) for one in found)
        return Phase(
            phase,
            sum(int(one["samples"]) for one in found),
            max(float(one["seconds"]) for one in found),
            # A job waits for its slowest rank at each step.
            min(rates) * len(rates),
            max(float(one["first"]) for one in found),
            sum(float(one["wait"]) for one in found) / len(found),
            sum(float(one["cpu"]) for one in found),
            sum(int(one["store_bytes"]) for one in found),
            rates,
        )

    def _tell(self, word: str) -> None:
        for process in self._begun:
            with contextlib.suppress(BrokenPipeError):  # its answer says why
                _pipe(process.stdin).write(f"{word}\n".encode())
                _pipe(process.stdin).flush()

    def _answers(self) -> list[dict[str, Any]]:
        found = []
        for process in self._begun:
            try:
                answer = pickle.load(_pipe(process.stdout))  # noqa: S301 - a process of our own
            except (EOFError, pickle.UnpicklingError):
                code = process.wait(60)
                cause = signal.Signals(-code).name if code < 0 else f"code {code}"
                raise StorageError(f"bench: the process of a rank ended with {cause}") from None
            if isinstance(answer, ShardstreamError):
                raise answer
            found.append(answer)
        return found

    def __exit__(self, *error: object) -> None:
        for process in self._begun:
            process.kill()
        for process in self._begun:
            for end in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    _pipe(end).close()
            process.wait(60)


def _pipe(end: Any) -> Any:
    assert end is not None
    return end

"""Random use of datasets behind a faulty server, compared with what an undisturbed reader gets.

A round is one epoch of one job, cut into segments. Each segment has a world size, threads or a process,
a cache, a transform and faults of its own; it ends by a break, and the next one goes on from the state.
Each sample carries its id and the SHA-256 of its payload. The order is what a plain local reader delivers.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import math
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import shardstream as ss
from shardstream.errors import CorruptionError, StorageError
from tests.corpora import pack_rows
from tests.proxy import Proxy
from tests.watch import descriptors

SEQ_LEN = 96
NAMES = ("zstd", "plain", "small", "tokens")
_LETTERS = "abcdefghijklmnopqrstuvwxyz 数据✓"


def pack_all(folder: Path) -> None:
    """The datasets of all rounds: documents compressed and not, very few documents, and tokens."""
    numbers = random.Random(7)

    def rows(count: int, longest: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            text = f"{number} " + "".join(numbers.choices(_LETTERS, k=numbers.randrange(longest)))
            yield {"id": f"id-{number:04d}", "text": text, "sha": hashlib.sha256(text.encode()).hexdigest()}

    sizes = {"shard_size": "64KiB", "frame_size": "8KiB"}
    for name, count, longest, options in (
        ("zstd", 600, 1600, {"compression": "zstd"}),
        ("plain", 400, 1200, {"compression": "none"}),
        ("small", 5, 100, {"compression": "zstd"}),
        ("tokens", 300, 800, {"tokenizer": "bytes", "eos": 256}),
    ):
        (folder / name).mkdir(parents=True)
        pack_rows(folder / name, rows(count, longest), **(sizes | options))
        (folder / name / "packed").rename(folder / f"{name}.ds")


def identify(sample: Any) -> str:
    """The id of a sample whose payload is sound; of a block of tokens, a digest of all of it."""
    if isinstance(sample, tuple):
        key, text, sha = sample
    elif "tokens" in sample:
        return hashlib.blake2b(np.asarray(sample["tokens"]).tobytes(), digest_size=8).hexdigest()
    else:
        key, text, sha = sample["__key__"], sample["txt"], sample["json"]["sha"]
    assert hashlib.sha256(text.encode()).hexdigest() == sha, f"wrong bytes of {key}"
    return str(key)


def plain(sample: Any) -> Any:
    return sample


def larger(sample: Any) -> Any:
    """Many times the bytes that are stored."""
    return sample | {"large": np.zeros(1 << 16, np.uint8)}


def slow(sample: Any) -> Any:
    time.sleep(0.001)
    return sample


def a_tuple(sample: Any) -> Any:
    return sample["__key__"], sample["txt"], sample["json"]["sha"]


class Planned(Exception):  # noqa: N818 - raised on purpose
    """What a transform of ours raises."""


@dataclass(frozen=True)
class Raising:
    """A transform that fails at one sample."""

    key: str

    def __call__(self, sample: Any) -> Any:
        if sample["__key__"] == self.key:
            raise Planned
        return sample


TRANSFORMS = [None, None, plain, larger, slow, "raising"]


@dataclass
class Report:
    """What a soak did and saw."""

    rounds: int = 0
    segments: int = 0
    samples: int = 0
    given_up: int = 0  # segments ended by an error of the store, after all retries
    raised: int = 0  # segments ended by an error of a transform
    kinds: dict[str, int] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)  # bytes of this process after each round

    def count(self, kind: str) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + 1


class Soak:
    """Rounds of random use; equal seeds make equal rounds."""

    def __init__(self, folder: Path, local: Path, proxy: Proxy, base: str, seed: int) -> None:
        """local: where the datasets lie.  base: the URL of the same folder behind `proxy`."""
        self.folder, self._local, self._proxy, self._base = folder, local, proxy, base
        self._random = random.Random(seed)
        self._seed = seed
        self.report = Report()

    def run(self, rounds: float = math.inf, seconds: float = math.inf) -> Report:
        """So many rounds more, or whole rounds until so much time is over."""
        until, last = time.monotonic() + seconds, self.report.rounds + rounds
        while time.monotonic() < until and self.report.rounds < last:
            number = self.report.rounds
            # Each round has numbers of its own: one alone can be repeated.
            self._random.seed(f"{self._seed} {number}")
            try:
                self.round()
            except BaseException as error:
                error.add_note(f"in round {number} of seed {self._seed}")
                raise
            self.report.rounds += 1
            gc.collect()
            self.report.memory.append(resident())
        return self.report

    def round(self) -> None:
        """One epoch of one job, and its beginning anew in the next epoch."""
        draw = self._random
        name = draw.choices([*NAMES, "mixture", "subset"], [4, 3, 1, 3, 3, 2])[0]
        shuffle = draw.choice(
            [False, *(ss.Shuffle(seed=draw.randrange(9), lanes=draw.choice([1, 4, 6, 12]), window=window,
                                 scope=draw.choice(["epoch", "lane"])) for window in (1, 4))]
        )  # fmt: skip
        job = Job(name, shuffle, last=draw.choice(["drop", "pad", "short"]), size=12)
        self.report.count(f"{name}, {job.last}")
        if draw.random() < 0.2 and name not in ("small", "mixture"):
            self.data_loader(job)
            return
        wanted = self.expected(job)
        # The caches stay from round to round: one too small for any dataset, one large enough for all.
        cache = draw.choice([None, "256KiB", "64MiB"])
        done: list[list[str]] = []
        state: dict[str, Any] | None = None
        while True:
            self.faults()
            some, state, ended = self.segment(job, state, cache, wanted[len(done) :])
            assert some == wanted[len(done) : len(done) + len(some)], "other samples than were expected"
            done += some
            self.report.segments += 1
            self.report.samples += sum(map(len, some))
            if ended:
                break
        assert done == wanted, "an epoch ended early"

    def faults(self) -> None:
        """Other faults of the store from now on."""
        draw = self._random
        chosen: dict[str, Any] = draw.choice(
            [
                {},
                {"status": (500, 503, 429), "share": 0.1},
                {"reset": 0.03, "cut": 0.03},
                {"flip": 0.02},
                {"slow": 0.1, "slow_by": 0.2},
                {"latency": 0.005, "status": (503,), "share": 0.05, "flip": 0.01},
            ]
        )
        self._proxy.set(only=lambda method, path: method == "GET" and "shard-" in path, **chosen)

    def dataset(self, job: Job, remote: bool, cache: str | None, rank: int, size: int, transform: Any) -> Any:
        """The dataset of a job as one rank sees it."""
        tiers = None
        if remote:
            tiers = ss.Cache(cache and self.folder / f"cache-{cache}", disk=cache, ram="1MiB")

        def one(name: str, shuffle: Any, change: Any) -> Any:
            url = f"{self._base}/{name}.ds" if remote else str(self._local / f"{name}.ds")
            options = {"shuffle": shuffle, "cache": tiers, "topology": ss.Topology(rank, size)}
            if name == "tokens":
                return ss.TokenDataset(url, seq_len=SEQ_LEN, **options)
            return ss.StreamingDataset(url, transform=change, **options)

        if job.name == "mixture":
            parts = [one(name, job.shuffle, transform) for name in ("zstd", "plain", "small")]
            return ss.Mixture(list(zip(parts, (0.5, 0.4, 0.1), strict=True)), stop="first")
        if job.name == "subset":
            return one("zstd", job.shuffle, transform).subset(numbers=range(0, 600, 3))
        return one(job.name, job.shuffle, transform)

    def expected(self, job: Job) -> list[list[str]]:
        """The global batches of epoch 0, read from local files by one rank and one thread, undisturbed."""
        ds = self.dataset(job, False, None, 0, 1, None)
        loader = ss.StreamingLoader(ds, job.size, last=job.last, collate=list, threads=1)
        return [[identify(sample) for sample in batch] for batch in loader]

    def segment(
        self, job: Job, state: dict[str, Any] | None, cache: str | None, left: list[list[str]]
    ) -> tuple[list[list[str]], dict[str, Any], bool]:
        """Some batches by a job of some size: what came, the state, and whether the epoch is over."""
        draw = self._random
        size = draw.choice([1, 1, 2, 3, 4])
        transform = None if job.name == "tokens" else draw.choice(TRANSFORMS)
        at = draw.randrange(len(left)) if left else 0
        if transform == "raising":
            transform = Raising(draw.choice(left[at])) if left else None
        engine = "process" if draw.random() < 0.05 else "thread"
        whole = draw.random() < 0.4
        count = len(left) if whole else draw.randrange(len(left) + 1)
        options = {
            "threads": draw.choice([1, 2, 4]), "prefetch": draw.choice(["1KiB", "64KiB", "16MiB"]),
            "engine": engine, "collate": draw.choice([None, list]),
        }  # fmt: skip
        remote = draw.random() < 0.7
        loaders = []
        for rank in range(size):
            ds = self.dataset(job, remote, cache, rank, size, transform)
            loaders.append(ss.StreamingLoader(ds, job.size // size, last=job.last, **options))
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        states = [loader.state_dict() for loader in loaders]
        found: list[list[str]] = []
        iterators = [iter(loader) for loader in loaders]
        try:
            for _ in range(count):
                parts = [next(iterator) for iterator in iterators]
                found.append(gathered([identified(part) for part in parts], len(left[len(found)])))
                states = [loader.state_dict() for loader in loaders]
            if whole:
                assert [next(iterator, None) for iterator in iterators] == [None] * size
        except (CorruptionError, StorageError) as error:
            if isinstance(error, CorruptionError) and not self._proxy.faults.flip:
                raise
            # Six tries in a row may fail by chance, and two flips meet: it goes on from the last whole step.
            self.report.given_up += 1
            whole = False
        except Planned:
            # The same sample may come earlier once more: mixtures repeat, and so does what pads.
            assert transform.key in left[len(found)], "an error out of its place"
            self.report.raised += 1
            whole = False
        finally:
            for iterator in iterators:
                iterator.close()
        assert all(one == states[0] for one in states), "ranks differ in their states"
        return found, json.loads(json.dumps(states[0])), whole

    def data_loader(self, job: Job) -> None:
        """Two epochs by torch DataLoaders with different numbers of workers, over one dataset."""
        import torch.utils.data

        draw = self._random
        ds = self.dataset(job, False, None, 0, 1, None)
        expected = sorted(identify(sample) for sample in self.dataset(job, False, None, 0, 1, None))
        for _ in range(draw.choice([1, 2, 3])):
            torch.manual_seed(draw.choice([0, draw.randrange(99)]))
            workers = draw.randrange(4)
            loader: Any = torch.utils.data.DataLoader(
                ds, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
            )
            if draw.random() < 0.3:
                for _ in itertools.islice(loader, 3):
                    pass
                continue
            assert sorted(identify(sample) for sample in loader) == expected, f"{workers} workers"
            self.report.samples += len(expected)


@dataclass(frozen=True)
class Job:
    """What does not change within an epoch."""

    name: str
    shuffle: Any
    last: str
    size: int  # of the global batch


def identified(batch: Any) -> list[str]:
    """The ids of one rank's batch."""
    if isinstance(batch, list):
        return [identify(sample) for sample in batch]
    size = len(next(iter(batch.values())))
    columns = {name: values for name, values in batch.items() if name in ("__key__", "txt", "json", "tokens")}
    return [identify({name: values[row] for name, values in columns.items()}) for row in range(size)]


def gathered(parts: list[list[str]], count: int) -> list[str]:
    """The ids of a global batch of `count`: rank r of R holds those at r, r + R, ...

    In a short batch a rank that would have none has one that pads.
    """
    longest = max(map(len, parts))
    found = [part[row] for row in range(longest) for part in parts if row < len(part)]
    assert len(found) == max(count, len(parts))
    return found[:count]


def resident() -> int:
    """Bytes of memory of this process alone, shared libraries left out."""
    with open("/proc/self/smaps_rollup") as file:
        lines = dict(line.split(":", 1) for line in file.readlines()[1:])
    return sum(int(lines[name].split()[0]) << 10 for name in ("Private_Clean", "Private_Dirty"))


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return descriptors(), threading.active_count()


@contextlib.contextmanager
def served(nginx: Any, folder: Path, name: str) -> Iterator[str]:
    """The folder below the root of a server, by a name of its own."""
    shutil.copytree(folder, nginx.root / name)
    try:
        yield name
    finally:
        shutil.rmtree(nginx.root / name)

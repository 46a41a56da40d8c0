"""Any sequence of DataLoaders over one dataset: each epoch of each of them is exact."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.distributed.training import dataset, name, pack

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

SAMPLES = 30


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), "samples", documents=SAMPLES)


@pytest.fixture(scope="module")
def orders(packed: Path) -> list[list[str]]:
    """The order of each epoch."""
    ds = dataset(packed)
    return [[name(item) for item in ds] for _ in range(40)]


def key(sample: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": sample["__key__"]}


class Use:
    """One dataset, used in any way; knows which epoch is next."""

    def __init__(self, packed: Path, orders: list[list[str]], method: str = "fork") -> None:
        self.ds, self.orders, self.method = dataset(packed, transform=key), orders, method
        self.next = 0
        self.kept: dict[int, Any] = {}

    def loader(self, workers: int, **options: Any) -> Any:
        torch.manual_seed(0)  # the same for all: it must not matter
        if workers:
            options["multiprocessing_context"] = self.method
        return DataLoader(self.ds, batch_size=None, num_workers=workers, **options)

    def check(self, loader: Any, count: int = SAMPLES) -> None:
        iterator = iter(loader)
        found = [name(item) for item in (iterator if count == SAMPLES else itertools.islice(iterator, count))]
        assert found == self.orders[self.next][:count]
        self.next += 1

    def whole(self, workers: int) -> None:
        self.check(self.loader(workers))

    def half(self, workers: int) -> None:
        self.check(self.loader(workers), 7)

    def unused(self, workers: int) -> None:
        iterator = iter(self.loader(workers))
        del iterator
        if workers:
            self.next += 1  # its workers have begun

    def persistent(self, workers: int, count: int) -> None:
        if workers not in self.kept:
            self.kept[workers] = self.loader(workers, persistent_workers=True)
        self.check(self.kept[workers], count)

    def both(self, one: int, two: int) -> None:
        """Two in step; whose workers begin first is open."""
        pairs = zip(self.loader(one), self.loader(two), strict=True)
        left, right = zip(*((name(a), name(b)) for a, b in pairs), strict=True)
        self.two([list(left), list(right)])

    def two(self, found: list[list[str]]) -> None:
        assert sorted(found) == sorted(self.orders[self.next : self.next + 2])
        self.next += 2

    def threads(self, one: int, two: int) -> None:
        """Two that begin at the same time; which of them is first is open."""
        found: dict[int, list[str]] = {}
        loaders = [self.loader(one), self.loader(two)]
        together = threading.Barrier(2)

        def read(number: int) -> None:
            together.wait()
            found[number] = [name(item) for item in loaders[number]]

        running = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        self.two(list(found.values()))

    def resumed(self, workers: int) -> None:
        before = StatefulDataLoader(self.ds, batch_size=None, num_workers=workers)
        seen = [name(item) for item in itertools.islice(before, 11)]
        after = StatefulDataLoader(self.ds, batch_size=None, num_workers=workers)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        del before
        assert seen + [name(item) for item in after] == self.orders[self.next]
        self.next += 1

    def look(self) -> None:
        assert name(next(iter(self.ds))) == self.orders[self.next][0]

    def set_epoch(self, chosen: int) -> None:
        self.ds.set_epoch(chosen)
        self.next = chosen


workers = st.integers(0, 3)
some = st.integers(1, 3)
steps = st.one_of(
    *(st.tuples(st.just(do), workers) for do in ("whole", "half", "unused", "resumed")),
    st.tuples(st.just("persistent"), some, st.sampled_from([5, SAMPLES])),
    st.tuples(st.just("both"), some, some),
    st.tuples(st.just("threads"), some, some),
    st.tuples(st.just("look")),
    st.tuples(st.just("set_epoch"), st.integers(0, 5)),
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=3, max_size=6))
def test_any_sequence(packed: Path, orders: list[list[str]], sequence: list[Any]) -> None:
    use = Use(packed, orders)
    for do, *values in sequence:
        getattr(use, do)(*values)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=3, max_size=12))
def test_many_sequences(packed: Path, orders: list[list[str]], sequence: list[Any]) -> None:
    use = Use(packed, orders)
    for do, *values in sequence:
        getattr(use, do)(*values)


# None that is dropped at once: its workers may be ended before they have begun.
SEQUENCE = [
    ("whole", 2), ("half", 1), ("whole", 3), ("persistent", 2, SAMPLES), ("look",),
    ("both", 1, 2), ("persistent", 2, 5), ("resumed", 2), ("threads", 2, 1), ("persistent", 2, SAMPLES),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked(packed: Path, orders: list[list[str]], method: str) -> None:
    use = Use(packed, orders, method)
    for do, *values in SEQUENCE:
        getattr(use, do)(*values)


@pytest.mark.long
def test_forked_and_spawned_workers_in_turn(packed: Path, orders: list[list[str]]) -> None:
    use = Use(packed, orders)
    for method, do in (("fork", "whole"), ("spawn", "half"), ("fork", "half"), ("fork", "whole")):
        use.method = method
        getattr(use, do)(2)


class Copies:
    """Sends a copy of its dataset, which nobody holds."""

    def __init__(self, ds: Any) -> None:
        self.ds = ds

    def __getstate__(self) -> Any:
        return {"ds": copy.deepcopy(self.ds)}


def epochs_of(*copies: Copies) -> None:
    assert all(len(list(one.ds)) == SAMPLES for one in copies)


def test_a_copy_that_is_sent_lives_until_it_came(packed: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=epochs_of, args=(Copies(dataset(packed)), Copies(dataset(packed)))
    )
    process.start()
    process.join(200)
    assert process.exitcode == 0


def shared_files() -> list[int]:
    """The sizes of the files that this process shares with workers."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if "shardstream-epochs" in os.readlink(f"/proc/self/fd/{descriptor}"):
                found.append(os.stat(f"/proc/self/fd/{descriptor}").st_size)
        except FileNotFoundError:  # the directory's own
            continue
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_what_is_shared_does_not_grow(packed: Path, orders: list[list[str]]) -> None:
    before = len(shared_files())
    use = Use(packed, orders)
    for _ in range(3):
        use.check(use.ds)
    assert len(shared_files()) == before  # nothing is open as long as no process was started
    use.persistent(2, 5)
    sizes = []
    for _ in range(30):
        use.ds.set_epoch(0)
        use.next = 0
        use.persistent(2, 5)
        use.half(0)
        sizes.append(max(shared_files()))
    assert max(sizes) < 200

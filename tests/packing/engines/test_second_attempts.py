"""A task that is slow gets a second attempt: the pack ends, and nothing comes twice."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.packing import reservation
from shardstream.packing.destination import Destination
from shardstream.packing.engines import Counts, Local, Needs, Submit, pace
from shardstream.packing.engines.local import Worker, WorkerDiedError
from shardstream.packing.engines.processes import _Pool, _Running, run_tasks
from shardstream.packing.sources import sql
from shardstream.packing.sources.base import FileSpan, Task
from shardstream.packing.sources.calls import Calls
from shardstream.packing.spilled import FOLDER, spilled_entries
from shardstream.progress import Progress
from shardstream.storage.store import Store
from tests.packing.engines import calls

TASKS = list(range(8))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is slow after a moment, and workers find this package."""
    monkeypatch.setattr(pace, "_LEAST_SECONDS", 0.3)
    monkeypatch.setattr("shardstream.packing.engines.dispatch._LOOK", 0.1)
    monkeypatch.setattr("shardstream.packing.engines.submit._END_TIMEOUT", 0.2)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))


def test_long_tasks_are_begun_first_and_equal_ones_in_their_order() -> None:
    def task(number: int, name: str, size: int) -> Task:
        return Task(number, (FileSpan(name, 0, size, size, ""),))

    tasks = [task(0, "a", 10), task(1, "b", 30), task(2, "c.gz", 9), task(3, "d", 10), task(4, "e", 30)]
    assert [each.number for each in pace.longest_first(tasks)] == [2, 1, 4, 0, 3]
    assert list(pace.longest_first(range(3))) == [0, 1, 2]


def test_a_plan_that_is_not_in_memory_keeps_neighbours_of_about_the_same_length() -> None:
    class Sized:
        def __init__(self, size: int) -> None:
            self.work = size

    sizes = [70, 100, 90, 1, 6400, 80]
    found = pace.longest_first(tuple(map(Sized, sizes)))
    assert [each.work for each in found] == [6400, 70, 100, 90, 80, 1]
    assert [each.work for each in found[1:3]] == [70, 100]
    assert len(found) == 6


def test_functions_of_the_user_and_queries_get_no_second_attempt() -> None:
    [task] = Calls((calls.__name__.title,)).plan([], 1)
    assert not pace.may_copy(task)
    assert not pace.may_copy(sql._Range(0, ()))
    assert pace.may_copy(Task(0, ()))


def test_what_is_slow_goes_by_the_median_and_by_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_LEAST_SECONDS", 10.0)
    known = pace.Pace()
    assert known.limit(1, 100) == float("inf")
    for seconds in (20.0, 4.0, 5.0, 6.0, 600.0):
        known.add(seconds, 1000)
    assert known.limit(1, 1000) == 18.0
    assert known.limit(1, 0) == 18.0
    assert known.limit(4, 0) == 72.0
    assert known.limit(1, 100_000) == 1800.0  # a file of a hundred times the size is no slow one
    for _ in range(2000):
        known.add(0.01, 1000)
    assert known.limit(1, 1000) == 10.0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_on_this_machine_the_slow_process_is_ended(tmp_path: Path) -> None:
    counts, started = Counts(copies=True), time.monotonic()
    assert sorted(run_tasks(calls.slow_once, str(tmp_path), TASKS, 2, (), counts)) == TASKS
    assert time.monotonic() - started < 60
    assert counts.retried >= 1  # a worker that is slow to start may be another one
    assert counts.lost == 0
    assert not alive(int((tmp_path / "slow").read_text()))


def test_a_task_that_kills_is_not_counted_twice_as_fast(tmp_path: Path) -> None:
    counts = Counts(copies=True)
    with pytest.raises(ss.StorageError, match="task 3: 3 workers died in it"):
        list(run_tasks(calls.dies_slowly, str(tmp_path), TASKS, 3, (), counts))
    assert len(list(tmp_path.iterdir())) == 4  # the first two at once count as one, and then no two at a time
    assert counts.lost == 4


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Path]:
    """A folder in which workers name their children, which are ended at last."""
    folder = tmp_path / "children"
    folder.mkdir()
    yield folder
    for path in folder.glob("child-*"):
        os.kill(int(path.name.removeprefix("child-")), signal.SIGKILL)


def test_a_child_of_a_worker_that_is_ended_keeps_nobody(children: Path) -> None:
    began = time.monotonic()
    assert sorted(run_tasks(calls.forks, str(children), TASKS, 2, (), Counts(copies=True))) == TASKS
    assert time.monotonic() - began < 8  # the child would hold the pipe for a minute
    assert len(list(children.glob("child-*"))) == 1


def test_a_child_of_a_worker_does_not_keep_an_error(children: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ss.StorageError, match="task 3 failed"):
        list(run_tasks(calls.forks_or_fails, str(children), TASKS, 3))
    assert time.monotonic() - began < 8
    assert list(children.glob("child-*"))
    assert not [each for each in threading.enumerate() if "_feed" in each.name]


def test_a_worker_that_was_killed_is_noticed_although_its_child_has_the_pipe(children: Path) -> None:
    worker = Worker(calls.forks, str(children), ())
    found: list[BaseException] = []

    def call() -> None:
        try:
            worker.call(3)
        except WorkerDiedError as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not (children / "waits").exists():
        time.sleep(0.02)
    began = time.monotonic()
    os.kill(worker.process.pid, signal.SIGKILL)  # as the system does if memory is out
    thread.join(60)
    worker.stop()
    assert "exit code -9" in str(found[0])
    assert time.monotonic() - began < 8


def test_a_second_attempt_without_a_process_ends_nothing() -> None:
    class Dead:
        ended = True

        def stop(self) -> None:
            pass

    def worker() -> Any:
        raise BlockingIOError("no more processes")

    first, second = Dead(), Dead()
    pool = _Pool(worker, TASKS, Counts(copies=True))
    pool._running[0] = running = _Running(time.monotonic(), [first, second], 0, False)  # type: ignore[list-item]
    pool._pace.add(1.0, 0)
    assert pool._attempted(second, 0) is second  # type: ignore[arg-type]
    assert running.workers == [first]
    assert pool.answers.empty()
    assert pool._slow()[0] is None  # and not at once again
    with pytest.raises(BlockingIOError):
        pool._attempted(first, 0)  # type: ignore[arg-type]


@pytest.fixture(params=["local", "processes"])
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "local":
        yield Local()
        return
    with ProcessPoolExecutor(2, get_context("forkserver")) as pool:
        yield Submit(pool)


def test_an_error_of_a_store_in_the_second_attempt_is_no_error_of_the_task(
    engine: Any, tmp_path: Path
) -> None:
    with engine.started(Needs(2)) as workers:
        workers.counts.copies = True
        done = sorted(workers.run(calls.second_fails, (str(tmp_path), "storage"), TASKS))
        assert (done, workers.counts.lost) == (TASKS, 0)
        assert workers.counts.retried >= 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("source", ss.SourceError),
        pytest.param("commit", ss.CommitError, marks=pytest.mark.long),
    ],
)
def test_another_error_of_the_second_attempt_ends_it(
    engine: Any, kind: str, error: type[Exception], tmp_path: Path
) -> None:
    with engine.started(Needs(2)) as workers:
        workers.counts.copies = True
        with pytest.raises(error, match="task 3 failed"):
            list(workers.run(calls.second_fails, (str(tmp_path), kind), TASKS))


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_an_executor_whose_task_hangs_does_not_keep_the_rest(kind: type[Executor], tmp_path: Path) -> None:
    pool: Any = kind(2)
    try:
        with Submit(pool).started(Needs(2)) as workers:
            workers.counts.copies = True
            assert sorted(workers.run(calls.slow_once, str(tmp_path), TASKS)) == TASKS
            assert workers.counts.lost == 0
            assert workers.counts.retried >= 1
    finally:
        (tmp_path / "wake").touch()
        pool.shutdown()


ROWS = 60
SMALL: dict[str, Any] = {"shard_size": "4KiB", "frame_size": "1KiB", "on_error": "skip", "workers": 2}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """About ten tasks, of which each has a reject, and puts two shards."""
    numbers, path = random.Random(7), tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(ROWS):
            text = numbers.randbytes(400).hex()
            file.write(
                "no json\n" if number % 5 == 0 else json.dumps({"id": f"{number}", "text": text}) + "\n"
            )
    return path


def contents(url: str, options: Any = None) -> dict[str, bytes]:
    store = Store.open(url, options)
    assert not spilled_entries(store)
    names = (name for name in store.list() if name != FOLDER)  # an empty folder, where a store has such
    return {name: store.read(name) for name in names}


@pytest.fixture
def dests(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Any]:
    """Places for datasets, and the options of their store."""
    if request.param == "s3":
        weed = request.getfixturevalue("weed")
        return [weed.bucket() for _ in range(2)], weed.options()
    scheme = "plainfiles://" if request.param == "plain" else ""
    return [f"{scheme}{tmp_path / name}" for name in ("one", "other")], None


STORES, POINTS = ("local", "s3"), ("before", "within", "after")
SHORT = [("s3", "within", 7), ("local", "within", None)]
LONG = [each for each in itertools.product(STORES, POINTS, (None, 7)) if each not in SHORT]


@pytest.mark.parametrize(
    ("dests", "point", "shuffle"),
    [*SHORT, *(pytest.param(*each, marks=pytest.mark.long) for each in LONG)],
    indirect=["dests"],
)
def test_nothing_comes_twice_wherever_the_first_attempt_hangs(
    dests: tuple[list[str], Any],
    point: str,
    shuffle: int | None,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (one, other), options = dests
    monkeypatch.setattr("shardstream.packing.shuffle_passes.MOST_ON_DISK", 0)  # both passes are in the store
    more = {**SMALL, "shuffle": shuffle, "storage_options": options}
    ss.pack(rows, one, **{**more, "workers": 1})
    folder = tmp_path / "stalls"
    folder.mkdir()
    monkeypatch.setenv("STALL", f"{folder}:{point}")
    monkeypatch.setattr("shardstream.packing.runner.run_task", calls.stalling)
    seen: list[Progress] = []
    ss.pack(rows, other, **more, progress=seen.append)
    stalled = {path.name: int(path.read_text()) for path in folder.iterdir()}
    assert len(stalled) == (1 if shuffle is None else 2)
    assert not any(map(alive, stalled.values()))
    assert contents(other, options) == contents(one, options)
    assert len(contents(one, options)["rejects.jsonl"].splitlines()) == ROWS // 5
    assert not list(tmp_path.glob("other/**/.*"))
    assert seen[-1].retried >= len(stalled)
    assert seen[-1].lost == 0
    assert all(now.done_tasks <= now.total_tasks and now.samples <= ROWS * 4 // 5 for now in seen)
    assert (seen[-1].done_tasks, seen[-1].samples) == (seen[-1].total_tasks, ROWS * 4 // 5)


@pytest.mark.parametrize(
    ("dests", "shuffle", "on_disk"),
    [
        ("plain", None, 0),
        pytest.param("plain", 7, 0, marks=pytest.mark.long),
        pytest.param("local", 7, 1 << 18, marks=pytest.mark.long),
    ],
    indirect=["dests"],
)
def test_where_a_put_is_not_one_step_nothing_is_done_twice_at_once(
    dests: tuple[list[str], Any],
    shuffle: int | None,
    on_disk: int,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = dests[0]
    monkeypatch.setattr("shardstream.packing.shuffle_passes.MOST_ON_DISK", on_disk)
    ss.pack(rows, one, **{**SMALL, "workers": 1}, shuffle=shuffle)
    folder = tmp_path / "stalls"
    folder.mkdir()
    monkeypatch.setenv("STALL", f"{folder}:before:0.8")
    monkeypatch.setattr("shardstream.packing.runner.run_task", calls.stalling)
    monkeypatch.setattr(pace, "_LEAST_SECONDS", 0.05)
    seen: list[Progress] = []
    ss.pack(rows, other, **SMALL, shuffle=shuffle, progress=seen.append)
    again = 1 if on_disk else 0  # in the second pass, whose results are whole files
    assert (seen[-1].retried, seen[-1].lost) == (again, 0)
    assert len(list(folder.iterdir())) == (1 if shuffle is None else 2)
    assert contents(other) == contents(one)


@pytest.mark.parametrize(
    ("dest", "more", "copies"),
    [
        ("{}/out", {}, [True]),
        ("{}/out", {"shuffle": 7}, [False, True]),  # a task of the first pass leaves two files
        ("{}/out", {"shard_size": "3GiB"}, [True]),
        ("memory://{}/out", {}, [True]),
        ("memory://{}/big", {"shard_size": "3GiB"}, [False]),  # too large for a condition, perhaps
        ("plainfiles://{}/out", {}, [False]),
        ("plainfiles://{}/out", {"shuffle": 7}, [False, False]),
    ],
)
def test_the_pack_says_where_there_may_be_second_attempts(
    dest: str, more: Any, copies: list[bool], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def noting(function: Any, job: Any, tasks: Any, workers: int, inherited: Any, counts: Counts) -> Any:
        found.append(counts.copies)
        return run_tasks(function, job, tasks, workers, inherited, counts)

    monkeypatch.setattr("shardstream.packing.engines.processes.run_tasks", noting)
    ss.pack(rows, dest.format(tmp_path), **{**SMALL, "workers": 1, **more})
    assert found == copies
    assert not Counts().copies  # of all others that run tasks


def test_a_pack_that_is_continued_asks_the_store_again(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    dest = f"memory://{tmp_path}/out"
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(rows, dest, **{**SMALL, "workers": 1})
    found = []
    begin = Destination.begin

    def noting(destination: Destination, *arguments: Any) -> bool:
        continued = begin(destination, *arguments)
        found.append((continued, destination.copies))
        return continued

    monkeypatch.setattr(Destination, "begin", noting)
    monkeypatch.setattr(reservation, "creates_once", lambda store: False)
    ss.pack(rows, dest, **{**SMALL, "workers": 1}, resume=True)
    assert found == [(True, False)]


@pytest.mark.parametrize("dests", STORES, indirect=True)
def test_an_attempt_that_wakes_just_when_the_pack_is_complete_changes_nothing(
    dests: tuple[list[str], Any], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, other), options = dests
    for name, value in (options or {}).items():
        monkeypatch.setenv(f"TEST_{name.upper()}", value)  # by which secrets are sent
    more = {**SMALL, "storage_options": options}
    ss.pack(rows, one, **{**more, "workers": 1})
    monkeypatch.setenv("STALL", f"{tmp_path}:before")
    monkeypatch.setattr("shardstream.packing.runner.run_task", calls.stalling)
    with ThreadPoolExecutor(2) as pool:
        ss.pack(rows, other, engine=pool, **more)
        assert contents(other, options) == contents(one, options)
        (tmp_path / "wake").touch()
    assert contents(other, options) == contents(one, options)

"""Batches, and what is tried again, over a crew that does as it is told."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import shardstream as ss
from shardstream.packing.engines import Counts, attempts, dispatch, pace
from shardstream.packing.engines.attempts import WorkerLostError
from shardstream.packing.engines.batch import Answer
from shardstream.packing.engines.dispatch import dispatched, room
from shardstream.packing.sources.base import FileSpan, Task

Act = Callable[[list[Any], int], Answer]


class Crew:
    """Answers in the order of the batches. `act` gets the tasks and the number of the batch."""

    def __init__(self, act: Act, capacity: int = 2) -> None:
        self.act, self.slots = act, capacity
        self.batches: list[tuple[list[Any], tuple[str, ...]]] = []
        self.most = 0
        self.cancelled: list[int] = []
        self.dropped: list[int] = []
        self._waiting: list[int] = []

    def capacity(self) -> int:
        return self.slots

    def spare(self) -> int:
        return self.slots

    def lacks(self) -> str:
        return "a task needs 4.2 GiB"

    def submit(self, tasks: Sequence[Any], avoid: Sequence[str]) -> int:
        self.batches.append((list(tasks), tuple(avoid)))
        self._waiting.append(len(self.batches) - 1)
        self.most = max(self.most, len(self._waiting))
        return self._waiting[-1]

    def wait(self, handles: Sequence[int], seconds: float) -> list[int]:
        assert 0 < seconds <= 1
        return [self._waiting.pop(0)] if handles else []

    def answer(self, handle: int) -> Answer:
        return self.act(self.batches[handle][0], handle)

    def drop(self, handle: int) -> None:
        self.dropped.append(handle)
        if handle in self._waiting:
            self._waiting.remove(handle)

    def cancel(self, handles: Sequence[int]) -> None:
        self.cancelled += handles


def done(tasks: list[Any], seconds: float = 0.0, node: str = "a", **more: Any) -> Answer:
    return Answer(node, results=tasks, seconds=seconds, **more)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_LONGEST_PAUSE", 0.0)


def run(crew: Crew, tasks: Sequence[Any], workers: int | None = None, retries: int = 5) -> Any:
    counts = Counts(copies=True)
    return sorted(dispatched(crew, tasks, workers, retries, counts)), counts


def test_each_worker_has_a_batch_and_another_one_waits() -> None:
    assert [room(None, n) for n in (0, 1, 8)] == [1, 2, 16]
    assert [room(4, n) for n in (0, 3, 4, 5)] == [1, 6, 8, 4]
    assert room(1000, 2) == 4  # what cannot run is not sent
    crew = Crew(lambda tasks, _: done(tasks))
    assert run(crew, range(20))[0] == list(range(20))
    assert crew.most == 4


@pytest.mark.parametrize(("seconds", "least"), [(60.0, 1), (10.0, 3), (0.01, 250)])
def test_a_batch_is_worth_half_a_minute(seconds: float, least: int) -> None:
    crew = Crew(lambda tasks, _: done(tasks, seconds * len(tasks)))
    assert run(crew, range(1000))[0] == list(range(1000))
    sizes = [len(tasks) for tasks, _ in crew.batches]
    assert sizes[0] == 1
    assert max(sizes) in (least, least + 1) or sizes[4] in range(least - 2, least + 2)
    assert sizes[-1] == 1  # so that the last one is not waited for


def test_tasks_behind_a_failed_one_are_given_again() -> None:
    failed: list[Any] = []

    def act(tasks: list[Any], number: int) -> Answer:
        if 7 in tasks and not failed:
            failed.append(tasks)
            at = tasks.index(7)
            return done(tasks[:at], 0.01, error=ss.StorageError("no answer"))
        return done(tasks, 0.01 * len(tasks))

    crew = Crew(act)
    got, counts = run(crew, range(40))
    assert got == list(range(40))
    assert (counts.retried, counts.lost) == (1, 0)
    assert ([7], ("a",)) in crew.batches


def test_a_store_that_fails_is_tried_elsewhere_a_few_times() -> None:
    nodes = itertools.count()

    def act(tasks: list[Any], number: int) -> Answer:
        return Answer(f"n{next(nodes)}", error=ss.StorageError("no answer"))

    crew = Crew(act)
    with pytest.raises(ss.StorageError, match="no answer"):
        run(crew, [0], retries=5)
    assert len(crew.batches) == 6
    assert crew.batches[-1] == ([0], ("n0", "n1", "n2", "n3", "n4"))


@pytest.mark.parametrize("error", [ss.SourceError("x"), ss.CommitError("x"), ss.OptionError("x")])
def test_other_errors_end_it_at_once(error: Exception) -> None:
    crew = Crew(lambda tasks, number: Answer("a", error=error))
    with pytest.raises(type(error)):
        run(crew, range(100))
    assert len(crew.batches) == 4
    assert crew.cancelled == [1, 2, 3]


@pytest.mark.parametrize("results", [[], [1, 2]])
def test_another_number_of_results_is_an_error(results: list[int]) -> None:
    crew = Crew(lambda tasks, number: Answer("n1", results=list(results)))
    with pytest.raises(RuntimeError, match=f"node n1: {len(results)} results of 1 tasks"):
        run(crew, range(9))


def test_a_machine_that_cannot_do_the_job_is_named() -> None:
    crew = Crew(lambda tasks, number: Answer("n1", problems=["it has numpy 1.0"]))
    with pytest.raises(ss.OptionError, match=r"node n1: it has numpy 1\.0"):
        run(crew, range(100))


def killer(tasks: list[Any], number: int) -> Answer:
    if any(task.number == 9 for task in tasks):
        raise WorkerLostError("killed")
    return done([task.number for task in tasks], 0.001 * len(tasks))


def test_a_task_that_kills_three_workers_is_named() -> None:
    span = FileSpan("s3://b/corpus.jsonl", 0, 1000, 2000, "")
    crew = Crew(killer)
    with pytest.raises(
        ss.StorageError, match=r"task 9 \(s3://b/corpus.jsonl, bytes 0 to 1,000\): 3 workers died"
    ):
        run(crew, [Task(number, (span,)) for number in range(40)])
    with_it = [tasks for tasks, _ in crew.batches if any(task.number == 9 for task in tasks)]
    assert len(with_it) == 3
    assert [len(tasks) for tasks in with_it[1:]] == [1, 1]  # alone, so that no other is blamed


def test_a_lost_machine_is_no_fault_of_its_tasks() -> None:
    lost = iter(range(5))

    def act(tasks: list[Any], number: int) -> Answer:
        if 3 in tasks and next(lost, None) is not None:
            raise WorkerLostError("the node died", with_node=True)
        return done(tasks, 0.001 * len(tasks))

    got, counts = run(Crew(act), range(10))
    assert got == list(range(10))
    assert counts.lost == 5
    assert counts.retried >= 5


def test_a_task_that_loses_every_machine_ends_it() -> None:
    def act(tasks: list[Any], number: int) -> Answer:
        raise WorkerLostError("the node died", with_node=True)

    with pytest.raises(ss.StorageError, match="10 machines were lost"):
        run(Crew(act), [0])


def test_a_cluster_without_machines_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_ALONE", -1.0)
    crew = Crew(lambda tasks, number: done(tasks), capacity=0)
    with pytest.raises(ss.StorageError, match=r"no machine has taken a task .*needs 4\.2 GiB"):
        run(crew, [0])


def test_what_is_on_its_way_is_cancelled_when_nobody_asks_for_more() -> None:
    crew = Crew(lambda tasks, _: done(tasks))
    results = dispatched(crew, range(20), None, 5, Counts())
    next(results)
    results.close()
    assert crew.cancelled == [1, 2, 3]


class Hanging(Crew):
    """Some batches never end, unless they are dropped."""

    def __init__(self, act: Act, capacity: int, *hang: int) -> None:
        super().__init__(act, capacity)
        self.hang = set(hang)
        self.free = capacity

    def spare(self) -> int:
        return self.free

    def wait(self, handles: Sequence[int], seconds: float) -> list[int]:
        assert set(handles) == set(self._waiting)
        ended = next((handle for handle in self._waiting if handle not in self.hang), None)
        if ended is None:
            time.sleep(0.01)
            return []
        self._waiting.remove(ended)
        return [ended]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is slow."""
    monkeypatch.setattr(pace, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "_LOOK", 0.02)


@pytest.mark.usefixtures("at_once")
def test_idle_workers_share_a_batch_that_hangs() -> None:
    crew = Hanging(lambda tasks, _: done(tasks, 0.001 * len(tasks)), 4, 9)
    got, counts = run(crew, range(1000))
    assert got == list(range(1000))
    stuck = crew.batches[9][0]
    copies = [tasks for tasks, _ in crew.batches[10:] if set(tasks) & set(stuck)]
    assert sorted(task for tasks in copies for task in tasks) == stuck
    assert len(copies) == 3
    assert counts.retried == len(stuck) > 3
    assert crew.dropped == [9]
    assert crew.cancelled == [9]  # and so it is waited for, for a short time


@pytest.mark.usefixtures("at_once")
def test_on_a_cluster_that_others_use_nothing_is_done_twice() -> None:
    crew = Hanging(lambda tasks, _: done(tasks), 4, 9)
    crew.free = 0
    results = dispatched(crew, range(40), None, 5, Counts(copies=True))
    got = [next(results) for _ in range(39)]
    threading.Timer(0.3, crew.hang.clear).start()
    assert sorted([*got, *results]) == list(range(40))
    assert crew.dropped == []


@pytest.mark.usefixtures("at_once")
def test_without_leave_nothing_is_done_twice() -> None:
    crew = Hanging(lambda tasks, _: done(tasks), 4, 9)
    results = dispatched(crew, range(40), None, 5, Counts())
    got = [next(results) for _ in range(39)]
    threading.Timer(0.3, crew.hang.clear).start()
    assert sorted([*got, *results]) == list(range(40))
    assert len(crew.batches) == 40


@pytest.mark.usefixtures("at_once")
def test_a_second_attempt_that_fails_is_not_made_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_LEAST_SECONDS", 0.2)
    sent: list[float] = []

    def act(tasks: list[Any], number: int) -> Answer:
        if tasks == [7] and len(sent) > 1 and crew.hang:
            return Answer("a", error=ss.StorageError("no answer"))
        return done(tasks)

    class Slow(Hanging):
        def submit(self, tasks: Sequence[Any], avoid: Sequence[str]) -> int:
            if list(tasks) == [7]:
                sent.append(time.monotonic())
            if len(sent) == 4:
                self.hang.clear()
            return super().submit(tasks, avoid)

    crew = Slow(act, 3, 7)
    got, counts = run(crew, range(8))
    assert got == list(range(8))
    assert counts.retried == 3
    assert all(later - before > 0.2 for before, later in itertools.pairwise(sent))


@pytest.mark.usefixtures("at_once")
def test_it_is_told_once_if_nobody_is_idle_to_help(caplog: pytest.LogCaptureFixture) -> None:
    crew = Hanging(lambda tasks, _: done(tasks), 1, 8, 9)
    results = dispatched(crew, range(10), None, 5, Counts(copies=True))
    got = [next(results) for _ in range(8)]
    threading.Timer(0.3, crew.hang.clear).start()
    assert sorted([*got, *results]) == list(range(10))
    assert len(crew.batches) == 10
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "tasks take more than three times as long as usual, and no worker is idle to do them, too"
    ]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("second", ["done", "lost", "store"])
@pytest.mark.parametrize("first", ["done", "lost", "store"])
def test_what_becomes_of_two_attempts_counts_once(
    first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both attempts at task 7 are on their way, and end one after the other."""
    monkeypatch.setattr(attempts, "MOST_COPIES", 1)
    outcomes = [first, second]
    answers = 0

    def act(tasks: list[Any], number: int) -> Answer:
        nonlocal answers
        if tasks != [7]:
            return done(tasks)
        answers += 1
        what = outcomes.pop(0) if outcomes else "done"
        if what == "lost":
            raise WorkerLostError("killed")
        return done(tasks) if what == "done" else Answer("a", error=ss.StorageError("no answer"))

    class Racing(Hanging):
        def wait(self, handles: Sequence[int], seconds: float) -> list[int]:
            sent = [number for number, (tasks, _) in enumerate(self.batches) if tasks == [7]]
            self.hang = set(sent) if len(sent) == 1 else set()
            return super().wait(handles, seconds)

    crew = Racing(act, 3)
    got, counts = run(crew, range(8), retries=1)
    assert got == list(range(8))
    ended = {"done": 1}.get(first, 2 + (second != "done"))
    assert answers == ended
    assert counts.lost == [first, second][: min(ended, 2)].count("lost")
    sent = [number for number, (tasks, _) in enumerate(crew.batches) if tasks == [7]]
    assert len(sent) == max(2, ended)
    assert (sent[1] in crew.dropped) == (first == "done")

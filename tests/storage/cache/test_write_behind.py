"""Writing behind: blocks that wait count in the budget of their reader, which limits them."""

from __future__ import annotations

import threading

import pytest

from shardstream.memory import MemoryBudget
from shardstream.storage.cache import write_behind
from shardstream.storage.cache.write_behind import WriteBehind
from tests.distributed import launch

SIZE = 1000


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> WriteBehind:
    monkeypatch.setattr(write_behind, "_LEAST", 3 * SIZE)
    return WriteBehind("here")


@pytest.mark.parametrize(("limit", "most"), [(20 * SIZE, 10), (1, 3)])
def test_a_budget_limits_the_blocks_that_wait(writes: WriteBehind, limit: int, most: int) -> None:
    go_on, begun, budget = threading.Event(), threading.Event(), MemoryBudget(limit)
    holder, done = budget.holder("write-behind"), []

    def write() -> None:
        begun.set()
        assert go_on.wait(90)
        done.append(1)

    def put(wait: float = 0.0) -> bool:
        return writes.put(SIZE, write, None, wait, holder)

    assert put()
    assert begun.wait(90)
    assert [put() for _ in range(most + 1)] == [True] * (most - 1) + [False] * 2
    assert budget.by_name() == {"write-behind": most * SIZE}
    # A reader with a budget of its own has a part of the queue of its own.
    other = MemoryBudget(20 * SIZE)
    assert writes.put(SIZE, write, None, 0.0, other.holder("write-behind"))
    assert writes.queued == (most + 1) * SIZE
    threading.Timer(0.05, go_on.set).start()
    assert put(wait=20)
    assert writes.flush(20)
    assert len(done) == most + 2
    assert (budget.by_name(), other.by_name(), writes.queued) == ({"write-behind": 0}, {"write-behind": 0}, 0)


def test_a_block_that_is_larger_than_all_room_is_written_alone(writes: WriteBehind) -> None:
    done: list[int] = []
    holder = MemoryBudget(1).holder("write-behind")
    assert writes.put(100 * SIZE, lambda: done.append(1), None, 0.0, holder)
    assert writes.flush(20)
    assert done == [1]


def test_the_bytes_of_a_written_block_are_let_go(writes: WriteBehind) -> None:
    class Bytes:
        """Something that can be watched."""

    import weakref

    def put() -> weakref.ref[Bytes]:
        data = Bytes()
        assert writes.put(SIZE, lambda data=data: None)  # type: ignore[misc]
        return weakref.ref(data)

    watched = put()
    assert writes.flush(20)
    assert launch.ended(lambda: watched() is None)

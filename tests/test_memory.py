"""Memory as one number."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from shardstream.memory import Holder, MemoryBudget, RecentValues


class Elastic:
    """Holds what the others leave."""

    def __init__(self, budget: MemoryBudget, size: int) -> None:
        self.holder = budget.holder("elastic")
        self.holder.count(size)
        budget.shrink_first(self.shrink)

    def shrink(self, size: int) -> None:
        self.holder.count(-min(size, self.holder.total))


def test_holders_of_one_name_add_up_and_count_no_longer_when_they_are_gone() -> None:
    budget = MemoryBudget(100)
    one, two, other = budget.holder("a"), budget.holder("a"), budget.holder("b")
    one.add(10)
    two.add(20)
    other.add(5)
    assert budget.by_name() == {"a": 30, "b": 5}
    assert (one.total, two.total, budget.free) == (10, 20, 65)
    del two
    gc.collect()
    assert budget.by_name() == {"a": 10, "b": 5}


def test_what_is_elastic_makes_room() -> None:
    budget = MemoryBudget(100)
    elastic = Elastic(budget, 90)
    other = budget.holder("other")
    other.add(30)
    assert (elastic.holder.total, budget.free) == (70, 0)
    other.add(-20)
    assert (elastic.holder.total, budget.free) == (70, 20)
    other.add(200)
    assert (elastic.holder.total, budget.free) == (0, -110)


def test_a_holder_that_is_elastic_may_be_dropped() -> None:
    budget = MemoryBudget(10)
    Elastic(budget, 10)
    gc.collect()
    budget.holder("other").add(20)
    assert budget.by_name()["elastic"] == 0


def test_counting_from_many_threads_loses_nothing() -> None:
    budget = MemoryBudget(1000)

    def work(_: int) -> Holder:
        holder = budget.holder("a")
        for _ in range(2000):
            holder.add(1)
        return holder

    with ThreadPoolExecutor(8) as pool:
        holders = list(pool.map(work, range(8)))
    assert budget.by_name() == {"a": 16000}
    assert sum(holder.total for holder in holders) == 16000


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans())), st.integers(0, 60))
def test_recent_values_hold_what_a_list_by_age_holds(steps: list[tuple[int, int, bool]], limit: int) -> None:
    budget = MemoryBudget(1000)
    holder = budget.holder("values")
    recent: RecentValues[int, bytes] = RecentValues(len, limit, holder)
    model: list[tuple[int, bytes]] = []  # the oldest first
    for key, size, puts in steps:
        known = next((entry for entry in model if entry[0] == key), None)
        if puts:
            if known is None:
                model.append((key, bytes(size)))
                while sum(len(value) for _, value in model) > limit and len(model) > 1:
                    model.pop(0)
            recent.put(key, bytes(size))
        else:
            assert recent.get(key) == (known and known[1])
            if known is not None:
                model.remove(known)
                model.append(known)
        assert len(recent) == len(model)
        assert all(recent.peek(key) == value and key in recent for key, value in model)
        assert holder.total == sum(len(value) for _, value in model)
    recent.clear()
    assert (len(recent), holder.total) == (0, 0)

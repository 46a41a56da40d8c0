"""Sequences on a local disk: the same items in the same order as lists and sorted() give."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import pytest

from shardstream.storage import spool
from shardstream.storage.inputs import FileInfo
from shardstream.storage.spool import Spooled, gathered, in_order


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "HELD", 50)
    monkeypatch.setattr(spool, "_BLOCK", 7)
    monkeypatch.setattr(spool, "_WAYS", 3)


@pytest.mark.parametrize("count", [0, 1, 50, 51, 400, 3000])
@pytest.mark.parametrize("kind", ["random", "sorted", "falling", "two"])
def test_items_are_sorted_as_by_sorted(count, kind):
    draw = random.Random(count)
    items = [f"{draw.random()}\udcff é" for _ in range(count)]
    if kind != "random":
        items.sort(reverse=kind == "falling")
    if kind == "two":
        items = items[count // 2 :] + items[: count // 2]
    assert list(in_order(iter(items))) == sorted(items)


@pytest.mark.parametrize("count", [0, 50, 51, 57, 200])
def test_a_sequence_on_disk_is_the_list_of_its_items(count):
    items = [FileInfo(f"/é/\udcff{number}", number, "/é") for number in range(count)]
    found = gathered(iter(items), tuple, FileInfo._make)
    assert isinstance(found, Spooled) == (count > 50)
    assert len(found) == count
    assert list(found) == items == list(found)
    for place in (0, 1, 49, 55, 56, -1, -3):
        if -count <= place < count:
            assert found[place] == items[place]
    assert list(found[3:60:2]) == items[3:60:2]
    for place in (count, -count - 1):
        with pytest.raises(IndexError):
            found[place]
    assert list(zip(found, found, strict=True)) == list(zip(items, items, strict=True))


def test_the_memory_is_that_of_a_few_blocks(monkeypatch):
    monkeypatch.setattr(spool, "HELD", 100)
    monkeypatch.setattr(spool, "_BLOCK", 20)

    def names(count: int) -> Iterator[str]:
        return (f"{number * 7919 % count:09d}" * 10 for number in range(count))

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in in_order(names(count)):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(500)
    small, large = peak(1000), peak(8000)
    assert large < 1.5 * small, (small, large)
    assert large < 8000 * 90  # less than the names alone

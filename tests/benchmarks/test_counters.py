"""counters: the copy of the package that does not count is the package without that."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks.counters_copies import counting

SOURCE = """
from shardstream.counters.page import begin
from shardstream.counters.recorder import add, span as timed

def read(self, found):
    begin("loader")
    started = time.monotonic()
    since = time.monotonic()
    try:
        data = found.add(1)
    finally:
        add(_IN_FLIGHT, -1)
    timed(_REQUEST, started, time.monotonic())
    current().recorder.span(_FETCH, started, time.monotonic())
    self._stats.tell_process()
    self._stats.add(waited=time.monotonic() - since)
    return add(data)
"""
LEFT = """
def read(self, found):
    pass
    pass
    since = time.monotonic()
    try:
        data = found.add(1)
    finally:
        pass
    pass
    pass
    pass
    self._stats.add(waited=time.monotonic() - since)
    return add(data)
"""


def test_only_what_counts_is_taken_away() -> None:
    left = counting(ast.parse(SOURCE), 0).body[2:]
    assert ast.unparse(ast.Module(left, [])) == ast.unparse(ast.parse(LEFT))


def test_what_counts_is_repeated_and_nothing_else() -> None:
    assert ast.unparse(counting(ast.parse(SOURCE), 1)) == ast.unparse(ast.parse(SOURCE))
    once = ast.unparse(ast.parse(SOURCE)).splitlines()
    thrice = ast.unparse(counting(ast.parse(SOURCE), 3)).splitlines()
    found = [line.strip() for line in once if thrice.count(line) == 3]
    assert found == [
        "begin('loader')", "started = time.monotonic()", "add(_IN_FLIGHT, -1)",
        "timed(_REQUEST, started, time.monotonic())",
        "current().recorder.span(_FETCH, started, time.monotonic())",
        "self._stats.tell_process()",
    ]  # fmt: skip
    assert len(thrice) == len(once) + 2 * len(found)


def test_nothing_that_counts_is_left_in_the_loader() -> None:
    folder = Path(__file__).parents[2] / "shardstream" / "read"
    calls = 0
    for path in folder.rglob("*.py"):
        before = path.read_text()
        after = ast.unparse(counting(ast.parse(before), 0))
        calls += before.count(".recorder.span(") - after.count(".recorder.span(")
        assert ".recorder.span(" not in after, path
    assert calls >= 5

"""The tables: any width, any height, many ranks, and text of others that would steer the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from shardstream.observe.rows import SORTS, Row, Work, sort_rows
from shardstream.observe.tables import load_table, work_table


def drawn(table: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=1000)
    console.print(table)
    return console.file.getvalue().splitlines()


def some(ranks: int, job: str = "train.py") -> list[Row]:
    return [
        Row(
            pid=100 + rank,
            job=job,
            rank=rank,
            what="s3://bucket/corpus",
            samples=1000.0 + rank,
            wait=rank / 400,
            p99=0.01 * rank,
            store=1e7,
            hits=0.5,
            held_up="decode",
            queue=1,
            memory=1 << 30,
        )
        for rank in range(ranks)
    ]


@settings(max_examples=20)
@given(st.integers(70, 260), st.integers(6, 60), st.lists(st.integers(1, 200), max_size=4))
def test_it_fits_any_terminal(width: int, lines: int, ranks: list[int]) -> None:
    rows = [row for number, many in enumerate(ranks) for row in some(many, f"job {number}")]
    found = drawn(load_table(rows, width, "rank", lines), width)
    # Each job shows at least itself, and one of its ranks.
    assert len(found) <= 1 + max(lines, 3 * len(ranks))
    assert all(len(line) <= width for line in found)
    for number in range(len(ranks)):
        assert any(line.startswith(f"job {number}") for line in found)


def test_what_matters_most_is_in_80_columns() -> None:
    rows = some(4)
    well, *_ = drawn(load_table(rows, 80, "wait"), 80)
    assert well.split() == ["job", "samples/s", "wait", "p99", "wait", "store", "MiB/s", "state"]
    rows[3] = replace(rows[3], state="stopped, no progress 12 s")
    head, job, first, *_ = drawn(load_table(rows, 80, "wait"), 80)
    assert head.split() == ["job", "samples/s", "wait", "p99", "wait", "state"]
    assert "1 of 4 in trouble" in job
    assert first.split()[:4] == ["rank", "3", "1,003", "1"]
    assert first.rstrip().endswith("stopped, no progress 12 s")


def test_ranks_that_have_no_room_are_counted_and_can_be_reached() -> None:
    found = drawn(load_table(some(200), 120, "wait", 20, skip=190), 120)
    assert "183 to 200 of 200" in found[-1]
    assert found[2].split()[:2] == ["rank", "17"]


def test_all_sorts_put_unknown_values_last() -> None:
    rows = [*some(3), Row(pid=1, job="train.py")]
    for name in SORTS:
        assert len(sort_rows(rows, name)) == 4
    assert [row.rank for row in sort_rows(rows, "wait")] == [2, 1, 0, None]
    assert [row.rank for row in sort_rows(rows, "samples")] == [0, 1, 2, None]


@given(st.text(max_size=40))
def test_names_of_other_processes_do_not_steer_the_terminal(text: str) -> None:
    rows, work = [Row(pid=1, job=text, what=text)], [Work(kind="pack", job=text, what=text)]
    for table in (load_table(rows, 160, "rank"), work_table(work, 160), work_table(work, 80)):
        printed = "".join(drawn(table, 160))
        assert all(letter.isprintable() for letter in printed)

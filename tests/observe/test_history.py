"""Rates and states: waits that have not ended, and processes that stop, end and come again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.counters.processes import start_of
from shardstream.observe.history import History
from tests.observe.made import made


def test_rates_are_differences_over_the_window() -> None:
    history = History(window=10)
    for second in range(30):
        amount = second * 100 if second < 20 else 1900 + (second - 19) * 300
        (process,) = history.update(
            [made(samples=amount, remote_bytes=3e6 * second, ram_bytes=1e6 * second)], second
        )
    row = process.row()
    assert row.samples == pytest.approx(300)
    assert (row.store, row.ram, row.hits) == (pytest.approx(3e6), pytest.approx(1e6), pytest.approx(0.25))
    assert len(process.marks) == 11


def test_one_snapshot_alone_has_no_rates() -> None:
    (process,) = History().update([made(samples=5, queue_depth=2, retries=3)], 0.0)
    row = process.row()
    assert (row.samples, row.wait, row.p99, row.hits, row.held_up) == (None, None, None, None, "")
    assert (row.queue, row.retries) == (2, 3)


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.0, 5.0)), min_size=1, max_size=20),
    st.floats(0.3, 4.0),
)
def test_no_part_of_a_wait_is_lost_or_counted_twice(turns: list[tuple[float, float]], every: float) -> None:
    # The loop waits and works in turn; the looks come whenever they come, also in the middle of a wait.
    spans, clock = [], 1.0
    for wait, work in turns:
        spans.append((clock, clock + wait))
        clock += wait + work
    history, now, waited = History(window=0.0), 1.0, 0.0
    while now < clock + every:
        ended = [end - begin for begin, end in spans if end <= now]
        current = [begin for begin, end in spans if begin <= now < end]
        (process,) = history.update(
            [made(events={"wait": ended}, waiting_since=current[0] if current else 0.0)], now
        )
        if process.seconds:
            waited += (process.row().wait or 0.0) * process.seconds
        now += every
    assert waited == pytest.approx(sum(wait for wait, _ in turns), abs=1e-6)


def test_a_hang_is_said_with_its_seconds() -> None:
    history = History()
    history.update([made(samples=1)], 0.0)
    assert history.update([made(samples=2)], 1.0)[0].row().state == ""
    assert history.update([made(samples=2)], 13.0)[0].row().state == "no progress 12 s"
    (process,) = history.update([made(samples=2, waiting_since=2.0)], 14.0)
    assert process.row().state == "waits for data 12 s"
    assert process.row().wait == pytest.approx(12 / 13)
    assert history.update([made(samples=3)], 15.0)[0].row().state == ""


@pytest.mark.parametrize(
    ("activities", "steps", "state"),
    [
        (["loader", "logs"], [0.1], "no progress 12 s"),
        (["loader"], [5.0] * 9, ""),  # its steps take so long
        (["loader"], [3.0] * 9, "no progress 12 s"),
        (["checkpoint", "logs"], [], ""),  # it pauses until the next save
        (["reader"], [], ""),  # it is as far ahead as it may be
    ],
)
def test_long_steps_and_pauses_are_no_trouble(activities: list[str], steps: list[float], state: str) -> None:
    history, now = History(), made(activities=activities, events={"step": steps})
    history.update([now], 0.0)
    assert history.update([now], 12.0)[0].row().state == state


def test_a_stopped_process_is_told_from_a_slow_one() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        snapshot = made(pid=child.pid, start=start_of(child.pid))
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        history = History()
        history.update([snapshot], 0.0)
        assert history.update([snapshot], 2.0)[0].row().state == "stopped, no progress 2 s"
    finally:
        child.kill()
        child.communicate()


def test_a_process_that_ends_is_shown_for_a_while_and_one_with_its_id_is_another() -> None:
    history = History()
    history.update([made(pid=7, samples=10), made(pid=8)], 0.0)
    history.update([made(pid=7, samples=20), made(pid=8)], 1.0)
    states = {process.latest.header.pid: process.row() for process in history.update([made(pid=8)], 2.0)}
    assert (states[7].state, states[7].samples, states[8].state) == ("ended", None, "")
    again = history.update([made(pid=7, start=99, samples=1), made(pid=8, samples=1)], 3.0)
    assert sorted(process.row().state for process in again) == ["", "", "ended"]
    assert len(history.update([made(pid=8)], 30.0)) == 2  # the second one has ended now
    assert len(history.update([made(pid=8)], 50.0)) == 1


def test_what_holds_the_loop_up_is_that_of_the_last_seconds() -> None:
    history = History(window=1.0)
    slow = {"wait": [9.0], "step": [1.0], "request": [8.0]}
    history.update([made()], 0.0)
    (process,) = history.update([made(events=slow, frame_wait_seconds=9.0)], 10.0)
    assert process.row().held_up == "store"
    decoding = {**slow, "wait": [9.0, 7.0], "batch": [8.0], "decode": [6.0]}
    (process,) = history.update([made(events=decoding, frame_wait_seconds=9.0)], 20.0)
    assert process.row().held_up == "decode"
    (process,) = history.update([made(events={**decoding, "step": [1.0, 9.0]}, frame_wait_seconds=9.0)], 30.0)
    assert process.row().held_up == "the loop"


def test_batches_that_were_there_count_in_the_percentiles() -> None:
    history = History()
    history.update([made()], 0.0)
    (process,) = history.update([made(batches=100, events={"wait": [4.0] * 2})], 10.0)
    assert process.row().p50 == 0.0
    assert process.row().p99 == pytest.approx(4.0, rel=0.1)
    (process,) = history.update([made(batches=1000, events={"wait": [4.0] * 2})], 20.0)
    assert process.row().p99 == 0.0

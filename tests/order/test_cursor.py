"""Where an iteration stands, and states that do not fit."""

from __future__ import annotations

import pytest

from shardstream.errors import OptionError, StateError
from shardstream.order.cursor import Cursor, check_state, read_place


def test_iterating_again_is_the_next_epoch():
    cursor = Cursor()
    run = cursor.begin()
    run.position = 5
    assert (cursor.now.epoch, cursor.now.position) == (0, 5)
    run = cursor.begin()
    assert (run.epoch, run.position) == (1, 0)
    cursor.end(run)
    assert (cursor.now.epoch, cursor.now.position) == (2, 0)


def test_an_abandoned_iteration_no_longer_moves_the_cursor():
    cursor = Cursor()
    old = cursor.begin()
    cursor.begin()
    old.position = 9
    cursor.end(old)
    assert (cursor.now.epoch, cursor.now.position) == (1, 0)


def test_set_epoch_keeps_a_resumed_place_in_the_same_epoch():
    cursor = Cursor()
    cursor.place(3, 40)
    cursor.set_epoch(3)
    assert cursor.begin().position == 40
    cursor.set_epoch(3)
    assert (cursor.begin().epoch, cursor.now.position) == (3, 0)


@pytest.mark.parametrize("epoch", [-1, 1.0, True, None])
def test_bad_epochs(epoch):
    with pytest.raises(OptionError):
        Cursor().set_epoch(epoch)


@pytest.mark.parametrize(
    "state",
    [
        None, {}, {"version": 2, "epoch": 0, "position": 0}, {"version": 1, "epoch": 0},
        {"version": 1, "epoch": -1, "position": 0}, {"version": 1, "epoch": 0, "position": "1"},
    ],
)  # fmt: skip
def test_bad_states(state):
    with pytest.raises(StateError):
        read_place(state)


def test_a_mismatch_names_both_values():
    with pytest.raises(StateError, match="seed is 1 in the state and 2 here"):
        check_state({"seed": 1, "window": 4}, {"seed": 2, "window": 4})


def test_a_look_does_not_count():
    cursor = Cursor()
    cursor.place(3, 40)
    look = cursor.begin(10)
    look.position = 50
    cursor.leave(look)
    # What it gave was delivered, until the next one begins.
    assert (cursor.now.epoch, cursor.now.position) == (3, 50)
    cursor.set_epoch(3)
    run = cursor.begin(10)
    assert (run.epoch, run.position) == (3, 40)
    run.position = 60
    cursor.leave(run)
    assert (cursor.begin(10).epoch, cursor.now.position) == (4, 0)


def test_looks_at_the_same_time_are_two_iterations_and_leave_nothing():
    cursor = Cursor()
    one, two = cursor.begin(), cursor.begin()
    assert (one.epoch, two.epoch) == (0, 1)
    cursor.leave(one)
    assert cursor.begin().epoch == 2
    cursor.leave(cursor.now)
    cursor.leave(two)
    assert cursor.begin().epoch == 0


def test_a_look_is_forgotten_where_the_place_is_chosen():
    cursor = Cursor()
    look = cursor.begin()
    cursor.set_epoch(5)
    cursor.leave(look)
    assert cursor.begin().epoch == 5


def test_an_epoch_of_one_batch_that_ended_counts():
    cursor = Cursor()
    run = cursor.begin(10)
    run.position = 10
    cursor.end(run)
    cursor.leave(run)
    assert cursor.begin().epoch == 1


def test_a_dropped_iterator_leaves_its_run():
    cursor = Cursor()
    run = cursor.begin()
    iterator = cursor.follow((number for number in range(3)), run)
    assert not run.left
    del iterator
    assert run.left

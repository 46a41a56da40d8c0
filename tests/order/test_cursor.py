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

"""The arithmetic of a probe's rates: it finds the costs that passes were made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.observe.probe_costs import Pass, Passes, costs_of

OPENING, PART, FETCH, DECOMPRESS, BUILD = 0.5, 0.1, 2e-9, 1e-9, 1e-3  # seconds; PART: of some of the shards
SWEEP = 1e-9
STORED, RAW = 90_000, 150_000  # bytes of a sample


def made(
    samples: int, ahead: int = 0, opening: float = PART, fetch: float = FETCH, build: float = BUILD,
    local: bool = False,
) -> Pass:  # fmt: skip
    """A pass over samples that has fetched and decompressed some more."""
    fetched, opened = (0 if local else (samples + ahead) * STORED), (samples + ahead) * RAW
    seconds = opening + fetch * fetched + DECOMPRESS * opened + build * samples
    return Pass(samples, seconds, seconds, fetched=fetched, opened=opened)


def passes(samples: int, ahead: int = 0, fetch: float = FETCH, build: float = BUILD) -> Passes:
    memory = made(samples, 0, 0.01, 0.0, build), made(32, min(64, samples - 32), 0.01, 0.0, build)
    store = made(samples, 0, PART, fetch, build), made(32, ahead, PART, fetch, build)
    return Passes(*memory, *store, made(32, ahead, OPENING, fetch, build))


@given(
    st.integers(100, 5000), st.floats(0, 0.5), st.floats(SWEEP, 1e-7), st.floats(1e-4, 1e-2),
)  # fmt: skip
def test_the_costs_are_found_again(samples: int, ahead: float, fetch: float, build: float) -> None:
    ahead_of_all = int(ahead * (samples - 64))  # fetched beside the first batch: less than half of all
    found = costs_of(passes(samples, ahead_of_all, fetch, build), DECOMPRESS, SWEEP)
    if found.by_sweep:  # in the last digits
        assert fetch == pytest.approx(SWEEP, rel=1e-3)
    assert found.warm == pytest.approx(build + RAW * DECOMPRESS, rel=1e-3)
    assert found.cold == pytest.approx(build + RAW * DECOMPRESS + STORED * fetch, rel=1e-3)
    assert found.opening == pytest.approx(OPENING, rel=1e-2)


def test_a_first_batch_that_fetches_most_of_the_epoch_tells_nothing() -> None:
    # 32 samples of 372 were taken, and 250 fetched. The epoch was disturbed: it took twice as long.
    disturbed = passes(372, 218)
    disturbed = replace(disturbed, store=replace(disturbed.store, seconds=2 * disturbed.store.seconds))
    found = costs_of(disturbed, DECOMPRESS, FETCH)
    assert found.by_sweep
    assert found.cold == pytest.approx(BUILD + RAW * DECOMPRESS + STORED * FETCH)
    assert found.opening == pytest.approx(OPENING)


def test_the_loader_fetches_for_no_less_than_the_client_alone() -> None:
    lucky = passes(1000)
    lucky = replace(lucky, store=replace(lucky.store, seconds=lucky.memory.seconds))
    found = costs_of(lucky, DECOMPRESS, SWEEP)
    assert found.by_sweep
    assert found.cold == pytest.approx(found.warm + STORED * SWEEP)


def test_local_data_is_not_fetched() -> None:
    memory = made(1000, 0, 0.01, local=True), made(32, 0, 0.01, local=True)
    slower = BUILD + 2e-4  # from the disk
    store = made(1000, 0, PART, 0, slower, local=True), made(32, 0, PART, 0, slower, local=True)
    found = costs_of(Passes(*memory, *store, made(32, 0, OPENING, 0, slower, True)), DECOMPRESS, 0.0)
    assert not found.by_sweep
    assert found.cold == pytest.approx(slower + RAW * DECOMPRESS)
    assert found.opening == pytest.approx(OPENING)


def test_few_samples_and_disturbed_ones() -> None:
    one = made(5)
    found = costs_of(Passes(one, one, one, one, one), DECOMPRESS, SWEEP)  # one batch is all that there is
    assert found.warm == pytest.approx(one.seconds / 5)
    assert found.cold >= found.warm
    assert found.opening >= 0
    slow = replace(made(32), seconds=20.0)  # longer than the epoch
    found = costs_of(Passes(made(1000), slow, made(1000), slow, slow), DECOMPRESS, SWEEP)
    assert 0 < found.warm < found.cold
    assert found.opening > 0


def test_without_a_sweep_fetching_costs_at_most_what_is_left_of_the_epoch() -> None:
    found = costs_of(passes(372, 218), DECOMPRESS, 0.0)  # the first batch has fetched most
    assert found.at_most
    assert not found.by_sweep
    assert found.fetch == pytest.approx(FETCH + PART / (372 * STORED))
    assert found.cold > found.warm
    told = costs_of(passes(1000), DECOMPRESS, 0.0)
    assert not told.at_most
    assert told.fetch == pytest.approx(FETCH)


def test_frames_that_stay_decompressed_are_decompressed_by_a_cold_epoch() -> None:
    some = passes(1000)
    memory, start = (
        replace(one, seconds=one.seconds - DECOMPRESS * one.opened, opened=0)
        for one in (some.memory, some.memory_first)
    )
    found = costs_of(replace(some, memory=memory, memory_first=start), DECOMPRESS, SWEEP)
    assert found.warm == pytest.approx(BUILD)
    assert found.cold == pytest.approx(BUILD + RAW * DECOMPRESS + STORED * FETCH)

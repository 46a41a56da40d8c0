"""The simulation of `benchmarks.simulate`: its network is fair, and small jobs come out as by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulate_data import synthetic
from benchmarks.simulate_job import Job, simulate
from benchmarks.simulate_network import UNLIMITED, Clock, Cores, Network, fair_rates
from benchmarks.simulate_settings import Costs, Settings
from benchmarks.simulate_store import Answers
from shardstream.order.shuffle import Shuffle

RATES = st.floats(1.0, 1e9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), RATES, RATES, RATES)
def test_shares_are_max_min_fair(
    counts: list[int], node_rate: float, store_rate: float, stream: float
) -> None:
    many = np.array(counts)
    rates = fair_rates(many, node_rate, store_rate, stream)
    total, near = float(many @ rates), 1 - 1e-9
    assert (rates[many == 0] == 0).all()
    assert (rates * near <= stream).all()
    assert (many * rates * near <= node_rate).all()
    assert total * near <= store_rate
    if not many.any():
        return
    full = total >= store_rate * near
    for count, rate in zip(counts, rates.tolist(), strict=True):
        # A transfer gets less than its own limits allow only if the store has nothing left, and nobody more.
        held = rate >= stream * near or count * rate >= node_rate * near
        assert not count or held or (full and rate >= rates.max() * near)


def ends_of(grain: float, sizes: list[tuple[float, int, int]], **limits: float) -> list[float]:
    """When transfers end: (when each begins, its node, its bytes)."""
    clock = Clock()
    network = Network(clock, 1 + max(node for _, node, _ in sizes), grain=grain, **limits)
    ends = [0.0] * len(sizes)
    left = len(sizes)

    def begin(number: int) -> None:
        def done() -> None:
            nonlocal left
            ends[number], left = clock.now, left - 1

        network.start(sizes[number][1], sizes[number][2], done)

    for number, (when, _, _) in enumerate(sizes):
        clock.at(when, lambda number=number: begin(number))  # type: ignore[misc]
    clock.run(lambda: not left)
    return ends


def test_a_link_that_is_always_busy_sends_all_bytes_at_its_rate() -> None:
    drawn = random.Random(0)
    sizes = [(0.0, drawn.randrange(5), drawn.randrange(1, 1_000_000)) for _ in range(200)]
    ends = ends_of(0.0, sizes, store_rate=1e6)
    assert max(ends) == pytest.approx(sum(size for _, _, size in sizes) / 1e6)
    # All began together, and all had the same rate: the smaller ones ended sooner.
    assert [ends[number] for number in np.argsort([size for _, _, size in sizes])] == sorted(ends)


def test_transfers_by_hand() -> None:
    # The first is alone for 1 s, then both have a half each, then the second has all.
    assert ends_of(0.0, [(0.0, 0, 200), (1.0, 0, 150)], node_rate=100.0) == pytest.approx([3.0, 3.5])
    # Two to one node, one to another: the store's 90 go 30, 30, 30; a node's 40 would leave 20, 20 and 50.
    assert ends_of(0.0, [(0, 0, 60), (0, 0, 60), (0, 1, 60)], store_rate=90.0) == pytest.approx([2, 2, 2])
    both = ends_of(0.0, [(0, 0, 60), (0, 0, 60), (0, 1, 150)], store_rate=90.0, node_rate=40.0)
    assert both == pytest.approx([3.0, 3.0, 3.75])


def test_a_coarse_network_is_late_by_its_grain_at_most() -> None:
    drawn = random.Random(1)
    sizes = [(drawn.random(), drawn.randrange(3), 10_000) for _ in range(30)]
    exact, coarse = (ends_of(grain, sizes, stream=1e5) for grain in (0.0, 1e-3))
    assert all(-1e-9 <= late - soon <= 2e-3 + 1e-9 for soon, late in zip(exact, coarse, strict=True))


def test_cores_are_shared_in_turns() -> None:
    clock, ends = Clock(), dict[str, float]()
    cores = Cores(clock, 2)
    for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 1.0), ("short", 0.005)):
        cores.work(seconds, lambda name=name: ends.update({name: clock.now}))  # type: ignore[misc]
    clock.run(lambda: len(ends) == 4)
    assert ends["short"] < 0.02
    assert 1.49 < max(ends.values()) < 1.52
    assert cores.busy == pytest.approx(3.005)


LATENCY, CONNECT, STREAM = 0.02, 0.05, 1e8


def job(**changes: Any) -> Job:
    """One rank that reads one lane of frames, each of which is a batch."""
    chosen = Settings(10, Shuffle(lanes=1, window=1), threads=2)
    constant = Answers.seen([LATENCY, LATENCY], CONNECT)
    return Job(1, constant, of_node=1, step=0.1, steps=12, stream=STREAM, settings=chosen).but(**changes)


def test_one_rank_with_constant_latency_is_the_formula() -> None:
    data = synthetic(8, 16, 10, 10_000)
    # Planning takes so long that the first batch does not wait for the plan of the next ones.
    found = simulate(job(costs=Costs(opening=0.04, plan=(0.002, 0.0))), data)
    manifest = data.manifest_bytes / STREAM
    index, frame = data.manifest.shards[0].index_bytes / STREAM, 100_000 / STREAM
    # The connection, and then one behind another: the manifest, the index, the frame.
    trips = CONNECT + 3 * LATENCY + manifest + index + frame
    assert found["first batch"] == pytest.approx(0.25 * 0.04 + 0.002 + trips, abs=1e-6)
    assert found["steps"] == 12
    assert found["seconds"] == pytest.approx(11 * 0.1)
    assert found["refused"] == found["failed"] == 0


def test_a_slow_link_decides_and_the_barrier_waits_for_the_last() -> None:
    chosen = Settings(10, Shuffle(lanes=4, window=1), prefetch=1 << 20, threads=2)
    data = synthetic(32, 64, 10, 10_000)
    found = simulate(job(ranks=4, steps=150, step=0.0, store_rate=1e6, settings=chosen), data)
    assert found["GB"] * 1e3 == pytest.approx(found["total seconds"], rel=0.02)  # 1 MB/s
    # 4 ranks, 0.1 MB each; what is ahead at the end is beyond that.
    assert 1.2 < found["steps per second"] < 2.5


def test_the_seed_decides() -> None:
    data = synthetic(16, 32, 10, 20_000)
    answers = Answers.by_percentiles(0.02, 0.05, 0.3, connect=0.02, refused=0.05)
    chosen = Settings(16, Shuffle(lanes=8, window=2), threads=2)
    many = job(ranks=8, of_node=2, answers=answers, settings=chosen, prefixes=1, per_prefix=60.0)
    first, again, other = (simulate(many.but(seed=seed), data) for seed in (1, 1, 2))
    for found in (first, again, other):
        del found["simulated in"]
        assert found["steps"] == 12
    assert first == again
    assert first != other
    assert first["refused"] > 0
    assert first["busiest prefix"] > 60


def test_a_prefix_that_refuses_too_much_ends_the_job() -> None:
    data = synthetic(16, 32, 10, 20_000)
    found = simulate(job(answers=Answers.seen([LATENCY, LATENCY], CONNECT, refused=1.0)), data)
    assert found["failed"] == 1
    assert found["steps"] == 0


def test_answers_by_percentiles() -> None:
    answers = Answers.by_percentiles(0.03, 0.08, 0.15, connect=0.0)
    drawn = random.Random(0)
    times = sorted(answers.draw(drawn) for _ in range(20_000))
    for share, seconds in ((0.5, 0.03), (0.95, 0.08), (0.99, 0.15)):
        assert times[int(share * len(times))] == pytest.approx(seconds, rel=0.1)
        assert answers.at(share) == seconds
    assert UNLIMITED > times[-1] > 0.25

"""The measures of shuffle quality on orders whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import shuffle_quality as quality


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "SHARDS", 64)
    monkeypatch.setattr(quality, "SIZE", 512)


def test_the_natural_order_does_not_mix() -> None:
    found = quality.measures(np.arange(64 * 512))
    assert found["travel"] == 0
    assert found["near"] == 1
    assert found["shards"] == 1
    assert found["neighbours"] == pytest.approx(1)
    assert found["spread"] == pytest.approx(16, rel=0.01)  # sqrt(256): all of the variance is between batches


def test_a_permutation_mixes_fully() -> None:
    found = quality.measures(np.random.default_rng(0).permutation(64 * 512))
    assert found["travel"] == pytest.approx(1 / 3, abs=0.01)
    assert found["shards"] == pytest.approx(64 * (1 - (63 / 64) ** 256), abs=0.5)
    assert abs(found["neighbours"]) < 0.03
    assert found["spread"] == pytest.approx(1, abs=0.3)


def test_our_order_is_a_permutation_that_draws_from_many_shards() -> None:
    order = quality.ours(window=4, lanes=64)
    assert sorted(order.tolist()) == list(range(64 * 512))
    found = quality.measures(order)
    assert 40 < found["shards"] <= 64


def test_streams_are_interleaved_by_whole_batches() -> None:
    streams = np.arange(64 * 64).reshape(64, 64)
    order = quality.interleave(streams)
    assert sorted(order.tolist()) == list(range(64 * 64))
    # Rank 0's first share comes from its first worker, rank 1's from its first, the 8th of all.
    assert order[:32].tolist() == list(range(32))
    assert order[32] == 8 * 64
    # The next global batch comes from the second worker of each rank.
    assert order[256] == 64

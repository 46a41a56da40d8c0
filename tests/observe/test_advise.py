"""advise(): the arithmetic, where each number comes from, and that nothing is changed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.observe.advise_lines import Line
from shardstream.observe.advise_model import Data, Job, Machine, little, predict, shard_bytes
from shardstream.packing.layout import fitting_shard_size
from tests.corpora import digests

DATA = Data(items=1_000_000, stored=100e3, raw=200e3, frames=100_000, shards=1_000)
MACHINE = Machine(
    cores=8, opening=0.1, base=0.03, stream=90e6, best=1e9, request=2e6, cold=1e-3, warm=5e-4, serial=2e-4,
    consumer=1e-5,
    fetch=1e-9, store_only=0, decompress=1e-9,
)  # fmt: skip
JOB = Job(batch=32, world=8, here=8, step=0.1, prefetch=256 << 20, lanes=64, window=4)


def test_littles_law() -> None:
    assert little(90e6, 2.7e6, 0.06) == pytest.approx(2)


def test_the_least_stage_counts() -> None:
    found = predict(DATA, MACHINE, JOB)
    assert found.stages["step"] == pytest.approx(2560)
    assert found.stages["cores"] == pytest.approx(8 / 1e-3, rel=0.01)
    assert found.stages["store"] == pytest.approx(8 * 1e9 / 100e3, rel=0.01)
    assert found.bound == "step"
    slow = predict(DATA, replace(MACHINE, cold=0.01), JOB)
    assert slow.bound == "cores"
    assert slow.rate == pytest.approx(800, rel=0.01)
    far = predict(DATA, replace(MACHINE, base=20.0, best=1e12), JOB)
    assert far.bound == "store"
    assert far.rate == pytest.approx(8 * 64 * 2e6 / (20 + 2e6 / 90e6) / 100e3, rel=0.01)


@given(
    st.floats(1e-4, 1), st.floats(1e6, 1e10), st.floats(1e-6, 0.1), st.integers(1, 64), st.integers(1, 8),
    st.sampled_from([0.0, 0.01]),
)  # fmt: skip
def test_more_never_makes_it_slower(
    base: float, best: float, cold: float, cores: int, here: int, step: float
) -> None:
    machine = replace(MACHINE, base=base, best=best, cold=cold, cores=cores)
    job = replace(JOB, here=here, step=step)
    found = predict(DATA, machine, job)
    assert 0 < found.rate < math.inf
    for better in (
        replace(machine, base=base / 2), replace(machine, best=best * 2), replace(machine, cores=cores * 2),
        replace(machine, cold=cold / 2),
    ):  # fmt: skip
        other = predict(DATA, better, job)
        assert other.rate >= found.rate * (1 - 1e-9)
        assert other.epoch_seconds <= found.epoch_seconds * (1 + 1e-9)
    # An epoch takes at least as long as its slowest stage needs.
    items = DATA.items * here / job.world
    assert found.epoch_seconds >= items / found.rate_without_step * (1 - 1e-9)


def test_ranks_of_a_machine_share_its_link(tokens: Path) -> None:
    found = predict(DATA, replace(MACHINE, link=2e9), JOB)
    assert found.stages["store"] == pytest.approx(2e9 / 100e3, rel=0.01)
    assert predict(DATA, replace(MACHINE, link=2e9), replace(JOB, here=1)).stages["store"] < 1e9 / 100e3 + 1

    def lines(**options: Any) -> tuple[dict[str, Line], ss.Advice]:
        advice = ss.advise(tokens, world=8, step_ms=50, seq_len=128, **options)
        return {line.name: line for line in advice.lines}, advice

    one, _ = lines(ranks_per_node=1)
    assert "link of the machine" not in one
    alone, _ = lines()
    assert (alone["link of the machine"].origin, alone["store"].origin) == ("assumed", "assumed")
    assert alone["store"].value == pytest.approx(one["store"].value, rel=0.01)
    given, _ = lines(link="12.5GB")
    assert given["link of the machine"].origin == "given"
    assert given["link of the machine"].value == 12.5e9
    assert given["store"].value > 4 * alone["store"].value
    _, slow = lines(link="10kB")
    assert slow.prediction["bound"] == "store"
    assert slow.verdict.startswith("The job waits")


@given(st.integers(1, 10**16), st.integers(1, 10**5))
def test_the_size_of_shards(total: int, ranks: int) -> None:
    size = shard_bytes(total, ranks)
    assert size & (size - 1) == 0
    assert 1 << 20 <= size <= 2 << 30
    if size < 2 << 30:
        # Larger ones would be too few for the ranks.
        assert math.ceil(total / size) < 50_000 or total / (2 * size) < 8 * ranks
    if size > 1 << 20:
        assert total / size >= 8 * ranks


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_advise_and_pack_choose_the_same_size_at_the_edge(more: int) -> None:
    total = 49_999 * (64 << 20) + more
    assert shard_bytes(total, 1) == fitting_shard_size(total, 1 << 20) == (128 if more > 0 else 64) << 20


def test_what_is_assumed_given_and_measured(tokens: Path) -> None:
    before = digests(tokens)
    found = ss.advise(
        tokens, batch=8, world=64, step_ms=50, share=8, seq_len=128, model_bytes="14GB", disk="1TB",
        dataset_bytes="100TB", cores=96, epochs=3,
    )  # fmt: skip
    assert digests(tokens) == before
    assert {line.origin for line in found.lines} == {"measured", "given", "assumed"}
    assert all(math.isfinite(line.value) and line.how for line in found.lines)
    by_name = {line.name: line for line in found.lines}
    assert by_name["a sample from the store"].origin == "assumed"
    assert by_name["cores of a machine"].origin == "given"
    assert by_name["ranks that read different batches"].value == 8
    assert by_name["bytes in the store"].value == pytest.approx(100e12, rel=0.01)
    assert found.settings["shard_size"] == "2GiB"
    assert found.verdict.startswith("Do nothing")
    assert found.prediction["wait_share"] == 0
    assert set(found.as_dict()) == {"verdict", "lines", "settings", "prediction", "given"}


def test_a_job_that_waits_hears_what_for(tokens: Path) -> None:
    found = ss.advise(tokens, batch=512, step_ms=0.01, seq_len=128)
    assert found.prediction["wait_share"] > 0.9
    assert "would run" in found.verdict
    assert not found.verdict.startswith("Do nothing")


def test_options_that_do_not_fit(tokens: Path, tmp_path: Path) -> None:
    for wrong in (
        {"world": 0}, {"world": 3, "share": 2}, {"ranks_per_node": 4}, {"step_ms": 0}, {"prefetch": "x"},
        {"image_size": 32}, {"cores": 0}, {"seed": -1}, {"link": "0"},
    ):  # fmt: skip
        with pytest.raises(ss.OptionError):
            ss.advise(tokens, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ss.StorageError, match="no dataset"):
        ss.advise(tmp_path)
    with pytest.raises(ss.StorageError, match=r"profile\.json"):
        ss.advise(tokens, tmp_path / "profile.json")

"""What the sources gave is what the shards hold, or nothing is committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from shardstream.errors import CorruptionError
from shardstream.packing import disk_shuffle
from shardstream.packing.sources.jsonl import JsonlSource
from shardstream.packing.tally import Tally, total
from shardstream.packing.writer import SampleWriter

PLAIN: dict[str, Any] = {}
SHUFFLED = {"shuffle": 3}
TOKENS = {"tokenizer": "bytes", "eos": 0}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"id": number, "text": f"text {number} " * 20, "n": number} for number in range(300)]
    rows[7]["id"] = 6  # twice
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SAMPLES = st.lists(
    st.tuples(st.text(max_size=5), st.dictionaries(st.sampled_from("abc"), st.binary(max_size=9)))
)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_a_tally_has_no_order_and_takes_back(
    samples: list[tuple[str, dict[str, bytes]]], random: Any
) -> None:
    one, other, parts = Tally(), Tally(), [Tally(), Tally()]
    for sample in samples:
        one.add(*sample)
        random.choice(parts).add(*sample)
    for sample in random.sample(samples, len(samples)):
        other.add(*sample)
    assert one == other == total(parts)
    for sample in samples:
        one.remove(*sample)
    assert one == Tally()


@pytest.mark.parametrize(
    "other",
    [
        ("k", {"a": b"1", "b": b"3"}), ("k", {"a": b"1"}), ("k", {"a": b"2", "b": b"1"}),
        ("l", {"a": b"1", "b": b"2"}),
        ("k", {"b": b"1", "a": b"2"}), ("k", {"a": b"1", "c": b"2"}), ("k", {"a": b"12", "b": b""}),
    ],
)  # fmt: skip
def test_another_sample_has_another_digest(other: tuple[str, dict[str, bytes]]) -> None:
    one, two = Tally(), Tally()
    one.add("k", {"a": b"1", "b": b"2"})
    two.add(*other)
    assert one.digest != two.digest


@pytest.mark.parametrize("options", [PLAIN, SHUFFLED, TOKENS, {**SHUFFLED, **TOKENS}, {"limit": 20}])
def test_rejects_and_tokens_are_no_difference(corpus: Path, tmp_path: Path, options: Any) -> None:
    manifest = ss.pack(
        corpus, tmp_path / "out", workers=1, shard_size="8KiB", frame_size="2KiB", on_error="skip", **options
    )
    # Without a shuffle the two samples of one key are in different shards or are rejected.
    assert 18 < manifest.samples <= 300


def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    write = SampleWriter.add

    def add(self: SampleWriter, key: str, *more: Any) -> None:
        if key != "9":
            write(self, key, *more)

    monkeypatch.setattr(SampleWriter, "add", add)


def changed(monkeypatch: pytest.MonkeyPatch) -> None:
    put = SampleWriter._put_frame

    def flip(self: SampleWriter, raw: Any, *more: Any, **rest: Any) -> None:
        data = bytearray(raw)
        data[600] ^= 1
        put(self, memoryview(data), *more, **rest)

    monkeypatch.setattr(SampleWriter, "_put_frame", flip)


def twice(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = disk_shuffle.gather

    def again(*arguments: Any) -> Any:
        for sample in gather(*arguments):
            yield sample
            if sample.key == "9":
                yield sample._replace(key="9-again")

    monkeypatch.setattr(disk_shuffle, "gather", again)


@pytest.mark.parametrize(
    ("fault", "options"),
    [(lost, PLAIN), (lost, SHUFFLED), (changed, PLAIN), (changed, TOKENS), (twice, SHUFFLED)],
)
def test_what_is_lost_or_changed_on_the_way_ends_the_pack(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, options: Any
) -> None:
    fault(monkeypatch)
    with pytest.raises(CorruptionError, match=r"the sources gave .* nothing was committed"):
        ss.pack(corpus, tmp_path / "out", workers=1, on_error="skip", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_resumed_pack_counts_what_was_done_before(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"workers": 1, "shard_size": "8KiB", "on_error": "skip"}
    read = JsonlSource.read_blocks

    def broken(self: JsonlSource, task: Any) -> Any:
        if task.number == 4:
            raise KeyboardInterrupt
        return read(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(JsonlSource, "read_blocks", broken)
        with pytest.raises(KeyboardInterrupt):
            ss.pack(corpus, tmp_path / "out", **options)
    receipt = next((tmp_path / "out").glob(".pack-task-000000.json"))
    good = receipt.read_text()
    stored = json.loads(good)
    stored["stored"]["count"] -= 1
    receipt.write_text(json.dumps(stored))
    with pytest.raises(CorruptionError, match="the sources gave"):
        ss.pack(corpus, tmp_path / "out", resume=True, **options)
    receipt.write_text(good)
    assert ss.pack(corpus, tmp_path / "out", resume=True, **options).samples >= 299

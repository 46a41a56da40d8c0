"""TensorFlow, as its script trains with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import shardstream as ss
from tests.frameworks.contract import Contract


class TestTensorFlow(Contract):
    script = "tensorflow_loop"
    processes = False


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(20):
            file.write(json.dumps({"id": f"{number:02d}", "text": f"row {number} ✓"}) + "\n")
    ss.pack(tmp_path / "a.jsonl", tmp_path / "packed", workers=1)
    return tmp_path / "packed"


def scored(sample: dict[str, str]) -> dict[str, object]:
    number = int(sample["__key__"])
    return {"text": sample["txt"], "raw": bytes([number]), "score": np.full((2, 3), number, np.float32)}


class TestToTf:
    def test_strings_bytes_and_arrays_arrive_as_they_are(self, packed: Path) -> None:
        import tensorflow as tf

        ds = ss.StreamingDataset(packed, shuffle=ss.Shuffle(seed=2), transform=scored)
        made = ss.to_tf(ds, 8, last="short")
        assert made.element_spec["score"].dtype == tf.float32
        assert made.element_spec["score"].shape.as_list() == [None, 2, 3]
        orders = []
        for _ in range(2):  # iterating again is the next epoch
            numbers = []
            for batch in made:
                for text, raw, score in zip(
                    batch["text"].numpy(), batch["raw"].numpy(), batch["score"].numpy(), strict=True
                ):
                    (number,) = raw
                    assert text.decode() == f"row {number} ✓"
                    assert score.tolist() == [[number] * 3] * 2
                    numbers.append(number)
            assert sorted(numbers) == list(range(20))
            orders.append(numbers)
        assert orders[0] != orders[1]

    def test_replicas_get_equal_parts(self, packed: Path) -> None:
        loader = ss.StreamingLoader(ss.StreamingDataset(packed, fields=["txt"]), 8, last="pad")
        sizes = [len(batch["__key__"]) for batch in ss.to_tf(loader, replicas=4)]
        assert sizes == [2] * 4 * 3

    def test_what_cannot_be_says_why(self, packed: Path) -> None:
        ds = ss.StreamingDataset(packed)
        for arguments, options, says in (
            ((ds,), {}, "batch_size is missing"),
            ((ss.StreamingLoader(ds, 4), 4), {}, "leave them out"),
            ((ds, 6), {"replicas": 4}, "replicas=4"),
            ((ds, 8), {"replicas": 2, "last": "short"}, "last='short'"),
            ((ds, 8), {"replicas": 0}, "replicas=0"),
            ((ss.StreamingDataset(packed, transform=lambda _: {"odd": {}}), 4), {}, "field 'odd' has a dict"),
        ):
            with pytest.raises(ss.ShardstreamError, match=says):
                ss.to_tf(*arguments, **options)

    def test_the_name_is_reachable_and_not_public(self) -> None:
        assert callable(ss.to_tf)
        assert "to_tf" not in ss.__all__

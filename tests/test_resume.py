"""States that do not fit are refused. tests/contracts/test_datasets.py saves and resumes each dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import StateError
from tests.distributed.training import dataset, pack


@pytest.fixture(scope="module", params=["samples", "tokens"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), request.param, documents=62)


@pytest.mark.parametrize(
    ("option", "here", "message"),
    [
        ("seed", ss.Shuffle(seed=6), "seed is 5 in the state and 6 here"),
        ("window", ss.Shuffle(seed=5, window=2), "window is 4 in the state and 2 here"),
        ("lanes", ss.Shuffle(seed=5, lanes=5), "lanes is 64 in the state and 5 here"),
        ("shuffle", False, "seed is 5 in the state and None here"),
    ],
)
def test_other_options_are_refused_with_both_values(
    packed: Path, option: str, here: Any, message: str
) -> None:
    state = ss.StreamingLoader(dataset(packed), 4).state_dict()
    other = dataset(packed, shuffle=here)
    with pytest.raises(StateError, match=message):
        ss.StreamingLoader(other, 4).load_state_dict(state)
    with pytest.raises(StateError, match=message):
        other.load_state_dict(state)


def test_another_dataset_is_refused_with_both_values(packed: Path, tmp_path: Path) -> None:
    loader = ss.StreamingLoader(dataset(packed), 4)
    state = loader.state_dict()
    other = ss.StreamingLoader(dataset(pack(tmp_path, packed.name, documents=50)), 4)
    mine = other.state_dict()["fingerprint"]
    with pytest.raises(
        StateError, match=f"fingerprint is '{state['fingerprint']}' in the state and '{mine}' here"
    ):
        other.load_state_dict(state)
    # A state that was refused changes nothing.
    assert other.state_dict()["position"] == 0
    assert sum(1 for _ in other) == len(other)

"""One save-and-resume check for every configuration of dataset and loader."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import StateError
from tests.distributed.training import dataset, everything, name, names, pack

SHUFFLES: dict[str, Any] = {
    "natural": False,
    "shuffled": ss.Shuffle(seed=5),
    "lanes": ss.Shuffle(seed=2, lanes=6, window=1),
}


@pytest.fixture(scope="module", params=["samples", "tokens"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), request.param, documents=62)


def renamed(item: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": name(item)}


def keys(items: list[Any]) -> dict[str, Any]:
    return {"__key__": [name(item) for item in items]}


CUSTOM: dict[str, dict[str, Any]] = {
    "plain": {},
    "transform": {"transform": renamed},
    "collate": {"collate": keys},
}


def job(url: Path, size: int, batch_size: int, last: str, shuffle: Any, custom: dict[str, Any]) -> list[Any]:
    """The loader of each rank of a job."""
    collate, transform = custom.get("collate"), custom.get("transform")
    found = []
    for rank in range(size):
        ds = dataset(url, shuffle=shuffle, topology=ss.Topology(rank, size), transform=transform)
        found.append(ss.StreamingLoader(ds, batch_size, last=last, collate=collate, threads=1))
    return found


def state_of(ranks: list[Any]) -> dict[str, Any]:
    """The state of a job: JSON, and the same on every rank."""
    states = [one.state_dict() for one in ranks]
    assert all(state == states[0] for state in states)
    return json.loads(json.dumps(states[0]))  # type: ignore[no-any-return]


def steps(ranks: list[Any], count: int | None = None) -> list[list[str]]:
    """The global batches of the next epoch, or the first `count` of them: what is in each, sorted."""
    iterators = [itertools.islice(one, count) for one in ranks]
    return [
        sorted(itertools.chain(*map(names, batches)))
        for batches in zip(*iterators, strict=True)  # strict: equally many on every rank
    ]


@pytest.mark.parametrize("custom", CUSTOM)
@pytest.mark.parametrize("last", ["drop", "pad", "short"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_save_and_resume(packed: Path, shuffle: str, last: str, custom: str) -> None:
    def ranks(size: int, batch_size: int) -> list[Any]:
        return job(packed, size, batch_size, last, SHUFFLES[shuffle], CUSTOM[custom])

    whole = ranks(1, 12)
    first, second = steps(whole), steps(whole)
    if last == "drop":
        assert len(first) == len(everything(packed)) // 12
    else:
        assert sorted(itertools.chain(*first)) == everything(packed)
    # Saved before the first batch, amid the epoch and after the last, by some ranks for others. (The
    # default number of lanes is the same for 1, 2 and 4 that start; who resumes takes the state's.)
    for saved_by, stop, size in [(1, 0, 2), (4, 1, 2), (2, 3, 1), (1, 3, 3), (4, len(first), 2)]:
        before = ranks(saved_by, 12 // saved_by)
        done = steps(before, stop)
        assert done == first[:stop]
        state = state_of(before)
        after = ranks(size, 12 // size)
        for one in after:
            one.load_state_dict(state)
        assert state_of(after) == state
        # Where the last batch was the last to be taken, what is left of the epoch is nothing.
        assert steps(after) == first[stop:]
        if stop in (1, len(first)):
            assert steps(after) == second
        # Other sizes of batches give other batches of the same items.
        after = ranks(2, 5)
        for one in after:
            one.load_state_dict(state)
        found = [*itertools.chain(*done), *itertools.chain(*steps(after))]
        assert len(set(found)) == len(found)
        if last != "drop":
            assert sorted(found) == everything(packed)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_dataset_alone_saves_and_resumes(packed: Path, shuffle: str) -> None:
    def ranks(size: int) -> list[Any]:
        return [
            dataset(packed, shuffle=SHUFFLES[shuffle], topology=ss.Topology(rank, size))
            for rank in range(size)
        ]

    whole = [name(item) for item in dataset(packed, shuffle=SHUFFLES[shuffle], topology=ss.Topology())]
    for saved_by, stop in itertools.product((1, 4), (0, 1, 7)):
        before = ranks(saved_by)
        done = [[name(item) for item in itertools.islice(one, stop)] for one in before]
        state = state_of(before)
        in_order = list(itertools.chain(*zip(*done, strict=True)))
        assert in_order == whole[: stop * saved_by]
        for size in (1, 2):
            after = ranks(size)
            for one in after:
                one.load_state_dict(state)
            rest = [name(item) for one in after for item in one]
            assert sorted(in_order + rest) == sorted(whole)
            loader = ss.StreamingLoader(ranks(1)[0], 7, last="short")
            loader.load_state_dict(state)
            assert [found for batch in loader for found in names(batch)] == whole[stop * saved_by :]


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

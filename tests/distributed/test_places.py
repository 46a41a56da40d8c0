"""When a dataset learns its rank, and ranks that do not read the same."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from shardstream.errors import OptionError, StateError
from tests.distributed import launch
from tests.distributed.training import everything, name, names, pack

COUNT = 60


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed"), "samples", documents=60)


def made(url: Path) -> dict[str, Any]:
    """Whatever knows a place: datasets, and loaders over them."""
    ds = ss.StreamingDataset(url, shuffle=True)
    mixture = ss.Mixture([(ss.StreamingDataset(url, shuffle=True), 1)])
    return {
        "dataset": ds,
        "subset": ds.subset(numbers=range(30)),
        "mixture": mixture,
        "loader": ss.StreamingLoader(ss.StreamingDataset(url, shuffle=True), 10),
        "mixture loader": ss.StreamingLoader(ss.Mixture([(ss.StreamingDataset(url, shuffle=True), 1)]), 10),
    }


def delivered(what: Any) -> list[str]:
    if isinstance(what, ss.StreamingLoader):
        return [found for batch in what for found in names(batch)]
    return [name(item) for item in what]


def places(url: str, sent: bytes) -> dict[str, Any]:
    before = {**made(Path(url)), **{f"sent {key}": ds for key, ds in pickle.loads(sent).items()}}
    used = ss.StreamingDataset(url)
    assert len(used) == COUNT
    wrong = ss.StreamingDataset(url)
    state = wrong.state_dict()
    with launch.group():
        found = {key: delivered(what) for key, what in before.items()}
        lengths = {key: len(what) for key, what in before.items()}
        errors = []
        for use in (lambda: len(used), lambda: iter(used), lambda: iter(ss.StreamingLoader(used, 2))):
            with pytest.raises(OptionError) as error:
                use()
            errors.append(str(error.value))
        with pytest.raises(OptionError, match="used as rank 0 of 1"):
            iter(wrong)
        assert state["position"] == 0
    return {"found": found, "lengths": lengths, "errors": errors}


def test_a_dataset_made_before_the_group_or_elsewhere_knows_its_rank(packed: Path, tmp_path: Path) -> None:
    sent = {key: what for key, what in made(packed).items() if not isinstance(what, ss.StreamingLoader)}
    len(sent["dataset"])  # what this process uses says nothing of the ranks
    ranks = launch.run(places, 2, tmp_path, str(packed), pickle.dumps(sent))
    every = everything(packed)
    for key in ranks[0]["found"]:
        both = [rank["found"][key] for rank in ranks]
        wanted = every[:30] if "subset" in key else every
        assert sorted(both[0] + both[1]) == wanted, key
        assert len(both[0]) == len(both[1])
        size = 10 if "loader" in key else 1
        assert [rank["lengths"][key] * size for rank in ranks] == [len(one) for one in both], key
    for number, rank in enumerate(ranks):
        assert all(
            f"rank 0 of 1, and now this process is rank {number} of 2" in text for text in rank["errors"]
        )


def differ(one: str, two: str) -> list[str]:
    with launch.group() as dist:
        rank = dist.get_rank()
        errors = []

        def start(ds: Any) -> None:
            try:
                iter(ds)
                errors.append("")
            except StateError as error:
                errors.append(str(error))

        def in_turn(ds: Any) -> None:
            for turn in (0, 1, 0):
                if rank == turn:
                    start(ds)
                dist.barrier()

        in_turn(ss.StreamingDataset(one, shuffle=ss.Shuffle(seed=rank)))
        in_turn(ss.StreamingDataset(one, shuffle=ss.Shuffle(seed=7, window=3)))
        # One address, and another dataset behind it for each rank.
        shared = Path(one).parent / "shared"
        if rank == 0:
            shutil.copytree(one, shared)
        dist.barrier()
        ds = ss.StreamingDataset(shared) if rank == 0 else None
        dist.barrier()
        if rank == 0:
            shutil.rmtree(shared)
            shutil.copytree(two, shared)
        dist.barrier()
        in_turn(ds or ss.StreamingDataset(shared))
        return errors


def test_ranks_that_read_different_data_are_told(packed: Path, tmp_path: Path) -> None:
    other = pack(tmp_path / "other", "samples", documents=61)
    (first, second) = launch.run(differ, 2, tmp_path / "job", str(packed), str(other))
    # The first rank to come cannot know; it hears of it at its next iteration.
    assert [first[number] for number in (0, 2, 3, 4)] == [""] * 4
    assert "seed is 0 on one rank and 1 on another" in second[0]
    assert second[1] == ""
    assert "fingerprint is" in second[2]
    assert [first[1], first[5]] == [second[0], second[2]]


def alone(url: str) -> int:
    with launch.group() as dist:
        if dist.get_rank():
            return 0
        count = sum(len(delivered(ss.StreamingDataset(url, shuffle=True))) for _ in range(3))
        return count + len(delivered(ss.StreamingDataset(url, topology=ss.Topology())))


def test_a_rank_that_iterates_alone_waits_for_nobody(packed: Path, tmp_path: Path) -> None:
    assert launch.run(alone, 2, tmp_path, str(packed)) == [3 * 30 + 60, 0]

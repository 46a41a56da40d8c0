"""Ranks from sizes alone, as Megatron numbers them, and real processes that share their data."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import shardstream as ss
from tests.distributed import launch
from tests.distributed.training import dataset, everything, names, pack


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.permutations(["tp", "cp", "ep", "dp", "pp"]),
)  # fmt: skip
def test_each_rank_by_its_coordinates(tp: int, cp: int, pp: int, dp: int, names: list[str]) -> None:
    sizes = {"tp": tp, "cp": cp, "pp": pp, "dp": dp, "ep": 1}
    # The first dimension varies fastest: the last one is the outermost loop.
    places = itertools.product(*(range(sizes[name]) for name in reversed(names)))
    for rank, place in enumerate(places):
        found = ss.Topology.from_sizes(rank, tp * cp * pp * dp, tp=tp, cp=cp, pp=pp, order="-".join(names))
        assert (found.dp_rank, found.dp_size) == (place[::-1][names.index("dp")], dp)


def train(url: Path, tp: int, state: dict[str, Any] | None, count: int | None) -> Any:
    """A loop as Megatron's: global batches of 24, a collective in each step."""
    with launch.group() as dist:
        place = ss.Topology.from_sizes(dist.get_rank(), dist.get_world_size(), tp=tp)
        loader = ss.StreamingLoader(dataset(url, topology=place), 24 // place.dp_size, last="short")
        if state is not None:
            loader.load_state_dict(state)
        seen = []
        for batch in itertools.islice(loader, count):
            dist.barrier()
            seen.append(names(batch))
        return {"dp": place.dp_rank, "length": len(loader), "seen": seen, "state": loader.state_dict()}


class TestMegatron:
    def test_tensor_parallel_peers_and_resume_with_other_sizes(self, tmp_path: Path) -> None:
        url = pack(tmp_path, "samples")
        first = launch.run(train, 4, tmp_path / "first", url, 2, None, 4)
        same = launch.run(train, 4, tmp_path / "same", url, 2, first[0]["state"], None)
        other = launch.run(train, 2, tmp_path / "other", url, 2, first[0]["state"], None)
        for job in (first, same, other):
            for one, peer in zip(job[::2], job[1::2], strict=True):
                assert one == peer
            assert len({len(one["seen"]) for one in job}) == 1
        assert [one["dp"] for one in first] == [0, 0, 1, 1]

        def merged(job: list[Any]) -> list[list[str]]:
            parts = zip(*(one["seen"] for one in job[::2]), strict=True)
            return [sorted(itertools.chain(*part)) for part in parts]

        assert merged(same) == merged(other)
        assert sorted(itertools.chain(*merged(first), *merged(same))) == everything(url)
        assert len(first[0]["seen"]) + len(same[0]["seen"]) == first[0]["length"]

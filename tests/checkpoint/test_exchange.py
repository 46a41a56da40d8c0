"""What several ranks need of a file is read once by all of them together, and arrives whole."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shardstream.checkpoint.exchange import shared
from shardstream.checkpoint.manifest import Chunk, Manifest, TensorInfo
from shardstream.slices import Box, intersection
from tests.checkpoint import jobs
from tests.distributed import launch


def cut(shape: tuple[int, int], dim: int, ranks: int) -> list[Box]:
    """The parts of a matrix along a dimension, as torch.chunk makes them; the last ones may be empty."""
    step = -(-shape[dim] // ranks)
    found = []
    for rank in range(ranks):
        first = min(rank * step, shape[dim])
        size = min(step, shape[dim] - first)
        offsets, sizes = [0, 0], list(shape)
        offsets[dim], sizes[dim] = first, size
        found.append(Box(tuple(offsets), tuple(sizes)))
    return found


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    saved=st.tuples(st.integers(0, 1), st.integers(1, 8)),
    loaded=st.tuples(st.integers(0, 1), st.integers(1, 8)),
    replicas=st.booleans(),
)
def test_the_pieces_are_all_that_is_needed_and_nothing_twice(
    shape: tuple[int, int], saved: tuple[int, int], loaded: tuple[int, int], replicas: bool
) -> None:
    parts = [box for box in cut(shape, *saved) if box.elements]
    chunks = [Chunk(0, 0, box.shape, box.offsets) for box in parts]
    manifest = Manifest(1, "a", 1, "", "", [], {"w": TensorInfo("F32", shape, chunks)})
    wanted = [{"w": [box]} if box.elements else {} for box in cut(shape, *loaded)]
    pieces = shared(manifest, wanted, replicas)
    assert all(wanted[piece.owner] for piece in pieces)
    for number, source in enumerate(parts):
        mine = [piece for piece in pieces if piece.chunk == number]
        assert all(math.prod(piece.box.shape) * 4 == piece.bytes for piece in mine)
        if mine:
            rows = sorted((piece.box.offsets[0], piece.box.shape[0]) for piece in mine)
            assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(rows))
            needed = [
                common
                for each in wanted
                for box in each.get("w", ())
                if (common := intersection(source, box))
            ]
            assert rows[0][0] == min(common.offsets[0] for common in needed)
            assert sum(rows[-1]) == max(common.offsets[0] + common.shape[0] for common in needed)


def test_ranks_read_the_state_once_in_whatever_layout_it_was_saved(tmp_path: Path) -> None:
    found = launch.run(jobs.resharded, 3, tmp_path / "job", str(tmp_path / "run"))[0]
    assert len(found) == 2 * 2 * 2 * 2
    assert max(each["read"] for each in found) <= 1.05, found


def test_replicas_come_from_a_store_once_and_damage_is_found_by_all(tmp_path: Path, weed: Any) -> None:
    found = launch.run(jobs.damaged_exchange, 2, tmp_path / "job", f"{weed.bucket()}/run", weed.options())
    assert [each["step"] for each in found] == [1, 1]
    assert sum(each["read"] for each in found) <= 1.05 * (8 << 20)
    assert all("tensors in them: x" in each["skipped"][0] for each in found)
    assert "Inplace update to inference tensor" in found[1]["error"]
    assert "rank 1 cannot load step 1" in found[0]["error"]
    assert all(each["again"] and "committed already" in each["twice"] for each in found), found

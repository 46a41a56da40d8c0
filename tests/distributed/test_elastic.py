"""Real processes save, and other numbers of them go on: every item once, in every epoch."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.distributed import launch
from tests.distributed.training import dataset, everything, names, some_batches


def merged(results: list[Any]) -> list[list[str]]:
    """The global batches: of each step, what all ranks got."""
    return [sorted(itertools.chain(*parts)) for parts in zip(*(one["seen"] for one in results), strict=True)]


def test_four_ranks_save_two_go_on_then_three_and_again(packed: Path, tmp_path: Path) -> None:
    wanted = everything(packed)
    # (ranks, batch size of each, batches): the global batch is 24 until the last lines.
    plan = [(4, 6, 3), (2, 12, 2), (3, 8, None), (4, 3, 1), (1, 24, 2), (2, 5, None)]
    assert len(wanted) > 24 * 8
    state: dict[str, Any] | None = None
    epochs: list[list[list[str]]] = [[], []]
    epoch = 0
    for number, (size, batch_size, count) in enumerate(plan):
        job = launch.run(some_batches, size, tmp_path / str(number), packed, batch_size, state, count)
        assert (
            [one["place"] for one in job] == [one["rank"] for one in job] == [[r, size] for r in range(size)]
        )
        assert len({len(one["seen"]) for one in job}) == 1
        assert all(one["state"] == job[0]["state"] for one in job)
        state = json.loads(json.dumps(job[0]["state"]))
        epochs[epoch] += merged(job)
        epoch += count is None
    for found in epochs:
        assert sorted(itertools.chain(*found)) == wanted
    assert sorted(epochs[0]) != sorted(epochs[1])

    # One process alone gets the same global batches as the two, three and four.
    alone = ss.StreamingLoader(dataset(packed, topology=ss.Topology()), 24, last="short")
    assert [sorted(names(batch)) for batch in alone] == epochs[0]


def test_the_rank_comes_from_the_launcher_where_there_is_no_group(tmp_path: Path) -> None:
    script = (
        "import json, os, sys; import shardstream as ss;"
        "place = ss.Topology.detect(); assert 'torch' not in sys.modules;"
        "json.dump([place.dp_rank, place.dp_size], open(os.environ['RESULT'], 'w'))"
    )
    with launch.command([sys.executable, "-c", script], 3, tmp_path) as ranks:
        assert ranks.results() == [[0, 3], [1, 3], [2, 3]]


def test_a_failed_rank_is_reported_and_the_others_are_ended(tmp_path: Path) -> None:
    script = "import os, signal; os.environ['RANK'] == '1' and exit('no such luck'); signal.pause()"
    with launch.command([sys.executable, "-c", script], 3, tmp_path) as ranks:
        with pytest.raises(AssertionError, match="no such luck"):
            ranks.results()
        assert ranks.wait() == [-9, 1, -9]

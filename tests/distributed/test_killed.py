"""A rank is killed at a random moment, the job ends, another goes on from the last saved state."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

import shardstream as ss
from tests.distributed import launch
from tests.distributed.training import dataset, everything, names

EVERY = 2  # steps between saved states


def train(url: Path, run: Path, batch_size: int, epochs: int, last: int | None = None) -> int:
    """Write each batch down, save the state now and then, as a training script does.

    last: after this step it only waits to be killed, however late that comes on a busy machine.
    """
    with launch.group() as dist:
        rank = dist.get_rank()
        loader = ss.StreamingLoader(dataset(url), batch_size, last="short")
        saved = run / "state.json"
        state = json.loads(saved.read_text()) if saved.exists() else None
        # All ranks have read it before one of them may write the next.
        dist.barrier()
        if state is not None:
            loader.load_state_dict(state["data"])
        step = 0 if state is None else state["step"]
        while (epoch := loader.state_dict()["epoch"]) < epochs:
            for batch in loader:
                launch.save(run / f"step-{step}-rank-{rank}-of-{dist.get_world_size()}", names(batch))
                step += 1
                if step % EVERY == 0:
                    # A checkpoint is of a step that all ranks have done.
                    dist.barrier()
                    if rank == 0:
                        launch.save(saved, {"data": loader.state_dict(), "step": step})
                while last is not None and step > last:
                    time.sleep(1)
            assert loader.state_dict()["epoch"] == epoch + 1
        return step


def moments() -> list[Any]:
    return [pytest.param(seed, marks=() if seed < 2 else pytest.mark.long) for seed in range(50)]


# Of each kind of dataset 2 runs, killed twice each; with --long 50.
@pytest.mark.parametrize("seed", moments())
def test_nothing_is_lost_or_repeated(packed: Path, tmp_path: Path, seed: int) -> None:
    numbers = random.Random(seed)
    run = tmp_path / "run"
    run.mkdir()
    kept: list[str] = []  # by the steps before the saved state, which a resumed run does not repeat
    epochs = 2

    def states() -> int:
        found = run / "state.json"
        return json.loads(found.read_text())["step"] if found.exists() else 0

    for attempt, size in enumerate((2, 3)):
        reach = states() + numbers.randrange(0, 6)
        with launch.call(
            train, size, tmp_path / str(attempt), packed, run, 24 // size, epochs, reach + 3
        ) as ranks:
            # A moment near some step; where in it the kill falls is chance.
            step = run / f"step-{reach}-rank-0-of-{size}"
            assert launch.ended(step.exists, 60), ranks.logs()
            launch.ended(lambda: False, numbers.random() * 0.01)
            ranks.kill(numbers.randrange(size))
            assert -9 in ranks.wait()
        # What the run had done after its last saved state is done again.
        before = states()
        for path in run.glob("step-*"):
            if int(path.name.split("-")[1]) >= before:
                path.unlink()
    with launch.call(train, 2, tmp_path / "last", packed, run, 12, epochs) as ranks:
        assert len(set(ranks.results())) == 1
    for path in run.glob("step-*"):
        kept += json.loads(path.read_text())
    assert sorted(kept) == sorted([*everything(packed)] * epochs)


def test_a_state_is_found_whole_or_not_at_all(tmp_path: Path) -> None:
    for number in range(3):
        launch.save(tmp_path / "state", list(range(number)))
        assert json.loads((tmp_path / "state").read_text()) == list(range(number))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]

"""PyTorch's DDP and FSDP2, held to what all frameworks are held to, with torch's own checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import launch
from tests.frameworks.contract import Jobs, SharedData
from tests.frameworks.loop import Plan, Record


class Net(torch.nn.Linear):
    """It takes batches whole, as they come through the wrapper."""

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        self.batch = batch
        return super().forward(batch["tokens"][:, :-1].float() / 256)


def train(wrapper: str, plan: Plan) -> list[dict[str, Any]]:
    """A loop in whose every step all ranks wait for each other."""
    # Here and not above: they take half a second, which every run that only collects would pay.
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    with launch.group():
        loader = plan.loader()
        net = Net(32, 8)
        model: Any = DistributedDataParallel(net) if wrapper == "ddp" else fully_shard(net)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)

        def state() -> dict[str, Any]:
            weights, moments = get_state_dict(model, optimizer)
            return {"model": weights, "optimizer": moments, "data": loader}

        if plan.resume:
            saved = state()
            dcp.load(saved, checkpoint_id=plan.folder)
            set_state_dict(
                model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"]
            )
        record, stopped = Record(len(loader)), False
        while (epoch := loader.state_dict()["epoch"]) < plan.epochs and not stopped:
            for batch in loader:
                model(batch).square().mean().backward()
                record.add(epoch, net.batch)
                optimizer.step()
                optimizer.zero_grad()
                if plan.save == len(record.steps):
                    dcp.save(state(), checkpoint_id=plan.folder)
                if stopped := bool(plan.save) and len(record.steps) == plan.save + 2:
                    break
        return [{"length": record.length, "steps": record.steps, "raw": record.raw}]


class Forked(Jobs):
    """Jobs of a function, in processes that have torch already."""

    def start(self, plan: Plan, size: int, log: Path) -> launch.Ranks:
        return launch.call(train, size, log, self.module, plan)


@pytest.fixture(scope="class")
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    wrapper = request.cls.script
    return Forked(wrapper, True, {}, tmp_path_factory.mktemp(wrapper))


@pytest.fixture(scope="class")
def everything(jobs: Jobs) -> list[str]:
    return jobs.everything()


class TestDDP(SharedData):
    script = "ddp"
    # The guide is docs/training.md, whose examples run with those of all other pages.
    test_the_guide_runs = None


class TestFSDP2(SharedData):
    script = "fsdp2"
    test_the_guide_runs = None

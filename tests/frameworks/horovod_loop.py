"""Horovod: the rank is detected from it, gradients are averaged by its optimizer."""

from __future__ import annotations

import json

import horovod.torch as hvd
import torch

from tests.frameworks.loop import Plan, Record

PLAN = Plan.given()

hvd.init()
loader = PLAN.loader()
if PLAN.resume:
    loader.load_state_dict(json.loads(PLAN.state.read_text()))
layer = torch.nn.Linear(32, 1)
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(layer.parameters(), 0.01), layer.named_parameters())
hvd.broadcast_parameters(layer.state_dict(), root_rank=0)

record = Record(len(loader))
stopped = False
while (epoch := loader.state_dict()["epoch"]) < PLAN.epochs and not stopped:
    for batch in loader:
        record.add(epoch, batch)
        optimizer.zero_grad()
        layer(batch["tokens"][:, :-1].float() / 256).square().mean().backward()
        optimizer.step()
        if PLAN.save == len(record.steps) and hvd.rank() == 0:
            PLAN.state.write_text(json.dumps(loader.state_dict()))
        if stopped := bool(PLAN.save) and len(record.steps) == PLAN.save + 2:
            break
steps = hvd.allgather_object(record.steps)
if hvd.rank() == 0:
    record.done(steps)
hvd.shutdown()

"""Horovod with gloo: the rank comes from Horovod, gradients are averaged by its optimizer."""

from __future__ import annotations

import json
import os

# What `horovodrun` sets; these processes are started as those of the other frameworks are.
os.environ |= {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}

import horovod.torch as hvd
import torch

import shardstream as ss
from tests.frameworks.loop import Plan, Record

PLAN = Plan.given()

hvd.init()
loader = PLAN.loader(ss.Topology(hvd.rank(), hvd.size()))
if PLAN.resume:
    loader.load_state_dict(json.loads(PLAN.state.read_text()))
model = torch.nn.Linear(32, 1)
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD(model.parameters(), 0.01), named_parameters=model.named_parameters()
)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)

record = Record(len(loader))
stopped = False
while (epoch := loader.state_dict()["epoch"]) < PLAN.epochs and not stopped:
    for batch in loader:
        record.add(epoch, batch)
        optimizer.zero_grad()
        model(batch["tokens"][:, :-1].float() / 256).square().mean().backward()
        optimizer.step()
        if PLAN.save == len(record.steps) and hvd.rank() == 0:
            PLAN.state.write_text(json.dumps(loader.state_dict()))
        if stopped := bool(PLAN.save) and len(record.steps) == PLAN.save + 2:
            break
hvd.shutdown()
record.done()

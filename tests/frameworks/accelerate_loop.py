"""Accelerate: the model is prepared, the loader is not; save_state has the place in the data."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from tests.frameworks.loop import Plan, Record

PLAN = Plan.given()

accelerator = Accelerator(cpu=True)
loader = PLAN.loader()  # after the Accelerator, which starts the process group
accelerator.register_for_checkpointing(loader)
layer = torch.nn.Linear(32, 1)
model, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), 0.01))
assert accelerator.prepare(loader) is loader  # it takes nothing for its own that is no DataLoader
if PLAN.resume:
    accelerator.load_state(PLAN.folder)

record = Record(len(loader))
stopped = False
while (epoch := loader.state_dict()["epoch"]) < PLAN.epochs and not stopped:
    for batch in loader:
        batch = send_to_device(batch, accelerator.device)
        record.add(epoch, batch)
        with accelerator.accumulate(model):
            loss = model(batch["tokens"][:, :-1].float() / 256).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if PLAN.save == len(record.steps):
            accelerator.save_state(PLAN.folder)
        if stopped := bool(PLAN.save) and len(record.steps) == PLAN.save + 2:
            break
accelerator.end_training()
record.done()

"""Accelerate with ss.Checkpoints in place of save_state."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

import shardstream as ss
from tests.frameworks.loop import Diary, Plan

PLAN = Plan.given()

accelerator = Accelerator(cpu=True)
loader = PLAN.loader()
torch.manual_seed(int(PLAN.resume))  # other weights than those that were saved
layer = torch.nn.Linear(32, 1)
adam = torch.optim.AdamW(layer.parameters(), 0.01)
schedule = torch.optim.lr_scheduler.StepLR(adam, 3)
model, optimizer, schedule = accelerator.prepare(layer, adam, schedule)

saves = ss.Checkpoints(f"{PLAN.folder}/run", keep=2)
state = {"model": model, "optim": optimizer, "schedule": schedule, "data": loader}
step = saves.load(state) or 0
diary = Diary(PLAN)
while (epoch := loader.state_dict()["epoch"]) < PLAN.epochs:
    for batch in loader:
        batch = send_to_device(batch, accelerator.device)
        accelerator.backward(model(batch["tokens"][:, :-1].float() / 256).square().mean())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        step += 1
        if step % PLAN.save == 0:
            saves.save(step, state, busy="wait")
        diary.add(step, epoch, batch, model, saves)
saves.wait()
accelerator.end_training()
diary.done()

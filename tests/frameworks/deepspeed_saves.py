"""DeepSpeed with ZeRO in bf16 on the CPU that saves with ss.Checkpoints, by the class of the guide."""

from __future__ import annotations

import os

import deepspeed
import torch

import shardstream as ss
from tests.frameworks.loop import Diary, Plan, guide

PLAN = Plan.given()
Engine = guide("deepspeed", "class Engine")["Engine"]

deepspeed.init_distributed("gloo")
loader = PLAN.loader()
config = {
    "train_micro_batch_size_per_gpu": loader.batch_size,
    "gradient_accumulation_steps": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": int(os.environ.get("STAGE", "1"))},
    "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 30}},
}
torch.manual_seed(int(PLAN.resume))  # other weights than those that were saved
engine, _, _, schedule = deepspeed.initialize(model=torch.nn.Linear(32, 1), config=config)

saves = ss.Checkpoints(f"{PLAN.folder}/run", keep=2)
state = {"model": engine.module, "schedule": schedule, "data": loader}
own = {"engine": Engine(engine)}
step = saves.load(state, per_rank=own) or 0
assert engine.global_steps == step
diary = Diary(PLAN)
while (epoch := loader.state_dict()["epoch"]) < PLAN.epochs:
    for batch in loader:
        engine.backward(engine((batch["tokens"][:, :-1] / 256).bfloat16()).square().mean())
        engine.step()
        step += 1
        if step % PLAN.save == 0:
            saves.save(step, state, per_rank=own, busy="wait")
        diary.add(step, epoch, batch, engine.module, saves)
saves.wait()
diary.done()
engine.destroy()
torch.distributed.destroy_process_group()

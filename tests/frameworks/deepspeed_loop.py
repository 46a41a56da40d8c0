"""DeepSpeed with ZeRO-1 in bf16 on the CPU; the place in the data is the checkpoint's client state."""

from __future__ import annotations

import subprocess
import sys

import deepspeed
import torch

from tests.frameworks.loop import Plan, Record

PLAN = Plan.given()
# The optimizer's state is cut for the 2 ranks that saved it; any number of ranks reads the universal form.
UNIVERSAL = PLAN.resume and PLAN.devices != 2
if UNIVERSAL:
    subprocess.run(
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state",
         "--input_folder", f"{PLAN.folder}/saved", "--output_folder", f"{PLAN.folder}/universal"],
        check=True,
    )  # fmt: skip

deepspeed.init_distributed("gloo")
loader = PLAN.loader()
config = {
    "train_micro_batch_size_per_gpu": loader.batch_size,
    "gradient_accumulation_steps": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1},
    "checkpoint": {"load_universal": UNIVERSAL},
    "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
}
# No `training_data`: DeepSpeed would make a DataLoader of it.
engine, *_ = deepspeed.initialize(model=torch.nn.Linear(32, 1), config=config)
if PLAN.resume:
    _, client = engine.load_checkpoint(PLAN.folder, "universal" if UNIVERSAL else "saved")
    loader.load_state_dict(client["data"])

record = Record(len(loader))
stopped = False
while (epoch := loader.state_dict()["epoch"]) < PLAN.epochs and not stopped:
    for batch in loader:
        record.add(epoch, batch)
        loss = engine((batch["tokens"][:, :-1] / 256).bfloat16()).square().mean()
        engine.backward(loss)
        engine.step()
        if PLAN.save == len(record.steps):
            engine.save_checkpoint(PLAN.folder, "saved", {"data": loader.state_dict()})
        if stopped := bool(PLAN.save) and len(record.steps) == PLAN.save + 2:
            break
record.done()
engine.destroy()
torch.distributed.destroy_process_group()

"""Hugging Face's Trainer with DDP; its checkpoints have the place in the data."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from shardstream.integrations.transformers import StreamingTrainer
from tests.frameworks.loop import Plan, Record

PLAN = Plan.given()


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 1)

    def forward(self, tokens: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(tokens[:, :-1].float() / 256).square().mean()}


class Recording(StreamingTrainer):
    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        record.add(self.train_loader.state_dict()["epoch"], inputs)
        return super().training_step(model, inputs, *args)


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step == PLAN.save
        if PLAN.save and state.global_step == PLAN.save + 2:
            control.should_training_stop = True


arguments = TrainingArguments(
    PLAN.folder,
    use_cpu=True,
    num_train_epochs=PLAN.epochs,
    ignore_data_skip=True,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    disable_tqdm=True,
)
assert arguments.world_size == PLAN.devices  # the process group exists by now
loader = PLAN.loader()
record = Record(len(loader))
trainer = Recording(Model(), arguments, train_loader=loader, callbacks=[Stop()])
# The one checkpoint there is: it is named by its step.
trainer.train(resume_from_checkpoint=PLAN.resume)
record.done()
torch.distributed.destroy_process_group()

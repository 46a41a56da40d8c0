"""Hugging Face's Trainer that saves with ss.Checkpoints, by the callback of the guide."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

import shardstream as ss
from shardstream.integrations.transformers import StreamingTrainer
from tests.frameworks.loop import Diary, Plan, guide

PLAN = Plan.given()
Saving = guide("transformers", "from transformers import TrainerCallback", ss=ss)["Saving"]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 1)

    def forward(self, tokens: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(tokens[:, :-1].float() / 256).square().mean()}


class Recording(StreamingTrainer):
    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        self.had = self.train_loader.state_dict()["epoch"], inputs
        return super().training_step(model, inputs, *args)


class Writing(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        diary.add(state.global_step, *trainer.had, model, saving.saves)


arguments = TrainingArguments(
    PLAN.folder,
    use_cpu=True,
    num_train_epochs=PLAN.epochs,
    learning_rate=0.01,
    ignore_data_skip=True,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    disable_tqdm=True,
    seed=int(PLAN.resume),
)
loader = PLAN.loader()
diary = Diary(PLAN)
torch.manual_seed(int(PLAN.resume))  # other weights than those that were saved
saving = Saving(f"{PLAN.folder}/run", loader, PLAN.save)
trainer = Recording(Model(), arguments, train_loader=loader, callbacks=[saving, Writing()])
trainer.train()
torch.distributed.destroy_process_group()
diary.done()

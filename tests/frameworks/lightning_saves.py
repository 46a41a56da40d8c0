"""A Lightning Trainer that saves with ss.Checkpoints, by the callback of the guide."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

import shardstream as ss
from shardstream.integrations.lightning import TrainLoader
from tests.frameworks.loop import Diary, Plan, guide

PLAN = Plan.given()
Saving = guide("lightning", "class Saving", L=L, ss=ss)["Saving"]


class Data(L.LightningDataModule):
    def train_dataloader(self) -> TrainLoader:
        return TrainLoader(PLAN.loader())


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 1)

    def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
        return self.layer(batch["tokens"][:, :-1].float() / 256).square().mean()

    def configure_optimizers(self) -> Any:
        adam = torch.optim.AdamW(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.StepLR(adam, 3)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Writing(L.Callback):
    diary: Diary

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.diary = Diary(PLAN)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        self.diary.add(trainer.global_step, trainer.current_epoch, batch, module, saving.saves)


torch.manual_seed(int(PLAN.resume))  # other weights than those that were saved
saving, writing = Saving(f"{PLAN.folder}/run", PLAN.save), Writing()
trainer = L.Trainer(
    accelerator="cpu",
    devices=PLAN.devices,
    strategy="ddp",
    max_epochs=PLAN.epochs,
    use_distributed_sampler=False,
    callbacks=[saving, writing],
    enable_checkpointing=False,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), Data())
assert trainer.current_epoch == PLAN.epochs
writing.diary.done()

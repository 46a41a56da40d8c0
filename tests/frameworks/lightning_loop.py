"""A Lightning Trainer with DDP; its checkpoint has the place in the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from shardstream.integrations.lightning import TrainLoader
from tests.frameworks.loop import Plan, Record

PLAN = Plan.given()


class Data(L.LightningDataModule):
    record: Record

    def train_dataloader(self) -> TrainLoader:
        # The process group exists by now, so that the rank is found.
        loader = TrainLoader(PLAN.loader())
        self.record = Record(len(loader))
        return loader


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 1)

    def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
        self.trainer.datamodule.record.add(self.trainer.current_epoch, batch)
        return self.layer(batch["tokens"][:, :-1].float() / 256).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


data = Data()
saving = ModelCheckpoint(PLAN.folder, "saved", every_n_train_steps=PLAN.save, save_top_k=1)
trainer = L.Trainer(
    accelerator="cpu",
    devices=PLAN.devices,
    strategy="ddp",
    max_epochs=PLAN.epochs,
    max_steps=PLAN.save + 2 if PLAN.save else -1,
    use_distributed_sampler=False,
    callbacks=[saving] if PLAN.save else [],
    enable_checkpointing=bool(PLAN.save),
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), data, ckpt_path=str(Path(PLAN.folder) / "saved.ckpt") if PLAN.resume else None)
data.record.done()

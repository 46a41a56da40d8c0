"""A Lightning Trainer with a DataLoader over a dataset: it shares out nothing, and the dataset does."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from tests.frameworks.direct import PLAN, blocks, done, named

# Lightning counts batches: of each rank's 72 blocks both workers have whole ones.
WIDTH = 34
DEVICES = PLAN.devices  # before Lightning takes its variables away


class Model(L.LightningModule):
    def __init__(self, workers: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, 1)
        self.workers, self.seen = workers, []  # type: ignore[var-annotated]

    def train_dataloader(self) -> DataLoader[Any]:
        ds = blocks(WIDTH, whole=False)
        assert len(ds) == 72
        return DataLoader(ds, batch_size=4, num_workers=self.workers)

    def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
        self.seen += named(batch["tokens"])
        return self.layer(batch["tokens"][:, :-1].float() / 256).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


found = {}
for workers in (0, 2):
    model = Model(workers)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=DEVICES,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)
    found[f"{workers} workers"] = model.seen
done(found)

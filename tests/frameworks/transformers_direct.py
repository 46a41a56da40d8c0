"""Hugging Face's Trainer with a `train_dataset`, which it gives to Accelerate."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from shardstream.errors import OptionError
from tests.frameworks.direct import PLAN, blocks, done, named, refused
from tests.frameworks.loop import SEQ_LEN


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 1)

    def forward(self, tokens: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        seen.extend(named(tokens))
        return {"loss": self.layer(tokens[:, :-1].float() / 256).square().mean()}


def train(whole: bool) -> None:
    arguments = TrainingArguments(
        PLAN.folder,
        use_cpu=True,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(Model(), arguments, train_dataset=blocks(SEQ_LEN, whole)).train()


seen: list[str] = []
train(whole=True)
found = {"default": seen}
try:
    train(whole=False)
except OptionError as error:
    found["default, refused"] = [refused(error)]
torch.distributed.destroy_process_group()
done(found)

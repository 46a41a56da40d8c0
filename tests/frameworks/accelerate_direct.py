"""Accelerate's `prepare` of a DataLoader over a dataset, in each way that it shares out."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from shardstream.errors import OptionError
from tests.frameworks.direct import blocks, done, named, refused
from tests.frameworks.loop import SEQ_LEN

WAYS = {
    "default": ({}, 0),
    "dispatch": ({"dispatch_batches": True}, 1),
    "dispatch, split": ({"dispatch_batches": True, "split_batches": True}, 0),
    "shard": ({"dispatch_batches": False}, 0),
    "shard, workers": ({"dispatch_batches": False}, 2),
    "shard, split": ({"dispatch_batches": False, "split_batches": True}, 0),
}
found = {}
for way, (options, workers) in WAYS.items():
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))

    def prepared(whole: bool) -> DataLoader:  # type: ignore[type-arg]
        loader = DataLoader(blocks(SEQ_LEN, whole), batch_size=8, num_workers=workers)  # noqa: B023
        return accelerator.prepare(loader)  # type: ignore[no-any-return]  # noqa: B023

    found[way] = [row for batch in prepared(whole=True) for row in named(batch["tokens"])]
    try:
        next(iter(prepared(whole=False)))
    except OptionError as error:
        found[f"{way}, refused"] = [refused(error)]
accelerator.end_training()
done(found)

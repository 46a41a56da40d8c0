"""From a dataset of Hugging Face to a trained model.

    python examples/hf_dataset.py

A `datasets.Dataset` is packed as it is, and a small classifier of texts trains on it. Every fifth row is held
out, without packing twice. It prints the loss of each epoch, and how many of the texts that were held out are
classified right. Nothing is downloaded.

With `--dataset FOLDER` it takes what your `save_to_disk` has written. `--text` and `--label` name columns.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import zlib
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import nn

import shardstream as ss

BUCKETS = 1024  # rows of the table of words


def reviews() -> datasets.Dataset:
    """A dataset to try it on: short reviews, and whether they praise (1) or not (0)."""
    chance = random.Random(0)
    words = (
        ["poor", "slow", "broken", "dull", "bad", "weak"],
        ["good", "quick", "solid", "bright", "fine", "great"],
    )
    things = ["loader", "film", "camera", "meal", "book", "train"]
    rows = []
    for number in range(600):
        label = chance.randint(0, 1)
        said = [chance.choice(words[label]) for _ in range(2)]
        text = f"the {chance.choice(things)} is {said[0]} and the {chance.choice(things)} is {said[1]}"
        rows.append({"id": f"review-{number:03d}", "text": text, "label": label})
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


def word_ids(sample: dict[str, Any]) -> dict[str, Any]:
    """The `transform`: a text as the ids of its words, which are hashes in place of a vocabulary."""
    words = sample["txt"].lower().split()
    return {"ids": [zlib.crc32(word.encode()) % BUCKETS for word in words], "cls": sample["cls"]}


def joined(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The `collate`: the words of all texts in one tensor, where each text begins, and the classes [B]."""
    begins = torch.tensor([0] + [len(sample["ids"]) for sample in samples[:-1]]).cumsum(0)
    ids = torch.tensor([one for sample in samples for one in sample["ids"]])
    return {"ids": ids, "begins": begins, "cls": torch.tensor([sample["cls"] for sample in samples])}


class Classifier(nn.Module):
    """The mean of a text's words, and a linear layer: to logits [B, classes]."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(BUCKETS, width)
        self.head = nn.Linear(width, classes)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.head(self.words(batch["ids"], batch["begins"]))


def main() -> None:
    """Pack, train, and test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", help="a folder of save_to_disk; a small one is made without it")
    parser.add_argument("--text", default="text", help="the column of the text")
    parser.add_argument("--label", default="label", help="the column of the class, a number from 0")
    parser.add_argument("--key", default="id", help="the column that names a row; none: rows are numbered")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=24)
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="shardstream-") as folder:
        packed = ss.pack(
            datasets.load_from_disk(options.dataset) if options.dataset else reviews(),
            os.path.join(folder, "packed"),
            column={"txt": options.text, "cls": options.label},
            key=options.key,
            workers=1,
        )
        print(f"{packed.samples} rows packed, fields {[field.name for field in packed.fields]}")

        everything = ss.StreamingDataset(
            os.path.join(folder, "packed"), shuffle=ss.Shuffle(seed=0), transform=word_ids
        )
        # Columns that `keep` names at pack time can decide, too: where=lambda c: c["lang"] == "en".
        train = everything.subset(where=lambda columns: columns.number % 5 != 0)
        test = everything.subset(where=lambda columns: columns.number % 5 == 0)

        model = Classifier(options.classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
        loader = ss.StreamingLoader(train, batch_size=options.batch_size, collate=joined)
        for epoch in range(options.epochs):
            losses = []
            for batch in loader:
                loss = F.cross_entropy(model(batch), batch["cls"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            print(f"epoch {epoch}  loss {sum(losses) / len(losses):.3f}", flush=True)

        right = 0
        with torch.inference_mode():
            for batch in ss.StreamingLoader(test, batch_size=64, last="short", collate=joined):
                right += int((model(batch).argmax(1) == batch["cls"]).sum())
        print(f"{right} of {len(test)} texts that were held out are right")


if __name__ == "__main__":
    main()

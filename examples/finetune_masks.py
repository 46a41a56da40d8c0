"""Fine-tuning on chats: the loss masks are made in a transform, and a collate packs chats into rows.

    python examples/finetune_masks.py

Chats are packed as they are, as messages. What is trained on is decided when they are read: `transform` turns
a chat into token ids and labels, and only what the assistant says has a label. So another template or another
mask needs no new packing. `collate` puts several chats into each row of `--seq-len` tokens; a chat does not
see the others of its row. It prints the share of tokens with a label and of padding, and the loss.

With `--chats FILE` it trains on your own JSONL; a line is {"messages": [{"role": ..., "content": ...}, ...]}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shardstream as ss

# Token ids: the 256 bytes, then what begins a message of each role, its end, and padding.
ROLES = {"system": 256, "user": 257, "assistant": 258}
END, PAD, VOCAB = 259, 260, 261
IGNORED = -100  # the label that cross_entropy leaves out


def write_chats(path: str) -> None:
    """Chats to try it on: sums of small numbers."""
    chance = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(240):
            messages = [{"role": "system", "content": "You add numbers."}]
            for _ in range(chance.randint(1, 3)):
                one, two = chance.randint(0, 9), chance.randint(0, 9)
                messages.append({"role": "user", "content": f"What is {one} plus {two}?"})
                messages.append({"role": "assistant", "content": f"{one} plus {two} is {one + two}."})
            file.write(json.dumps({"id": f"chat-{number:03d}", "messages": messages}) + "\n")


def labelled(sample: dict[str, Any]) -> dict[str, Any]:
    """A chat as token ids, and the label of each token: its own id if the assistant says it, else IGNORED.

    This is the `transform`: the threads of the loader call it for each sample.
    """
    tokens: list[int] = []
    labels: list[int] = []
    for message in sample["json"]["messages"]:
        said = [*message["content"].encode(), END]
        trained = message["role"] == "assistant"
        # That the assistant begins is no choice of the model: it has no label.
        tokens += [ROLES[message["role"]], *said]
        labels += [IGNORED, *(said if trained else [IGNORED] * len(said))]
    return {"__key__": sample["__key__"], "tokens": tokens, "labels": labels}


class Rows:
    """The `collate`: packs the chats of a batch into as few rows as first-fit-decreasing finds.

    Args:
        length: T, the tokens of a row. What a chat has beyond it is cut off.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, chats: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows of a batch.

        Returns:
            "tokens" and "labels", int64 [rows, T]; "chat", int64 [rows, T], the number of the chat in its
            row, from 1, and 0 at padding; and the "__key__" of each chat.
        """
        rows: list[list[dict[str, Any]]] = []
        room: list[int] = []
        for chat in sorted(chats, key=lambda chat: -len(chat["tokens"])):
            size = min(len(chat["tokens"]), self.length)
            at = next((at for at, left in enumerate(room) if left >= size), len(rows))
            if at == len(rows):
                rows.append([])
                room.append(self.length)
            rows[at].append(chat)
            room[at] -= size
        shape = len(rows), self.length
        tokens, labels = torch.full(shape, PAD), torch.full(shape, IGNORED)
        number = torch.zeros(shape, dtype=torch.int64)
        for row, members in enumerate(rows):
            begin = 0
            for count, chat in enumerate(members, start=1):
                end = min(begin + len(chat["tokens"]), self.length)
                tokens[row, begin:end] = torch.tensor(chat["tokens"][: end - begin])
                labels[row, begin:end] = torch.tensor(chat["labels"][: end - begin])
                number[row, begin:end] = count
                begin = end
        return {
            "tokens": tokens,
            "labels": labels,
            "chat": number,
            "__key__": [one["__key__"] for one in chats],
        }


class Model(nn.Module):
    """One layer of attention that stays within a chat: int64 [R, T] to logits [R, T, VOCAB]."""

    def __init__(self, length: int, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(VOCAB, width)
        self.position = nn.Embedding(length, width)
        self.block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, VOCAB)

    def forward(self, tokens: Tensor, chat: Tensor) -> Tensor:
        length = tokens.shape[1]
        begins = torch.diff(chat, dim=1, prepend=chat[:, :1] - 1) != 0
        place = torch.arange(length).expand_as(chat)
        # Positions count from 0 in each chat, as they will when the model is used.
        place = place - torch.where(begins, place, 0).cummax(1).values
        hidden = (chat[:, :, None] != chat[:, None, :]) | torch.ones(length, length, dtype=torch.bool).triu(1)
        x = self.embed(tokens) + self.position(place)
        return self.head(self.block(x, src_mask=hidden.repeat_interleave(self.heads, 0)))


def main() -> None:
    """Pack chats as messages, and train on what the assistant says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", help="a JSONL file of yours; a small one is made without it")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16, help="chats of a batch")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens of a row")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="shardstream-") as folder:
        chats = options.chats or os.path.join(folder, "chats.jsonl")
        if not options.chats:
            write_chats(chats)
        # A line without a text is one field, json. `id` is the key.
        ss.pack(chats, os.path.join(folder, "chats"), format="jsonl", workers=1)

        dataset = ss.StreamingDataset(
            os.path.join(folder, "chats"), shuffle=ss.Shuffle(seed=0), transform=labelled
        )
        loader = ss.StreamingLoader(
            dataset, batch_size=options.batch_size, last="short", collate=Rows(options.seq_len)
        )
        model = Model(options.seq_len)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for epoch in range(options.epochs):
            total, count, held, real, keys = 0.0, 0, 0, 0, []
            for batch in loader:
                logits = model(batch["tokens"], batch["chat"])[:, :-1]
                labels = batch["labels"][:, 1:]
                trained = int((labels != IGNORED).sum())
                summed = F.cross_entropy(
                    logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
                )
                loss = summed / max(1, trained)  # the mean of a batch without labels would be NaN
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total, count = total + summed.item(), count + trained
                real, held = real + int((batch["chat"] > 0).sum()), held + batch["tokens"].numel()
                keys += batch["__key__"]
            print(
                f"epoch {epoch}  loss {total / max(1, count):.3f}, {len(keys)} chats, "
                f"{count} of {real} tokens have a label, padding {1 - real / held:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()

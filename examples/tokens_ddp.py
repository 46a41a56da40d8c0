"""Tokens into DDP: text is packed as token ids, and a small transformer trains on several ranks.

    torchrun --standalone --nproc-per-node 2 examples/tokens_ddp.py

Rank 0 packs a JSONL file with the tokenizer "bytes", which needs no file and no network. Then every rank
streams its own part of each global batch. It prints the loss of some steps, how many tokens a second were
trained on, and for how much of the time the loop waited for data. Any number of ranks of one machine works;
the data lies in a temporary folder of rank 0. `python examples/tokens_ddp.py` is one rank.

With `--corpus FILE` it trains on your own JSONL, one {"text": ...} a line. `--tokenizer tokenizer.json`
with `--vocab` and `--eos` takes the tokens of your model (extra: tokenize).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import shardstream as ss


def write_corpus(path: str) -> None:
    """A corpus to try it on: 400 short documents of simple sentences."""
    words = random.Random(0)
    who = ["the loader", "a shard", "the reader", "one rank", "the store"]
    does = ["reads", "packs", "sends", "keeps", "counts"]
    what = ["a frame", "some bytes", "the index", "every sample", "its tokens"]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(400):
            text = " ".join(
                f"{words.choice(who)} {words.choice(does)} {words.choice(what)}." for _ in range(12)
            )
            file.write(json.dumps({"id": number, "text": text}) + "\n")


class Transformer(nn.Module):
    """Predicts the next token: int64 [B, T] to logits [B, T, vocab]."""

    def __init__(self, vocab: int, length: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        return self.head(self.blocks(x, mask=self.mask, is_causal=True))


def train(options: argparse.Namespace, url: str) -> None:
    """Train on this rank's part of each batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same weights everywhere
    model = DistributedDataParallel(Transformer(options.vocab, options.seq_len))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    # The dataset asks torch.distributed for its rank: no sampler, and nothing else that would split it again.
    dataset = ss.TokenDataset(url, seq_len=options.seq_len, shuffle=ss.Shuffle(seed=0))
    loader = ss.StreamingLoader(dataset, batch_size=options.batch_size)
    if not len(loader):
        raise SystemExit("the corpus is too small for one batch: use a smaller --batch-size or --seq-len")

    step, started = 0, time.perf_counter()
    while step < options.steps:
        for batch in loader:  # one epoch; the next iteration is the next epoch, shuffled anew
            tokens = batch["tokens"]  # int64 [B, seq_len + 1]
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == 1 or step % 10 == 0 or step == options.steps:
                mean = loss.detach() / world
                dist.all_reduce(mean)
                if rank == 0:
                    print(f"step {step:3d}  loss {mean.item():.4f}", flush=True)
            if step == options.steps:
                break
    seconds = time.perf_counter() - started
    if rank == 0:
        rate = step * world * options.batch_size * options.seq_len / seconds
        waited = loader.stats()["wait_seconds"] / seconds
        print(f"{world} ranks, {rate:,.0f} tokens/s, waited for data {waited:.1%} of the time")


def main() -> None:
    """Pack on rank 0, then train on all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", help="a JSONL file of yours; a small one is made without it")
    parser.add_argument("--tokenizer", default="bytes", help="bytes, or a tokenizer.json")
    parser.add_argument("--vocab", type=int, default=257, help="token ids; 257: bytes and the end token")
    parser.add_argument("--eos", type=int, default=256, help="the id of the end token")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8, help="blocks of a batch of one rank")
    parser.add_argument("--seq-len", type=int, default=64)
    options = parser.parse_args()

    # torchrun stops ranks by SIGTERM: leave as at Ctrl-C, so that the temporary folder goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)  # the ranks share the cores of this machine
    if "RANK" in os.environ:
        dist.init_process_group("gloo")  # "nccl" on GPUs
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with tempfile.TemporaryDirectory(prefix="shardstream-") as folder:
            place = [os.path.join(folder, "tokens")]
            if dist.get_rank() == 0:
                corpus = options.corpus or os.path.join(folder, "corpus.jsonl")
                if not options.corpus:
                    write_corpus(corpus)
                packed = ss.pack(
                    corpus, place[0], format="jsonl", tokenizer=options.tokenizer, eos=options.eos, workers=1
                )
                print(
                    f"{packed.tokens:,} tokens of {packed.samples:,} documents, {packed.bytes:,} bytes packed"
                )
            # The other ranks wait here until the data is there, and learn where it is.
            dist.broadcast_object_list(place)
            train(options, place[0])
            dist.barrier()  # rank 0 deletes the data when all are done with it
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

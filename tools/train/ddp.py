"""Train a small transformer on tokens with DDP; run it again after any kill, and it goes on.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tools/train/ddp.py \
        --data DATASET --out DIR --steps 100 --save-every 10 [--precision bf16|fp16|fp32] [--plot loss.png]

DATASET is packed with --tokenizer (bytes, or a BPE file, whose size --vocab then is). On GPUs it is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from loop import on_this_rank, token_arguments, tokens, train
from model import Transformer, next_token_loss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import shardstream as ss


def main() -> None:
    options = token_arguments(__doc__ or "").parse_args()

    def work(device: torch.device) -> None:
        torch.manual_seed(options.seed)
        bare = Transformer(options.vocab, options.seq_len, options.width, options.layers).to(device)
        model = DistributedDataParallel(bare, device_ids=[device.index] if device.type == "cuda" else None)
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
        loader = tokens(options, ss.Topology.detect())

        def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
            return next_token_loss(model, batch["tokens"].to(device, non_blocking=True))

        train(options, device, model, optimizer, loader, loss_of, count, "tokens")

    on_this_rank(work)


def count(batch: dict[str, Any]) -> int:
    return batch["tokens"][:, 1:].numel()


if __name__ == "__main__":
    main()

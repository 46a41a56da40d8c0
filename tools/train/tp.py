"""Train the same transformer on a mesh: tensor parallel within a row, FSDP2 over the rows.

    python -m torch.distributed.run --standalone --nproc-per-node 4 tools/train/tp.py \
        --data DATASET --out DIR --tp 2 [--broadcast] [--precision bf16|fp32]

The ranks of one row ("tp") hold parts of the same layers and so need the same batch; only rows ("dp") split
the data. Each rank reads its batch, or with --broadcast one of each row reads for all of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from loop import on_this_rank, token_arguments, tokens, train
from model import Transformer, next_token_loss
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import shardstream as ss

# Columns are heads: each rank attends with its own, and the product that follows sums over them.
PLAN = {
    "query": ColwiseParallel(),
    "key": ColwiseParallel(),
    "value": ColwiseParallel(),
    "project": RowwiseParallel(),
    "mlp.0": ColwiseParallel(),
    "mlp.2": RowwiseParallel(),
}


def shard(model: Transformer, mesh: DeviceMesh, precision: str) -> nn.Module:
    """The model with its layers cut along "tp", and all parameters kept in parts along "dp"."""
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], PLAN)
    # Gradients are summed in fp32 whatever they were computed in.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None, reduce_dtype=torch.float32
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh["dp"], mp_policy=policy)
    return fully_shard(model, mesh=mesh["dp"], mp_policy=policy)


def main() -> None:
    parser = token_arguments(__doc__ or "")
    parser.add_argument("--tp", type=int, default=2, help="tensor-parallel ranks; heads are 4")
    parser.add_argument("--broadcast", action="store_true", help="one rank of each row reads for all of it")
    options = parser.parse_args()
    if options.precision == "fp16":
        # GradScaler looks at all gradients at once, and these are on two kinds of mesh.
        parser.error("tp.py computes in bf16 or fp32")

    def work(device: torch.device) -> None:
        shape = (dist.get_world_size() // options.tp, options.tp)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("dp", "tp"))
        torch.manual_seed(options.seed)
        bare = Transformer(options.vocab, options.seq_len, options.width, options.layers).to(device)
        model = shard(bare, mesh, options.precision)
        # One parameter after the other: those on "dp" alone and those on both do not mix in one call.
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, foreach=False)
        loader = tokens(options, ss.Topology.from_mesh(mesh), "tp" if options.broadcast else None)

        def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
            return next_token_loss(model, batch["tokens"].to(device, non_blocking=True))

        def count(batch: dict[str, Any]) -> int:
            # A row's tokens count once.
            return batch["tokens"][:, 1:].numel() if mesh.get_local_rank("tp") == 0 else 0

        train(options, device, model, optimizer, loader, loss_of, count, "tokens")

    on_this_rank(work)


if __name__ == "__main__":
    main()

"""Slices of DTensors in real processes: FSDP2, tensor parallelism and both, even and uneven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.distributed import launch

WIDTH, INNER = 37, 101  # which no number of ranks divides


def whole_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {
        "up.weight": torch.randn(INNER, WIDTH), "up.bias": torch.randn(INNER),
        "down.weight": torch.randn(WIDTH, INNER), "down.bias": torch.randn(WIDTH),
        "norm.weight": torch.randn(WIDTH), "norm.bias": torch.randn(WIDTH),
    }  # fmt: skip


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(WIDTH, INNER), torch.nn.Linear(INNER, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.down(torch.relu(self.up(batch))))
        return out


def parallel(kind: str, size: int, meta: bool, dtype: str, folder: str) -> list[Any]:
    """The names of the parameters of which a rank has other numbers than the file."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    import shardstream as ss

    with launch.group() as dist:
        tensor = {"fsdp": 1, "tp": size, "both": 2}[kind]
        mesh = init_device_mesh("cpu", (size // tensor, tensor), mesh_dim_names=("dp", "tp"))
        with torch.device("meta" if meta else "cpu"):
            model = Block().to(getattr(torch, dtype))
        if tensor > 1:
            parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if kind != "tp":
            fully_shard(model, mesh=mesh["dp"])
        ss.load_into(model, folder)
        state = whole_state()
        wrong = []
        for name, parameter in model.named_parameters():
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if not torch.equal(full.detach(), state[name].to(full.dtype)):
                wrong.append(name)
        if kind == "fsdp":  # it works with the parameters that were put in the place of its own
            output = model(torch.ones(2, WIDTH, dtype=getattr(torch, dtype)))
            wrong += [] if torch.isfinite(output).all() else ["output"]
        del dist
    return wrong


@pytest.mark.parametrize(
    ("kind", "size", "meta", "dtype"),
    [
        ("fsdp", 2, True, "float32"), ("tp", 2, False, "bfloat16"), ("both", 4, True, "float32"),
        pytest.param("fsdp", 4, False, "bfloat16", marks=pytest.mark.long),
        pytest.param("tp", 4, True, "float32", marks=pytest.mark.long),
        pytest.param("both", 4, False, "bfloat16", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_each_rank_has_its_slices(tmp_path: Path, kind: str, size: int, meta: bool, dtype: str) -> None:
    save_file(whole_state(), tmp_path / "model.safetensors")
    assert launch.run(parallel, size, tmp_path / "job", kind, size, meta, dtype, str(tmp_path)) == [[]] * size


def sharded(dimensions: list[list[int]], size: int, folder: str) -> list[int]:
    """Plain DTensors of three dimensions, sharded on each; how many bytes were asked for."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    import shardstream as ss

    with launch.group():
        mesh = init_device_mesh("cpu", (size // 2, 2))
        torch.manual_seed(0)
        for first, second in dimensions:
            placements = [Replicate() if dim < 0 else Shard(dim) for dim in (first, second)]
            whole = torch.arange(6 * 7 * 9, dtype=torch.int32).reshape(6, 7, 9)
            model = torch.nn.Module()
            empty = distribute_tensor(torch.zeros_like(whole), mesh, placements)
            model.register_buffer("w", empty)
            ss.load_into(model, folder)
            assert torch.equal(empty.full_tensor(), whole), (first, second)
    return [1]


def test_every_dimension(tmp_path: Path) -> None:
    save_file({"w": torch.arange(6 * 7 * 9, dtype=torch.int32).reshape(6, 7, 9)}, tmp_path / "m.safetensors")
    dimensions = [[0, 0], [0, 1], [1, 0], [2, 1], [-1, 2], [1, -1], [-1, -1], [2, 2]]
    assert launch.run(sharded, 4, tmp_path / "job", dimensions, 4, str(tmp_path)) == [[1]] * 4

"""Real ranks with gloo: shards saved by so many ranks and loaded by others, FSDP2 x TP, and failures."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import shardstream as ss
from tests.distributed.launch import DEADLINE, call, group, run

WORLDS = [1, 2, 4]


def tensors() -> dict[str, torch.Tensor]:
    """Whole tensors, the same on all ranks."""
    numbers = torch.Generator().manual_seed(7)
    return {
        "rows": torch.randn(37, 5, generator=numbers),
        "columns": torch.randn(6, 11, generator=numbers),
        "small": torch.randn(3, generator=numbers),
        "one": torch.randn(1, 4, generator=numbers).bfloat16(),
        "replicated": torch.randn(9, generator=numbers),
        "grid": torch.randn(10, 14, generator=numbers),
        "deep": torch.randn(4, 7, 3, generator=numbers),
    }


def sharded(world: int, filled: bool) -> dict[str, Any]:
    """DTensors of these tensors, sharded by each dimension, and what is no DTensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, world // 2)) if world > 1 else None
    placements = {"rows": 0, "columns": 1, "small": 0, "one": 0, "deep": 1}
    state: dict[str, Any] = {}
    for name, tensor in tensors().items():
        tensor = tensor if filled else torch.zeros_like(tensor)
        if name == "grid" and grid is not None:
            state[name] = distribute_tensor(tensor, grid, [Shard(0), Shard(1)])
        elif name in placements:
            state[name] = distribute_tensor(tensor, mesh, [Shard(placements[name])])
        else:
            state[name] = distribute_tensor(tensor, mesh, [Replicate()])
    plain = tensors()["grid"] * 2
    state["plain"] = plain if filled else torch.zeros_like(plain)
    state["objects"] = (
        {"step": 5, "lr": 0.1, "betas": (0.9, 0.99)} if filled else {"step": 0, "lr": 0.0, "betas": None}
    )
    return state


def save_sharded(folder: str, how: str, local: str | None) -> int:
    import torch.distributed.checkpoint as dcp

    with group() as dist:
        rank, world = dist.get_rank(), dist.get_world_size()
        writer = ss.dcp.Writer(folder, local=None if local is None else f"{local}-{rank}")
        state = sharded(world, filled=True)
        if how == "async":
            future = dcp.async_save(state, storage_writer=writer)
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_() if not hasattr(value, "to_local") else value.to_local().zero_()
            future.result()
        else:
            dcp.save(state, storage_writer=writer)
        writer.wait()
        return rank


def load_sharded(folders: list[str]) -> list[int]:
    import torch.distributed.checkpoint as dcp

    read = []
    with group() as dist:
        for folder in folders:
            state = sharded(dist.get_world_size(), filled=False)
            reader = ss.dcp.Reader(folder)
            dcp.load(state, storage_reader=reader)
            read.append(reader.bytes_read)
            expected = sharded(dist.get_world_size(), filled=True)
            for name, value in expected.items():
                if hasattr(value, "to_local"):
                    assert torch.equal(state[name].to_local(), value.to_local()), (folder, name)
                elif isinstance(value, torch.Tensor):
                    assert torch.equal(state[name], value), (folder, name)
                else:
                    assert state[name] == value, (folder, name)
    return read


@pytest.mark.parametrize(
    ("how", "worlds"),
    [("sync", WORLDS), ("async", [2]), pytest.param("async", WORLDS, marks=pytest.mark.long)],
    ids=["sync", "async", "async, all"],
)
def test_any_number_of_ranks_loads_what_any_other_saved(tmp_path: Path, how: str, worlds: list[int]) -> None:
    folders = []
    for world in worlds:
        folders.append(str(tmp_path / f"of-{world}"))
        assert run(save_sharded, world, tmp_path / f"save-{world}", folders[-1], how, None) == list(
            range(world)
        )
        writers = {file.name[:10] for file in Path(folders[-1]).glob("*/*.safetensors")}
        assert len(writers) == world
    for world in worlds:
        run(load_sharded, world, tmp_path / f"load-{world}", folders)


def test_each_rank_has_a_disk_of_its_own(tmp_path: Path) -> None:
    run(save_sharded, 2, tmp_path / "save", str(tmp_path / "far"), "sync", str(tmp_path / "near"))
    run(load_sharded, 2, tmp_path / "load", [str(tmp_path / "far")])
    assert all(list(tmp_path.glob(f"near-{rank}/far-*/*/*.safetensors")) for rank in range(2))


def trained(shape: tuple[int, ...], seed: int) -> tuple[Any, Any]:
    """A model, FSDP2 x tensor parallel as far as the shape says, and an optimizer after one step."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.ReLU(), torch.nn.Linear(20, 6))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01 * seed)
    torch.manual_seed(0)
    model(torch.randn(8, 12)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def whole(state: Any) -> Any:
    if hasattr(state, "full_tensor"):
        return state.full_tensor()
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    return state


def train_and_save(shape: tuple[int, int], folder: str, truth: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    with group() as dist:
        model, optimizer = trained(shape, 1)
        model_state, optim_state = get_state_dict(model, optimizer)
        dcp.save({"model": model_state, "optim": optim_state}, storage_writer=ss.dcp.Writer(folder))
        full = whole({"model": model_state, "optim": optim_state})
        if dist.get_rank() == 0:
            torch.save(full, truth)


def load_and_compare(shape: tuple[int, int], folder: str, truth: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    with group():
        model, optimizer = trained(shape, 2)
        model_state, optim_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optim": optim_state}
        dcp.load(state, storage_reader=ss.dcp.Reader(folder))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        found = whole(dict(zip(("model", "optim"), get_state_dict(model, optimizer), strict=True)))
        expected = torch.load(truth, weights_only=True)
        for name, value in expected["model"].items():
            assert torch.equal(found["model"][name], value), name
        for name, values in expected["optim"]["state"].items():
            for key, value in values.items():
                assert torch.equal(found["optim"]["state"][name][key], value), (name, key)
        assert found["optim"]["param_groups"][0]["lr"] == 0.01


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ((2, 2), (1, 2)),
        ((1, 1), (2, 2)),
        pytest.param((2, 2), (4, 1), marks=pytest.mark.long),
        pytest.param((2, 1), (2, 2), marks=pytest.mark.long),
    ],
)
def test_fsdp2_with_tensor_parallelism(tmp_path: Path, saved: Any, loaded: Any) -> None:
    place, truth = str(tmp_path / "step-1"), str(tmp_path / "truth.pt")
    run(train_and_save, saved[0] * saved[1], tmp_path / "save", saved, place, truth)
    run(load_and_compare, loaded[0] * loaded[1], tmp_path / "load", loaded, place, truth)


def save_where_one_fails(folder: str, how: str) -> str:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    with group() as dist:
        state = sharded(dist.get_world_size(), filled=True)
        if dist.get_rank() == 1 and how == "planner":

            class Fails(dcp.DefaultSavePlanner):
                def resolve_data(self, write_item: Any) -> Any:
                    raise OSError("the memory is broken")

            planner: Any = Fails()
        else:
            planner = dcp.DefaultSavePlanner()
        if dist.get_rank() == 1 and how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            dcp.save(state, storage_writer=ss.dcp.Writer(folder), planner=planner)
        except CheckpointException as error:
            return str(error)
        return "saved"


def test_an_error_of_a_rank_is_raised_by_all(tmp_path: Path) -> None:
    found = run(save_where_one_fails, 2, tmp_path / "ranks", str(tmp_path / "one"), "planner")
    assert all("the memory is broken" in text for text in found)
    assert not (tmp_path / "one" / "manifest.json").exists()


def test_a_rank_that_dies_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    old = str(tmp_path / "of-2")
    run(save_sharded, 2, tmp_path / "save", old, "sync", None)
    with call(save_where_one_fails, 2, tmp_path / "ranks", str(tmp_path / "new"), "dies") as ranks:
        assert -signal.SIGKILL in ranks.wait(DEADLINE)
    assert not (tmp_path / "new" / "manifest.json").exists()
    run(load_sharded, 2, tmp_path / "load", [old])


def overwrite(folder: str) -> str:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    with group() as dist:
        try:
            dcp.save(sharded(dist.get_world_size(), filled=False), storage_writer=ss.dcp.Writer(folder))
        except CheckpointException as error:
            return str(error)
        return "saved"


def test_all_ranks_hear_that_a_checkpoint_exists(tmp_path: Path) -> None:
    folder = str(tmp_path / "of-2")
    run(save_sharded, 2, tmp_path / "save", folder, "sync", None)
    assert all("never overwritten" in text for text in run(overwrite, 2, tmp_path / "again", folder))
    run(load_sharded, 2, tmp_path / "load", [folder])


def load_rank_of_8(url: str, options: dict[str, Any] | None, shapes: dict[str, list[int]]) -> list[int]:
    """What rank 3 of 8 reads: a process group that only says so."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    mesh = init_device_mesh("cpu", (8,))
    state = {
        name: DTensor.from_local(torch.zeros(size[0] // 8, *size[1:]), mesh, [Shard(0)], run_check=False)
        for name, size in shapes.items()
    }
    reader = ss.dcp.Reader(url, storage_options=options)
    dcp.load(state, storage_reader=reader, no_dist=True)
    for number, (name, size) in enumerate(shapes.items()):
        rows = size[0] // 8
        expected = torch.arange(3 * rows, 4 * rows, dtype=torch.float32)[:, None] + number
        assert torch.equal(state[name].to_local(), expected.expand(rows, *size[1:])), name
    return [reader.bytes_read, sum(value.to_local().nbytes for value in state.values())]


def whole_rows(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {
        name: (torch.arange(size[0], dtype=torch.float32)[:, None] + number).expand(*size).contiguous()
        for number, (name, size) in enumerate(shapes.items())
    }


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
@pytest.mark.parametrize("how", ["ours", "torch"])
def test_a_rank_of_8_reads_an_eighth(tmp_path: Path, weed: Any, proxy_to: Any, how: str) -> None:
    import torch.distributed.checkpoint as dcp

    shapes = {"a": [4096, 2048], "b": [4096, 1024], "c": [8192, 512]}
    proxy = proxy_to(weed)
    url, options = weed.bucket(), weed.options(proxy.url)
    state = whole_rows(shapes)
    if how == "ours":
        dcp.save(state, storage_writer=ss.dcp.Writer(url, storage_options=options), no_dist=True)
    else:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        dcp.save(state, storage_writer=FsspecWriter(url, **weed.options()), no_dist=True)
    proxy.reset_counts()
    (found,) = run(load_rank_of_8, 1, tmp_path / "rank", url, options, shapes)
    total = sum(tensor.nbytes for tensor in state.values())
    assert proxy.counts.body_bytes <= 0.13 * total + (64 << 10)
    assert found[0] <= 0.13 * total + (64 << 10)

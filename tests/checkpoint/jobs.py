"""What the ranks of a job do in the tests of checkpoints; each function is one job."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import shardstream as ss
from shardstream.checkpoint.tensors import pieces_of
from shardstream.errors import ShardstreamError
from tests.distributed import launch

__all__ = ["Net", "built", "load", "save"]


class Net(nn.Module):
    """Layers whose sizes no number of ranks divides, and layers whose sizes all of them divide."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.up = nn.Linear(8, 24)
        self.down = nn.Linear(24, 8)
        self.odd = nn.Linear(8, 7)
        self.last = nn.Linear(7, 5, bias=False)
        self.register_buffer("counts", torch.arange(7))


def values(name: str, shape: Any) -> torch.Tensor:
    """The content of a tensor: other numbers for each name."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32) + 1000 * (len(name) + 7 * sum(name.encode()))).reshape(
        shape
    )


def built(mode: str, filled: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model as a mode shards it, and its optimizer, which has taken a step if they are filled."""
    model = Net()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            tensor.copy_(values(name, tensor.shape)) if filled else tensor.zero_()
    model = sharded(model, mode)
    optim = torch.optim.AdamW(model.parameters(), lr=0.5 if filled else 9.0)
    if filled:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        group = optim.param_groups[0]
        group["lr"], group["weight_decay"] = 0.0, 0.0
        optim.step()
        group["lr"], group["weight_decay"] = 0.5, 0.01
        for name, parameter in model.named_parameters():
            name = name.removeprefix("module.")
            for key in ("exp_avg", "exp_avg_sq"):
                fill(optim.state[parameter][key], f"{name}/{key}")
    return model, optim


def fill(tensor: torch.Tensor, name: str) -> None:
    """Give a tensor, which may be sharded, its content."""
    whole = values(name, tensor.shape)
    for data, box in pieces_of(tensor, name):
        place = tuple(slice(a, a + n) for a, n in zip(box.offsets, box.shape, strict=True))
        data.copy_(whole[place])


def sharded(model: nn.Module, mode: str) -> nn.Module:
    """The model as "plain", "ddp", "fsdp", "tp", "fsdp-tp" or "hsdp" have it on all ranks."""
    if mode == "plain":
        return model
    if mode == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    size = torch.distributed.get_world_size()
    if mode == "hsdp":
        return fully_shard(model, mesh=init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("r", "s")))
    tp = {"fsdp": 1, "tp": size, "fsdp-tp": 2}[mode]
    mesh = init_device_mesh("cpu", (size // tp, tp), mesh_dim_names=("dp", "tp"))
    if tp > 1:
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel(), "odd": ColwiseParallel()}
        model = parallelize_module(model, mesh["tp"], plan)
    if mode != "tp":
        fully_shard(model, mesh=mesh["dp"])
    return model


def locals_of(model: nn.Module, optim: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What a rank has of each tensor."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        name = name.removeprefix("module.")
        tensors = {name: tensor} | {
            f"{name}/{key}": each for key, each in optim.state.get(tensor, {}).items()
        }
        for key, each in tensors.items():
            pieces = pieces_of(each, key)
            found[key] = pieces[0].data.clone() if pieces else torch.empty(0)
    return found


def save(url: str, mode: str, step: int) -> bool:
    """Save a filled model."""
    with launch.group():
        model, optim = built(mode, True)
        saves = ss.Checkpoints(url, memory="32MiB")
        saved = saves.save(step, {"model": model, "optim": optim, "extra": {"n": 3}})
        saves.wait()
        return saved


def load(url: str, mode: str) -> dict[str, Any]:
    """Load into an empty model; every tensor has to be as torch shards the filled one."""
    with launch.group():
        expected = locals_of(*built(mode, True))
        model, optim = built(mode, False)
        state = {"model": model, "optim": optim, "extra": None}
        step = ss.Checkpoints(url).load(state)
        found = locals_of(model, optim)
        assert set(found) == set(expected), set(found) ^ set(expected)
        wrong = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
        assert not wrong, wrong
        assert optim.param_groups[0]["lr"] == 0.5
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optim.step()  # as with any other optimizer
        return {"step": step, "extra": state["extra"]}


def outcome(work: Any) -> str:
    """ "done", "skipped", or the error of a call."""
    try:
        return "done" if work() else "skipped"
    except ShardstreamError as error:
        return f"{type(error).__name__}: {error}"


def disagreeing(url: str) -> dict[str, str]:
    """Saves that the ranks must refuse or skip together."""
    with launch.group() as dist:
        rank = dist.get_rank()
        saves = ss.Checkpoints(url)
        found = {}
        found["step"] = outcome(lambda: saves.save(-5 * rank, {"x": 1}))
        busy: Any = "never" if rank else "skip"
        found["busy"] = outcome(lambda: saves.save(1, {"x": 1}, busy=busy))
        found["steps"] = outcome(lambda: saves.save(rank, {"x": 1}))
        found["values"] = outcome(lambda: saves.save(1, {"x": {"y": rank}}))
        found["tensors"] = outcome(lambda: saves.save(1, {"rng": torch.full((8,), rank)}))
        found["shapes"] = outcome(lambda: saves.save(1, {"x": torch.zeros(rank + 1)}))
        found["pickle"] = outcome(lambda: saves.save(1, {"x": object() if rank == 1 else 1}))
        alone = {"rng": torch.full((8,), rank), "array": np.full(3, rank)}
        found["saved"] = outcome(lambda: saves.save(1, {"x": 1}, per_rank=alone))
        saves.wait()
        own = {"rng": torch.zeros(8, dtype=torch.int64)}
        found["loaded"] = outcome(lambda: saves.load({"x": 0}, per_rank=own))
        found["own"] = str(own["rng"].eq(rank).all().item())
        found["again"] = outcome(lambda: saves.save(1, {"x": 1}))
        return found


def failing(url: str) -> dict[str, str]:
    """The last rank cannot write a part: every rank has the error at its next call, and goes on."""
    with launch.group() as dist:
        rank, size = dist.get_rank(), dist.get_world_size()
        run, mine = Path(url), Path(f"{url}-of-{rank}")
        run.mkdir(exist_ok=True)
        mine.symlink_to(run)
        saves = ss.Checkpoints(str(mine), memory="32MiB")
        state = {"x": {f"t{n}": torch.full((300_000,), n) for n in range(2 * size)}}
        found = {"first": outcome(lambda: saves.save(1, state))}
        saves.wait()
        if rank == size - 1:
            mine.unlink()
            mine.write_text("a file where a folder should be")
        found["second"] = outcome(lambda: saves.save(2, state))
        if rank == size - 1:
            saves._saver.flight.writer.wait()  # type: ignore[union-attr]
        dist.barrier()  # the first rank still waits for the part that cannot come
        found["third"] = outcome(lambda: saves.save(3, state))
        mine.unlink()
        mine.symlink_to(run)
        found["fourth"] = outcome(lambda: saves.save(4, state))
        saves.wait()
        found["steps"] = str(saves.steps())
        return found


def dying(url: str) -> None:
    """The last rank dies while the others save."""
    with launch.group() as dist:
        saves = ss.Checkpoints(url, patience=2.0)
        state = {"x": {f"t{n}": torch.full((300_000,), n) for n in range(8)}}
        saves.save(1, state)
        saves.wait()
        dist.barrier()
        if dist.get_rank() == dist.get_world_size() - 1:

            class Deadly:
                def state_dict(self) -> dict[str, Any]:
                    time.sleep(0.2)
                    os.kill(os.getpid(), signal.SIGKILL)
                    return {}

                def load_state_dict(self, state: Any) -> None: ...

            saves.save(2, {**state, "y": Deadly()})
        saves.save(2, {**state, "y": {}})


def resumed(url: str, tensors: int = 8) -> dict[str, Any]:
    """Load what is there, on all ranks, and say what was skipped."""
    with launch.group():
        saves = ss.Checkpoints(url)
        state = {"x": {f"t{n}": torch.zeros(300_000, dtype=torch.int64) for n in range(tensors)}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = saves.load(state)
        assert all(bool(state["x"][f"t{n}"].eq(n).all()) for n in range(tensors))
        return {"step": step, "skipped": saves.skipped}


def spread() -> dict[str, Any]:
    """Tensors of which every rank of a job writes some."""
    return {f"t{n}": torch.full((300_000,), n) for n in range(8)}


def killed(url: str, local: str, options: dict[str, Any], steps: list[int]) -> None:
    """Save, the last step while the store does not answer; each rank is killed once its part is on its disk.

    `local` may have the number of the rank, as if each rank had a machine of its own.
    """
    with launch.group() as dist:
        rank = dist.get_rank()
        saves = ss.Checkpoints(url, local=local.format(rank=rank), storage_options=options)
        for step in steps[:-1]:
            saves.save(step, {"x": spread()}, busy="wait")
        saves.wait()
        dist.barrier()
        Path(f"{local.format(rank='')}-ready-{rank}").touch()
        while not Path(f"{local.format(rank='')}-go").exists():
            time.sleep(0.01)
        saves.save(steps[-1], {"x": spread()}, per_rank={"rank": rank})
        flight = saves._saver.flight
        assert flight is not None
        assert flight.writer.stored(60)
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)


def goes_on(url: str, local: str, options: dict[str, Any], step: int | None = None) -> dict[str, Any]:
    """Load what is there, or save a step at once; what there is then."""
    with launch.group() as dist:
        rank = dist.get_rank()
        saves = ss.Checkpoints(url, local=local.format(rank=rank), storage_options=options)
        own: dict[str, Any] = {"rank": None}
        if step is not None:
            assert saves.save(step, {"x": spread()})
            assert saves.wait()
        dist.barrier()
        state = {"x": {name: torch.zeros_like(value) for name, value in spread().items()}}
        found = saves.load(state, per_rank=own)
        assert all(torch.equal(state["x"][name], value) for name, value in spread().items())
        return {"step": found, "steps": saves.steps(), "own": own["rank"]}


def resharded(folder: str) -> list[dict[str, Any]]:
    """Save and load in several layouts, within one job: values are compared, and the bytes that were read."""
    from benchmarks import resharding

    with launch.group():
        return resharding.job(folder, 24 << 20, (1, 3))


def damaged_exchange(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Load replicas that all ranks read together from a store, the newest of which is damaged."""
    with launch.group() as dist:
        saves = ss.Checkpoints(url, storage_options=options)
        state = {"x": torch.arange(1 << 20).reshape(1024, 1024)}
        for step in (1, 2):
            saves.save(step, state, busy="wait")
        saves.wait()
        dist.barrier()
        if dist.get_rank() == 0:
            from shardstream.storage.store import Store

            folder, manifest = Store.open(f"{url}/step-2", options), saves.manifest(2)
            path = manifest.path(manifest.files[0])
            data = bytearray(folder.read(path))
            data[-1] ^= 1
            folder.write(path, bytes(data))
        dist.barrier()
        fresh = {"x": torch.zeros(1024, 1024, dtype=torch.int64)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = ss.Checkpoints(url, storage_options=options)
            step = again.load(fresh)
        assert torch.equal(fresh["x"], state["x"])
        reasons = [each.reason for each in again.skipped]
        size = again._loading.bytes_read
        with torch.inference_mode(dist.get_rank() == 1):  # nothing can be copied into such a tensor later
            fixed = {"x": torch.zeros(1024, 1024, dtype=torch.int64)}
        try:
            again.load(fixed, step=1)
            error = "none"
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        dist.barrier()
        saved = again.save(2, {"x": state["x"] + 1}) and again.wait()
        whole = again.load(fresh) == 2 and torch.equal(fresh["x"], state["x"] + 1)
        found = {"again": saved and whole, "twice": outcome(lambda: again.save(2, state))}
        return {"step": step, "read": size, "skipped": reasons, "error": error, **found}

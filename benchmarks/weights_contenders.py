"""The contenders of the benchmark of weights, each in a process of its own, and the model that they load."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["BLOCK", "LOADS", "RANKS", "child", "make_model"]

RANKS = 8
BLOCK = 8 << 20


def raw(folder: str, where: dict[str, Any]) -> Any:
    """The bytes of the file by four threads into one buffer: what the machine can do."""
    import torch

    path = f"{folder}/model.safetensors"
    size = os.path.getsize(path)
    room = torch.empty(size, dtype=torch.uint8)
    view = room.numpy().data
    file = os.open(path, os.O_RDONLY)

    def read(at: int, end: int) -> None:
        while at < end:
            at += os.preadv(file, [view[at : min(end, at + BLOCK)]], at)

    part = -(-size // 4)
    threads = [
        threading.Thread(target=read, args=(number * part, min(size, (number + 1) * part)))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return room


def bare_obstore(folder: str, where: dict[str, Any]) -> Any:
    """The bytes of the object by obstore's own call, 16 ranges at a time."""
    from concurrent.futures import ThreadPoolExecutor

    import obstore
    import torch

    store = _obstore(where)
    size = obstore.head(store, "model.safetensors")["size"]
    room = torch.empty(size, dtype=torch.uint8)
    view = room.numpy().data

    def read(start: int) -> None:
        end = min(size, start + BLOCK)
        view[start:end] = memoryview(obstore.get_range(store, "model.safetensors", start=start, end=end))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(0, size, BLOCK)))
    return room


def _obstore(where: dict[str, Any]) -> Any:
    from obstore.store import S3Store

    bucket, _, prefix = where["url"].removeprefix("s3://").partition("/")
    return S3Store(
        bucket, prefix=prefix, client_options={"allow_http": True},
        config={
            "access_key_id": where["key"], "secret_access_key": where["secret"],
            "endpoint": where["endpoint"], "region": "us-east-1",
        },
    )  # fmt: skip


def _options(where: dict[str, Any]) -> dict[str, Any] | None:
    if not where:
        return None
    return {"key": where["key"], "secret": where["secret"], "endpoint_url": where["endpoint"]}


def ours(folder: str, where: dict[str, Any]) -> Any:
    import shardstream as ss

    return ss.load_weights(where.get("url") or f"{folder}/model.safetensors", storage_options=_options(where))


def ours_checked(folder: str, where: dict[str, Any]) -> Any:
    import shardstream as ss

    return ss.load_weights(where.get("url") or folder, storage_options=_options(where))


def safetensors_copy(folder: str, where: dict[str, Any]) -> Any:
    """As models get their weights: mapped, and copied into the parameters."""
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(f"{folder}/model.safetensors").items()}


def safetensors_pread(folder: str, where: dict[str, Any]) -> Any:
    """By safetensors 0.9 or later: read into memory, not mapped."""
    from safetensors.torch import load_file

    return load_file(f"{folder}/model.safetensors", backend="pread")


def torch_load(folder: str, where: dict[str, Any]) -> Any:
    import torch

    return torch.load(f"{folder}/model.pt", weights_only=True)


def runai(folder: str, where: dict[str, Any]) -> Any:
    from runai_model_streamer import SafetensorsStreamer

    if where:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": where["key"], "AWS_SECRET_ACCESS_KEY": where["secret"],
            "AWS_ENDPOINT_URL": where["endpoint"], "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
    with SafetensorsStreamer() as streamer:
        streamer.stream_file(f"{where.get('url') or folder}/model.safetensors")
        return {name: tensor.clone() for name, tensor in streamer.get_tensors()}


def fastsafetensors(folder: str, where: dict[str, Any]) -> Any:
    from fastsafetensors import fastsafe_open

    with fastsafe_open(filenames=[f"{folder}/model.safetensors"], nogds=True, device="cpu") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict


def s3torchconnector(folder: str, where: dict[str, Any]) -> Any:
    from s3torchconnector import S3Checkpoint, S3ClientConfig
    from safetensors.torch import load

    os.environ |= {"AWS_ACCESS_KEY_ID": where["key"], "AWS_SECRET_ACCESS_KEY": where["secret"]}
    checkpoint = S3Checkpoint(
        region="us-east-1", endpoint=where["endpoint"], s3client_config=S3ClientConfig(force_path_style=True)
    )
    with checkpoint.reader(f"{where['url']}/model.safetensors") as reader:
        return load(reader.read())


def fetch_load(folder: str, where: dict[str, Any]) -> Any:
    """Our download to a disk, and safetensors from there."""
    from safetensors.torch import load_file

    import shardstream as ss

    path = ss.fetch_weights(where["url"], where["cache"], storage_options=_options(where))
    return {name: tensor.clone() for name, tensor in load_file(f"{path}/model.safetensors").items()}


LOADS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "raw preadv": raw, "bare obstore": bare_obstore, "ours": ours, "ours, checksums": ours_checked,
    "safetensors 0.8 + copy": safetensors_copy, "safetensors 0.9 pread": safetensors_pread,
    "torch.load": torch_load, "runai": runai, "fastsafetensors": fastsafetensors,
    "s3torchconnector": s3torchconnector, "fetch + safetensors": fetch_load,
}  # fmt: skip


def child(name: str, folder: str, where: dict[str, Any]) -> dict[str, Any]:
    """One load in this process; what it took."""
    import numpy  # noqa: F401 - imports are not measured
    import safetensors.torch  # noqa: F401
    import torch

    if name == "slice":
        return slice_of_rank(where)
    if "ours" in name or "fetch" in name:
        import shardstream.weights.fetch
        import shardstream.weights.load
        import shardstream.weights.tensors  # noqa: F401
    if where:
        import obstore.store  # noqa: F401
    memory = _peak()
    cpu, started = time.process_time(), time.perf_counter()
    found = LOADS[name](folder, where)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = _peak() - memory
    total = 0
    if isinstance(found, dict):
        total = sum(int(tensor.view(torch.int16).sum()) for tensor in found.values())
    return {"seconds": seconds, "cpu": cpu, "memory": memory, "sum": total}


def _peak() -> int:
    """The largest resident set of this process in bytes; getrusage would count that of the parent, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def slice_of_rank(where: dict[str, Any]) -> dict[str, Any]:
    """What rank 3 of 8 loads of a model whose parameters are sharded on dimension 0."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    import shardstream as ss
    from shardstream.weights.catalog import open_catalog

    dist.init_process_group("fake", rank=3, world_size=RANKS, store=FakeStore())
    mesh = init_device_mesh("cpu", (RANKS,))
    model = torch.nn.Module()
    catalog = open_catalog(where["url"], _options(where))
    for name, info in catalog.tensors.items():
        owner = model
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        whole = torch.empty(info.shape, dtype=torch.bfloat16, device="meta")
        owner.register_parameter(leaf, torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)])))
    started = time.perf_counter()
    ss.load_into(model, where["url"], device="cpu", storage_options=_options(where))
    return {"seconds": time.perf_counter() - started}


def make_model(folder: Path, size: float) -> None:
    """A bfloat16 model of about `size` GB, shaped like Llama: TinyLlama's layers from 1 GB on."""
    import torch
    from safetensors.torch import save_file

    from shardstream.weights.check import verify_weights

    width, inner, vocab = (2048, 5632, 32_000) if size >= 1 else (1024, 4096, 32_000)
    layer = (2 * width * width + width * width // 2 + 3 * inner * width) * 2
    layers = max(1, int((size * 1e9 - 2 * vocab * width * 2) / layer))
    torch.manual_seed(0)
    noise = torch.randint(-(2**15), 2**15, (vocab * width + 4096,), dtype=torch.int16)
    state: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        first = len(state) % 4096  # random numbers, which would take minutes anew for each tensor
        count = torch.Size(shape).numel()
        state[name] = noise[first : first + count].clone().view(torch.bfloat16).view(shape)

    add("model.embed_tokens.weight", vocab, width)
    for number in range(layers):
        shapes = {
            "q": (width, width), "k": (width // 4, width), "v": (width // 4, width), "o": (width, width),
            "gate": (inner, width), "up": (inner, width), "down": (width, inner), "norm1": (width,),
            "norm2": (width,),
        }  # fmt: skip
        for name, shape in shapes.items():
            add(f"model.layers.{number}.{name}.weight", *shape)
    add("model.norm.weight", width)
    add("lm_head.weight", vocab, width)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    torch.save(state, folder / "model.pt")
    verify_weights(str(folder), record=True)

"""A module of a checkpoint as a folder that transformers, vLLM and safetensors load: shards are joined."""

from __future__ import annotations

import json
from typing import NamedTuple

from shardstream.checkpoint.files import Files
from shardstream.checkpoint.layout import FilePlan, Item
from shardstream.checkpoint.manifest import Manifest, TensorInfo
from shardstream.checkpoint.reading import Request, read, requests_of
from shardstream.errors import OptionError, StorageError
from shardstream.progress import Bytes, Report
from shardstream.storage.store import Store

__all__ = ["Exported", "export"]

INDEX = "model.safetensors.index.json"
_COPIED = ("config.json",)


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        tensors: How many.
        bytes: Of all tensors.
        files: The names of the files with tensors.
    """

    tensors: int
    bytes: int
    files: list[str]


def export(
    files: Files, dest: Store, module: str = "model", most: int = 2 << 30,
    progress: Report = None,
) -> Exported:  # fmt: skip
    """Write a module's tensors, each of them whole, with their plain names and an index.

    Nothing is left of sharding. All bytes that are read are verified. Torch is not needed.

    Args:
        files: The checkpoint.
        dest: Where to; there must be no such index yet.
        module: The name that the module has in the state.
        most: Bytes of a file, and of the memory that is used, unless a tensor is larger.
        progress: Called with a Progress after each file, or None.

    Raises:
        OptionError: There is no such module, or the destination has one already.
        CorruptionError: Bytes are not those that were written.
    """
    tensors = _tensors(files.manifest, module)
    if dest.exists(INDEX):
        raise OptionError(f"{dest.where(INDEX)} is there already: export to another folder")
    groups = _groups(tensors, most)
    size = sum(item.size for group in groups for item in group)
    done = Bytes(progress, size)
    table: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        plan = FilePlan.make(name, group)
        memory = bytearray(plan.size)
        memory[: len(plan.header)] = plan.header
        requests: list[Request] = []
        for placed in plan.items:
            into = memoryview(memory)[placed.start : placed.start + placed.item.size]
            info = files.manifest.tensors[placed.item.tensor]
            requests += requests_of(placed.item.tensor, info, (0,) * len(info.shape), info.shape, into)
            table[placed.item.name] = name
        read(files, requests)
        dest.write(name, memory)
        done.add(plan.size - len(plan.header))
    for copied in _COPIED:
        _copy(files, dest, copied)
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))}
    dest.create(INDEX, json.dumps(content, indent=1).encode())
    return Exported(len(table), size, sorted(set(table.values())))


def _tensors(manifest: Manifest, module: str) -> dict[str, TensorInfo]:
    if module not in manifest.modules:
        known = ", ".join(manifest.modules) or "none"
        raise OptionError(f"step {manifest.step} has no module {module!r}; its modules: {known}")
    prefix = f"{module}/"
    return {name: info for name, info in manifest.tensors.items() if name.startswith(prefix)}


def _groups(tensors: dict[str, TensorInfo], most: int) -> list[list[Item]]:
    groups: list[list[Item]] = []
    room = 0
    for name, info in tensors.items():
        item = Item(name.partition("/")[2], info.dtype, info.shape, _never, name)
        if not groups or item.size > room:
            groups.append([])
            room = most
        groups[-1].append(item)
        room -= item.size
    return groups


def _never(start: int, into: memoryview) -> None:
    raise AssertionError("the bytes are read, not copied")


def _copy(files: Files, dest: Store, name: str) -> None:
    try:
        data = files.store.read(f"{files.manifest.attempt}/{name}")
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise
    dest.write(name, data)

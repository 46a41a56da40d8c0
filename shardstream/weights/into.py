"""Weights straight into the parameters of a model: whole, or the slices that a rank has."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from shardstream.errors import OptionError, StateError, require
from shardstream.format.sizes import parse_size
from shardstream.storage.cache.options import Cache
from shardstream.storage.options import Options
from shardstream.weights.catalog import Catalog
from shardstream.weights.header import TensorInfo
from shardstream.weights.load import Buffers, gap_of, located
from shardstream.weights.names import Target, names_of, renamed
from shardstream.weights.pieces import Job, landed

if TYPE_CHECKING:
    import torch

__all__ = ["Keys", "load_into"]

log = logging.getLogger("shardstream")

_BUDGET = "512MiB"
_SHOWN = 10


class Keys(NamedTuple):
    """The names that only one side has, as `load_state_dict` of torch gives them."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(
    model: torch.nn.Module,
    url: str | os.PathLike[str],
    strict: bool = True,
    *,
    device: str | torch.device | None = None,
    cache: Cache | str | os.PathLike[str] | None = None,
    storage_options: Options = None,
) -> Keys:
    """Fill the parameters and persistent buffers of a model from the weights at a URL.

    The bytes land in the parameters' own memory. A parameter keeps its dtype and is converted if the file has
    another one. Of a DTensor, as FSDP2 and tensor parallelism make them, a rank reads its slice only. Tied
    parameters are read once, under any of their names. Hooks that rename or drop
    what a module loads, or add what the files lack, are followed.

    Args:
        model: Its tensors may be real, or on the meta device: then they get memory here, all when everything
            has been read. Real ones are overwritten one after the other: after an error some have new values.
        url: See `load_weights`.
        strict: Whether every tensor of one side must be on the other, too, as in torch. Another shape is
            always an error.
        device: Where tensors on the meta device get their memory: by default the CPU, and for DTensors the
            device of their mesh.
        cache: See `load_weights`.
        storage_options: For the store.

    Returns:
        The names that only the model has, and those that only the files have; both are empty if `strict`.

    Raises:
        CorruptionError: A file is damaged; the message names it, and the tensor.
        MissingExtraError: torch is not installed.
        OptionError: A tensor of the model cannot be filled.
        StateError: Names or shapes differ. The model is then as it was.
        StorageError: The weights cannot be read.
    """
    torch = require("torch", "torch")
    catalog = located(url, cache, storage_options)
    targets, others = names_of(model)
    tensors, given = renamed(model, catalog.tensors)
    wanted: list[tuple[TensorInfo, Target]] = []
    added: list[tuple[Any, Target]] = []  # tensors that hooks give
    missing = list(others)
    for target in targets:
        known = [name for name in target.names if name in tensors or name in given]
        # Torch copies one after the other.
        if known and known[-1] in tensors:
            wanted.append((tensors[known[-1]], target))
        elif known:
            added.append((given[known[-1]], target))
        else:
            missing += target.names
    named = {name for target in targets for name in target.names}
    unexpected = [name for name in [*tensors, *given] if name not in named]
    _check(catalog, wanted, added, missing if strict else [], unexpected if strict else [])
    with torch.no_grad():
        _fill(model, catalog, wanted, added, device)
    _warn_of_meta(model, missing)
    return Keys(missing, unexpected)


def _check(
    catalog: Catalog,
    wanted: Iterable[tuple[TensorInfo, Target]],
    added: Iterable[tuple[torch.Tensor, Target]],
    missing: list[str],
    unexpected: list[str],
) -> None:
    from shardstream.weights.tensors import shape_of

    problems = [
        f"{info.name!r} has shape {list(shape_of(info))} here and {list(target.tensor.shape)} in the model"
        for info, target in wanted
        if shape_of(info) != tuple(target.tensor.shape)
    ] + [
        f"{target.names[-1]!r}: a hook gives it shape {list(tensor.shape)}, not {list(target.tensor.shape)}"
        for tensor, target in added
        if tensor.shape != target.tensor.shape
    ]
    for names, problem in (
        (missing, "not here, but in the model"),
        (unexpected, "here, but not in the model"),
    ):
        if names:
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            problems.append(f"{problem}: {', '.join(map(repr, names[:_SHOWN]))}{more}")
    if problems:
        hint = "; strict=False allows tensors that only one side has" if missing or unexpected else ""
        raise StateError(f"{catalog.place.store.url}: {'; '.join(problems[:_SHOWN])}{hint}")


def _fill(
    model: torch.nn.Module,
    catalog: Catalog,
    wanted: list[tuple[TensorInfo, Target]],
    added: Iterable[tuple[torch.Tensor, Target]],
    device: Any,
) -> None:
    import torch

    from shardstream.weights.tensors import dtype_of, pieces_of

    made: list[tuple[Target, torch.Tensor]] = []
    jobs = []
    gap = gap_of(catalog)
    where = torch.device("cpu")
    for info, target in sorted(wanted, key=lambda pair: (pair[0].file, pair[0].start)):
        source = dtype_of(info, catalog.where(info.file))
        local, offsets = _local(target)
        if local.is_meta:
            whole, local = _with_memory(target.tensor, local, device)
            made.append((target, whole))
        where = local.device if local.device.type == "cuda" else where
        checked = info.file in catalog.digests

        def make(
            info: Any = info,
            local: Any = local,
            source: Any = source,
            offsets: Any = offsets,
            checked: Any = checked,
        ) -> Any:
            return pieces_of(info, local, source, offsets, gap, checked)

        size = local.numel() * max(source.itemsize, local.element_size())
        jobs.append(Job(None, info.file, info.start, size, make))
    for _ in landed(catalog, jobs, parse_size(_BUDGET, "memory"), Buffers(where).take):
        pass
    for tensor, target in added:
        local, offsets = _local(target)
        if local.is_meta:
            whole, local = _with_memory(target.tensor, local, device)
            made.append((target, whole))
        part = [slice(first, first + size) for first, size in zip(offsets, local.shape, strict=True)]
        local.copy_(tensor[tuple(part)])
    for target, whole in made:
        _assign(model, target, whole)


def _local(target: Target) -> tuple[torch.Tensor, list[int]]:
    """The part of a tensor that this rank has, and where it begins in the whole."""
    tensor: Any = target.tensor
    chunks = getattr(tensor, "__create_chunk_list__", None)  # DTensor's way to tell torch's checkpoints
    if chunks is None:
        return tensor.detach(), [0] * tensor.dim()
    try:
        [chunk] = chunks()
        local = tensor.to_local().detach()
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"{target.names[0]}: this DTensor has no single slice to fill: {error}") from error
    if tuple(chunk.sizes) != tuple(local.shape):
        # Of nothing: torch gives such a slice other dimensions.
        if local.numel():
            raise OptionError(f"{target.names[0]}: a slice of {list(chunk.sizes)} in {list(local.shape)}")
        return local, [0] * tensor.dim()
    return local, list(chunk.offsets)


def _with_memory(tensor: Any, local: torch.Tensor, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(a tensor with memory like one on the meta device, this rank's part of it)."""
    import torch

    mesh = getattr(tensor, "device_mesh", None)
    if device is None:
        device = "cpu" if mesh is None else mesh.device_type
    filled = torch.empty_like(local, device=device)
    if mesh is None:
        return filled, filled
    from torch.distributed.tensor import DTensor

    whole = DTensor.from_local(
        filled,
        mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    return whole, filled


def _assign(model: torch.nn.Module, target: Target, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of one on the meta device, under all its names."""
    import torch

    old = target.tensor
    if isinstance(old, torch.nn.Parameter):
        tensor = torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
    tensor.__dict__.update(old.__dict__)
    for name in target.names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, tensor)


def _warn_of_meta(model: torch.nn.Module, missing: Iterable[str]) -> None:
    known = set(missing)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in known]
    if left:
        log.warning(
            "these buffers are no part of the state of the model and stay on the meta device: %s: "
            "make them again, as the model does when it is made",
            ", ".join(left),
        )

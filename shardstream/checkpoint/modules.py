"""Modules of torch: their state, and the names of their parameters without the marks of wrappers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shardstream.errors import StateError

__all__ = ["fsdp1", "is_a", "is_module", "is_optimizer", "module_state", "named", "set_module", "tied"]

# What wrappers put into the names of parameters: DDP, torch.compile, activation checkpointing.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


def is_a(value: object, module: str, name: str) -> bool:
    """Whether the class of an object, or one that it inherits from, has this name, without importing it."""
    return any(kind.__name__ == name and kind.__module__.startswith(module) for kind in type(value).__mro__)


def is_module(value: object) -> bool:
    """Whether it is a module of torch."""
    return is_a(value, "torch.nn", "Module")


def is_optimizer(value: object) -> bool:
    """Whether it is an optimizer of torch."""
    return is_a(value, "torch.optim", "Optimizer")


def _wrapped(module: Any) -> list[str]:
    """What DDP puts before the names of what is in it: one prefix for each place where it wraps."""
    found = [
        f"{name}.module." if name else "module."
        for name, each in module.named_modules()
        if is_a(each, "torch.nn.parallel", "DistributedDataParallel")
    ]
    return sorted(found, key=len, reverse=True)  # the inner ones first


def _name(name: str, wrapped: list[str]) -> str:
    for prefix in wrapped:
        if name.startswith(prefix):
            name = prefix.removesuffix("module.") + name.removeprefix(prefix)
    return _WRAPPERS.sub("", name)


def module_state(module: Any) -> dict[str, Any]:
    """The state by the names that the module has without wrappers, as torch's get_model_state_dict has it.

    That function takes ten times as long, which a save would wait for.

    Raises:
        StateError: DeepSpeed has cut its parameters up (ZeRO-3), and shows empty tensors in their place.
    """
    if any(hasattr(each, "ds_id") for each in module.parameters()):
        raise StateError(
            "the module's parameters are cut up by DeepSpeed's ZeRO-3, so that its state has empty tensors: "
            "save it with engine.save_checkpoint, or use ZeRO-1 or 2"
        )
    if fsdp1(module):
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return dict(get_model_state_dict(module))
    wrapped = _wrapped(module)
    return {_name(name, wrapped): value for name, value in module.state_dict().items()}


def set_module(module: Any, loaded: dict[str, Any]) -> None:
    """Give a module the state that `module_state` gave."""
    if fsdp1(module):
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(module, loaded)
        return
    wrapped = _wrapped(module)
    raw = {_name(name, wrapped): name for name in module.state_dict()}
    module.load_state_dict({raw[name]: value for name, value in loaded.items()})


def fsdp1(module: Any) -> bool:
    """Whether a part of it is wrapped by the first FSDP, whose parameters only torch can take apart."""
    return any(is_a(each, "torch.distributed.fsdp", "FullyShardedDataParallel") for each in module.modules())


def named(module: Any, duplicates: bool) -> list[tuple[str, Any]]:
    """The parameters, and with duplicates the buffers, by the names that the module's state has."""
    wrapped = _wrapped(module)
    found = list(module.named_parameters(remove_duplicate=not duplicates))
    if duplicates:
        found += module.named_buffers(remove_duplicate=False)
    return [(_name(name, wrapped), value) for name, value in found]


def tied(module: Any, key: str, state: Mapping[str, Any]) -> dict[str, str]:
    """Parameters that have several names, as tied weights do: from each further name to the first.

    Args:
        module: A module.
        key: The name of the module.
        state: Its state. Names that it does not have, as those of buffers that are not persistent, do not
            count.
    """
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, value in named(module, True):
        if name not in state:
            continue
        mine = first.setdefault(id(value), name)
        if mine != name:
            found[f"{key}/{name}"] = f"{key}/{mine}"
    return found

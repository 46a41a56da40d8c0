"""Modules, optimizers and other objects with a state, as nested dicts of tensors and values; and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from shardstream.errors import StateError

if TYPE_CHECKING:
    import torch

__all__ = [
    "State", "is_module", "is_optimizer", "is_sharded", "is_stateful", "optimizer_template", "put_back",
    "state_of", "tied",
]  # fmt: skip

# What wrappers put into the names of parameters: DDP, torch.compile, activation checkpointing.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


def _is(value: object, module: str, name: str) -> bool:
    return any(kind.__name__ == name and kind.__module__.startswith(module) for kind in type(value).__mro__)


def is_module(value: object) -> bool:
    """Whether it is a module of torch."""
    return _is(value, "torch.nn", "Module")


def is_optimizer(value: object) -> bool:
    """Whether it is an optimizer of torch."""
    return _is(value, "torch.optim", "Optimizer")


def is_stateful(value: object) -> bool:
    """Whether it has `state_dict` and `load_state_dict`."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


class State(NamedTuple):
    """What an object's state is.

    Attributes:
        value: Nested dicts and lists of tensors and values.
        aliases: See `tied`; of a module alone.
    """

    value: Any
    aliases: dict[str, str]


def state_of(key: str, value: Any, everything: Mapping[str, Any]) -> State:
    """The state of an object, or of all objects within lists and dicts.

    Args:
        key: Its name.
        value: The object.
        everything: All that is saved together. An optimizer's parameters get the names that they have in
            the modules there.
    """
    if is_module(value):
        state = _module_state(value)
        return State(state, tied(value, key, state))
    return State(_plain(value, everything), {})


def _plain(value: Any, everything: Mapping[str, Any]) -> Any:
    if is_optimizer(value):
        return _optimizer_state(value, everything)
    if is_module(value):
        return _module_state(value)
    if is_stateful(value):
        return value.state_dict()
    if type(value) is dict:
        return {key: _plain(each, everything) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(each, everything) for each in value)
    return value


def put_back(value: Any, loaded: Any, everything: Mapping[str, Any]) -> Any:
    """Give an object the state that was loaded.

    Args:
        value: What the user gave.
        loaded: Of the same form as `state_of` gives.
        everything: All that is loaded together.

    Returns:
        What takes the place of `value`: itself if it is an object or a dict, else what was loaded.

    Raises:
        StateError: The checkpoint has nothing for one of the objects.
    """
    if is_optimizer(value):
        _set_optimizer(value, loaded, everything)
    elif is_module(value):
        _set_module(value, loaded)
    elif is_stateful(value):
        value.load_state_dict(loaded)
    elif type(value) is dict and type(loaded) is dict:
        _refuse_unfilled({key: each for key, each in value.items() if key not in loaded})
        new = {key: put_back(value.get(key), each, everything) for key, each in loaded.items()}
        value.clear()
        value.update(new)
    elif type(value) is tuple and type(loaded) is tuple and len(value) == len(loaded):
        return tuple(put_back(one, each, everything) for one, each in zip(value, loaded, strict=True))
    elif type(value) is list and type(loaded) is list:
        _refuse_unfilled(dict(enumerate(value[len(loaded) :], len(loaded))))
        old = [*value, *[None] * (len(loaded) - len(value))]
        value[:] = [put_back(one, each, everything) for one, each in zip(old, loaded, strict=False)]
    else:
        return loaded
    return value


def _refuse_unfilled(left: Mapping[Any, Any]) -> None:
    """Raise StateError if there is an object among values for which the checkpoint has nothing."""
    for key, value in left.items():
        if is_stateful(value):
            raise StateError(f"{key!r} is a {type(value).__name__}, for which the checkpoint has nothing")


def _wrapped(module: Any) -> list[str]:
    """What DDP puts before the names of what is in it: one prefix for each place where it wraps."""
    found = [
        f"{name}.module." if name else "module."
        for name, each in module.named_modules()
        if _is(each, "torch.nn.parallel", "DistributedDataParallel")
    ]
    return sorted(found, key=len, reverse=True)  # the inner ones first


def _name(name: str, wrapped: list[str]) -> str:
    for prefix in wrapped:
        if name.startswith(prefix):
            name = prefix.removesuffix("module.") + name.removeprefix(prefix)
    return _WRAPPERS.sub("", name)


def _module_state(module: Any) -> dict[str, Any]:
    """The state by the names that the module has without wrappers, as torch's get_model_state_dict has it.

    That function takes ten times as long, which a save would wait for.
    """
    if _fsdp1(module):
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return dict(get_model_state_dict(module))
    wrapped = _wrapped(module)
    return {_name(name, wrapped): value for name, value in module.state_dict().items()}


def _set_module(module: Any, loaded: dict[str, Any]) -> None:
    if _fsdp1(module):
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(module, loaded)
        return
    wrapped = _wrapped(module)
    raw = {_name(name, wrapped): name for name in module.state_dict()}
    module.load_state_dict({raw[name]: value for name, value in loaded.items()})


def _fsdp1(module: Any) -> bool:
    """Whether a part of it is wrapped by the first FSDP, whose parameters only torch can take apart."""
    return any(_is(each, "torch.distributed.fsdp", "FullyShardedDataParallel") for each in module.modules())


def _named(module: Any, duplicates: bool) -> list[tuple[str, Any]]:
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
    for name, value in _named(module, True):
        if name not in state:
            continue
        mine = first.setdefault(id(value), name)
        if mine != name:
            found[f"{key}/{name}"] = f"{key}/{mine}"
    return found


def _names_of(optimizer: Any, everything: Mapping[str, Any]) -> list[str] | None:
    """The names of an optimizer's parameters, in its order; None if no module has all of them."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for module in everything.values():
        if is_module(module):
            names = {id(value): name for name, value in reversed(_named(module, False))}
            if all(id(value) in names for value in parameters):
                return [names[id(value)] for value in parameters]
    return None


def is_sharded(optimizer: Any) -> bool:
    """Whether an optimizer has parameters that are DTensors."""
    return any(hasattr(value, "placements") for group in optimizer.param_groups for value in group["params"])


def _fsdp1_of(everything: Mapping[str, Any]) -> Any:
    """The module that is wrapped by the first FSDP, or None."""
    return next((value for value in everything.values() if is_module(value) and _fsdp1(value)), None)


def _optimizer_state(optimizer: Any, everything: Mapping[str, Any]) -> dict[str, Any]:
    """The state by names of parameters, so that another number of ranks finds them.

    It is as the optimizer has it: torch's own function would take a step first if none was taken.
    """
    if (module := _fsdp1_of(everything)) is not None:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return dict(get_optimizer_state_dict(module, optimizer))
    state: dict[str, Any] = optimizer.state_dict()
    names = _names_of(optimizer, everything)
    if names is None:
        if is_sharded(optimizer):
            raise StateError("an optimizer of sharded parameters is saved together with its model: give both")
        return state
    groups = [{**group, "params": [names[n] for n in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[n]: each for n, each in state["state"].items()}, "param_groups": groups}


def _set_optimizer(optimizer: Any, loaded: dict[str, Any], everything: Mapping[str, Any]) -> None:
    if (module := _fsdp1_of(everything)) is not None:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(module, optimizer, loaded)
        return
    names = _names_of(optimizer, everything)
    if names is not None:
        numbers = {name: number for number, name in enumerate(names)}
        stored = [name for group in loaded["param_groups"] for name in group["params"]]
        if set(stored) != set(names):
            odd = sorted(set(stored) ^ set(names))
            raise StateError(f"the optimizer has other parameters than the checkpoint: {', '.join(odd[:5])}")
        stored_groups = loaded["param_groups"]
        groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in stored_groups]
        state = {numbers[name]: each for name, each in loaded["state"].items()}
        loaded = {"state": state, "param_groups": groups}
        _check_groups(optimizer, groups)
    optimizer.load_state_dict(loaded)


def _check_groups(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Refuse groups in another order: torch takes the n-th parameter for the n-th one."""
    start, mine = 0, []
    for group in optimizer.param_groups:
        mine.append(list(range(start, start + len(group["params"]))))
        start += len(group["params"])
    if [group["params"] for group in groups] != mine:
        raise StateError(
            "the optimizer has its parameters in other groups, or in another order, than the checkpoint"
        )


def optimizer_template(
    optimizer: Any, everything: Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Any:
    """Memory for a state of an optimizer that has none yet, sharded as its parameter is.

    Args:
        optimizer: The optimizer.
        everything: All that is loaded together.
        name: Of the parameter.
        shape: Of the state.
        dtype: Of the state.

    Returns:
        A tensor; None if the state is no tensor like the parameter.
    """
    import torch

    names = _names_of(optimizer, everything)
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for mine, value in zip(names or (), parameters, strict=False):
        if mine == name and tuple(value.shape) == shape:
            return torch.empty_like(value.detach(), dtype=dtype, requires_grad=False)
    return None

"""Optimizers: their state by the names of parameters, since torch has it by their positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardstream.checkpoint.modules import fsdp1, is_a, is_module, named
from shardstream.checkpoint.values import is_tensor, joined
from shardstream.errors import StateError
from shardstream.format.shown import counted

if TYPE_CHECKING:
    import torch

__all__ = ["check_schedule", "is_sharded", "numbers_of", "optimizer_state", "set_optimizer", "template"]


def is_sharded(optimizer: Any) -> bool:
    """Whether an optimizer has parameters that are DTensors."""
    return any(hasattr(value, "placements") for value in _parameters(optimizer))


def optimizer_state(path: str, optimizer: Any, everything: Mapping[str, Any]) -> dict[str, Any]:
    """The state by names of parameters, so that other orders and other numbers of ranks find them.

    It is as the optimizer has it: torch's own function would take a step first if none was taken. The shapes
    of the parameters are beside it.

    Args:
        path: The optimizer's name.
        optimizer: The optimizer.
        everything: All that is saved together: the names are those of the modules and tensors there.

    Raises:
        StateError: A parameter has no name.
    """
    if (module := _fsdp1_of(path, optimizer, everything)) is not None:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return dict(get_optimizer_state_dict(module, optimizer))
    state: dict[str, Any] = optimizer.state_dict()
    if not _is_by_position(state):
        return state
    names = _names_of(path, optimizer, everything)
    groups = []
    for group in state["param_groups"]:
        rest = {key: value for key, value in group.items() if key != "param_names"}
        groups.append({**rest, "params": [names[number] for number in group["params"]]})
    shapes = {name: list(value.shape) for name, value in zip(names, _parameters(optimizer), strict=True)}
    own: dict[str, Any] = {}
    other: dict[Any, Any] = {}  # of no parameter
    for key, value in state["state"].items():
        if type(key) is int:
            own[names[key]] = value
        else:
            other[key] = value
    return {**state, "state": own, "param_groups": groups, "shapes": shapes, "other": other}


def _is_by_position(state: Mapping[str, Any]) -> bool:
    """Whether a state has torch's form. Those of some wrappers have another one, which is theirs."""
    groups = state.get("param_groups")
    return (
        isinstance(state.get("state"), Mapping)
        and isinstance(groups, list)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups)
    )


def set_optimizer(path: str, optimizer: Any, loaded: dict[str, Any], everything: Mapping[str, Any]) -> None:
    """Give an optimizer the state that `optimizer_state` gave.

    Raises:
        StateError: It is not of these parameters.
    """
    if (module := _fsdp1_of(path, optimizer, everything)) is not None:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(module, optimizer, loaded)
        return
    numbers = numbers_of(path, optimizer, everything, loaded)
    if numbers is not None:
        # In the order of this optimizer, for torch takes the n-th parameter for the n-th one.
        groups = [
            {**group, "params": sorted(numbers[name] for name in group["params"])}
            for group in loaded["param_groups"]
        ]
        state: dict[Any, Any] = {numbers[name]: each for name, each in loaded["state"].items()}
        state |= loaded.get("other", {})
        rest = {key: value for key, value in loaded.items() if key not in ("shapes", "other")}
        loaded = {**rest, "state": state, "param_groups": groups}
    optimizer.load_state_dict(loaded)


def numbers_of(
    path: str, optimizer: Any, everything: Mapping[str, Any], stored: Any
) -> dict[str, int] | None:
    """Which parameter of an optimizer each stored name is.

    Args:
        path: The optimizer's name.
        optimizer: The optimizer.
        everything: All that is loaded together.
        stored: What `optimizer_state` gave, or its JSON.

    Returns:
        The number of the parameter, by its name; None if the state is not by names of parameters.

    Raises:
        StateError: The optimizer has other parameters, of other shapes, or in other groups.
    """
    if not isinstance(stored, Mapping) or not _is_by_position(stored):
        return None
    if _fsdp1_of(path, optimizer, everything) is not None:
        return None
    groups = [group["params"] for group in stored["param_groups"]]
    names = [name for group in groups for name in group]
    if not all(isinstance(name, str) for name in names):
        return None
    shapes = stored.get("shapes", {})  # torch's get_optimizer_state_dict has names without them
    numbers = _matched(path, optimizer, everything, names)
    for name, number in numbers.items():
        mine, there = list(_parameters(optimizer)[number].shape), shapes.get(name)
        if there is not None and mine != there:
            raise StateError(f"{path}: parameter {name!r} is {mine}, in the checkpoint {there}")
    _check_groups(path, optimizer, groups, numbers)
    return numbers


def template(parameter: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Memory for a state that an optimizer does not have yet, sharded as its parameter is.

    Args:
        parameter: The parameter.
        shape: Of the state.
        dtype: Of the state.

    Returns:
        A tensor; None if the state has another shape than the parameter.
    """
    import torch

    if tuple(parameter.shape) != shape:
        return None
    return torch.empty_like(parameter.detach(), dtype=dtype, requires_grad=False)


def check_schedule(path: str, schedule: Any, stored: Any) -> None:
    """Refuse the state of a scheduler of an optimizer with more or fewer groups: it is by their positions.

    Args:
        path: Its name.
        schedule: Any object; only schedulers of torch are looked at.
        stored: Its state in JSON.

    Raises:
        StateError: The groups are not as many.
    """
    if not is_a(schedule, "torch.optim.lr_scheduler", "LRScheduler") or not isinstance(stored, Mapping):
        return
    for key in ("base_lrs", "min_lrs"):
        mine, there = getattr(schedule, key, None), stored.get(key)
        if isinstance(mine, list) and isinstance(there, list) and len(mine) != len(there):
            raise StateError(
                f"{path}: the optimizer has {counted(len(mine), 'group')} of parameters, in the checkpoint "
                f"{len(there)}"
            )


def _parameters(optimizer: Any) -> list[Any]:
    return [value for group in optimizer.param_groups for value in group["params"]]


def _found_in(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The modules and tensors within a value, with their names."""
    if is_module(value) or is_tensor(value):
        yield path, value
    elif type(value) is dict:
        for key, each in value.items():
            yield from _found_in(joined(path, key), each)
    elif type(value) in (list, tuple):
        for number, each in enumerate(value):
            yield from _found_in(joined(path, number), each)


def _aliases(optimizer: Any, everything: Mapping[str, Any]) -> list[dict[str, int]]:
    """The numbers of an optimizer's parameters by their names, in each way in which they can be named.

    First by a module that has all of them, whose names need no prefix. Last by all modules, by the tensors
    that are saved with them, and by the names that the optimizer itself was given. Tied parameters have
    several names.
    """
    parameters = _parameters(optimizer)
    numbers = {id(value): number for number, value in enumerate(parameters)}
    ways: list[dict[str, int]] = []
    together: dict[str, int] = {}
    for path, value in _found_in("", dict(everything)):
        if is_tensor(value):
            if id(value) in numbers:
                together.setdefault(path, numbers[id(value)])
            continue
        own = {name: numbers[id(each)] for name, each in named(value, True) if id(each) in numbers}
        if len(set(own.values())) == len(parameters):
            ways.append(own)
        for name, number in own.items():
            together.setdefault(f"{path}/{name}", number)
    first = 0
    for group in optimizer.param_groups:
        for number, name in enumerate(group.get("param_names") or (), first):
            together.setdefault(name, number)
        first += len(group["params"])
    return [*ways, together]


def _names_of(path: str, optimizer: Any, everything: Mapping[str, Any]) -> list[str]:
    """The names of an optimizer's parameters, in its order."""
    parameters = _parameters(optimizer)
    names: dict[int, str] = {}
    for name, number in _aliases(optimizer, everything)[0].items():
        names.setdefault(number, name)
    for number, value in enumerate(parameters):
        if number not in names:
            raise StateError(
                f"{path}: parameter {number}, of shape {list(value.shape)}, has no name, and its position "
                "may change. Give the module that it belongs to in the same state, or make the optimizer of "
                "named_parameters()"
            )
    return [names[number] for number in range(len(parameters))]


def _matched(
    path: str, optimizer: Any, everything: Mapping[str, Any], stored: Sequence[str]
) -> dict[str, int]:
    """The number of each stored name."""
    wanted = set(range(len(_parameters(optimizer))))
    ways = _aliases(optimizer, everything)
    for way in ways:
        found = {name: way[name] for name in stored if name in way}
        if len(found) == len(stored) == len(wanted) and set(found.values()) == wanted:
            return found
    _names_of(path, optimizer, everything)  # raises if one has no name
    mine: dict[int, str] = {}
    for name, number in ways[0].items():
        mine.setdefault(number, name)
    there = {ways[0][name] for name in stored if name in ways[0]}
    only_here = [mine[number] for number in sorted(wanted - there)]
    only_there = [name for name in stored if name not in ways[0]]
    told = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (("not in the checkpoint", only_here), ("only in the checkpoint", only_there))
        if names
    ]
    raise StateError(f"{path} has other parameters than the checkpoint; {'; '.join(told)}")


def _check_groups(
    path: str, optimizer: Any, stored: Sequence[Sequence[str]], numbers: Mapping[str, int]
) -> None:
    """Refuse other groups: learning rates, and the schedulers of these, are by groups."""
    if len(stored) != len(optimizer.param_groups):
        raise StateError(
            f"{path} has {counted(len(optimizer.param_groups), 'group')} of parameters, in the checkpoint "
            f"{len(stored)}: make the same groups before loading, by add_param_group"
        )
    first = 0
    for index, (group, names) in enumerate(zip(optimizer.param_groups, stored, strict=True)):
        mine = range(first, first + len(group["params"]))
        first = mine.stop
        strange = next((name for name in names if numbers[name] not in mine), None)
        if strange is not None:
            raise StateError(f"{path}: parameter {strange!r} is in group {index} of the checkpoint, not here")
        order = [numbers[name] for name in names]
        if order != sorted(order) and is_a(optimizer, "torch.optim", "LBFGS"):
            raise StateError(
                f"{path}: its parameters are in another order than in the checkpoint, and the state of LBFGS "
                "has all of them in one vector"
            )


def _fsdp1_of(path: str, optimizer: Any, everything: Mapping[str, Any]) -> Any:
    """The module with an optimizer's parameters if it is wrapped by the first FSDP, or None."""
    parameters = {id(value) for value in _parameters(optimizer)}
    for _, module in _found_in("", dict(everything)):
        if is_module(module) and fsdp1(module):
            own = {id(value) for value in module.parameters()}
            if parameters <= own:
                return module
            if parameters & own:
                raise StateError(
                    f"{path} has parameters of an FSDP module and others: only an optimizer of one module "
                    "can be saved with the first FSDP; use fully_shard (FSDP2)"
                )
    return None

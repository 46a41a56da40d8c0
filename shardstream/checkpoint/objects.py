"""Modules, optimizers and other objects with a state, as nested dicts of tensors and values; and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from shardstream.checkpoint.modules import is_module, is_optimizer, module_state, set_module, tied
from shardstream.checkpoint.optimizers import optimizer_state, set_optimizer
from shardstream.checkpoint.values import is_tensor, joined
from shardstream.errors import StateError

__all__ = ["State", "is_stateful", "put_back", "state_of"]


class State(NamedTuple):
    """What an object's state is.

    Attributes:
        value: Nested dicts and lists of tensors and values.
        aliases: See `tied`; of all modules within.
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
        state = module_state(value)
        return State(state, tied(value, key, state))
    aliases: dict[str, str] = {}
    return State(_plain(key, value, everything, aliases), aliases)


def _plain(path: str, value: Any, everything: Mapping[str, Any], aliases: dict[str, str]) -> Any:
    if is_optimizer(value):
        return optimizer_state(path, value, everything)
    if is_module(value):
        state = module_state(value)
        aliases |= tied(value, path, state)
        return state
    if is_tensor(value) and hasattr(value, "ds_id"):
        raise StateError(
            f"{path}: the parameter is cut up by DeepSpeed's ZeRO-3, so that it is empty here: save it with "
            "engine.save_checkpoint, or use ZeRO-1 or 2"
        )
    if is_stateful(value):
        return value.state_dict()
    if type(value) is dict:
        return {key: _plain(joined(path, key), each, everything, aliases) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(joined(path, n), each, everything, aliases) for n, each in enumerate(value))
    return value


def put_back(path: str, value: Any, loaded: Any, everything: Mapping[str, Any]) -> Any:
    """Give an object the state that was loaded.

    Args:
        path: Its name.
        value: What the user gave.
        loaded: Of the same form as `state_of` gives.
        everything: All that is loaded together.

    Returns:
        What takes the place of `value`: itself if it is an object or a dict, else what was loaded.
    """
    if is_optimizer(value):
        set_optimizer(path, value, loaded, everything)
    elif is_module(value):
        set_module(value, loaded)
    elif is_stateful(value):
        value.load_state_dict(loaded)
    elif type(value) is dict and type(loaded) is dict:
        new = {
            key: put_back(joined(path, key), value.get(key), each, everything) for key, each in loaded.items()
        }
        value.clear()
        value.update(new)
    elif type(value) is tuple and type(loaded) is tuple and len(value) == len(loaded):
        pairs = enumerate(zip(value, loaded, strict=True))
        return tuple(put_back(joined(path, n), one, each, everything) for n, (one, each) in pairs)
    elif type(value) is list and type(loaded) is list:
        old = [*value, *[None] * (len(loaded) - len(value))]
        pairs = enumerate(zip(old, loaded, strict=False))
        value[:] = [put_back(joined(path, n), one, each, everything) for n, (one, each) in pairs]
    else:
        return loaded
    return value


def is_stateful(value: object) -> bool:
    """Whether it has `state_dict` and `load_state_dict`."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))

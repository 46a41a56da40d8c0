"""Which tensor of the files fills which one of a model: by their names, after the hooks of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from shardstream.errors import OptionError

if TYPE_CHECKING:
    import torch

    from shardstream.weights.header import TensorInfo

__all__ = ["Names", "Target", "names_of", "renamed"]


class Target(NamedTuple):
    """A tensor of the model, under all its names."""

    names: list[str]
    tensor: torch.Tensor


class Names(NamedTuple):
    """The state of a model.

    Attributes:
        targets: Its parameters and persistent buffers.
        others: The names of what is no tensor, which modules keep as an "extra state".
    """

    targets: list[Target]
    others: list[str]


def names_of(model: torch.nn.Module) -> Names:
    """What `load_state_dict` of torch would fill, by the real names: hooks for saving may give out others."""
    state = model.state_dict(keep_vars=True)  # its hooks bring the tensors of FSDP back that are gathered
    by_identity: dict[int, Target] = {}
    for name, tensor in _tensors(model):
        by_identity.setdefault(id(tensor), Target([], tensor)).names.append(name)
    return Names(list(by_identity.values()), [name for name in state if name.endswith("_extra_state")])


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        before = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield before + name, parameter
        transient = module._non_persistent_buffers_set  # noqa: SLF001 - torch has no public word for it
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in transient:
                yield before + name, buffer


def renamed(model: torch.nn.Module, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors of the files by the names that the model has for them.

    A module may have hooks that rename what it loads, such as old names or those of a wrapper. They are
    called as `load_state_dict` would, with tensors that have no memory; where each one ends up is its name.

    Raises:
        OptionError: A hook makes new tensors, for which it needs their values.
    """
    import torch

    from shardstream.weights.tensors import dtype_of, shape_of

    modules = dict(model.named_modules(remove_duplicate=False))
    if not any(module._load_state_dict_pre_hooks for module in modules.values()):  # noqa: SLF001
        return dict(tensors)
    marks = {
        name: torch.empty(shape_of(info), dtype=dtype_of(info, info.file), device="meta")
        for name, info in tensors.items()
    }
    by_mark = {id(mark): tensors[name] for name, mark in marks.items()}
    found: dict[str, TensorInfo] = {}
    seen: set[int] = set()
    for name, mark in _after_hooks(model, dict(marks), ""):
        if id(mark) not in by_mark:
            raise OptionError(
                f"{name}: a hook of the model computes it when it is loaded: use "
                "model.load_state_dict(ss.load_weights(url)) instead"
            )
        found[name] = by_mark[id(mark)]
        seen.add(id(mark))
    # What no module has taken keeps its name: the files have it, and the model has not.
    return found | {name: tensors[name] for name, mark in marks.items() if id(mark) not in seen}


def _after_hooks(module: torch.nn.Module, state: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of all that a module and those below it take of `state`, in torch's order."""
    for hook in module._load_state_dict_pre_hooks.values():  # noqa: SLF001
        hook(state, prefix, {}, True, [], [], [])
    own = [name for name, _ in _tensors_of(module)]
    yield from ((prefix + name, state[prefix + name]) for name in own if prefix + name in state)
    for name, child in module.named_children():
        below = f"{prefix}{name}."
        part = {key: value for key, value in state.items() if key.startswith(below)}
        yield from _after_hooks(child, part, below)


def _tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)

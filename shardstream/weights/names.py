"""Which tensor of the files fills which one of a model: by their names, after the hooks of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from shardstream.errors import OptionError

if TYPE_CHECKING:
    import torch

    from shardstream.weights.header import TensorInfo

__all__ = ["Names", "Renamed", "Target", "names_of", "renamed"]

_INSTEAD = "use model.load_state_dict(ss.load_weights(url)) instead"


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


class Renamed(NamedTuple):
    """What `load_state_dict` would load, after the hooks of the modules.

    Attributes:
        tensors: The tensors of the files by the names that the model has for them. Names that the model does
            not have are here, too, but for those that a hook has dropped.
        given: Tensors that hooks have added, whatever the files hold, by name.
    """

    tensors: dict[str, TensorInfo]
    given: dict[str, torch.Tensor]


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        before = f"{prefix}." if prefix else ""
        for name, tensor in _tensors_of(module):
            yield before + name, tensor


def _tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and persistent buffers of one module, without those below it."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    transient = module._non_persistent_buffers_set  # noqa: SLF001 - torch has no public word for it
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        if name not in transient:
            yield name, buffer


def renamed(model: torch.nn.Module, tensors: Mapping[str, TensorInfo]) -> Renamed:
    """What the hooks of a model make of the tensors of files.

    A module may have hooks that rename what it loads, such as old names or those of a wrapper, that drop what
    it has no use for, or that add what old files lack. They are called as `load_state_dict` would, with
    tensors that have no memory; where each one ends up is its name.

    Raises:
        OptionError: A hook looks at the values of tensors, or makes new ones of them.
    """
    import torch

    from shardstream.weights.tensors import dtype_of, shape_of

    modules = dict(model.named_modules(remove_duplicate=False))
    if not any(module._load_state_dict_pre_hooks for module in modules.values()):  # noqa: SLF001
        return Renamed(dict(tensors), {})
    marks = {
        name: torch.empty(shape_of(info), dtype=dtype_of(info, info.file), device="meta")
        for name, info in tensors.items()
    }
    by_mark = {id(mark): tensors[name] for name, mark in marks.items()}
    found = Renamed({}, {})
    for name, tensor, taken in _after_hooks(model, dict(marks), ""):
        if id(tensor) in by_mark:
            found.tensors[name] = by_mark[id(tensor)]
        elif taken and (not isinstance(tensor, torch.Tensor) or tensor.is_meta):
            raise OptionError(f"{name}: a hook of the model computes it when it is loaded: {_INSTEAD}")
        else:
            found.given[name] = tensor
    return found


def _after_hooks(
    module: torch.nn.Module, state: dict[str, Any], prefix: str
) -> Iterator[tuple[str, Any, bool]]:
    """(name, tensor, whether the model has it) of all that hooks leave in `state`, in torch's order."""
    for hook in module._load_state_dict_pre_hooks.values():  # noqa: SLF001
        try:
            hook(state, prefix, {}, True, [], [], [])
        except (RuntimeError, TypeError) as error:  # as torch raises it of a tensor without memory
            raise OptionError(
                f"{prefix.rstrip('.') or 'the model'}: a hook fails, as one that looks at values would: "
                f"{error}: {_INSTEAD}"
            ) from error
    own = {prefix + name: None for name, _ in _tensors_of(module)}
    yield from ((name, state[name], True) for name in own if name in state)
    children = {name: child for name, child in module._modules.items() if child is not None}  # noqa: SLF001
    for name, tensor in state.items():
        first, dot, _ = name.removeprefix(prefix).partition(".")
        if name not in own and not (dot and first in children):
            yield name, tensor, False
    for name, child in children.items():  # one that has two names comes under both
        below = f"{prefix}{name}."
        part = {key: value for key, value in state.items() if key.startswith(below)}
        yield from _after_hooks(child, part, below)

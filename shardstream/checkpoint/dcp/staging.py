"""Copies a state into memory that is kept, so that training goes on while the copy is saved."""

from __future__ import annotations

import copy
import mmap
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from shardstream.errors import OptionError, StateError
from shardstream.format.sizes import human_size

__all__ = ["Stager"]

_ALIGN = 64  # bytes
_MOST = 2  # copies at a time if memory= does not say how much there is
_STEP = 1.0  # seconds after which a waiting thread looks again whether a copy was dropped


class _Arena:
    """Memory for one copy of a state, in use until its save has ended or nobody holds a tensor of it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory: Any
        if torch.cuda.is_available():
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        else:
            self._memory = mmap.mmap(-1, size)
        self._holder: weakref.ref[Any] | None = None

    def lend(self) -> torch.Tensor:
        """All of it, as a tensor of bytes. Each loan has an object of its own, kept alive by its tensors."""
        holder = np.frombuffer(self._memory, np.uint8)
        self._holder = weakref.ref(holder)
        return torch.from_numpy(holder)

    @property
    def is_lent(self) -> bool:
        return self._holder is not None and self._holder() is not None

    def end(self) -> None:
        """The copy is not needed any more, whoever holds it."""
        self._holder = None

    def holds(self, address: int) -> bool:
        first = int(np.frombuffer(self._memory, np.uint8).ctypes.data)
        return first <= address < first + self.size


class Stager:
    """Keeps memory for copies of states: fresh memory costs several times as much as used memory.

    Args:
        memory: Bytes for all copies; None allows two, of whatever size they have.
        patience: Seconds that a copy waits at most for memory that an earlier save uses.
    """

    def __init__(self, memory: int | None, patience: float) -> None:
        self._memory, self._patience = memory, patience
        self._arenas: list[_Arena] = []
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return sum(arena.size for arena in self._arenas)

    def stage(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy of a state, of the same structure; what is no tensor is copied by `copy.deepcopy`.

        Raises:
            OptionError: memory= is less than the state has.
            StateError: An object cannot be copied, or an earlier save has not ended in time.
        """
        plan = _Plan()
        plan.add(state)
        if not plan.size:
            return dict(plan.copied(state, torch.empty(0, dtype=torch.uint8), "state"))
        arena = self._taken(plan.size)
        try:
            staged = plan.copied(state, arena.lend(), "state")
            if plan.other_devices:
                torch.accelerator.synchronize()
        except BaseException:
            self._end(arena)
            raise
        return dict(staged)

    def release(self, addresses: list[int]) -> None:
        """The tensors at these addresses are saved: their copies are not needed any more."""
        for arena in list(self._arenas):
            if any(arena.holds(address) for address in addresses):
                self._end(arena)

    def close(self) -> None:
        """Give the memory back, as far as it is not in use."""
        with self._changed:
            self._arenas = [arena for arena in self._arenas if arena.is_lent]

    def _end(self, arena: _Arena) -> None:
        with self._changed:
            arena.end()
            self._changed.notify_all()

    def _taken(self, size: int) -> _Arena:
        if self._memory is not None and size > self._memory:
            raise OptionError(
                f"the state has {human_size(size)}, and memory={human_size(self._memory)} is less: give "
                "more, or save with dcp.save, which copies nothing"
            )
        until = time.monotonic() + self._patience
        with self._changed:
            while (arena := self._free(size)) is None:
                # A copy that is dropped tells nobody, so the wait looks again.
                if not self._changed.wait(_STEP) and time.monotonic() > until:
                    raise StateError(
                        f"all memory for copies is in use by earlier saves, which have not ended in "
                        f"{self._patience:.0f} s: wait for the future of an earlier async_save"
                    )
            return arena

    def _free(self, size: int) -> _Arena | None:
        free = [arena for arena in self._arenas if not arena.is_lent]
        fitting = [arena for arena in free if arena.size >= size]
        if fitting:
            return min(fitting, key=lambda arena: arena.size)
        for arena in free:  # too small: the state has grown
            self._arenas.remove(arena)
        if len(self._arenas) >= _MOST if self._memory is None else self.held + size > self._memory:
            return None
        self._arenas.append(_Arena(size))
        return self._arenas[-1]


class _Plan:
    """How much memory the tensors of a state need, and where each goes. Tensors that are the same are one."""

    def __init__(self) -> None:
        self.size = 0
        self.other_devices = False
        self._places: dict[Any, int] = {}

    def add(self, value: Any) -> None:
        """Make room for the tensors in `value`."""
        for tensor in _tensors(value):
            local = _local(tensor)
            key = _key(local)
            if key in self._places:
                continue
            self._places[key] = self.size
            self.size += -(-local.nbytes // _ALIGN) * _ALIGN
            self.other_devices |= local.device.type != "cpu"

    @torch.no_grad()
    def copied(self, value: Any, memory: torch.Tensor, name: str) -> Any:
        """The copy of a value, whose tensors lie in `memory`."""
        done: dict[Any, torch.Tensor] = {}

        def put(tensor: torch.Tensor) -> torch.Tensor:
            key = _key(tensor)
            if key not in done:
                start = self._places[key]
                held = memory[start : start + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
                done[key] = held.copy_(tensor.resolve_conj().resolve_neg(), non_blocking=True)
            return done[key]

        return _mapped(value, put, name)


def _mapped(value: Any, put: Callable[[torch.Tensor], torch.Tensor], name: str) -> Any:
    if isinstance(value, torch.Tensor):
        if _is_staged(value):
            local = put(_local(value))
            if not isinstance(value, DTensor):
                return local
            make: Any = DTensor  # from_local would move the copy to the device of the mesh
            return make(local, value._spec, requires_grad=False)  # noqa: SLF001
        return _torch_staged(value)
    if type(value) is dict:
        return {key: _mapped(each, put, f"{name}.{key}") for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(each, put, f"{name}.{number}") for number, each in enumerate(value))
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise StateError(
            f"{name}: a {type(value).__name__} cannot be copied for a save in the background: "
            f"{type(error).__name__}: {error}"
        ) from error


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a value that go into memory of ours."""
    if isinstance(value, torch.Tensor):
        return [value] if _is_staged(value) else []
    if type(value) is dict:
        return [tensor for each in value.values() for tensor in _tensors(each)]
    if type(value) in (list, tuple):
        return [tensor for each in value for tensor in _tensors(each)]
    return []


def _is_staged(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) or isinstance(tensor, DTensor)
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return plain and local.layout == torch.strided and not local.is_quantized and not local.is_meta


def _torch_staged(value: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor of another kind, such as a ShardedTensor: torch knows how."""
    from torch.distributed.checkpoint._state_dict_stager import StateDictStager

    staged: torch.Tensor = StateDictStager().stage({"value": value})["value"]
    return staged


def _local(tensor: torch.Tensor) -> torch.Tensor:
    value: Any = tensor.detach()
    local: Any = value.to_local() if isinstance(tensor, DTensor) else value
    if hasattr(local, "wait"):  # a collective is on its way
        local = local.wait()
    found: torch.Tensor = local
    return found


def _key(tensor: torch.Tensor) -> Any:
    address = tensor.data_ptr() if tensor.nbytes else None
    seen = tensor.is_conj(), tensor.is_neg()
    return tensor.device, address, tensor.dtype, tuple(tensor.shape), tensor.stride(), seen

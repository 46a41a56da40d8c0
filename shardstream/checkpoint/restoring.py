"""Loads the state of objects from a committed checkpoint: first a plan, then the bytes, then the objects."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from shardstream.checkpoint.exchange import Slice
from shardstream.checkpoint.files import Files
from shardstream.checkpoint.modules import is_module, is_optimizer
from shardstream.checkpoint.objects import is_stateful, put_back, state_of
from shardstream.checkpoint.optimizers import check_schedule, is_sharded, numbers_of, template
from shardstream.checkpoint.reading import Request, read, requests_of
from shardstream.checkpoint.values import Arrays, decode, encode, joined
from shardstream.errors import StateError

__all__ = ["Restoring"]

_AT_ONCE = 512 << 20  # bytes of memory beside the tensors, for those that cannot be read into


class _Optimizer(NamedTuple):
    """An optimizer, and which of its parameters each stored name is."""

    optimizer: Any
    numbers: Mapping[str, int]


class Restoring:
    """What is loaded from one checkpoint.

    Args:
        files: The checkpoint.
        state: The objects, by name, as users give them. Their tensors are filled where they lie.
        stored: The values of the checkpoint in JSON, by the same names.
        prefix: What the names of the tensors begin with.

    Raises:
        StateError: An object and the checkpoint do not fit. Nothing has changed then.
    """

    def __init__(
        self, files: Files, state: dict[str, Any], stored: Mapping[str, Any], prefix: str = ""
    ) -> None:
        self.files, self._state, self._stored, self._prefix = files, state, stored, prefix
        self._tensors = files.manifest.tensors
        self._requests: list[Request] = []
        self.slices: list[Slice] = []  # of tensors
        self._got: dict[str, Any] = {}
        self._read: set[tuple[str, int]] = set()
        self._filled: dict[tuple[str, int, tuple[int, ...]], tuple[str, str]] = {}  # parts of modules
        for key in state:
            if key not in stored:
                known = ", ".join(sorted(stored)) or "nothing"
                raise StateError(f"the checkpoint has no {key!r}; it has {known}")
        for key, value in state.items():
            self._plan(key, value)

    def _plan(self, key: str, value: Any) -> None:
        path = joined(self._prefix, key)
        found = Arrays({}, {})
        node = self._stored[key]
        modules: list[str] = []
        optimizers: dict[str, _Optimizer] = {}
        for where, each, stored in _objects(path, value, node):
            if is_module(each):
                _check_keys(where, state_of(where, each, self._state).value, stored)
                modules.append(f"{where}/")
            elif is_optimizer(each):
                numbers = numbers_of(where, each, self._state, stored)
                optimizers[f"{where}/state/"] = _Optimizer(each, numbers or {})
            else:
                check_schedule(where, each, stored)
        encode(state_of(path, value, self._state).value, path, found)

        def get(where: str, node: dict[str, Any]) -> Any:
            if where not in self._got:
                if node["$"] == "tensor":
                    fixed = next(filter(where.startswith, modules), "")
                    target = found.tensors.get(where)
                    if target is None:
                        target = self._new_state(where, node, optimizers)
                    self._got[where] = self._want(node, where, target, fixed)
                else:
                    self._got[where] = self._want_array(node, where)
            return self._got[where]

        decode(node, path, get)

    def _new_state(self, where: str, node: dict[str, Any], optimizers: Mapping[str, _Optimizer]) -> Any:
        """Memory for a state that an optimizer does not have yet, as it has not taken a step."""
        from shardstream.checkpoint.tensors import dtype_named

        prefix = next(filter(where.startswith, optimizers), None)
        if prefix is None:
            return None
        optimizer, numbers = optimizers[prefix]
        info = self._tensors[node["name"]]
        parts = where.removeprefix(prefix).split("/")
        number = numbers.get(parts[0].replace("~1", "/").replace("~0", "~"))
        if parts[-1] == "step" or number is None:
            return None
        parameter = [value for group in optimizer.param_groups for value in group["params"]][number]
        made = template(parameter, info.shape, dtype_named(info.dtype))
        if made is None and node.get("sharded") and is_sharded(optimizer):
            raise StateError(
                f"{where} is sharded, and this optimizer does not have it yet: take a step with gradients of "
                "zero before loading"
            )
        return made

    def _want(self, node: dict[str, Any], where: str, target: Any, module: str) -> Any:
        """The tensor that will hold a stored one: `target`, if it is like it, or a new one."""
        import torch

        from shardstream.checkpoint.tensors import dtype_name, dtype_named, pieces_of

        name = node["name"]
        info = self._tensors[name]
        if target is not None:
            mine = dtype_name(target.dtype, where), tuple(target.shape)
            if mine != (info.dtype, info.shape):
                if module:
                    there = f"{info.dtype}{list(info.shape)}"
                    raise StateError(f"{where} is {mine[0]}{list(mine[1])}, in the checkpoint {there}")
                target = None
        if target is None:
            target = torch.empty(info.shape, dtype=dtype_named(info.dtype))
        for data, box in pieces_of(target, where):
            if not box.elements:
                continue
            if module and data.data_ptr():
                # Two stored tensors would be read into one memory, at once and in any order.
                memory = module, data.data_ptr(), tuple(data.shape)
                first, other = self._filled.setdefault(memory, (name, where))
                if first != name:
                    raise StateError(
                        f"{where} and {other} are one tensor here, and two in the checkpoint: untie them "
                        "before loading"
                    )
            place = name, data.data_ptr()
            if place in self._read:
                continue
            self._read.add(place)
            self.slices.append(Slice(name, box, data))
        return target

    def _want_array(self, node: dict[str, Any], where: str) -> Any:
        """The array, or the bytes, that a stored tensor holds."""
        import numpy as np

        info = self._tensors[node["name"]]
        if node["$"] == "array":
            made: Any = np.empty(node["shape"], np.dtype(node["dtype"]))
            memory = made.reshape(-1).view(np.uint8).data if made.nbytes else memoryview(b"")
        else:
            made = bytearray(info.shape[0])
            memory = memoryview(made)
        self._requests += requests_of(node["name"], info, (0,), info.shape, memory)
        return made

    def read(self, shared: Mapping[str, Collection[int]] | None = None) -> None:
        """Read all bytes. From here on the tensors of the objects change.

        Args:
            shared: By the names of tensors, the numbers of chunks that `exchange` reads afterwards.

        Raises:
            CorruptionError: Bytes are not those that were written.
        """
        from shardstream.checkpoint.tensors import bytes_of

        requests = list(self._requests)
        copied: list[Slice] = []
        for each in self.slices:
            memory = bytes_of(each.data)
            if memory is None:
                copied.append(each)
            else:
                requests += self._requests_of(each, memory, shared)
        read(self.files, requests)
        waiting: list[Slice] = []
        size = 0
        for each in copied:
            waiting.append(each)
            size += each.data.nbytes
            if size >= _AT_ONCE:
                self._copy(waiting, shared)
                waiting, size = [], 0
        self._copy(waiting, shared)

    def _requests_of(
        self, part: Slice, into: memoryview, shared: Mapping[str, Collection[int]] | None
    ) -> list[Request]:
        info, without = self._tensors[part.name], (shared or {}).get(part.name, ())
        return requests_of(part.name, info, part.box.offsets, part.box.shape, into, without)

    def _copy(self, parts: list[Slice], shared: Mapping[str, Collection[int]] | None) -> None:
        """Read parts into memory of the CPU, and copy them to where they belong."""
        if not parts:
            return
        import torch

        from shardstream.checkpoint.tensors import bytes_of

        made = [torch.empty(part.box.shape, dtype=part.data.dtype) for part in parts]
        requests = []
        for part, memory in zip(parts, made, strict=True):
            into = bytes_of(memory)
            assert into is not None
            requests += self._requests_of(part, into, shared)
        read(self.files, requests)
        for part, memory in zip(parts, made, strict=True):
            part.data.copy_(memory)

    def apply(self) -> None:
        """Give the objects what was read."""

        def get(where: str, node: dict[str, Any]) -> Any:
            found = self._got[where]
            return bytes(found) if node["$"] == "bytes" else found

        loaded = {key: decode(self._stored[key], joined(self._prefix, key), get) for key in self._state}
        for key in list(self._state):
            path = joined(self._prefix, key)
            self._state[key] = put_back(path, self._state[key], loaded[key], self._state)


def _objects(path: str, value: Any, node: Any) -> Iterator[tuple[str, Any, Any]]:
    """The objects within a value, with their names and the JSON of their states.

    Raises:
        StateError: The checkpoint has nothing for one of them.
    """
    if is_module(value) or is_stateful(value):
        if node is None:
            raise StateError(f"{path} is a {type(value).__name__}, for which the checkpoint has nothing")
        yield path, value, node
    elif type(value) in (dict, list, tuple):
        stored = _children(value, node, path)
        for key, each in value.items() if type(value) is dict else enumerate(value):
            yield from _objects(joined(path, key), each, stored.get(key))


def _children(value: Any, node: Any, path: str) -> Mapping[Any, Any]:
    """The JSON within the JSON of a dict, list or tuple, by key or number; empty if it is another one."""
    kind = node.get("$") if isinstance(node, dict) else None
    if type(value) is dict and isinstance(node, dict) and kind in (None, "dict"):
        items = node.items() if kind is None else node["items"]
        return {decode(key, path, lambda _, found: found): each for key, each in items}
    if type(value) is list and isinstance(node, list):
        return dict(enumerate(node))
    return dict(enumerate(node["items"])) if type(value) is tuple and kind == "tuple" else {}


def _check_keys(path: str, mine: Mapping[str, Any], node: Any) -> None:
    stored = node if isinstance(node, dict) and "$" not in node else {}
    missing = sorted(set(mine) - set(stored))
    unknown = sorted(set(stored) - set(mine))
    if missing or unknown:
        parts = [
            f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
            for what, names in (("not in the checkpoint", missing), ("only in the checkpoint", unknown))
            if names
        ]
        raise StateError(f"{path} and the checkpoint do not fit; {'; '.join(parts)}")

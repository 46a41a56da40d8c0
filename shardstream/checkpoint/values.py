"""State as JSON: everything but tensors, which are named. Nothing is pickled.

JSON has objects, lists, strings, numbers, booleans and null. Other values are objects with the key "$":

    {"$": "tensor", "name": "model/a.weight"}       {"$": "array", "name": ..., "dtype": "<f4", "shape": [2]}
    {"$": "tuple", "items": [...]}                  {"$": "dict", "items": [[key, value], ...]}
    {"$": "float", "value": "nan"}                  {"$": "bytes", "hex": "00ff"}

and so on, as `encode` has them.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shardstream.errors import StateError

__all__ = [
    "Arrays", "decode", "difference", "encode", "is_array", "is_tensor", "joined", "merged", "shown"
]  # fmt: skip

_SMALL = 4096  # bytes that are written as text
_INTS = 1 << 63


class Arrays(NamedTuple):
    """What is left out of the JSON, by name: torch's tensors, and numpy's arrays."""

    tensors: dict[str, Any]
    arrays: dict[str, Any]

    def add(self, to: dict[str, Any], path: str, value: Any) -> None:
        """Take a value.

        Raises:
            StateError: There is one of its name, as under the keys 1 and "1" of a dict.
        """
        if path in self.tensors or path in self.arrays:
            raise StateError(f"{path}: two keys of a dict are the same as text")
        to[path] = value


def joined(path: str, key: object) -> str:
    """The name of what lies under a key."""
    text = str(key).replace("~", "~0").replace("/", "~1")
    return f"{path}/{text}" if path else text


def is_tensor(value: object) -> bool:
    """Whether it is a tensor of torch, without importing torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(value).__mro__)


def is_array(value: object) -> bool:
    """Whether it is an array of numpy."""
    return type(value).__module__ == "numpy" and type(value).__name__ in ("ndarray", "memmap")


def encode(value: Any, path: str, found: Arrays, aliases: Mapping[str, str] | None = None) -> Any:
    """A value as JSON.

    Args:
        value: Of a state, nested.
        path: Its name.
        found: Gets the tensors and arrays.
        aliases: From the names of tensors to those of the tensors that they are; see `tied` in objects.py.

    Raises:
        StateError: Something would need pickle; the message names its key.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -_INTS <= value < _INTS else {"$": "int", "value": str(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$": "float", "value": str(value)}
    if kind in (dict, OrderedDict, Counter) or kind.__name__ == "defaultdict":
        return _encode_dict(value, path, found, aliases)
    if kind in (list, tuple) or kind.__name__ == "Size":
        items = [encode(each, joined(path, n), found, aliases) for n, each in enumerate(value)]
        return items if kind is list else {"$": "tuple", "items": items}
    if is_tensor(value):
        name = (aliases or {}).get(path, path)
        if name == path:
            found.add(found.tensors, path, value)
        sharded = {"sharded": True} if hasattr(value, "placements") else {}
        return {"$": "tensor", "name": name, **sharded}
    if is_array(value):
        return _encode_array(value, path, found)
    if kind in (bytes, bytearray):
        return _encode_bytes(value, path, found)
    return _encode_other(value, path)


def _encode_dict(value: Any, path: str, found: Arrays, aliases: Mapping[str, str] | None) -> Any:
    plain = type(value) is not Counter and all(type(key) is str and not key.startswith("$") for key in value)
    if plain:
        return {key: encode(each, joined(path, key), found, aliases) for key, each in value.items()}
    items = []
    for key, each in value.items():
        if type(key) not in (str, int, float, bool, tuple, type(None)):
            raise StateError(f"{path}: a key of type {type(key).__name__} cannot be stored without pickle")
        items.append([encode(key, path, found), encode(each, joined(path, key), found, aliases)])
    return {"$": "counter" if type(value) is Counter else "dict", "items": items}


def _encode_array(value: Any, path: str, found: Arrays) -> Any:
    if value.dtype.hasobject:
        raise StateError(f"{path}: an array of Python objects cannot be stored without pickle")
    if value.dtype.names is not None:
        raise StateError(f"{path}: an array of records cannot be stored; store its columns")
    found.add(found.arrays, path, value)
    return {"$": "array", "name": path, "dtype": value.dtype.str, "shape": list(value.shape)}


def _encode_bytes(value: bytes | bytearray, path: str, found: Arrays) -> Any:
    kind = type(value).__name__
    if len(value) <= _SMALL:
        return {"$": kind, "hex": value.hex()}
    import numpy as np

    found.add(found.arrays, path, np.frombuffer(bytes(value), np.uint8))
    return {"$": kind, "name": path, "size": len(value)}


def _encode_other(value: Any, path: str) -> Any:
    kind = type(value)
    if kind is complex:
        return {"$": "complex", "value": str(value)}
    if kind in (set, frozenset):
        large = Arrays({}, {})
        items = [encode(each, path, large) for each in value]
        if large.tensors or large.arrays:
            raise StateError(
                f"{path}: a {kind.__name__} of tensors, arrays or long bytes; store a list of them"
            )
        return {"$": kind.__name__, "items": sorted(items, key=repr)}
    if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
        return {"$": kind.__name__, "value": str(value).removeprefix("torch.")}
    if kind.__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
        return {"$": "scalar", "dtype": value.dtype.str, "hex": value.tobytes().hex()}
    raise StateError(
        f"{path}: a {kind.__module__}.{kind.__qualname__} cannot be stored without pickle. Store numbers, "
        "strings, bytes, lists, dicts, tensors and arrays, or an object with state_dict and load_state_dict"
    )


def decode(value: Any, path: str, get: Callable[[str, Any], Any]) -> Any:
    """A value from its JSON.

    Args:
        value: What `encode` gave.
        path: Its name.
        get: Gives the tensor or array of a node of the JSON, from the node's path and the node.

    Raises:
        StateError: It is of a kind that this version does not know.
    """
    if isinstance(value, list):
        return [decode(each, joined(path, number), get) for number, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kind = value.get("$")
    if kind is None:
        return {key: decode(each, joined(path, key), get) for key, each in value.items()}
    if kind in ("tensor", "array") or "name" in value:
        return get(path, value)
    if kind == "tuple":
        return tuple(decode(each, joined(path, number), get) for number, each in enumerate(value["items"]))
    if kind in ("dict", "counter"):
        pairs = [(decode(key, path, get), each) for key, each in value["items"]]
        made = {key: decode(each, joined(path, key), get) for key, each in pairs}
        return Counter(made) if kind == "counter" else made
    return _decode_leaf(kind, value, path)


def _decode_leaf(kind: str, value: dict[str, Any], path: str) -> Any:
    if kind in ("int", "float", "complex"):
        return {"int": int, "float": float, "complex": complex}[kind](value["value"])
    if kind in ("bytes", "bytearray"):
        data = bytes.fromhex(value["hex"])
        return data if kind == "bytes" else bytearray(data)
    if kind in ("set", "frozenset"):
        items = [decode(each, path, lambda _, node: node) for each in value["items"]]
        return set(items) if kind == "set" else frozenset(items)
    if kind in ("dtype", "device"):
        import torch

        text = value["value"]
        return torch.device(text) if kind == "device" else getattr(torch, re.sub(r"\W", "", text))
    if kind == "scalar":
        import numpy as np

        return np.frombuffer(bytes.fromhex(value["hex"]), value["dtype"])[0]
    raise StateError(f"{path}: a value of kind {kind!r} is of a newer shardstream; update it")


def difference(one: Any, other: Any, path: str = "") -> str:
    """The name of the first place where two values in JSON differ; "" if none does."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return joined(path, key)
            if found := difference(one[key], other[key], joined(path, key)):
                return found
        return ""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((d for n, (a, b) in pairs if (d := difference(a, b, joined(path, n)))), "")
    return "" if type(one) is type(other) and one == other else path or "the state"


def merged(one: Any, other: Any, path: str = "") -> Any:
    """The union of what two ranks have: a key that only one of them has, is in it.

    Raises:
        StateError: Both have a value, and they differ.
    """
    if isinstance(one, dict) and isinstance(other, dict) and "$" not in one and "$" not in other:
        union = {
            key: merged(one[key], other[key], joined(path, key)) if key in other else one[key] for key in one
        }
        return union | {key: value for key, value in other.items() if key not in one}
    if found := difference(one, other, path):
        raise StateError(
            f"{found} differs between the ranks, and only one value of it would be stored: give what each "
            "rank has of its own in per_rank={...}"
        )
    return one


def shown(value: Any) -> str:
    """A value in JSON as people write it. Nothing is read for tensors and arrays, and nothing imported."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if not isinstance(value, dict):
        return repr(value)
    kind = value.get("$")
    if kind is None:
        return f"{{{', '.join(f'{key!r}: {shown(each)}' for key, each in value.items())}}}"
    if kind in ("dict", "counter"):
        return f"{{{', '.join(f'{shown(key)}: {shown(each)}' for key, each in value['items'])}}}"
    if kind in ("tuple", "set", "frozenset"):
        inside = ", ".join(map(shown, value["items"]))
        return f"({inside})" if kind == "tuple" else f"{{{inside}}}"
    if kind in ("bytes", "bytearray"):
        return f"{value.get('size', len(value.get('hex', '')) // 2):,} bytes"
    if kind in ("tensor", "array"):
        return f"{kind} {value['name']!r}"
    return str(value.get("value", f"a {kind} of {value.get('dtype', 'another version')}"))

"""Items of a state that are no tensors: JSON if that is exact, else the bytes of torch.save."""

from __future__ import annotations

import io
import json
import math
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from shardstream.errors import CorruptionError, SourceError, reason

__all__ = ["is_json", "load_object", "pickled", "resolve_object"]

_DEEPEST = 50  # containers in containers


def is_json(value: object, depth: int = 0) -> bool:
    """Whether `value` comes back from JSON as it is: its types, too, so that tuples and NaN are not JSON."""
    kind = type(value)
    if value is None or kind is bool:
        return True
    if kind is int:
        return -(2**63) <= value < 2**63  # type: ignore[operator]
    if kind is str:
        return _encodes(value)  # type: ignore[arg-type]
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]
    if depth == _DEEPEST:
        return False
    if kind is list:
        return all(is_json(each, depth + 1) for each in value)  # type: ignore[attr-defined]
    if kind is dict:
        return all(
            type(key) is str and _encodes(key) and is_json(each, depth + 1)
            for key, each in value.items()  # type: ignore[attr-defined]
        )
    return False


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def resolve_object(planner: SavePlanner, item: WriteItem) -> tuple[bool, Any, bytes]:
    """An item that is no tensor, from the planner of a save.

    Returns:
        Whether it is JSON, its value if it is, and its bytes if it is not.
    """
    if (
        isinstance(planner, DefaultSavePlanner)
        and type(planner).resolve_data is DefaultSavePlanner.resolve_data
        and type(planner).transform_object is DefaultSavePlanner.transform_object
    ):
        value = planner.lookup_object(item.index)
        if is_json(value):
            return True, json.loads(json.dumps(value)), b""
    stream = planner.resolve_data(item)
    data = stream.getvalue() if isinstance(stream, io.BytesIO) else bytes(stream)
    try:
        value = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:  # noqa: BLE001, bytes of a planner's own; they are kept as they are
        return False, None, data
    return (True, value, b"") if is_json(value) else (False, None, data)


def load_object(data: bytes, what: str) -> Any:
    """The value of an item from the bytes of torch.save, loaded as torch.load(weights_only=True) does.

    Args:
        data: the bytes.
        what: its name, for messages.

    Raises:
        SourceError: the bytes name something else.
        CorruptionError: they are damaged.
    """
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        hint = (
            ": allow it with torch.serialization.add_safe_globals([...]), or, if you trust whoever can write "
            "to this checkpoint, with Reader(..., weights_only=False)"
        )
        raise SourceError(
            f"{what} is an object that is not loaded without your consent{hint}. torch says: {_line(error)}"
        ) from error
    except Exception as error:
        raise CorruptionError(f"{what} is damaged: {type(error).__name__}: {_line(error)}") from error


def pickled(value: object) -> io.BytesIO:
    """The bytes that a planner of torch loads to get `value`: written here, so they run nothing else."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream


def _line(error: BaseException) -> str:
    """The line of a message of torch that says what was refused."""
    lines = [line.strip() for line in reason(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line or "global" in line), lines[0] if lines else "")

"""Batches to a device: pinned in the threads that make them, copied while the consumer computes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from shardstream.errors import OptionError, require
from shardstream.read.batch import Ragged

__all__ = ["check_device", "moved", "pinned"]


def check_device(pin: bool, device: Any) -> Any:
    """`device` as a torch.device, or None; raises OptionError where it or pinning cannot work."""
    torch = require("torch", "torch")
    if pin and not torch.cuda.is_available():
        raise OptionError("pin=True needs a CUDA device: without one, memory cannot be pinned")
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device={device!r} is no torch device ({error})") from error


def pinned(batch: Any) -> Any:
    """The batch with its tensors in pinned memory."""
    return _apply(batch, lambda tensor: tensor.pin_memory())


def moved(batches: Iterator[Any], device: Any) -> Generator[Any, None, None]:
    """The batches with their tensors on a device.

    To a CUDA device each is copied on a stream of its own while the consumer has the one before: one
    batch more is in the device's memory. From pinned memory the copy runs beside the computation.
    """
    torch = require("torch", "torch")
    if device.type != "cuda":
        for batch in batches:
            yield _apply(batch, lambda tensor: tensor.to(device))
        return
    stream = torch.cuda.Stream(device)

    def start(batch: Any) -> tuple[Any, Any]:
        with torch.cuda.stream(stream):
            there = _apply(batch, lambda tensor: tensor.to(device, non_blocking=True))
        # The source has to stay until the copy is done.
        return there, (batch, stream.record_event())

    def ready(copy: tuple[Any, Any]) -> Any:
        there, (_, event) = copy
        consumer = torch.cuda.current_stream(device)
        consumer.wait_event(event)
        event.synchronize()
        # The allocator must not give the memory to the side stream while the consumer computes with it.
        return _apply(there, lambda tensor: _recorded(tensor, consumer))

    ahead: tuple[Any, Any] | None = None
    for batch in batches:
        following = start(batch)
        if ahead is not None:
            yield ready(ahead)
        ahead = following
    if ahead is not None:
        yield ready(ahead)


def _recorded(tensor: Any, stream: Any) -> Any:
    tensor.record_stream(stream)
    return tensor


def _apply(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` of every tensor in dicts, lists, tuples and ragged fields."""
    torch = require("torch", "torch")
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Ragged):
        return Ragged(change(value.data), value.offsets, value.missing)
    if isinstance(value, dict):
        return type(value)((name, _apply(item, change)) for name, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_apply(item, change) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_apply(item, change) for item in value)
    return value

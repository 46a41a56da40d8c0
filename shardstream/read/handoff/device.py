"""Batches to a device: pinned in the threads that make them, copied while the consumer computes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from shardstream.errors import OptionError, require
from shardstream.read.samples.batch import Ragged

__all__ = ["check_device", "moved", "pinned"]


def check_device(pin: bool, device: Any) -> Any:
    """`device` as a torch.device, or None.

    Args:
        pin: Whether batches are going to be pinned.
        device: What the user gave.

    Raises:
        OptionError: There is no such device, or memory cannot be pinned here.
    """
    torch = require("torch", "torch")
    if pin and not torch.cuda.is_available():
        raise OptionError("pin=True needs a CUDA device: without one, memory cannot be pinned")
    try:
        found = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device={device!r} is no torch device ({error})") from error
    if found is not None and found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise OptionError(f"device={device!r} needs a GPU that torch can use; leave it out without one")
        if found.index is not None and found.index >= count:
            raise OptionError(f"device={device!r}: this process sees {count} GPUs, from cuda:0 on")
    return found


def pinned(batch: Any) -> Any:
    """A copy of the batch, whose tensors lie in pinned memory."""
    return _apply(batch, lambda tensor: tensor.pin_memory())


def moved(batches: Iterator[Any], device: Any) -> Generator[Any, None, None]:
    """The batches with their tensors on a device.

    A batch is copied to a CUDA device while the consumer computes with the batch before, on a stream of its
    own. So the memory of the device holds one batch more. The copy runs beside the computation only if the
    batch is pinned.

    Args:
        batches: The batches.
        device: A torch.device.
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
        # The batch has to stay in memory until the copy is done.
        return there, (batch, stream.record_event())

    def ready(copy: tuple[Any, Any]) -> Any:
        there, (_, event) = copy
        consumer = torch.cuda.current_stream(device)
        consumer.wait_event(event)
        event.synchronize()
        # Otherwise the allocator could reuse the memory for the next copy while the consumer computes with
        # it.
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
    """A copy of `value` with `change(tensor)` for every tensor in dicts, lists, tuples and ragged fields."""
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

"""The place after some batches, for consumers that read ahead of what they have trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.loader import StreamingLoader
from shardstream.order.cursor import read_place
from shardstream.order.topology import batches

__all__ = ["after", "delivered"]


def after(loader: StreamingLoader, state: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The state `steps` batches after `state`; at the end of an epoch it is the start of the next.

    It is for consumers that prefetch (tf.data, a queue to a device): the loader's own state counts the
    batches that were taken from it, this one the batches that were trained on.

    Args:
        loader: The loader.
        state: What its `state_dict` gave.
        steps: Batches that were trained on since then, at least 0.

    Returns:
        A state for `load_state_dict`.

    Raises:
        StateError: It is no state of this version.
    """
    steps = whole_number("steps", steps, 0)
    epoch, position = read_place(state)
    size, total, last = loader.batch_size * loader.ds.topology.dp_size, loader.ds.total, loader.last
    whole = batches(total, size, last)
    left = batches(total, size, last, position)
    if steps >= left and whole:
        # The rest of this epoch, then whole ones.
        passed, steps = divmod(steps - left, whole)
        epoch, position = epoch + 1 + passed, 0
    return {**state, "epoch": epoch, "position": min(position + steps * size, total)}


def delivered(loader: StreamingLoader, state: Mapping[str, Any]) -> int:
    """How many of the loader's batches of the epoch lie before a state.

    Args:
        loader: The loader.
        state: What its `state_dict` gave.

    Returns:
        The number of batches, at least 0.

    Raises:
        OptionError: It is no whole number. The framework that counts the batches would lose samples.
    """
    _, position = read_place(state)
    ranks = loader.ds.topology.dp_size
    size = loader.batch_size * ranks
    if position % size and batches(loader.ds.total, size, loader.last, position):
        raise OptionError(
            f"the state is at sample {position}, which is no multiple of the global batch of {size} here "
            f"({ranks} ranks x batch_size={loader.batch_size}); this framework counts batches: choose "
            f"batch_size so that ranks x batch_size is the global batch of the run that saved"
        )
    return -(-position // size)

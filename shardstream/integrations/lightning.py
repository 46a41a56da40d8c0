"""Lightning: a train dataloader whose place is in the Trainer's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardstream.errors import OptionError
from shardstream.integrations.position import after, delivered
from shardstream.loader import StreamingLoader

__all__ = ["TrainLoader"]

_BATCHES = "batches"  # of the epoch, as Lightning counts them


class TrainLoader:
    """A StreamingLoader for `train_dataloader()`; Lightning saves and restores it by itself.

    Lightning leaves an epoch by counting batches, not by exhausting the iterator. So a state at the
    end of an epoch is given out as the start of the next, and one that was saved with another global
    batch (ranks x batch_size) is refused: by Lightning's count the epoch would end early.

    Args:
        loader: A StreamingLoader.
    """

    def __init__(self, loader: StreamingLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The loader's state and the number of batches before it."""
        state = after(self.loader, self.loader.state_dict(), 0)
        return {**state, _BATCHES: delivered(self.loader, state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave, with any number of ranks and the same global batch.

        Raises:
            OptionError: The global batch was another one.
            StateError: The state belongs to another dataset or to other options.
        """
        state = dict(state)
        counted = state.pop(_BATCHES, None)
        here = delivered(self.loader, state)
        if counted is not None and counted != here:
            raise OptionError(
                f"the state is {counted} batches into its epoch, which are {here} here; Lightning "
                f"counts batches: choose batch_size so that ranks x batch_size is what it was"
            )
        self.loader.load_state_dict(state)

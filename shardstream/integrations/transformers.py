"""Hugging Face's Trainer: training batches come from a loader, its place is in the Trainer's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from shardstream.errors import OptionError
from shardstream.integrations.position import after, delivered
from shardstream.loader import StreamingLoader

__all__ = ["StreamingTrainer"]

_STATE = "state"


class _Place(TrainerCallback, ExportableState):
    """Puts the loader's state into trainer_state.json, which the Trainer writes and reads."""

    def __init__(self, loader: StreamingLoader) -> None:
        self.loader, self._began = loader, False

    def state(self) -> dict[str, Any]:
        """What the Trainer writes at each checkpoint, and once when training begins."""
        state = after(self.loader, self.loader.state_dict(), 0)
        return {"args": {}, "attributes": {_STATE: state}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go to the place of the checkpoint; of a run from scratch it is the loader's own."""
        saved = state.stateful_callbacks[type(self).__name__]["attributes"][_STATE]
        at = state.global_step * args.gradient_accumulation_steps
        if at and at % len(self.loader) != delivered(self.loader, saved):
            raise OptionError(
                f"the checkpoint is {state.global_step} steps into training and at position "
                f"{saved['position']} of epoch {saved['epoch']}, which are not the same batch here; "
                f"keep ranks x batch_size and gradient_accumulation_steps as they were"
            )
        self.loader.load_state_dict(saved)
        self._began = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave an epoch that is at its end, if a callback of the user has loaded that place.

        The Trainer takes an epoch without a batch for the end of the data.
        """
        if not self._began:
            self._began = True
            self.loader.load_state_dict(after(self.loader, self.loader.state_dict(), 0))


class _Batches:
    """The loader without its `set_epoch`: it knows its epoch.

    The Trainer would set its own count, which begins at 0 again where a callback of the user loads a place.
    """

    def __init__(self, loader: StreamingLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


class StreamingTrainer(Trainer):
    """A Trainer that trains on the batches of `train_loader`, a StreamingLoader.

    The Trainer would put a `train_dataset` into a DataLoader and have Accelerate share it out again;
    it does nothing to what `get_train_dataloader` returns.

    Args:
        args: Of the Trainer.
        train_loader: A StreamingLoader.
        options: Of the Trainer. `ignore_data_skip=True` is needed, since the loader goes to its place by
            itself.

    Raises:
        OptionError: `ignore_data_skip` is False, or an epoch does not divide by the accumulation steps.
    """

    def __init__(self, *args: Any, train_loader: StreamingLoader, **options: Any) -> None:
        super().__init__(*args, **options)
        steps = self.args.gradient_accumulation_steps
        if not self.args.ignore_data_skip:
            raise OptionError(
                "ignore_data_skip=False would skip batches that were skipped already: set it to True"
            )
        if len(train_loader) % steps:
            raise OptionError(
                f"an epoch of {len(train_loader)} batches does not divide by "
                f"gradient_accumulation_steps={steps}: a resumed epoch would lose its last step; choose "
                f"another batch_size or number of steps"
            )
        self.train_loader = train_loader
        # The first one: a callback of the user that loads another place when training begins comes after it.
        self.callback_handler.callbacks.insert(0, _Place(train_loader))

    def get_train_dataloader(self) -> Any:
        """The loader's batches and their number."""
        return _Batches(self.train_loader)

"""Replay: the first batches of a loader again and again, as if data cost nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from shardstream.errors import OptionError, StateError
from shardstream.format.numbers import whole_number
from shardstream.format.sizes import human_size, parse_size
from shardstream.read.engine.sizes import memory_of

__all__ = ["Replay"]

B = TypeVar("B")
_LOG = logging.getLogger("shardstream")


class Replay(Generic[B]):
    """The first batches of a loader, repeated without end: what a training loop does if data is free.

    Put it in the place of the loader, and time some steps. The most that any work on the data can make the
    loop faster is t_now / t_replay, where t_now is the time of a step with the loader, and t_replay with this
    object (Amdahl's law).

    The batches are taken when the first iteration begins, before it gives the first of them. Later iterations
    give the same batches from the first one on. Nothing is read after that. Each time a batch is given, its
    dicts, lists and tuples are new, and the tensors in them are those of before: a loop that writes into
    tensors writes into them again in the next round.

    Args:
        loader: A StreamingLoader, a DaliLoader, a torch DataLoader, or any other iterable of batches. An
            iterator is taken from where it stands.
        batches: How many batches are taken, at least 1. If the loader has fewer, all of them are.
        epoch: How many batches one iteration gives, for loops that wait for the end of an epoch, such as
            `len(loader)`. None: an iteration never ends.
        memory: Bytes that the batches may take, of this machine's memory and of devices together, such as
            "4GiB". If they take more, fewer batches are repeated, and the log says so. One always is.

    Raises:
        OptionError: An argument cannot be; or, when the iteration begins, the loader has no batch.
    """

    def __init__(
        self, loader: Iterable[B], batches: int = 50, *, epoch: int | None = None, memory: str | int = "4GiB"
    ) -> None:
        if not hasattr(loader, "__iter__"):
            raise OptionError(f"loader is a {type(loader).__name__}, which is not an iterable of batches")
        self._loader = loader
        self._wanted = whole_number("batches", batches, 1)
        self._epoch = None if epoch is None else whole_number("epoch", epoch, 1)
        self._limit = parse_size(memory, "memory")
        self._lock = threading.Lock()
        self._batches: list[B] = []
        self._nbytes = 0

    @property
    def batches(self) -> int:
        """How many batches are repeated; 0 before the first iteration."""
        return len(self._batches)

    @property
    def nbytes(self) -> int:
        """The bytes that these batches take, in the memory of this machine and of devices; roughly."""
        return self._nbytes

    def __iter__(self) -> Iterator[B]:
        self._take()
        left = self._epoch
        while True:
            for batch in self._batches:
                if left is not None:
                    if not left:
                        return
                    left -= 1
                yield _fresh(batch)

    def __len__(self) -> int:
        """Batches of one iteration.

        Raises:
            TypeError: An iteration never ends.
        """
        if self._epoch is None:
            raise TypeError("a Replay without epoch= never ends: it has no length")
        return self._epoch

    def _take(self) -> None:
        """Take the batches of the loader, if they were not taken yet."""
        with self._lock:
            if self._batches:
                return
            taken: list[B] = []
            size = 0
            batches = iter(self._loader)
            try:
                for batch in batches:
                    size += memory_of(batch) + _on_devices(batch)
                    if taken and size > self._limit:
                        # Batches may be views of one buffer, which was counted for each of them.
                        size = min(size, _joint(taken, batch))
                    if taken and size > self._limit:
                        _LOG.warning(
                            "Replay: %d batches take %s, the limit is memory=%s: they are repeated, not %d",
                            len(taken), human_size(_joint(taken)), human_size(self._limit), self._wanted,
                        )  # fmt: skip
                        break
                    taken.append(batch)
                    if len(taken) == self._wanted:
                        break
            finally:
                # The threads of a loader end here, and do not compete with the steps that are measured.
                close = getattr(batches, "close", None)
                if close is not None and batches is not self._loader:
                    close()
            if not taken:
                raise OptionError("Replay: the loader gave no batch, so there is nothing to repeat")
            self._batches, self._nbytes = taken, min(size, _joint(taken))

    def state_dict(self) -> dict[str, Any]:
        """The state of the loader, which stands behind the batches that were taken.

        Raises:
            StateError: The loader has no state.
        """
        found: dict[str, Any] = self._of_loader("state_dict")()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the loader a state, before batches are taken.

        Args:
            state: What `state_dict` of the loader gave.

        Raises:
            StateError: Batches were taken already, the loader has no state, or refuses this one.
        """
        if self._batches:
            raise StateError("Replay: its batches were taken already; give the state to a new Replay")
        self._of_loader("load_state_dict")(state)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the loader's next one, if it has such a method; the batches that were taken stay.

        Args:
            epoch: The number of the epoch, from 0.
        """
        method = getattr(self._loader, "set_epoch", None)
        if method is not None:
            method(epoch)

    def _of_loader(self, name: str) -> Any:
        method = getattr(self._loader, name, None)
        if method is None:
            kind = type(self._loader).__name__
            raise StateError(f"Replay: the loader is a {kind}, which has no {name}; leave the state out")
        return method

    def __repr__(self) -> str:
        return f"Replay({self._loader!r}, batches={self._wanted})"


def _fresh(value: Any) -> Any:
    """A copy of dicts, lists and tuples, with the values that they hold."""
    if type(value) in (list, tuple):
        return type(value)(_fresh(item) for item in value)
    if isinstance(value, dict):
        try:
            found = value.copy()
        except Exception:  # noqa: BLE001 - a class of the user's: the batch itself is as good
            return value
        for name, item in value.items():
            if isinstance(item, (dict, list, tuple)):
                found[name] = _fresh(item)
        return found
    return value


def _joint(*values: Any) -> int:
    """The bytes of values together: memory that they share is counted once."""
    return memory_of(values) + _on_devices(values)


def _on_devices(value: Any) -> int:
    """The bytes of tensors that lie on devices, in dicts, lists and tuples."""
    if isinstance(value, dict):
        return sum(map(_on_devices, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_on_devices, value))
    where = getattr(getattr(value, "device", None), "type", "cpu")
    return 0 if where == "cpu" else int(value.element_size() * value.numel())

"""Where a consumer is in its epochs, and the state that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from shardstream.errors import OptionError, StateError
from shardstream.format.numbers import whole_number
from shardstream.memory import when_dropped

__all__ = ["EPOCHS", "STATE_VERSION", "Cursor", "Run", "check_state", "differences", "read_place"]

STATE_VERSION = 1
EPOCHS = 2**64  # all of them have a smaller number

Iterated = TypeVar("Iterated", bound=Iterator[Any])


class Run:
    """One iteration of one epoch, from a position to the end.

    Args:
        epoch: The number of the epoch.
        position: The first position that is delivered.
        own: Whether the position is that of one worker process. False: it is that of all ranks.

    Attributes:
        position: The first position that is not delivered.
        following: What `position` becomes when the item that is being handed over has arrived.
        first: The position at which the iteration began.
        step: How many positions one batch takes, over all ranks.
        over: Whether the whole epoch was delivered.
        left: Whether the iterator was closed or dropped.
    """

    def __init__(self, epoch: int, position: int, own: bool = False) -> None:
        self.epoch, self.position, self.own = epoch, position, own
        self.following = position
        self.first = position
        self.step = 1
        self.over = self.left = False

    @property
    def short(self) -> bool:
        """Whether the iteration has given at most one batch, and has not ended."""
        return not self.over and self.position <= self.first + self.step


class Cursor:
    """What was delivered, as an epoch and a position; and where the next iteration starts.

    If an iteration is left after at most one batch, it was only a look at the data. Then the next iteration
    starts at the same place.
    """

    def __init__(self) -> None:
        self._now = Run(0, 0)
        self._next = Run(0, 0)
        self._looks: list[Run] = []  # the last iterations, of which each may still turn out to be a look

    @property
    def now(self) -> Run:
        """The first position that is not delivered, and its epoch."""
        return self._now

    def place(self, epoch: int, position: int, own: bool = False) -> None:
        """Start the next iteration at `position` of `epoch`; `own` as in `Run`."""
        self.forget()
        self._now, self._next = Run(epoch, position, own), Run(epoch, position, own)

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch`, unless it starts in this epoch already.

        Raises:
            OptionError: `epoch` is not a whole number of at least 0 and less than 2**64.
        """
        epoch = whole_number("epoch", epoch, 0)
        if epoch >= EPOCHS:
            raise OptionError(f"epoch={epoch} must be less than 2**64")
        # A training loop that says set_epoch(e) in front of each epoch must not lose its place in
        # the epoch that it resumed.
        if epoch != self._next.epoch:
            self.place(epoch, 0)

    def begin(self, step: int = 1) -> Run:
        """Start an iteration. If the one before still runs, it does not move the cursor any more.

        Args:
            step: How many positions its first batch takes, over all ranks.
        """
        while self._looks and not self._looks[-1].short:
            self.forget()
        run = self._now = self._next
        run.step = step
        self._looks.append(run)
        self._next = Run(run.epoch + 1, 0)
        return run

    def follow(self, iterator: Iterated, run: Run) -> Iterated:
        """The same iterator. When it is dropped, its run is left, even if no batch was ever asked for."""
        when_dropped(iterator, self.leave, run)
        return iterator

    def leave(self, run: Run) -> None:
        """Say that an iteration was closed or dropped. After at most one batch it does not count."""
        run.left = True
        while self._looks and self._looks[-1].left and self._looks[-1].short:
            look = self._looks.pop()
            self._next = Run(look.epoch, look.first, look.own)

    def forget(self) -> None:
        """Let the iterations so far count, even if they are left after one batch."""
        self._looks.clear()

    def restart(self, run: Run, epoch: int, position: int, own: bool) -> None:
        """Let an iteration that has begun go on from another place."""
        run.epoch, run.position, run.own = epoch, position, own
        run.first = run.following = position
        run.over = run.left = False
        if run is self._now:
            self._looks = [run]
            self._next = Run(epoch + 1, 0)

    def end(self, run: Run) -> None:
        """Say that an iteration has delivered the whole epoch."""
        run.over = True
        if run is self._now:
            self._now = Run(self._next.epoch, self._next.position)


def read_place(state: Mapping[str, Any]) -> tuple[int, int]:
    """The epoch and the position of a state.

    Args:
        state: What `state_dict()` gave.

    Raises:
        StateError: It is no such dict, or has another version.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"the state is a {type(state).__name__}, not a dict from state_dict()")
    version = state.get("version")
    if version != STATE_VERSION:
        raise StateError(f"the state has version {version!r}, this shardstream reads {STATE_VERSION}")
    place = []
    for name in ("epoch", "position"):
        value = state.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise StateError(f"the state's {name} is {value!r}, not a number of at least 0")
        place.append(value)
    return place[0], place[1]


def check_state(state: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Check that a state belongs to this dataset and these options.

    Args:
        state: What `state_dict()` gave.
        mine: The values that the state must have.

    Raises:
        StateError: A value differs. The message names both values.
    """
    wrong = [
        f"{name} is {theirs!r} in the state and {ours!r} here"
        for option, value in mine.items()
        for name, theirs, ours in differences(option, state.get(option), value)
    ]
    if wrong:
        raise StateError("the state belongs to another dataset or other options: " + "; ".join(wrong))


def differences(name: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """The values that differ, as (name, theirs, ours). Looks into dicts, and into lists of equal length."""
    if theirs == ours:
        return
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in dict.fromkeys((*ours, *theirs)):
            yield from differences(f"{name}.{key}" if name else key, theirs.get(key), ours.get(key))
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            yield from differences(f"{name}[{number}]", one, other)
    else:
        yield name, theirs, ours

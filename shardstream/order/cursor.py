"""Where a consumer is in its epochs, and the state that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardstream.errors import OptionError, StateError

__all__ = ["STATE_VERSION", "Cursor", "Run", "check_state", "read_place"]

STATE_VERSION = 1


class Run:
    """One iteration: an epoch from a position on.

    own: the position is the next of one worker process alone, not of all ranks.
    """

    def __init__(self, epoch: int, position: int, own: bool = False) -> None:
        self.epoch, self.position, self.own = epoch, position, own


class Cursor:
    """The epoch and the position that were delivered, and where the next iteration starts."""

    def __init__(self) -> None:
        self._now = Run(0, 0)
        self._next = Run(0, 0)

    @property
    def now(self) -> Run:
        """The first position that is not delivered, and its epoch."""
        return self._now

    def place(self, epoch: int, position: int, own: bool = False) -> None:
        """Start the next iteration at `position` of `epoch`."""
        self._now, self._next = Run(epoch, position, own), Run(epoch, position, own)

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at `epoch`."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < 2**64:
            raise OptionError(f"epoch={epoch!r} must be an int, at least 0")
        # A training loop that says set_epoch(e) in front of each epoch must not lose its place in
        # the epoch that it resumed.
        if epoch != self._next.epoch:
            self.place(epoch, 0)

    def begin(self) -> Run:
        """Start an iteration; the one before, if it still runs, no longer moves the cursor."""
        self._now = self._next
        self._next = Run(self._now.epoch + 1, 0)
        return self._now

    def restart(self, run: Run, epoch: int, position: int, own: bool) -> None:
        """Let an iteration that has begun go on from another place."""
        run.epoch, run.position, run.own = epoch, position, own
        if run is self._now:
            self._next = Run(epoch + 1, 0)

    def end(self, run: Run) -> None:
        """The iteration has delivered the whole epoch."""
        if run is self._now:
            self._now = Run(self._next.epoch, self._next.position)


def read_place(state: Mapping[str, Any]) -> tuple[int, int]:
    """The epoch and the position of a state."""
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
    """Raise StateError, with both values named, where the state differs from `mine`."""
    wrong = [
        f"{name} is {theirs!r} in the state and {ours!r} here"
        for option, value in mine.items()
        for name, theirs, ours in _differences(option, state.get(option), value)
    ]
    if wrong:
        raise StateError("the state belongs to another dataset or other options: " + "; ".join(wrong))


def _differences(name: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """The values that differ, down to those within dicts and within lists of the same length."""
    if theirs == ours:
        return
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in dict.fromkeys((*ours, *theirs)):
            yield from _differences(f"{name}.{key}", theirs.get(key), ours.get(key))
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(f"{name}[{number}]", one, other)
    else:
        yield name, theirs, ours

"""What the ranks say to each other when a save begins, and what all of them raise then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shardstream.errors import (
    CorruptionError,
    OptionError,
    ShardstreamError,
    StateError,
    StorageError,
)

__all__ = ["Told", "again", "first_failure", "raise_errors"]


class Told(NamedTuple):
    """What a rank says.

    Attributes:
        step: What it saves.
        attempt: A new name; that of the first rank is taken.
        failure: What an earlier save has met; "" if nothing.
        error: Why it cannot save; "" if it can.
        busy: Whether an earlier save is not over.
        changed: Whether its tensors are others than at its last save.
        checksum: Of the values that all ranks should have alike.
        own: What it alone has, in JSON.
    """

    step: int
    attempt: str
    failure: str
    error: str
    busy: bool
    changed: bool = False
    checksum: str = ""
    own: dict[str, Any] | None = None


def first_failure(told: Sequence[Told]) -> tuple[int, str] | None:
    """(rank, text) of the first failure of an earlier save, or None."""
    return next(((rank, each.failure) for rank, each in enumerate(told) if each.failure), None)


def raise_errors(url: str, told: Sequence[Told]) -> None:
    """Raise why the ranks cannot save, if they cannot.

    Raises:
        StateError: A rank cannot, or the ranks save different steps.
    """
    for rank, each in enumerate(told):
        if each.error:
            raise StateError(f"{url}: rank {rank} cannot save step {each.step}: {each.error}")
        if each.step != told[0].step:
            raise StateError(f"{url}: rank {rank} saves step {each.step}, and rank 0 step {told[0].step}")


def again(error: BaseException | None, text: str) -> ShardstreamError:
    """The error to raise for what a background thread has met: of its type, if that is one of ours."""
    kind = type(error)
    if kind in (StateError, StorageError, CorruptionError, OptionError):
        made: ShardstreamError = kind(text)
        return made
    return StorageError(text)

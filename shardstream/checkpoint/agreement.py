"""What the ranks say to each other when a save begins, and what all of them raise then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shardstream.errors import (
    CommitError,
    CorruptionError,
    MissingExtraError,
    OptionError,
    ShardstreamError,
    SourceError,
    StateError,
    StorageError,
)

__all__ = ["Failure", "OtherRankError", "Told", "again", "first_failure", "raise_errors", "raise_other"]

_KINDS = {
    kind.__name__: kind
    for kind in (
        CommitError, CorruptionError, MissingExtraError, OptionError, SourceError, StateError, StorageError
    )
}  # fmt: skip


class OtherRankError(StorageError):
    """Another rank has failed, whose own error says why."""


class Failure(NamedTuple):
    """What a rank has met, as the others hear of it.

    Attributes:
        kind: The name of the error's class.
        text: What it says.
    """

    kind: str
    text: str

    @classmethod
    def of(cls, error: BaseException, where: str = "") -> Failure:
        """What is said of an error."""
        return cls(type(error).__name__, f"{where}{type(error).__name__}: {error}")


class Told(NamedTuple):
    """What a rank says.

    Attributes:
        step: What it saves; -1 if that is no step.
        attempt: A new name; that of the first rank is taken.
        failure: What an earlier save has met, if it has failed.
        error: Why it cannot save, if it cannot.
        busy: Whether an earlier save is not over.
        changed: Whether its tensors are others than at its last save.
        checksum: Of the values that all ranks should have alike.
        own: What it alone has, in JSON.
    """

    step: int
    attempt: str
    failure: Failure | None
    error: Failure | None
    busy: bool
    changed: bool = False
    checksum: str = ""
    own: dict[str, Any] | None = None


def first_failure(told: Sequence[Told]) -> tuple[int, Failure] | None:
    """(rank, what it has met) of an earlier save that has failed, or None.

    Of several ranks it is the first that does not only say that another one has failed.
    """
    failed = [(rank, each.failure) for rank, each in enumerate(told) if each.failure is not None]
    own = [each for each in failed if each[1].kind != OtherRankError.__name__]
    return next(iter(own or failed), None)


def raise_errors(url: str, told: Sequence[Told], mine: BaseException | None) -> None:
    """Raise why the ranks cannot save, if they cannot: each rank its own error, the others that of the first.

    Args:
        url: The checkpoints.
        told: What the ranks say.
        mine: The error of this rank, or None.

    Raises:
        StateError: The ranks save different steps.
        ShardstreamError: A rank cannot.
    """
    if mine is not None:
        raise mine
    for rank, each in enumerate(told):
        if each.error is not None:
            step = "" if each.step < 0 else f" step {each.step}"
            raise_other(f"{url}: rank {rank} cannot save{step}", each.error)
        if each.step != told[0].step:
            raise StateError(f"{url}: rank {rank} saves step {each.step}, and rank 0 step {told[0].step}")


def raise_other(what: str, failure: Failure) -> None:
    """Raise what another rank has met: an error of its type if that is one of ours, else StateError.

    Args:
        what: Which rank, and what it cannot do.
        failure: What it has met.
    """
    raise _KINDS.get(failure.kind, StateError)(f"{what}: {failure.text}")


def again(kind: str, text: str) -> ShardstreamError:
    """The error to raise for what a background thread has met: of its type, if that is one of ours.

    Args:
        kind: The name of its class.
        text: What to say.
    """
    made: ShardstreamError = _KINDS.get(kind, StorageError)(text)
    return made

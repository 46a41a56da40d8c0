"""How long a store is waited for, and how often it is asked again: what users give in `storage_options`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.format.sizes import parse_size

__all__ = ["Options", "RequestOptions", "Retry", "Timeouts", "split_options"]

Options = Mapping[str, Any] | None
T = TypeVar("T", "Retry", "Timeouts")

_MOST_ATTEMPTS = 100
_SPAN = 8.0


@dataclass(frozen=True)
class Retry:
    """How often a request to a remote store is tried, and with which pauses.

    `storage_options={"retry": ss.Retry(attempts=3)}`. Only failures that may pass are tried again: a lost
    connection, no answer in time, an overloaded server.

    Args:
        attempts: tries of one request, 1 to 100.
        deadline: seconds for all tries of one request together. A large request has more time: its size
            divided by `Timeouts.slowest`.
        pause: seconds. The pause after try number n is random, from 0 to `pause * 2**n`.
        longest_pause: seconds that a pause has at most. A server that asks for a longer one is obeyed.
        span: seconds from the first try that the last one waits for, so that a server can restart
            meanwhile. None: 8, or half of `deadline` if that is less.
        hedge: whether a read that is slow, compared with earlier ones of its size, is sent a second time.
            At most 2 % of the reads are.

    Raises:
        OptionError: a value is out of its range.
    """

    attempts: int = 6
    deadline: float = 60.0
    pause: float = 0.25
    longest_pause: float = 8.0
    span: float | None = None
    hedge: bool = True

    def __post_init__(self) -> None:
        whole_number("Retry: attempts", self.attempts, 1, _MOST_ATTEMPTS)
        for name in ("deadline", "pause", "longest_pause"):
            _check_seconds("Retry", name, getattr(self, name))
        if self.span is not None and (not _is_number(self.span) or not 0 <= self.span <= self.deadline):
            raise OptionError(f"Retry: span={self.span!r} must be from 0 to deadline={self.deadline!r}")
        if type(self.hedge) is not bool:
            raise OptionError(f"Retry: hedge={self.hedge!r} must be True or False")


@dataclass(frozen=True)
class Timeouts:
    """How long one try of a request to a remote store may take.

    `storage_options={"timeouts": ss.Timeouts(read=5)}`.

    Args:
        connect: seconds for a new connection.
        read: seconds without a byte of the answer.
        slowest: bytes per second, as a number or as text such as "64KiB". A try may take the longer one of
            `connect` and `read`, and the time that its bytes need at this rate.

    Raises:
        OptionError: a value is out of its range.
    """

    connect: float = 10.0
    read: float = 10.0
    slowest: int | str = "64KiB"

    def __post_init__(self) -> None:
        for name in ("connect", "read"):
            _check_seconds("Timeouts", name, getattr(self, name))
        object.__setattr__(self, "slowest", parse_size(self.slowest, "Timeouts: slowest"))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_seconds(kind: str, name: str, value: object) -> None:
    if not _is_number(value) or not 0 < value < float("inf"):  # type: ignore[operator]
        raise OptionError(f"{kind}: {name}={value!r} must be a number of seconds, greater than 0")


class RequestOptions(NamedTuple):
    """The options that are ours and not the store's."""

    retry: Retry = Retry()
    timeouts: Timeouts = Timeouts()

    def time_of_size(self, size: int) -> float:
        """Seconds that `size` bytes need at the slowest rate."""
        return size / int(self.timeouts.slowest)

    def seconds(self, size: int) -> float:
        """Seconds for all tries of a request for `size` bytes."""
        return self.retry.deadline + self.time_of_size(size)

    def attempt_seconds(self, size: int) -> float:
        """Seconds for one try of it."""
        return max(self.timeouts.connect, self.timeouts.read) + self.time_of_size(size)

    @property
    def span(self) -> float:
        """Seconds from the first try to the last one, at least."""
        retry = self.retry
        return min(_SPAN, retry.deadline / 2) if retry.span is None else retry.span


def split_options(options: Options) -> tuple[RequestOptions, dict[str, Any]]:
    """(our options, those of the store's package) of a user's `storage_options`."""
    theirs = dict(options or {})
    retry = _made(Retry, "retry", theirs.pop("retry", None))
    return RequestOptions(retry, _made(Timeouts, "timeouts", theirs.pop("timeouts", None))), theirs


def _made(kind: type[T], name: str, value: object) -> T:
    """The options that a user gave: an instance, or a dict of its fields, such as JSON holds."""
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    known = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping):
        raise OptionError(f"storage_options: {name}={value!r} must be ss.{kind.__name__}(...) or a dict")
    for key in value:
        if key not in known:
            raise OptionError(f"storage_options: {name} has no {key!r}; it has {', '.join(known)}")
    return kind(**value)

"""Blocks on their way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from shardstream.errors import ShardstreamError, StorageError
from shardstream.storage.cache.blocks import Block
from shardstream.storage.cancellation import current
from shardstream.storage.secrets import redact
from shardstream.storage.transport.backends import Data

__all__ = ["BlockRequest", "InFlight", "error_for_others"]


class BlockRequest(NamedTuple):
    """A block, and how to get it: `size` stored bytes from `start` of an object.

    accept: makes the block of the stored bytes, or raises CorruptionError.
    soon: whether it is worth memory until it is asked for, even if the SSD tier has it.
    """

    block: Block
    url: str
    start: int
    size: int
    accept: Callable[[Data], Data]
    soon: bool = True


class InFlight:
    """A block on its way. The result None means: look again. Another process has it, or nobody any more."""

    def __init__(self, request: BlockRequest) -> None:
        self.request = request
        self.future: Future[Data | None] = Future()

    def end(self, result: Data | BaseException | None) -> None:
        """Tell all threads that wait for the block."""
        if isinstance(result, BaseException):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)

    def followed(self) -> Future[Data | None]:
        """A future with the same result, for one thread, which may cancel it."""
        mine: Future[Data | None] = Future()

        def follow(done: Future[Data | None]) -> None:
            if mine.set_running_or_notify_cancel():
                error = done.exception()
                if error is None:
                    mine.set_result(done.result())
                else:
                    mine.set_exception(error)

        self.future.add_done_callback(follow)
        return mine


def error_for_others(error: BaseException, request: BlockRequest) -> ShardstreamError | None:
    """The error for others that wait for a block that this thread could not get; None: they look again."""
    if current().over or not isinstance(
        error, Exception
    ):  # the end of this iterator or thread, not of theirs
        return None
    if isinstance(error, ShardstreamError):
        return error
    told = StorageError(f"{redact(request.url)}: not fetched: {type(error).__name__}")
    told.__cause__ = error
    return told

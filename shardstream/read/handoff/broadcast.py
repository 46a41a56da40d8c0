"""One rank reads for a group of ranks that share data, and broadcasts its batches to the others.

A batch is one message: a header, the pickle, and its arrays and tensors out of band (PEP 574). A message
that is about as large as the one before takes one collective. A larger message takes a second one, for the
rest.
"""

from __future__ import annotations

import os
import pickle
import struct
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from shardstream.counters.layout import stage
from shardstream.errors import OptionError, ShardstreamError, StorageError, require
from shardstream.read.engine.stats import Stats
from shardstream.read.handoff.serve import portable
from shardstream.read.handoff.shared_memory import dumped, placed

__all__ = ["Broadcast"]

_ROOM = 1 << 16
_STEP = stage("step")
_BATCH, _END, _ERROR = range(3)
_HEAD = struct.Struct("<IIQQQ")  # kind, samples, bytes in all, bytes of the pickle, number of spans
_SPAN = struct.Struct("<QQ")


class Broadcast:
    """Shares the batches of a group's first rank with the other ranks. All ranks iterate in step.

    Args:
        group: A torch.distributed ProcessGroup. If it has a backend for the CPU (gloo), batches go through
            this backend. Otherwise they go through the memory of the device.

    Attributes:
        reads: Whether this rank is the one that reads.

    Raises:
        OptionError: `group` is no such group, or this rank is not in it.
    """

    def __init__(self, group: Any) -> None:
        dist = require("torch", "torch").distributed
        if not isinstance(group, dist.ProcessGroup):
            raise OptionError(
                f"broadcast={group!r} is neither a dimension of the topology's mesh nor a ProcessGroup "
                f"that this rank is in"
            )
        self._group, self._dist, self._process = group, dist, os.getpid()
        self.reads = dist.get_rank(group) == 0
        self._reader = dist.get_global_rank(group, 0)

    def stream(
        self, produce: Callable[[], Generator[Any, None, None]], place: Mapping[str, Any], stats: Stats
    ) -> Generator[Any, None, None]:
        """The batches of `produce()`, on every rank.

        Args:
            produce: Gives the batches. Only the reading rank calls it.
            place: Values that must be the same on all ranks, such as the position at which they start.
            stats: Where batches, samples and waiting times are counted.

        Raises:
            OptionError: `place` differs between ranks; it is raised on all of them. Or this process is a fork
                of a rank.
            StorageError: Another rank did not answer within the timeout of the group.
            Exception: Any error of the reading rank is raised on all ranks.
        """
        if os.getpid() != self._process:
            raise OptionError(
                "broadcast: this process is a fork of a rank of the group, and no rank: give its loader no "
                "broadcast"
            )
        self._agree(dict(place))
        if self.reads:
            return self._sent(produce(), stats)
        return self._received(stats)

    def _agree(self, place: dict[str, Any]) -> None:
        found: list[Any] = [None] * self._dist.get_world_size(self._group)
        with self._collective():
            self._dist.all_gather_object(found, place, group=self._group)
        for number, other in enumerate(found):
            wrong = [name for name in place if other.get(name) != found[0].get(name)]
            if wrong:
                told = ", ".join(f"{name} {other.get(name)!r} and {found[0].get(name)!r}" for name in wrong)
                raise OptionError(f"ranks {number} and 0 of the broadcast's group do not share data: {told}")

    def _sent(self, batches: Generator[Any, None, None], stats: Stats) -> Generator[Any, None, None]:
        capacity = _ROOM
        try:
            while True:
                before = stats.samples
                try:
                    batch = next(batches)
                except StopIteration:
                    self._send(_pack(_END, 0, None), capacity)
                    return
                except Exception as error:
                    self._send(_pack(_ERROR, 0, portable(error)), capacity)
                    raise
                started = time.monotonic()
                capacity = self._send(_pack(_BATCH, stats.samples - before, batch), capacity)
                stats.waited(started, time.monotonic())
                yield batch
        finally:
            batches.close()

    def _received(self, stats: Stats) -> Generator[Any, None, None]:
        capacity = _ROOM
        while True:
            started = time.monotonic()
            memory, capacity = self._receive(capacity)
            kind, samples, value = _unpack(memory)
            stats.waited(started, time.monotonic())
            if kind == _END:
                return
            if kind == _ERROR:
                if hasattr(value, "add_note") and not isinstance(value, ShardstreamError):
                    value.add_note(f"on rank {self._reader}, which reads for this one")
                raise value
            stats.add(batches=1, samples=samples)
            stats.tell_process()
            del memory
            given = time.monotonic()
            yield value
            stats.recorder.span(_STEP, given, time.monotonic())
            del value

    def _send(self, message: Any, capacity: int) -> int:
        size = len(message)
        first = _empty(capacity)
        first[: min(size, capacity)] = message[:capacity]
        self._broadcast(first)
        if size > capacity:
            self._broadcast(message[capacity:])
        return _capacity(size)

    def _receive(self, capacity: int) -> tuple[Any, int]:
        first = self._broadcast(_empty(capacity))
        size = _HEAD.unpack_from(first)[2]
        if size > capacity:
            memory = _empty(size)
            memory[:capacity] = first
            memory[capacity:] = self._broadcast(memory[capacity:])
            return memory, _capacity(size)
        return first, _capacity(size)

    def _broadcast(self, array: Any) -> Any:
        torch = require("torch", "torch")
        there = torch.from_numpy(array)
        if "cpu:" not in self._dist.get_backend_config(self._group):
            there = there.to(torch.device("cuda", torch.cuda.current_device()))
        with self._collective():
            self._dist.broadcast(there, self._reader, group=self._group)
        return there.cpu().numpy()

    @contextmanager
    def _collective(self) -> Any:
        try:
            yield
        except RuntimeError as error:
            raise StorageError(
                f"the ranks that share batches with rank {self._reader} did not all take part in a "
                f"broadcast: one of them has ended, or left its loop ({error})"
            ) from error


def _empty(size: int) -> Any:
    # torch aligns its memory, numpy does not.
    return require("torch", "torch").empty(size, dtype=require("torch", "torch").uint8).numpy()


def _capacity(size: int) -> int:
    """How many bytes the next message may have in one collective: a little more than this message had."""
    return -(-(size + size // 16) // _ROOM) * _ROOM


def _pack(kind: int, samples: int, value: Any) -> Any:
    """The bytes of a message, a uint8 array."""
    pickled, views = dumped(value)
    spans, at = placed(views, _HEAD.size + _SPAN.size * len(views) + len(pickled))
    message = _empty(at)
    head = _HEAD.pack(kind, samples, at, len(pickled), len(spans)) + b"".join(_SPAN.pack(*s) for s in spans)
    places = [0, len(head), *(begin for begin, _ in spans)]
    parts = [memoryview(head), pickled, *views]
    for begin, part in zip(places, parts, strict=True):
        message[begin : begin + len(part)] = np.frombuffer(part, np.uint8)
    return message


def _unpack(memory: Any) -> tuple[int, int, Any]:
    """The kind, the number of samples and the value of a message. Its arrays are views of `memory`."""
    kind, samples, _, pickled, count = _HEAD.unpack_from(memory)
    at = _HEAD.size + _SPAN.size * count
    buffers = [memory[b : b + size] for b, size in _SPAN.iter_unpack(memory[_HEAD.size : at].tobytes())]
    # To unpickle is safe: another rank of the same job wrote it.
    return kind, samples, pickle.loads(memory[at : at + pickled].data, buffers=buffers)  # noqa: S301

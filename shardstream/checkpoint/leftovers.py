"""What an attempt has left on the disk of this machine: which parts are whole, and how they are sent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from typing import NamedTuple

from shardstream.checkpoint.layout import (
    BLOCK,
    PENDING,
    FilePlan,
    rank_of,
    receipt_name,
    step_folder,
    sums_name,
)
from shardstream.checkpoint.manifest import MAX_BYTES, FileInfo, Pending, Receipt, decode
from shardstream.checkpoint.outgoing import Outgoing, mapped
from shardstream.checkpoint.retention import Run
from shardstream.checkpoint.threads import in_threads
from shardstream.errors import CorruptionError, StorageError
from shardstream.storage.store import Store

__all__ = ["Left", "left_on", "pending_of", "send"]

_AT_ONCE = 4  # files


class Left(NamedTuple):
    """An attempt on a local disk.

    Attributes:
        step: Its step.
        attempt: Its name.
        ranks: Those whose parts are whole there.
        world: How many ranks it has; 0 if that is not known here, since the first rank wrote elsewhere.
        time: When the last of its whole parts was written, in seconds since 1970; 0 if there is none.
    """

    step: int
    attempt: str
    ranks: list[int]
    world: int
    time: float = 0.0


def left_on(local: Run, step: int, attempt: str) -> Left:
    """What there is of an attempt on this machine's disk."""
    inside = local.open(step_folder(step), attempt)
    ranks, world, newest = [], 0, 0.0
    for name in inside.list():
        rank = rank_of(name)
        # What was not written to its end has no checksum that fits.
        with contextlib.suppress(CorruptionError, StorageError):
            if rank is not None:
                _receipt(inside, rank)
                ranks.append(rank)
            elif name == PENDING:
                world = _pending(inside).world
            else:
                continue
            with contextlib.suppress(OSError):
                newest = max(newest, os.stat(inside.local_path(name) or "").st_mtime)
    return Left(step, attempt, ranks, world, newest)


def pending_of(run: Run, step: int, attempt: str) -> Pending:
    """What the manifest of an attempt in the store will have.

    Raises:
        CorruptionError: It is damaged.
    """
    return _pending(run.open(step_folder(step), attempt))


def _pending(inside: Store) -> Pending:
    return decode(inside.read(PENDING, MAX_BYTES), Pending, inside.where(PENDING))


def _receipt(inside: Store, rank: int) -> Receipt:
    name = receipt_name(rank)
    return decode(inside.read(name, MAX_BYTES), Receipt, inside.where(name))


def send(run: Run, local: Run, left: Left) -> None:
    """Send the whole parts of an attempt, their receipts last. What the store has is not sent again.

    Raises:
        CorruptionError: A file is not what was written. Nothing says in the store that the part is whole.
        StorageError: The store has failed.
    """
    here = local.open(step_folder(left.step), left.attempt)
    there = run.open(step_folder(left.step), left.attempt)
    names = set(there.list())
    if left.world and not (PENDING in names and there.read(PENDING) == here.read(PENDING)):
        there.write(PENDING, here.read(PENDING))
    for rank in left.ranks:
        # Even if the receipt is there: a file may have been damaged in the store since.
        in_threads(lambda file: _send(here, there, file, names), _receipt(here, rank).files, _AT_ONCE)
        if receipt_name(rank) not in names:
            there.write(receipt_name(rank), here.read(receipt_name(rank)))


def _send(here: Store, there: Store, info: FileInfo, names: Collection[str]) -> None:
    if {info.name, sums_name(info.name)} <= set(names) and there.size(info.name) == info.bytes:
        return
    path = here.local_path(info.name) or ""
    file = Outgoing(FilePlan(info.name, b"", (), info.bytes))
    with contextlib.ExitStack() as stack:
        try:
            data = stack.enter_context(mapped(path, info.bytes))
        except (OSError, ValueError, StorageError) as error:
            raise CorruptionError(f"{path}: it is not what was written: {error}") from error
        for start in range(0, info.bytes, BLOCK):
            file.digest([data[start : start + BLOCK]])
        if file.digests != info.digests:
            raise CorruptionError(f"{path}: its bytes are not those that were written")
        there.write(info.name, data)
    there.write(sums_name(info.name), file.sums)

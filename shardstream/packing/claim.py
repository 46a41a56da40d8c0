"""The claim by which a worker may write: whose turn it is at a target, looked at before each put."""

from __future__ import annotations

import time
from dataclasses import dataclass

from shardstream.errors import CommitError
from shardstream.packing import reservation
from shardstream.storage.store import Store

__all__ = ["Claim", "claim_of", "forget"]

_LOOK_EVERY = 10.0  # seconds
_looked: dict[tuple[str, Claim], float] = {}  # by target and claim: when this process saw it last
# A machine that was suspended has slept, too.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class Claim:
    """A packer's turn at a target.

    Args:
        plan: The identity of the pack.
        epoch: The number of the turn. Each packer that starts or resumes there raises it.
        owner: A random name of that packer; "" if version 0.1 or a writer of parts made the reservation.
    """

    plan: str
    epoch: int = 0
    owner: str = ""

    def check(self, store: Store, now: bool = False) -> None:
        """Raise CommitError if it is another packer's turn. It is looked up every 10 seconds.

        Args:
            store: The target.
            now: Whether to look in any case.
        """
        key, clock = (store.url, self), time.clock_gettime(_CLOCK)
        if not now and clock - _looked.get(key, -_LOOK_EVERY) < _LOOK_EVERY:
            return
        found = reservation.read(store)
        if found is None:
            raise CommitError(
                f"{store.url}: this pack has ended, or its claim was deleted; nothing more is written"
            )
        if claim_of(found) != self:
            whose = "has continued this pack" if found.plan == self.plan else "packs something else here"
            raise CommitError(f"{store.url}: another packer {whose}; this one writes nothing more")
        _looked[key] = clock


def forget(store: Store) -> None:
    """Note that the reservation of a target was deleted: writers in this process look again."""
    for key in list(_looked):
        if key[0] == store.url:
            _looked.pop(key, None)


def claim_of(found: reservation.Reservation) -> Claim:
    """The claim that a reservation grants."""
    return Claim(found.plan, found.epoch, found.owner)

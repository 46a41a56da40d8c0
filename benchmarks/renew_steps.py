"""The steps of a renewal of what is published, in their order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A question and about how many minutes it takes with all peers, on 2 quiet cores."""

    name: str
    minutes: float


# Datasets of the first steps serve later ones. Estimates count datasets as written: see --prepare.
STEPS = (
    Step("tokens32", 9),
    Step("tokens16", 8),
    Step("documents", 8),
    Step("images40", 6),
    Step("images110", 5),
    Step("decode40", 6),
    Step("decode110", 6),
    Step("first_batch", 3),
    Step("resume1", 2),
    Step("resume50", 2),
    Step("resume99", 2),
    Step("remote_first100", 5),
    Step("remote_epoch20", 12),
    Step("remote_link150", 6),
    Step("packing", 3),
    Step("dali", 2),
)

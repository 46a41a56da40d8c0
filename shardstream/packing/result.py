"""What a task of a pack did."""

from __future__ import annotations

import msgspec

from shardstream.format.manifest import ShardInfo
from shardstream.packing.tally import Tally


class Result(msgspec.Struct):
    """The shards and the counts of one task. It is stored as JSON, as the receipt of the task.

    Args:
        number: The number of the task.
        shards: The shards that it wrote.
        samples: How many samples it packed.
        input_bytes: The bytes of input that it read.
        rejects: The first million rejects: where each is, and why.
        counts: The counts of its samples, added up.
        rejected: How many rejects there were.
        skipped: How many harmless ones, by the reason.
        skips: The first of these: where each is, and why.
        unknown: The names in `keep` that no row had. None: there were no rows.
        sample_bytes: The bytes that the fields of its samples hold. None: version 0.1 did the task.
        given: Of the samples that it read, as they are to be stored, less those that became rejects.
        stored: Of the samples in its shards.
        spilled: Only for a shuffle through the store: of each object of its samples where its regions end.
        plan: The identity of the pack. "": version 0.1 did the task.
        versions: The versions of the objects that it put, by name, as far as the store tells them.
    """

    number: int
    shards: list[ShardInfo] = []
    samples: int = 0
    input_bytes: int = 0
    rejects: list[tuple[str, str]] = []
    counts: dict[str, int] = {}
    rejected: int = 0
    skipped: dict[str, int] = {}
    skips: list[tuple[str, str]] = []
    unknown: list[str] | None = None
    sample_bytes: int | None = None
    given: Tally | None = None
    stored: Tally | None = None
    spilled: list[bytes] = []
    plan: str = ""
    versions: dict[str, str] = {}

"""What lies where in the file of a process. A new counter or stage is one line here, and a call at its place.

    bytes 0 to 511         the header: what `HEADER` packs, little-endian
    bytes 512 to 2047      192 slots, each a float64: two for each stage (events, sum), then the counters
    bytes 2048 to 16383    14 histograms, one for each stage, of 256 buckets, each a uint32

Bucket i of a histogram has the values from 2**(i / 8) to 2**((i + 1) / 8): microseconds, or bytes. The last
one has all that are larger, the first one all that are smaller. If a bucket is full, all buckets of its
histogram are halved: the percentiles stay. The number of events is in the slot of the stage.

A reader must refuse another `VERSION`. A counter may be added at the end without a new version: its slot has
been 0 before. Slots and buckets have the byte order of the machine: a file is for readers on the same one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ACTIVITIES",
    "BUCKETS",
    "BUCKETS_AT",
    "COUNTERS",
    "HEADER",
    "MAGIC",
    "PER_DOUBLING",
    "SIZE",
    "SLOTS",
    "SLOTS_AT",
    "STAGES",
    "VERSION",
    "Counter",
    "Stage",
    "slot",
    "stage",
]

MAGIC = b"SSCOUNT\0"
VERSION = 1
SIZE = 16384
SLOTS_AT, SLOTS = 512, 192
BUCKETS_AT, BUCKETS = 2048, 256
PER_DOUBLING = 8

# magic, version, size of the file, process id, start of the process (clock ticks after boot, 0 if unknown),
# begin of the counting (seconds since 1970; seconds of the monotonic clock), pid namespace (0 if unknown),
# activities (bit i: ACTIVITIES[i]), rank and world size (-1 if unknown), id of the boot, host, job,
# what is read or written.
HEADER = struct.Struct("<8sIIQQddQQii40s64s104s160s")

# What a process does with shardstream.
ACTIVITIES = ("loader", "pack", "warm", "checkpoint", "weights", "logs", "reader")


@dataclass(frozen=True)
class Stage:
    """A step of the work whose events are counted and measured.

    Attributes:
        name: Of the stage.
        unit: What is measured.
        help: What one event is.
    """

    name: str
    unit: Literal["seconds", "bytes"]
    help: str


@dataclass(frozen=True)
class Counter:
    """A number of a process.

    Attributes:
        name: Of the number.
        group: The part of shardstream that it belongs to.
        kind: "sum" only grows. "now" is what is so at the moment.
        unit: "bytes", "seconds", or "" for a number of things.
        help: What is counted.
    """

    name: str
    group: str
    kind: Literal["sum", "now"]
    unit: str
    help: str


STAGES = (
    Stage("wait", "seconds", "the consumer asks for a batch: 0 if it is there, else the time until it is"),
    Stage("step", "seconds", "the consumer's time with a batch, until it asks for the next one"),
    Stage("batch", "seconds", "a batch is built: cut out, decoded, transformed, collated; without waits"),
    Stage("fetch", "seconds", "a frame comes into memory, from any tier, and is decompressed"),
    Stage(
        "request",
        "seconds",
        "a read at a store that succeeded, with all its tries, until its last byte",
    ),
    Stage("put", "seconds", "a write at a store that succeeded, with all its tries"),
    Stage("disk", "seconds", "a block is read from the disk of the cache, and verified"),
    Stage("decompress", "seconds", "a frame is decompressed"),
    Stage("decode", "seconds", "the fields of a batch are decoded"),
    Stage("transform", "seconds", "the samples of a batch pass through the user's transform"),
    Stage("task", "seconds", "a task of a pack is worked on"),
    Stage("save", "seconds", "the training loop waits for a save of a checkpoint"),
    Stage("durable", "seconds", "from the call of a save to the commit of the checkpoint"),
    Stage("request_bytes", "bytes", "the bytes that one read at a store gave"),
)

_N, _B, _S = "", "bytes", "seconds"
COUNTERS = (
    Counter("batches", "loader", "sum", _N, "batches that were delivered"),
    Counter("samples", "loader", "sum", _N, "samples that were delivered"),
    Counter("frames", "loader", "sum", _N, "frames that came into memory"),
    Counter("decompressed_bytes", "loader", "sum", _B, "bytes of these frames after decompression"),
    Counter("damaged", "loader", "sum", _N, "damaged images that were masked"),
    Counter("tolerated", "loader", "sum", _N, "JPEGs with harmless errors, which Pillow decoded"),
    Counter("queue_depth", "loader", "now", _N, "units of work that were ready when the last one was taken"),
    Counter("waiting_since", "loader", "now", _S, "monotonic clock at the begin of the wait; 0: no wait now"),
    Counter("ram_used_bytes", "loader", "now", _B, "bytes held in the budget of the cache"),
    Counter("ram_limit_bytes", "loader", "now", _B, "bytes that this budget allows"),
    Counter("prefetch_used_bytes", "loader", "now", _B, "bytes held in the budget of prefetch="),
    Counter("prefetch_limit_bytes", "loader", "now", _B, "bytes that this budget allows"),
    Counter("ram_hits", "storage", "sum", _N, "blocks that the memory of the cache had"),
    Counter("ram_bytes", "storage", "sum", _B, "their bytes"),
    Counter("disk_hits", "storage", "sum", _N, "blocks that the disk of the cache had"),
    Counter("disk_bytes", "storage", "sum", _B, "their bytes"),
    Counter("misses", "storage", "sum", _N, "ranges of blocks that came from the store"),
    Counter("remote_bytes", "storage", "sum", _B, "bytes that came from stores"),
    Counter("in_flight", "storage", "now", _N, "reads at stores that are not answered yet"),
    Counter("concurrency", "storage", "now", _N, "reads at a time that the last store used is worth"),
    Counter("retries", "storage", "sum", _N, "tries after the first one of a request"),
    Counter("hedges", "storage", "sum", _N, "slow reads that were sent a second time"),
    Counter("errors", "storage", "sum", _N, "requests that failed after all tries"),
    Counter("refetches", "storage", "sum", _N, "damaged blocks that were fetched once more"),
    Counter("put_bytes", "storage", "sum", _B, "bytes that were written to stores"),
    Counter("packed_rows", "pack", "sum", _N, "samples or documents that were packed"),
    Counter("packed_bytes", "pack", "sum", _B, "bytes of the shards of the pack"),
    Counter("packed_shards", "pack", "sum", _N, "shards that were written"),
    Counter("pack_tasks_done", "pack", "now", _N, "tasks of the pack that are done"),
    Counter("pack_tasks", "pack", "now", _N, "tasks of the pack"),
    Counter("warmed_bytes", "warm", "now", _B, "bytes that this warm-up has brought to the cache"),
    Counter("warm_bytes", "warm", "now", _B, "bytes that this warm-up is to bring"),
    Counter("saves", "checkpoint", "sum", _N, "saves that were begun"),
    Counter("saves_skipped", "checkpoint", "sum", _N, "saves that were skipped, since one was on its way"),
    Counter("saves_failed", "checkpoint", "sum", _N, "saves that failed"),
    Counter("commits", "checkpoint", "sum", _N, "checkpoints that became durable"),
    Counter("checkpoint_bytes", "checkpoint", "sum", _B, "bytes of checkpoints that this process wrote"),
    Counter("checkpoint_step", "checkpoint", "now", _N, "the step of the last checkpoint that is durable"),
    Counter("weight_bytes", "weights", "sum", _B, "bytes of weights that were read or fetched"),
    Counter("weight_tensors", "weights", "sum", _N, "tensors that were loaded"),
    Counter("log_rows", "logs", "sum", _N, "rows that were logged"),
    Counter("log_dropped", "logs", "sum", _N, "rows that were dropped"),
    Counter("log_shipped", "logs", "sum", _N, "rows that arrived in the store"),
    Counter("log_waiting_bytes", "logs", "now", _B, "bytes of rows that are not in the store yet"),
    Counter("frame_wait_seconds", "loader", "sum", _S, "that threads which build batches waited for frames"),
)

_STAGE = {each.name: number for number, each in enumerate(STAGES)}
_SLOT = {each.name: number for number, each in enumerate(COUNTERS, start=2 * len(STAGES))}

assert HEADER.size <= SLOTS_AT
assert 2 * len(STAGES) + len(COUNTERS) <= SLOTS
assert BUCKETS_AT + 4 * BUCKETS * len(STAGES) <= SIZE


def stage(name: str) -> int:
    """The number of a stage, for `Recorder.span`."""
    return _STAGE[name]


def slot(name: str) -> int:
    """The slot of a counter, for `Recorder.add` and `Recorder.set`."""
    return _SLOT[name]

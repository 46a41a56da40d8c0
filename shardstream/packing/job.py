"""What a pack is asked to do, and the tasks of its passes. Workers get them pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shardstream.errors import OptionError
from shardstream.format.numbers import whole_number
from shardstream.packing.claim import Claim
from shardstream.packing.layout import Layout
from shardstream.packing.planned import PlannedTask
from shardstream.packing.sources import Source, Task
from shardstream.packing.sources.base import TokenDtype, token_dtype
from shardstream.storage.store import redact

if TYPE_CHECKING:
    from shardstream.packing.store_shuffle import Bounds

__all__ = ["Bucket", "Buckets", "Job", "input_bytes", "stage_of"]


@dataclass(frozen=True)
class Job:
    """All that a worker has to know of a pack. It is pickled for worker processes.

    The arguments that are not listed here are those of `pack`.

    Args:
        source: Reads the input.
        layout: How shards are cut and compressed.
        first_shard: The number of the first shard of the first task.
        spill_dir: Only for a shuffle: the local folder for samples between the two passes. None: the system's
            temporary folder.
        buckets: Only for a shuffle: how many buckets there are.
        part: The number of the part of the pack that this process does, and how many there are; or None.
        group: Only for a shuffle: how many buckets are a group. 0: the samples wait in `spill_dir`; else in
            the store, see `store_shuffle`.
        spilled: Only for the second pass through the store: how many objects each task of the first one has.
        claim: By which workers may write to `dest`, and leave receipts there. None: no one else does.
        tag: Stands in the names of shards behind their numbers. It is not "" if the store lets a second
            writer of an object have its way: then no other plan may have the same names.

    Raises:
        OptionError: A value is wrong.
    """

    source: Source
    dest: str
    layout: Layout
    first_shard: int = 0
    tokenizer: str | None = None
    eos: int | None = None
    limit: int | None = None
    on_error: Literal["raise", "skip"] = "raise"
    shuffle: int | None = None
    spill_dir: str | None = None
    buckets: int = 0
    part: tuple[int, int] | None = None
    group: int = 0
    spilled: tuple[int, ...] = ()
    claim: Claim | None = None
    tag: str = ""
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("limit", "shuffle", "eos"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value))
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"limit={self.limit} must be at least 1")
        if self.on_error not in ("raise", "skip"):
            raise OptionError(f"on_error={self.on_error!r} must be 'raise' or 'skip'")
        if self.shuffle is not None and not 0 <= self.shuffle < 1 << 63:
            raise OptionError(f"shuffle={self.shuffle} must be a seed from 0 to 2**63 - 1")
        there = token_dtype(self.source)
        if self.eos is not None and self.tokenizer is None and there is None:
            raise OptionError(f"eos={self.eos} needs a tokenizer: it ends documents of tokens")
        if self.tokenizer is not None and there is not None:
            raise OptionError(f"tokenizer={self.tokenizer!r} makes tokens of text; the input holds tokens")

    @property
    def kind(self) -> Literal["samples", "tokens"]:
        """The kind of the dataset."""
        there = self.tokenizer is not None or token_dtype(self.source) is not None
        return "tokens" if there else "samples"

    @property
    def shown(self) -> str:
        """What it writes, for people who watch it."""
        part = "" if self.part is None else f"part {self.part[0]}/{self.part[1]} of "
        return f"{part}{redact(self.dest)}"

    def token_dtype(self) -> TokenDtype | None:
        """How tokens are stored; None if the dataset holds samples."""
        if self.tokenizer is None:
            return token_dtype(self.source)
        from shardstream.packing.tokenize import load_tokenizer

        return "uint16" if load_tokenizer(self.tokenizer).dtype(self.eos).name == "uint16" else "uint32"

    def check_tokenizer(self) -> None:
        """Raise OptionError if the tokenizer cannot be loaded, or if `eos` is no token id."""
        if self.tokenizer is not None:
            from shardstream.packing.tokenize import load_tokenizer

            load_tokenizer(self.tokenizer).dtype(self.eos)


@dataclass(frozen=True)
class Bucket:
    """A task of the second pass of a shuffle: to gather one bucket.

    Args:
        number: The number of the bucket.
        spills: How many tasks the first pass had.
        span: The buckets of the first pass that it is made of; see `disk_shuffle.gather`.
    """

    number: int
    spills: int
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Buckets(Bucket):
    """A task of the second pass of a shuffle through the store: to gather the shards of a group of buckets.

    Args:
        number: The number of the task.
        spills, span: See `Bucket`; the span of all its shards.
        first: The number of its first shard.
        spans: Of each of its shards the first of its buckets, and the one behind the last.
        bounds: Where its regions begin and end in each object of the first pass; see `store_shuffle.gather`.
    """

    first: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    bounds: Bounds | None = field(default=None, compare=False, repr=False)


def stage_of(job: Job, task: Task | Bucket) -> str:
    """The pass that a task belongs to.

    "task" writes shards. Of a shuffle it is the second pass, and "spill" the first one; through the store
    these are "gather" and "scatter".
    """
    if isinstance(task, Buckets):
        return "gather"
    if job.shuffle is None or isinstance(task, Bucket):
        return "task"
    return "scatter" if job.group else "spill"


def input_bytes(task: Task) -> int:
    """The bytes of input that a task reads."""
    if isinstance(task, PlannedTask):
        return task.size
    return sum(span.end - span.start for span in task.files)

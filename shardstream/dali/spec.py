"""What all epochs of one DaliLoader have in common, and what they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shardstream.dali.graph import Graph, OnError
from shardstream.dali.kept import Kept
from shardstream.dataset.rank_batches import RankBatches
from shardstream.dataset.sample_contents import SampleContents

__all__ = ["Delivered", "EpochSpec"]


@dataclass(frozen=True)
class EpochSpec:
    """What all epochs of one DaliLoader have in common.

    Args:
        contents: The dataset.
        plan: Which samples make which batch.
        graph: The DALI graph.
        beside: The fields that come beside the graph's outputs.
        options: Of each pipeline.
        seed: Of random numbers.
        on_error: What becomes of samples that cannot be decoded.
        checkpoints: Whether the state of DALI's own operators is saved.
        gpu: The number of the GPU, None for the CPU.
        kept: The pipeline of the epoch before.
        aliases: Other names of outputs, for one more version.
        doubts: The inputs on which DALI failed after a check: they are decoded before DALI gets them.
    """

    contents: SampleContents
    plan: RankBatches
    graph: Graph
    beside: tuple[str, ...]
    options: Mapping[str, Any]
    seed: int
    on_error: OnError
    checkpoints: bool
    gpu: int | None
    kept: Kept = field(default_factory=Kept)
    doubts: set[str] = field(default_factory=set)
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def careful(self) -> bool:
        """Whether samples that cannot be decoded are looked for."""
        return self.on_error != "raise"


@dataclass
class Delivered:
    """What epochs count: batches and samples that were delivered, samples that were skipped or masked since
    they are damaged, and the seconds that the consumer waited for DALI.
    """

    batches: int = 0
    samples: int = 0
    skipped: int = 0
    damaged: int = 0
    wait_seconds: float = 0.0

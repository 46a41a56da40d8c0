"""A batch as DALI gets it, and what is left of it without what is damaged."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from shardstream.dali.graph import Graph
from shardstream.dali.inputs import Input
from shardstream.dali.pictures import anywhere
from shardstream.read.samples.batch import Batch, flags

__all__ = ["FedBatch", "given", "picked", "taken"]


@dataclasses.dataclass
class FedBatch:
    """A batch as DALI gets it: for each input the encoded samples, or an array [B, ...].

    Args:
        keys: Of all samples of the batch.
        shards: The name of each sample's shard.
        inputs: One item for each input of the graph, and then for places or random numbers.
        beside: What DALI does not make of the rows that it gets.
        damaged: What is wrong with the samples that are damaged, by their rows.
        start: The first position of its global batch.
        rows: The rows that DALI gets.
        doubts: The inputs that were decoded to see that they can be.
        tried: Whether DALI has failed on it, and is given what should be left of it.
    """

    keys: list[str]
    shards: list[str]
    inputs: list[Any]
    beside: Batch
    damaged: dict[int, str]
    rows: list[int]
    start: int = 0
    doubts: frozenset[str] = frozenset()
    tried: bool = False

    def named(self, row: int, told: object) -> str:
        """What is wrong with a sample, and which one it is."""
        return f"sample {self.keys[row]!r} of {self.shards[row]}: {told}"

    def only(self, places: list[int]) -> FedBatch:
        """The batch with some of what DALI gets."""
        beside = Batch({name: picked(values, places) for name, values in self.beside.items()})
        inputs = [taken(values, places) for values in self.inputs]
        return dataclasses.replace(
            self, inputs=inputs, beside=beside, rows=[self.rows[place] for place in places]
        )

    def without(self, bad: dict[int, str], graph: Graph, masks: bool) -> FedBatch:
        """The batch without what cannot be decoded.

        Args:
            bad: Places among what DALI gets, and what is wrong with each.
            graph: Which gets it.
            masks: Whether DALI gets another sample in their place; else they are left out.
        """
        told = {self.rows[place]: self.named(self.rows[place], why) for place, why in bad.items()}
        sound = [place for place in range(len(self.rows)) if place not in bad]
        if not masks:
            found = self.only(sound)
        elif sound:
            # One that DALI decodes: what a graph makes of any image made up here, nobody knows.
            chosen = [sound[0] if place in bad else place for place in range(len(self.rows))]
            found = dataclasses.replace(self, inputs=[taken(values, chosen) for values in self.inputs])
        else:
            made_up = [given(one, [one.absent()] * len(self.rows)) for one in graph.inputs]
            more = [anywhere(values) for values in self.inputs[len(made_up) :]]
            found = dataclasses.replace(self, inputs=made_up + more)
        found.damaged = {**self.damaged, **told}
        if masks:
            found.beside["__damaged__"] = flags([row in found.damaged for row in found.rows])
        return found


def taken(values: Any, places: list[int]) -> Any:
    """Some rows of what an input gets."""
    return values[places] if isinstance(values, np.ndarray) else [values[place] for place in places]


def picked(values: Any, rows: list[int]) -> Any:
    """Some rows of a column."""
    if isinstance(values, dict):
        return {name: picked(each, rows) for name, each in values.items()}
    return values[rows] if hasattr(values, "shape") else [values[row] for row in rows]


def given(one: Input, values: list[Any]) -> Any:
    """What DALI takes of the values of an input: an array [B] of numbers, or tensors."""
    from nvidia.dali.tensors import TensorCPU

    if one.kind == "number":
        return np.array(values, np.int64)
    if one.kind == "stored":
        return [TensorCPU(value, "HWC") for value in values]
    # A view: its frame stays in memory until DALI has no use for the tensor.
    return [TensorCPU(value if len(value) else np.zeros(0, np.uint8)) for value in values]

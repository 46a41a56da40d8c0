"""Which samples of a batch DALI fails on: its own errors say neither key nor shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from shardstream.dali.fed import FedBatch
from shardstream.dali.feed import FedSource
from shardstream.dali.graph import reason
from shardstream.dali.inputs import Input
from shardstream.dali.spec import EpochSpec
from shardstream.errors import MissingExtraError, SourceError
from shardstream.storage.fetch.cancellable_map import cancellable_map

__all__ = ["checked", "doubted", "unsound"]


def checked(spec: EpochSpec, made: Iterable[FedBatch]) -> Iterator[FedBatch]:
    """The batches without what our own decoders cannot decode, where DALI has failed on the like.

    That are those which were made before DALI failed.
    """
    for fed in made:
        late = spec.doubts - fed.doubts
        if late and not fed.tried and (bad := doubted(spec, fed, late)):
            if len(bad) == len(fed.rows) and spec.on_error != "mask":
                raise SourceError(
                    "all samples of a batch are damaged, which leaves nothing of it; on_error='mask' goes "
                    "on: " + fed.named(fed.rows[0], bad[0])
                )
            fed = fed.without(bad, spec.graph, spec.on_error == "mask")
        fed.doubts = frozenset(spec.doubts)
        yield fed


def doubted(spec: EpochSpec, fed: FedBatch, names: AbstractSet[str] | None = None) -> dict[int, str]:
    """What our own decoders cannot decode either, by its place in the batch, and why.

    If there is such a sample, its input is decoded before DALI gets it from now on: a DALI pipeline that has
    failed is lost, with all that it was making.
    """
    bad: dict[int, str] = {}
    for one, values in zip(spec.graph.inputs, fed.inputs, strict=False):
        if not one.files or (names is not None and one.name not in names):
            continue
        fields = ", ".join(one.fields)

        def tried(place: int, one: Input = one, values: Any = values, fields: str = fields) -> str | None:
            try:
                data = memoryview(np.asarray(values[place]).data)
                one.value(one.fields[0], data, "wav" if one.kind == "audio" else "", True, True)
            except MissingExtraError:
                return None
            except Exception as error:  # noqa: BLE001 - foreign decoders raise what they like
                return one.failed(fields, error)
            return None

        answers = enumerate(cancellable_map(tried, range(len(values))))
        found = {place: told for place, told in answers if told}
        if found:
            spec.doubts.add(one.name)
            bad |= found
    return bad


def unsound(spec: EpochSpec, fed: FedBatch) -> dict[int, str]:
    """What DALI cannot decode, each sample tried alone, by its place in the batch, and what DALI says."""
    options = {**spec.options, "batch_size": 1, "num_threads": 1, "prefetch_queue_depth": 1}
    rest, bad = list(range(len(fed.rows))), dict[int, str]()
    while rest:
        before = len(bad)
        # A pipeline that has failed is no longer valid: a new one for those behind.
        source = FedSource()
        source.begin(map(fed.only, [[place] for place in rest]), 0)
        pipe = spec.graph.build(source, **options)
        for place in rest:
            try:
                pipe.schedule_run()
                pipe.outputs()
            except Exception as error:  # noqa: BLE001 - DALI's own, of many types
                bad[place] = f"DALI cannot decode it ({reason(error)})"
                break
        rest = [place for place in rest if len(bad) > before and place > max(bad)]
    return bad

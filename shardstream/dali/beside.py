"""The fields of a batch that DALI does not get: decoded and transformed as the dataset says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from shardstream.dali.fed import FedBatch, picked
from shardstream.dali.graph import OnError
from shardstream.dataset.sample_batches import SampleMaker
from shardstream.dataset.sample_contents import SampleContents
from shardstream.decode.images import Images
from shardstream.decode.modes import Decode
from shardstream.errors import OptionError, SourceError
from shardstream.read.samples.batch import Batch, collate
from shardstream.read.samples.plan import RawBatch

__all__ = ["Beside"]


def _decode_of(decode: Decode, beside: Sequence[str]) -> Decode:
    """How a dataset decodes the fields that DALI does not get."""
    if isinstance(decode, Mapping):
        return {name: mode for name, mode in decode.items() if name in beside}
    return True if isinstance(decode, Images) else decode


class Beside:
    """What comes beside the outputs of DALI.

    Args:
        contents: The dataset.
        names: The fields.
        on_error: What becomes of samples of which a field cannot be decoded.
    """

    def __init__(self, contents: SampleContents, names: tuple[str, ...], on_error: OnError) -> None:
        self._names, self._on_error, self._transforms = names, on_error, bool(contents.transform)
        self._url = contents.url
        decode = _decode_of(contents.decode, names)
        self._maker = SampleMaker(contents.url, contents.manifest, names, decode, contents.transform)
        self._finish = self._maker.collated(self._joined if self._transforms else None)

    def made(self, raw: RawBatch, fed: FedBatch) -> Batch:
        """The fields of the samples that stay. Those with one that cannot be decoded become damaged ones."""
        fields = {name: raw.fields[name] for name in self._names}
        rest = dataclasses.replace(raw, fields=fields, gaps=[name for name in raw.gaps if name in fields])
        try:
            found: Batch = self._finish(rest)
        except SourceError:
            if self._on_error == "raise":
                raise
            return self._of_samples(rest, fed) if self._transforms else self._of_fields(rest, fed)
        rows = self._staying(fed)
        return (
            found
            if len(rows) == len(raw.keys)
            else Batch({name: picked(values, rows) for name, values in found.items()})
        )

    def _staying(self, fed: FedBatch) -> list[int]:
        skips = self._on_error == "skip"
        return [row for row in range(len(fed.keys)) if not (skips and row in fed.damaged)]

    def _of_samples(self, raw: RawBatch, fed: FedBatch) -> Batch:
        samples: list[Any] = []
        for row, key in enumerate(raw.keys):
            try:
                samples += self._maker.listed(raw.only(row))
            except SourceError as error:
                fed.damaged.setdefault(row, str(error))
                samples.append({"__key__": key})
        return self._joined([samples[row] for row in self._staying(fed)])

    def _of_fields(self, raw: RawBatch, fed: FedBatch) -> Batch:
        fields, gaps = {name: list(views) for name, views in raw.fields.items()}, set(raw.gaps)
        for row in range(len(raw.keys)):
            one = raw.only(row)
            for name, views in one.fields.items():
                try:
                    self._finish(dataclasses.replace(one, fields={name: views}))
                except SourceError as error:
                    fed.damaged.setdefault(row, str(error))
                    fields[name][row] = None
                    gaps.add(name)
        rows = self._staying(fed)
        if not rows:
            return Batch()
        made: Batch = self._finish(
            RawBatch(
                [raw.keys[row] for row in rows],
                {name: [views[row] for row in rows] for name, views in fields.items()},
                sorted(gaps),
                None if raw.shards is None else raw.shards[rows],
                memory=raw.memory,
            )
        )
        return made

    def _joined(self, samples: list[Any]) -> Batch:
        other = next((sample for sample in samples if not isinstance(sample, dict)), None)
        if other is not None:
            raise OptionError(
                f"the transform of {self._url} gave a {type(other).__name__}: beside DALI's outputs there is "
                "only place for a dict of fields"
            )
        return collate(samples) if samples else Batch()

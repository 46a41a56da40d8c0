"""Samples as they are stored to decoded batches, field by field or sample by sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.counters.layout import stage
from shardstream.dataset.batch_maker import BatchMaker, Collate, Finish
from shardstream.dataset.transforms import Transform
from shardstream.decode import arrays
from shardstream.decode.modes import Decode, modes
from shardstream.decode.picture_batch import decoded
from shardstream.decode.registry import QUICK, decode_values, find
from shardstream.format.kinds import extension
from shardstream.format.manifest import Manifest
from shardstream.read.samples.batch import Batch, Ragged, collate, column, tensor
from shardstream.read.samples.plan import RawBatch
from shardstream.storage.cancellation import current

__all__ = ["SampleMaker"]

_DECODE = stage("decode")


class SampleMaker(BatchMaker):
    """How a StreamingDataset makes batches.

    Args:
        url: The dataset's, for messages.
        manifest: Of the dataset.
        fields: The fields that are read, None for all.
        decode: See `StreamingDataset`.
        transform: Of the dataset.
    """

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        fields: tuple[str, ...] | None,
        decode: Decode,
        transform: Transform,
    ) -> None:
        super().__init__(url)
        self._shards, self._transform = manifest.shards, transform
        self._kinds = {info.name: (info.codec, info.dtype) for info in manifest.fields}
        wanted = tuple(self._kinds) if fields is None else fields
        self._modes = modes(decode, {name: self._kinds[name][0] for name in wanted})
        self.pictures = self._modes.taken  # the fields that become images of one size
        self.aliases = self._modes.aliases
        self._timed = not self.cheap  # to decode little takes less than to look at the clock twice

    @property
    def transforms(self) -> bool:
        return bool(self._transform)

    @property
    def views(self) -> bool:
        return self._modes.views

    def watching(self) -> bool:
        return self._transform.watching()

    @property
    def cheap(self) -> bool:
        quick = all(map(self._quick, self._modes.plain))
        return quick and not self.pictures and not self._transform

    @property
    def straight(self) -> bool:
        """Whether a batch is made in its own memory, and not of samples that are made before it."""
        rest = [name for name in self._modes.plain if not self._quick(name)]
        arrays_only = all(self._decoder(name) is arrays.decode for name in rest)
        return not self._transform and (bool(self.pictures) or arrays_only)

    def _quick(self, name: str) -> bool:
        """Whether a field takes little more than copying its bytes."""
        return self._modes.plain[name] in (False, "view") or extension(self._kinds[name][0] or name) in QUICK

    def _decoder(self, name: str) -> Callable[..., Any] | None:
        """The decoder of a field; None if it stays bytes."""
        codec, dtype = self._kinds[name]
        return find(name, dtype, codec, self._modes.plain[name])

    def random(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The random numbers for the images at these positions, if they need any."""
        return self._modes.random(epoch, positions)

    def collated(self, collate: Collate | None) -> Finish:
        """The function that decodes field by field, or if need be sample by sample."""
        if collate is None and not self._transform:
            return self._columns
        if collate is list:
            return self.listed
        join = _default if collate is None else self.noting(collate)
        return lambda raw: join(self.listed(raw))

    def _columns(self, raw: RawBatch) -> Batch:
        started = time.monotonic() if self._timed else 0.0
        batch = Batch(__key__=raw.keys, **self._images(raw))
        for name, views in raw.fields.items():
            if name in self.pictures:
                continue
            function, whole = self._decoder(name), None
            if function is None:
                batch[name] = Ragged.gather(views, raw.memory)
                continue
            if function is arrays.decode:
                whole = arrays.stacked(views, _lease(raw))
            batch[name] = column(self._values(raw, name)) if whole is None else tensor(whole)
        if self._timed:
            current().recorder.span(_DECODE, started, time.monotonic())
        return batch

    def _values(self, raw: RawBatch, name: str) -> list[Any]:
        """The values of a field that stays one."""
        codec, dtype = self._kinds[name]
        return decode_values(
            name,
            raw.fields[name],
            raw.keys,
            dtype=dtype,
            codec=codec,
            mode=self._modes.plain[name],
            shards=lambda: self._urls(raw),
        )

    def _urls(self, raw: RawBatch) -> list[str]:
        """The name of each sample's shard, or of the dataset if the shards are not known."""
        if raw.shards is None:
            return [self._url] * len(raw.keys)
        return [self._shards[number].url for number in raw.shards.tolist()]

    def _images(self, raw: RawBatch) -> dict[str, Any]:
        """The decoded images of a batch, if they are asked for."""
        if not self.pictures:
            return {}
        columns = {name: raw.fields[name] for name in self.pictures}
        return decoded(self._modes.pictures, columns, raw.keys, self._urls(raw), raw.draws, _lease(raw))

    def singles(self, built: RawBatch) -> tuple[list[Any], Exception | None]:
        """The samples in front of the first that cannot be decoded or transformed, and its error."""
        samples: list[Any] = []
        error: Exception | None = None
        try:
            samples = self._decoded(built)
        except Exception as failure:  # noqa: BLE001 - decoding one by one finds out whose it is
            error = failure
            for row in range(len(built.keys) if len(built.keys) > 1 else 0):
                try:
                    samples += self._decoded(built.only(row))
                except Exception as first:  # noqa: BLE001
                    error = first
                    break
        if not self._transform:
            return samples, error
        keys = built.keys
        made, failed = self._transform.of_each(samples, built.generators, lambda row: f"sample {keys[row]!r}")
        return made, failed or error  # a transform fails on an earlier sample than decoding

    def items(self, made: list[Any]) -> Iterable[Any]:
        return made

    def _decoded(self, raw: RawBatch) -> list[Any]:
        """The decoded samples of a batch."""
        started = time.monotonic() if self._timed else 0.0
        samples: list[dict[str, Any]] = [{"__key__": key} for key in raw.keys]
        # Column by column: dict(zip(...)) of each row takes three times as long.
        for name, images in self._images(raw).items():
            for sample, image in zip(samples, images, strict=True):
                sample[name] = image
        for name, views in raw.fields.items():
            if name in self.pictures:
                continue
            values = self._values(raw, name)
            if name not in raw.gaps:
                for sample, value in zip(samples, values, strict=True):
                    sample[name] = value
                continue
            for sample, value, view in zip(samples, values, views, strict=True):
                if view is not None:
                    sample[name] = value
        if self._timed:
            current().recorder.span(_DECODE, started, time.monotonic())
        return samples


def _lease(raw: RawBatch) -> Callable[[int], Any] | None:
    """Gives memory for a batch, which is used again when the batch is gone; None: the system does."""
    return None if raw.memory is None else raw.memory.lease


def _default(samples: list[Any]) -> Any:
    return collate(samples)

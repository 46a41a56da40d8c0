"""What DALI is fed with: the batches of an epoch, in their order, and the random numbers of their places."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from shardstream.dali.beside import Beside
from shardstream.dali.fed import FedBatch, given, taken
from shardstream.dali.inputs import Input
from shardstream.dali.pictures import Cuts, cuts, places
from shardstream.dali.spec import EpochSpec
from shardstream.decode.crops import RANDOM
from shardstream.decode.picture_batch import Picture, mask_of
from shardstream.errors import MissingExtraError, SourceError, StateError
from shardstream.order.uniforms import uniforms
from shardstream.read.samples.batch import Batch, flags, tensor
from shardstream.read.samples.plan import RawBatch
from shardstream.storage.fetch.cancellable_map import cancellable_map

__all__ = ["FedSource", "Feed"]


class FedSource:
    """What DALI calls for its batches, each by its number.

    DALI counts the batches of its checkpoints, and has nothing but this to start a source again.
    """

    def __init__(self) -> None:
        self.made: Iterator[FedBatch] = iter(())
        self._number = 0
        self.waiting: deque[FedBatch] = deque()  # handed over and not delivered
        self.error: Exception | None = None

    def begin(self, made: Iterator[FedBatch], number: int) -> None:
        """Give these batches from now on, and expect to be asked for this number first."""
        self.made, self._number, self.error = made, number, None
        self.waiting.clear()

    def __call__(self, number: int) -> list[Any]:
        if number != self._number:
            raise StateError(
                f"DALI asks for batch {number}, after batch {self._number - 1}: restart the epoch"
            )
        try:
            fed = None if self.error else next(self.made, None)
        except Exception as error:  # noqa: BLE001 - raised by the consumer, in the batch's place
            self.error, fed = error, None
        if fed is None:
            raise StopIteration
        self._number += 1
        self.waiting.append(fed)
        return fed.inputs

    def again(self, lost: list[FedBatch]) -> Iterator[FedBatch]:
        """Batches that DALI lost, and then what there is still to come."""
        yield from lost
        if self.error is not None:
            raise self.error
        yield from self.made


class Feed:
    """From the samples of an epoch to what DALI gets of them."""

    def __init__(self, spec: EpochSpec, epoch: int) -> None:
        self._spec, self._epoch = spec, epoch
        self._beside = Beside(spec.contents, spec.beside, spec.on_error)
        self._codecs = {info.name: info.codec for info in spec.contents.manifest.fields}

    def fed(self, raw: RawBatch) -> FedBatch:
        """What DALI gets of a batch, and what comes beside it. Runs in the threads that read."""
        spec, graph = self._spec, self._spec.graph
        names = spec.contents.manifest.shards
        assert raw.shards is not None
        shards = [names[number].url for number in raw.shards.tolist()]
        rows, doubts = list(range(len(raw.keys))), frozenset(spec.doubts)
        fed = FedBatch(raw.keys, shards, [], Batch(), {}, rows, doubts=doubts)
        columns: list[list[Any]] = []
        sizes: dict[str, Any] = {}
        for one in graph.inputs:
            values, found = self._column(one, raw, fed)
            columns.append(values)
            sizes[one.name] = np.array(found, np.int64).reshape(len(values), 2)
        more, masks = self._pictures(raw, fed, sizes)
        beside = self._beside.made(raw, fed)
        if spec.on_error == "skip" and fed.damaged:
            fed.rows = [row for row in fed.rows if row not in fed.damaged]
            if not fed.rows:
                raise SourceError(
                    "all samples of a batch are damaged, which leaves nothing of it; on_error='mask' goes "
                    "on: " + next(iter(fed.damaged.values()))
                )
            columns = [taken(values, fed.rows) for values in columns]
            more = [taken(values, fed.rows) for values in more]
            masks = {name: values[fed.rows] for name, values in masks.items()}
        elif fed.damaged:
            stand_in = next((row for row in fed.rows if row not in fed.damaged), None)
            for one, values in zip(graph.inputs, columns, strict=True):
                for row in fed.damaged:
                    values[row] = one.absent() if stand_in is None else values[stand_in]
            for array in more:
                array[list(fed.damaged)] = array[list(fed.damaged) if stand_in is None else stand_in]
            for picture in graph.masks:
                masks[picture.name][list(fed.damaged)] = picture.how.fill
        if spec.on_error == "mask":
            beside["__damaged__"] = flags([row in fed.damaged for row in fed.rows])
        if optional := [one for one in graph.inputs if one.optional]:
            beside["__missing__"] = {
                one.name: flags([one.of(raw.fields, row)[1] is None for row in fed.rows]) for one in optional
            }
        fed.beside = Batch({name: tensor(values) for name, values in masks.items()} | beside)
        fed.inputs = [given(one, values) for one, values in zip(graph.inputs, columns, strict=True)] + more
        return fed

    def _column(self, one: Input, raw: RawBatch, fed: FedBatch) -> tuple[list[Any], list[tuple[int, int]]]:
        """What an input gets of each sample, and the height and width of images."""
        spec = self._spec
        values: list[Any] = [None] * len(raw.keys)
        sizes = [(64, 64)] * len(raw.keys)  # those of what takes the place of an image

        def read(row: int) -> None:
            field, data = one.of(raw.fields, row)
            if data is None and one.optional:
                values[row] = one.absent()
                return
            try:
                if data is None:
                    raise ValueError(f"{_lacks(one)}; leave it out by ds.subset, or mask it")
                values[row], sizes[row] = one.value(
                    field, data, self._codecs[field], spec.careful, one.name in fed.doubts
                )
            except MissingExtraError:
                raise
            except Exception as error:  # noqa: BLE001 - foreign decoders raise what they like
                told = error if data is None else one.failed(field, error)
                self._failed(fed, row, told, error)

        if one.kind == "stored" or one.name in fed.doubts:
            cancellable_map(read, range(len(values)))
        else:
            for row in range(len(values)):
                read(row)
        return values, sizes

    def _failed(self, fed: FedBatch, row: int, told: object, error: Exception) -> None:
        if not self._spec.careful:
            raise SourceError(fed.named(row, told)) from error
        fed.damaged.setdefault(row, fed.named(row, told))

    def _pictures(
        self, raw: RawBatch, fed: FedBatch, sizes: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Where images are cut, for DALI; and the masks, cut in the same way."""
        graph = self._spec.graph
        if graph.modes is None:
            return [], {}
        pictures = graph.modes.pictures
        parts = cuts(pictures, sizes, raw.draws)
        masks = {}
        for picture in graph.masks:
            number = picture.like or 0
            size = sizes[f"image{number}"].tolist()
            masks[picture.name] = self._masks(raw, fed, picture, pictures[number].how, size, parts[number])
        return [places(pictures[number], found) for number, found in parts.items()], masks

    def _masks(
        self, raw: RawBatch, fed: FedBatch, picture: Picture, image: Any, sizes: list[Any], parts: Cuts
    ) -> Any:
        """The masks of a batch, an array [B, height, width]."""
        made = np.full((len(raw.keys), *image.shape), picture.how.fill, picture.how.dtype)
        (field,) = picture.fields

        def put(row: int) -> None:
            data, (how, flip) = raw.fields[field][row], parts[row]
            if row in fed.damaged:
                return
            try:
                if data is None:
                    raise ValueError("the sample lacks it")
                found = mask_of(data, image, tuple(sizes[row]), how, made.dtype)
                made[row] = found[:, ::-1] if flip else found
            except MissingExtraError:
                raise
            except Exception as error:  # noqa: BLE001
                self._failed(fed, row, f"no mask in field {field} ({error})", error)

        cancellable_map(put, range(len(raw.keys)))
        return made

    def placed(self, made: Iterator[FedBatch], start: int) -> Iterator[FedBatch]:
        """The batches from position `start` on, each with its place and the random numbers of its samples."""
        spec = self._spec
        for fed in made:
            fed.start = start
            if spec.graph.random:
                positions = spec.plan.positions(start)[fed.rows] % spec.contents.total
                fed.inputs.append(uniforms(positions, RANDOM, spec.seed, self._epoch))
            start += spec.plan.samples
            yield fed


def _lacks(one: Input) -> str:
    return f"it has no field {' or '.join(map(repr, one.fields))}"

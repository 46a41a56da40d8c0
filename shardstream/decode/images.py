"""Images to batches on the CPU: decoded no larger than needed, resized once, straight into the batch.

    ds = ss.StreamingDataset(url, shuffle=True, decode=images.Train(224))

`Train` is the random resized crop and flip that models are trained with, `Evaluate` the resize and centre
crop that they are tested with. The work is done in the loader's threads and holds no GIL to speak of.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shardstream.decode import pixels
from shardstream.decode.crops import Cut, Draws, centre, cut, random_crops
from shardstream.decode.registry import Data, extension
from shardstream.errors import MissingExtraError, OptionError, SourceError, require

__all__ = ["DAMAGED", "IMAGE", "Evaluate", "Images", "Train"]

IMAGE, DAMAGED = "image", "__damaged__"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as most models want it
_LOG = logging.getLogger("shardstream")
_LOCAL = threading.local()
_HELD = 16  # batches whose memory a thread looks after; as many as the read engine has ahead


@dataclass(frozen=True)
class Images:
    """What `Train` and `Evaluate` share: batch["image"], one tensor of all images of a batch.

    size: pixels of a side.  dtype: "float32", normalised by `mean` and `std` (of values from 0 to 1), or
        "uint8", as decoded.
    layout: "NCHW", in memory channels last as torch's memory format of that name, or "NHWC".
    fields: the fields that may hold the image, a sample's first one counts; by default jpg, jpeg, png, webp.
    on_error: "raise" SourceError for an image that is damaged or missing, or "mask": it is then zeros, and
        True in batch["__damaged__"], bool [B]; each is logged, and `StreamingLoader.stats` counts them.
    """

    size: int = 224
    dtype: str = "float32"
    layout: str = "NCHW"
    mean: tuple[float, float, float] = _MEAN
    std: tuple[float, float, float] = _STD
    fields: tuple[str, ...] | None = None
    on_error: str = "raise"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= 1 << 14:
            raise OptionError(f"size={self.size!r} must be an int from 1 to {1 << 14}")
        for name, value, known in (
            ("dtype", self.dtype, ("float32", "uint8")),
            ("layout", self.layout, ("NCHW", "NHWC")),
            ("on_error", self.on_error, ("raise", "mask")),
        ):
            if value not in known:
                raise OptionError(f"{name}={value!r} must be {' or '.join(map(repr, known))}")
        if isinstance(self.fields, str):
            raise OptionError(f"fields={self.fields!r} must be a tuple of names, such as ({self.fields!r},)")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise OptionError("mean and std must be three numbers each, those of std above 0")

    def choose(self, kinds: Mapping[str, str]) -> tuple[str, ...]:
        """The fields that hold the image, of a dataset's fields and their codecs."""
        if self.fields is not None:
            unknown = [name for name in self.fields if name not in kinds]
            if unknown:
                raise OptionError(f"there is no field {unknown[0]!r}; there are {sorted(kinds)}")
            return tuple(self.fields)
        found = [name for name, codec in kinds.items() if extension(codec or name) in pixels.KINDS]
        plain = [name for name in found if "." not in name] or found
        if not plain:
            raise OptionError(f"no field holds images (jpg, jpeg, png, webp): there are {sorted(kinds)}")
        if len(plain) > 1 and "." in plain[0]:
            raise OptionError(f"which of {plain} is the image? Say so: fields=({plain[0]!r},)")
        return tuple(plain)

    def decode(
        self,
        columns: Mapping[str, Sequence[Data | None]],
        keys: Sequence[str],
        shards: Sequence[str],
        numbers: Draws,
    ) -> dict[str, Any]:
        """ "image", a tensor [B, ...], and "__damaged__" where on_error is "mask".

        columns: the fields that may hold the image.  shards: the name of each sample's, for messages.
        numbers: the random number of each sample, uint64 [B].
        """
        torch = require("torch", "torch")
        made = _room((len(keys), self.size, self.size, 3), np.dtype(self.dtype))
        found = [_first(row) for row in zip(*columns.values(), strict=True)]
        bad = np.zeros(len(keys), np.bool_)
        sizes = np.ones((len(keys), 2), np.int64)
        for row, data in enumerate(found):
            try:
                if data is None:
                    raise ValueError("the sample lacks it")
                sizes[row] = pixels.size(data)
            except MissingExtraError:
                raise
            except Exception as error:  # noqa: BLE001 - foreign decoders raise what they like
                bad[row] = self._failed(error, columns, keys[row], shards[row])
        cuts, flips = self.cuts(sizes, numbers)
        for row, data in enumerate(found):
            if data is None or bad[row]:
                continue
            try:
                image = self._one(torch, data, (int(sizes[row, 0]), int(sizes[row, 1])), cuts[row])
                self._put(made[row], image, flips[row])
            except MissingExtraError:
                raise
            except Exception as error:  # noqa: BLE001
                bad[row] = self._failed(error, columns, keys[row], shards[row])
        for row in np.flatnonzero(bad).tolist():
            made[row] = 0
        marks = {DAMAGED: torch.from_numpy(bad)} if self.on_error == "mask" else {}
        images = torch.from_numpy(made)
        return {IMAGE: images.permute(0, 3, 1, 2) if self.layout == "NCHW" else images, **marks}

    def cuts(self, sizes: Any, numbers: Draws) -> tuple[list[Cut], Sequence[bool]]:
        """How each image is cut, and whether it is mirrored; sizes: height and width, int64 [B, 2]."""
        raise NotImplementedError

    def _failed(
        self, error: Exception, columns: Mapping[str, Sequence[Data | None]], key: str, shard: str
    ) -> bool:
        names = ", ".join(columns)
        failure = SourceError(f"sample {key!r} of {shard}: no image in field {names} ({error})")
        if self.on_error == "raise":
            raise failure from error
        _LOG.warning("%s", failure)
        return True

    def _one(self, torch: Any, data: Data, full: tuple[int, int], how: Cut) -> Any:
        """The image as uint8 [size, size, 3], in memory of the thread's own.

        All else is numpy: torch's operators would run in threads of their own, beside those we run in.
        """
        array, scale = pixels.reduced(data, full, how.scale)
        more = how.scale // scale  # where the format cannot be decoded smaller
        region = array[how.top * more : how.bottom * more, how.left * more : how.right * more]
        source = _scratch(torch, "source", *region.shape[:2])
        np.copyto(source.numpy(), region)
        # The operator behind torch.nn.functional.interpolate(antialias=True): only it takes `out`, and a
        # result that is channels last, as the input is, costs a third less.
        out = _scratch(torch, "out", how.height, how.width)
        torch.ops.aten._upsample_bilinear2d_aa.out(  # noqa: SLF001
            source.permute(2, 0, 1)[None], [how.height, how.width], False, out=out.permute(2, 0, 1)[None]
        )
        top, left = round((how.height - self.size) / 2), round((how.width - self.size) / 2)
        return out.numpy()[top : top + self.size, left : left + self.size]

    def _put(self, place: Any, image: Any, mirrored: bool) -> None:
        """Write an image [size, size, 3] to its place in the batch, mirrored and normalised."""
        if mirrored:
            for channel in range(3):  # numpy turns pixels of three bytes around slowly, single bytes quickly
                np.copyto(place[:, :, channel], image[:, ::-1, channel])
        else:
            np.copyto(place, image)
        if self.dtype == "float32":
            # A row of pixels at once: three channels alone are a short inner loop, and slow.
            flat, (scale, shift) = place.reshape(self.size, -1), self._normal
            flat *= scale
            flat += shift

    @cached_property
    def _normal(self) -> tuple[Any, Any]:
        """What a row of pixels, float32 [size * 3], is multiplied by, and what is then added."""
        scale, shift = 1 / (np.array(self.std) * 255), -np.array(self.mean) / np.array(self.std)
        return np.tile(scale, self.size).astype(np.float32), np.tile(shift, self.size).astype(np.float32)


@dataclass(frozen=True)
class Train(Images):
    """Random resized crop and flip, for training.

    area: share of the image that a crop takes.  ratio: width by height.  flip: how often it is mirrored.
    The crop depends on `seed`, the epoch and the sample's position in the order of that epoch: it is the
    same for any number of threads, workers and ranks, and after a restart.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise OptionError(f"area={self.area!r} must be two shares, 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise OptionError(f"ratio={self.ratio!r} must be two numbers, 0 < least <= most")
        if not 0 <= self.flip <= 1:
            raise OptionError(f"flip={self.flip!r} must be from 0 to 1")

    def cuts(self, sizes: Any, numbers: Draws) -> tuple[list[Cut], Sequence[bool]]:
        crops, last = random_crops(sizes, numbers, self.seed, self.area, self.ratio)
        target = (self.size, self.size)
        cuts = [
            cut((height, width), (top, left, high, wide), target)
            for (height, width), (top, left, high, wide) in zip(sizes.tolist(), crops.tolist(), strict=True)
        ]
        return cuts, (last < self.flip).tolist()


@dataclass(frozen=True)
class Evaluate(Images):
    """The shorter side resized to `resize` (by default size / 0.875, so 256 for 224), then the middle."""

    resize: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None and self.resize < self.size:
            raise OptionError(f"resize={self.resize!r} must be at least size={self.size}")

    def cuts(self, sizes: Any, numbers: Draws) -> tuple[list[Cut], Sequence[bool]]:
        shorter = self.resize or round(self.size / 0.875)
        cuts = [centre((height, width), shorter) for height, width in sizes.tolist()]
        return cuts, [False] * len(cuts)


def _first(row: Sequence[Data | None]) -> Data | None:
    return next((data for data in row if data is not None), None)


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Memory for a batch: that of an earlier one of this thread, if nobody holds that any more.

    What is handed out is a view, and a weak reference to it tells whether a tensor still holds it.
    """
    held: list[tuple[Any, Any]] = _LOCAL.__dict__.setdefault("batches", [])
    for number, (memory, view) in enumerate(held):
        if view() is None and memory.shape == shape and memory.dtype == dtype:
            del held[number]
            break
    else:
        memory = np.empty(shape, dtype)
        if len(held) >= _HELD:
            del held[0]
    found = memory.view()
    held.append((memory, weakref.ref(found)))
    return found


def _scratch(torch: Any, name: str, height: int, width: int) -> Any:
    """uint8 [height, width, 3] of this thread, used again: the kernel zeroes fresh memory page by page."""
    flat, count = getattr(_LOCAL, name, None), 3 * height * width
    if flat is None or len(flat) < count:
        flat = torch.empty(count, dtype=torch.uint8)
        setattr(_LOCAL, name, flat)
    return flat[:count].view(height, width, 3)

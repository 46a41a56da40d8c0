"""Images to batches on the CPU: decoded no larger than needed, resized once, written into the batch.

    ds = ss.StreamingDataset(url, shuffle=True, decode=images.Train(224))

`Train` is the random resized crop and flip for training. `Evaluate` is the resize and centre crop for
evaluation. `Mask` cuts a mask as its image is cut. `Whole` leaves images as large as they are. The threads of
the loader do the work, almost all of it without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardstream.decode.crops import RANDOM, Cut, cover, cut, random_crops
from shardstream.decode.field_modes import Mask, Whole, known
from shardstream.decode.picture_batch import DAMAGED, IMAGE, Picture, decoded
from shardstream.decode.registry import Data
from shardstream.errors import OptionError
from shardstream.format.kinds import PIXELS, extension
from shardstream.format.numbers import whole_number
from shardstream.format.pictures import MAX_PIXELS
from shardstream.order.uniforms import uniforms

__all__ = ["DAMAGED", "IMAGE", "Evaluate", "Images", "Mask", "Train", "Whole"]

Ints = NDArray[np.int64]
Random = NDArray[np.float32]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which most models expect


@dataclass(frozen=True)
class Images:
    """What `Train` and `Evaluate` share: batch["image"], one tensor of all images of a batch.

    Images come as RGB. Transparency is left out: the colour under it counts. Of 16 bits the higher 8 count.
    Of animations and files with many pages the first picture counts.

    Args:
        size: Height and width that each image becomes, in pixels, 1 to 16,384 each; a single number is both.
        dtype: "float32", normalised by `mean` and `std`; or "uint8", as decoded.
        layout: "NCHW" is a tensor [B, 3, height, width], whose memory has torch's format channels_last.
            "NHWC" is a tensor [B, height, width, 3].
        mean: Means of red, green and blue, which are subtracted. Colours count from 0 to 1.
        std: Standard deviations of red, green and blue, above 0. Colours are divided by them.
        fields: The names of fields that may hold the image. The first of them that a sample has is taken.
            None: all fields of images whose names have no dot.
        on_error: What happens to an image that is damaged or missing. "raise" raises SourceError. "mask" sets
            its pixels to 0, its entry of `batch["__damaged__"]`, bool [B], to True, and logs it.
            `StreamingLoader.stats` counts such images.
        upright: Whether images are turned as their EXIF orientation says. False leaves them as stored.
        max_pixels: The most pixels that an image may have, from its header. One with more is damaged.

    Raises:
        OptionError: A value is wrong.
    """

    size: int | tuple[int, int] = 224
    dtype: Literal["float32", "uint8"] = "float32"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    mean: tuple[float, float, float] = _MEAN
    std: tuple[float, float, float] = _STD
    fields: tuple[str, ...] | None = None
    on_error: Literal["raise", "mask"] = "raise"
    upright: bool = True
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size(self.size))
        object.__setattr__(self, "max_pixels", whole_number("max_pixels", self.max_pixels, 1))
        known("dtype", self.dtype, "float32", "uint8")
        known("layout", self.layout, "NCHW", "NHWC")
        known("on_error", self.on_error, "raise", "mask")
        if isinstance(self.fields, str):
            raise OptionError(f"fields={self.fields!r} must be a tuple of names, such as ({self.fields!r},)")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise OptionError("mean and std must be three numbers each, those of std above 0")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width that each image becomes, in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def choose(self, kinds: Mapping[str, str]) -> tuple[str, ...]:
        """The names of the fields that may hold the image.

        Args:
            kinds: The codec of each field of the dataset.

        Raises:
            OptionError: There is no such field, or it is not clear which field is the image.
        """
        if self.fields is not None:
            unknown = [name for name in self.fields if name not in kinds]
            if unknown:
                raise OptionError(f"there is no field {unknown[0]!r}; there are {sorted(kinds)}")
            return tuple(self.fields)
        found = [name for name, codec in kinds.items() if extension(codec or name) in PIXELS]
        plain = [name for name in found if "." not in name] or found
        if not plain:
            raise OptionError(f"no field holds images ({', '.join(PIXELS)}): there are {sorted(kinds)}")
        if len(plain) > 1 and "." in plain[0]:
            raise OptionError(f"which of {plain} is the image? Say so: fields=({plain[0]!r},)")
        return tuple(plain)

    def decode(
        self,
        columns: Mapping[str, Sequence[Data | None]],
        keys: Sequence[str],
        shards: Sequence[str],
        random: Random | None,
        memory: Callable[[int], Any] | None = None,
    ) -> dict[str, Any]:
        """The images of a batch.

        Args:
            columns: For each field that may hold the image the encoded images; None if a sample lacks the
                field.
            keys: The key of each sample.
            shards: The name of each sample's shard, for messages.
            random: What `random` returned for the samples.
            memory: From a number of bytes to an array uint8 of that size, with undefined content: the memory
                for the tensor. None: from the system.

        Returns:
            `"image"`: a tensor [B, ...] of `dtype` and `layout`. `"__damaged__"`, if on_error is "mask": a
            bool tensor [B].

        Raises:
            SourceError: An image is damaged or missing, and on_error is "raise".
        """
        return decoded([Picture(IMAGE, tuple(columns), self)], columns, keys, shards, random, memory)

    def random(self, epoch: int, positions: Ints) -> Random | None:
        """The random numbers of some samples; None if no random numbers are needed.

        Args:
            epoch: The number of the epoch.
            positions: int64 [B], the positions of the samples in the order of the epoch.
        """
        return None

    def draws_like(self, other: Images) -> bool:
        """Whether the crops and flips of two fields of a sample are the same draw."""
        return False

    def crops(self, sizes: Ints, random: Random | None) -> tuple[Ints, Sequence[bool]]:
        """Which part of each image is taken, and whether it is mirrored.

        Args:
            sizes: int64 [B, 2], the height and width of each image in pixels.
            random: What `random` returned.

        Returns:
            int64 [B, 4], top, left, height and width of each part in pixels; and a bool for each image.
        """
        return np.concatenate((np.zeros_like(sizes), sizes), axis=1), [False] * len(sizes)

    def cut(self, size: tuple[int, int], crop: tuple[int, int, int, int]) -> Cut:
        """How a part of an image is decoded and resized; the middle of the result is taken.

        Args:
            size: Height and width of the image, in pixels.
            crop: Top, left, height and width of the part, in pixels.
        """
        return cut(size, crop, self.shape)

    def cuts(self, sizes: Ints, random: Random | None) -> tuple[list[Cut], Sequence[bool]]:
        """How each image is cut, and whether it is mirrored; see `crops`."""
        crops, flips = self.crops(sizes, random)
        pairs = zip(sizes.tolist(), crops.tolist(), strict=True)
        return [self.cut((high, wide), tuple(crop)) for (high, wide), crop in pairs], flips

    def put(self, place: Any, image: Any, mirrored: bool) -> None:
        """Write an image [height, width, 3] to its place in the batch, mirrored and normalised."""
        if mirrored:
            for channel in range(3):  # numpy reverses pixels of three bytes slowly, and single bytes fast
                np.copyto(place[:, :, channel], image[:, ::-1, channel])
        else:
            np.copyto(place, image)
        if self.dtype == "float32":
            # A row of pixels at once, since an inner loop over three channels is short, and so slow.
            flat, (scale, shift) = place.reshape(self.shape[0], -1), self._normal
            flat *= scale
            flat += shift

    @cached_property
    def _normal(self) -> tuple[Any, Any]:
        """The factors and summands of a row of pixels, float32 [width * 3] each: pixel * factor + summand."""
        scale, shift = 1 / (np.array(self.std) * 255), -np.array(self.mean) / np.array(self.std)
        width = self.shape[1]
        return np.tile(scale, width).astype(np.float32), np.tile(shift, width).astype(np.float32)


@dataclass(frozen=True)
class Train(Images):
    """Random resized crop and flip, for training.

    A crop depends only on `seed`, the epoch and the position of the sample in the order of this epoch. So it
    is the same for any number of threads, workers and ranks, and after a restart. A DaliLoader with the same
    seed crops and flips in the same way. So do several fields of a sample whose `seed`, `area`, `ratio` and
    `flip` are equal: they are cut as the first of them is.

    Args:
        size: Of the result, in pixels; see `Images`.
        dtype: Of the result; see `Images`.
        layout: Of the result; see `Images`.
        mean: Of the channels; see `Images`.
        std: Of the channels; see `Images`.
        fields: The fields that are images; see `Images`.
        on_error: What becomes of damaged images; see `Images`.
        upright: Whether images are turned as their EXIF says; see `Images`.
        max_pixels: Of an image; see `Images`.
        area: The least and the largest part of the image's pixels that a crop takes, 0 < least <= most <= 1.
        ratio: The least and the largest width of a crop, divided by its height, before it is resized.
        flip: The share of images that are mirrored, 0 to 1.
        seed: Of the random numbers, a whole number.

    Raises:
        OptionError: A value is wrong.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise OptionError(f"area={self.area!r} must be two shares, 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise OptionError(f"ratio={self.ratio!r} must be two numbers, 0 < least <= most")
        if not 0 <= self.flip <= 1:
            raise OptionError(f"flip={self.flip!r} must be from 0 to 1")

    def random(self, epoch: int, positions: Ints) -> Random:
        """The random numbers of crops and flips, by seed, epoch and position alone.

        Args:
            epoch: The number of the epoch.
            positions: Of the samples in the order of this epoch, int64 [B].

        Returns:
            Numbers in [0, 1), float32 [B, RANDOM].
        """
        return uniforms(positions, RANDOM, self.seed % 2**64, epoch)

    def draws_like(self, other: Images) -> bool:
        return isinstance(other, Train) and all(
            getattr(self, name) == getattr(other, name) for name in ("seed", "area", "ratio", "flip")
        )

    def crops(self, sizes: Ints, random: Random | None) -> tuple[Ints, Sequence[bool]]:
        assert random is not None
        crops, last = random_crops(sizes, random, self.area, self.ratio)
        return crops, (last < np.float32(self.flip)).tolist()


@dataclass(frozen=True)
class Evaluate(Images):
    """Resize and centre crop, for evaluation.

    Args:
        size: Of the result, in pixels; see `Images`.
        dtype: Of the result; see `Images`.
        layout: Of the result; see `Images`.
        mean: Of the channels; see `Images`.
        std: Of the channels; see `Images`.
        fields: The fields that are images; see `Images`.
        on_error: What becomes of damaged images; see `Images`.
        upright: Whether images are turned as their EXIF says; see `Images`.
        max_pixels: Of an image; see `Images`.
        resize: Pixels of the shorter side after the resize, at least the larger number of `size`. None: the
            image covers `size` / 0.875. For the size 224 its shorter side has then 256 pixels.

    Raises:
        OptionError: A value is wrong.
    """

    resize: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None:
            object.__setattr__(self, "resize", whole_number("resize", self.resize, max(self.shape)))

    def cut(self, size: tuple[int, int], crop: tuple[int, int, int, int]) -> Cut:
        if self.resize is not None:
            return cover(size, (self.resize, self.resize))
        return cover(size, (round(self.shape[0] / 0.875), round(self.shape[1] / 0.875)))


def _size(size: int | tuple[int, int]) -> int | tuple[int, int]:
    if not isinstance(size, (tuple, list)):
        return whole_number("size", size, 1, 1 << 14)
    if len(size) != 2:
        raise OptionError(f"size={size!r} must be a number of pixels, or a height and a width")
    return whole_number("size", size[0], 1, 1 << 14), whole_number("size", size[1], 1, 1 << 14)

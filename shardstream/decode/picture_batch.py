"""The images of a batch: decoded, cut and written into tensors, the fields of a sample in the same way."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.decode import pixels
from shardstream.decode.crops import RANDOM, Cut, scaled
from shardstream.decode.registry import Data
from shardstream.decode.resampling import nearest, resampled
from shardstream.errors import MissingExtraError, SourceError, reason, require
from shardstream.storage.fetch.cancellable_map import cancellable_map

__all__ = ["DAMAGED", "IMAGE", "Picture", "decoded", "mask_of"]

IMAGE, DAMAGED = "image", "__damaged__"

Ints = NDArray[np.int64]
Random = NDArray[np.float32]
Memory = Callable[[int], Any]
Columns = Mapping[str, Sequence[Data | None]]

_LOG = logging.getLogger("shardstream")


@dataclass(frozen=True)
class Picture:
    """One tensor of a batch.

    Args:
        name: Its name in the batch.
        fields: The fields that may hold it. The first of them that a sample has is taken.
        how: An `images.Images` or an `images.Mask`.
        like: The number of the picture before this one that it is cut as. None: it is cut by itself.
        draw: Which of the sample's random numbers it uses: RANDOM for each draw, from the first on.
    """

    name: str
    fields: tuple[str, ...]
    how: Any
    like: int | None = None
    draw: int = 0

    @property
    def mask(self) -> bool:
        """Whether it is an `images.Mask`."""
        return hasattr(self.how, "like")


def decoded(
    pictures: Sequence[Picture],
    columns: Columns,
    keys: Sequence[str],
    shards: Sequence[str],
    random: Random | None,
    memory: Memory | None = None,
) -> dict[str, Any]:
    """The images and masks of a batch.

    Args:
        pictures: What is made.
        columns: For each field the encoded images; None if a sample lacks the field.
        keys: The key of each sample.
        shards: The name of each sample's shard, for messages.
        random: float32 [B, R], the random numbers of each sample, or None.
        memory: From a number of bytes to an array uint8 of that size, with undefined content. None: from the
            system.

    Returns:
        For each picture a tensor [B, ...]. "__damaged__", if one of them masks what is damaged: a bool tensor
        [B], True if any image of a sample is damaged.

    Raises:
        SourceError: An image is damaged or missing, and its on_error is "raise".
    """
    torch = require("torch", "torch")
    bad = np.zeros(len(keys), np.bool_)
    rows: list[_Rows] = []
    made: dict[str, Any] = {}
    for picture in pictures:
        like = None if picture.like is None else rows[picture.like]
        begun = _Rows(picture, columns, keys, shards, bad)
        if like is not None and picture.mask:
            made[picture.name] = begun.masks(torch, like, memory)
        else:
            mine = None if random is None else random[:, picture.draw * RANDOM : (picture.draw + 1) * RANDOM]
            begun.look(like, mine)
            made[picture.name] = begun.images(torch, memory)
        rows.append(begun)
    for begun in rows:  # a sample is damaged as a whole, also in what was made before that was seen
        begun.blank()
    marks = {DAMAGED: torch.from_numpy(bad)} if any(each.how.on_error == "mask" for each in pictures) else {}
    return made | marks


class _Rows:
    """One picture of all samples of a batch.

    Attributes:
        heads: What is known of each image.
        sizes: int64 [B, 2], height and width of each image in pixels.
        crops: int64 [B, 4], top, left, height and width of the part of each image in pixels.
        cuts: How each image is cut.
        flips: Whether each image is mirrored.
    """

    heads: list[pixels.Header]
    sizes: Ints
    crops: Ints
    cuts: list[Cut]
    flips: Sequence[bool]

    def __init__(
        self,
        picture: Picture,
        columns: Columns,
        keys: Sequence[str],
        shards: Sequence[str],
        bad: NDArray[np.bool_],
    ) -> None:
        self._picture, self._keys, self._shards, self._bad = picture, keys, shards, bad
        self.how = picture.how
        fields = [columns[name] for name in picture.fields]
        self._found = [_first(row) for row in zip(*fields, strict=True)]
        self._made: Any = None

    def look(self, like: _Rows | None, random: Random | None) -> None:
        """Read the headers, and find out how each image is cut."""
        how, count = self.how, len(self._keys)
        self.heads = [pixels.Header(1, 1, 1)] * count

        def read(row: int, data: Data) -> None:
            self.heads[row] = pixels.header(data, how.upright, how.max_pixels)

        for row in range(count):
            self._try(row, read)
        self.sizes = np.array([head[:2] for head in self.heads], np.int64).reshape(count, 2)
        if like is None:
            self.crops, self.flips = how.crops(self.sizes, random)
        else:
            self.crops, self.flips = scaled(like.crops, like.sizes, self.sizes), like.flips
        pairs = zip(self.sizes.tolist(), self.crops.tolist(), strict=True)
        self.cuts = [how.cut(tuple(size), tuple(crop)) for size, crop in pairs]

    def images(self, torch: Any, memory: Memory | None) -> Any:
        """The tensor of images."""
        how = self.how
        made = self._made = self._new(memory, *how.shape, 3)

        def put(row: int, data: Data) -> None:
            image = resampled(torch, data, self.heads[row], self.cuts[row], how.shape)
            how.put(made[row], image, self.flips[row])

        cancellable_map(lambda row: self._try(row, put), range(len(self._keys)))
        images = torch.from_numpy(made)
        return images.permute(0, 3, 1, 2) if how.layout == "NCHW" else images

    def masks(self, torch: Any, like: _Rows, memory: Memory | None) -> Any:
        """The tensor of masks, cut as the images of `like` are."""
        image = like.how
        made = self._made = self._new(memory, *image.shape)

        def put(row: int, data: Data) -> None:
            found = mask_of(data, image, like.heads[row][:2], like.cuts[row], made.dtype)
            made[row] = found[:, ::-1] if like.flips[row] else found

        cancellable_map(lambda row: self._try(row, put), range(len(self._keys)))
        return torch.from_numpy(made)

    def blank(self) -> None:
        """Set the pixels of damaged samples."""
        for row in np.flatnonzero(self._bad).tolist():
            self._made[row] = getattr(self.how, "fill", 0)

    def _new(self, memory: Memory | None, *shape: int) -> Any:
        shape, dtype = (len(self._keys), *shape), np.dtype(self.how.dtype)
        size = math.prod(shape) * dtype.itemsize
        return (np.empty(size, np.uint8) if memory is None else memory(size)).view(dtype).reshape(shape)

    def _try(self, row: int, work: Callable[[int, Data], None]) -> None:
        """Do the work for a sample. If that fails, the sample is damaged."""
        if self._bad[row]:
            return
        try:
            data = self._found[row]
            if data is None:
                raise ValueError("the sample lacks it")
            work(row, data)
        except MissingExtraError:
            raise
        except Exception as error:
            kind = "mask" if self._picture.mask else "image"
            names = ", ".join(self._picture.fields)
            where = f"sample {self._keys[row]!r} of {self._shards[row]}"
            failure = SourceError(f"{where}: no {kind} in field {names} ({reason(error)})")
            if self.how.on_error == "raise":
                raise failure from error
            _LOG.warning("%s", failure)
            self._bad[row] = True


def _first(row: Sequence[Data | None]) -> Data | None:
    return next((data for data in row if data is not None), None)


def mask_of(data: Data, image: Any, size: tuple[int, int], how: Cut, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The pixels of a mask that lie where its image was cut.

    Args:
        data: The encoded mask.
        image: The `images.Images` of its image.
        size: Height and width of its image, in pixels.
        how: How that was cut.
        dtype: That the values are to have.

    Returns:
        [height, width], not mirrored and not yet of the dtype.

    Raises:
        ValueError, OSError: The mask is damaged, has another shape than its image, or values that the dtype
            cannot hold.
    """
    mask = pixels.stored(data, image.upright, image.max_pixels)
    _check_shape(mask, size)
    found = nearest(mask, size, how, image.shape)
    _check_values(found, dtype)
    return found


def _check_shape(mask: NDArray[Any], size: tuple[int, int]) -> None:
    """Raise ValueError if a mask has several channels, or another shape than its image."""
    if mask.ndim != 2:
        raise ValueError(f"{mask.shape[2]} channels, where a mask has one: decode the field as 'stored'")
    (high, wide), (height, width) = mask.shape, size
    if abs(high * width - wide * height) > max(high, wide, height, width):
        raise ValueError(
            f"it is {wide} x {high} and its image {width} x {height} pixels, which are different shapes; "
            "if masks were drawn on images that were not turned by their EXIF data, decode with upright=False"
        )


def _check_values(found: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Raise ValueError if a mask has values that `dtype` cannot hold."""
    if np.can_cast(found.dtype, dtype):
        return
    whole = found.dtype.kind in "iu" and dtype.kind in "iu"
    low, high = found.min(), found.max()
    if not whole or low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
        raise ValueError(
            f"values {low} to {high} ({found.dtype}), which {dtype} cannot hold: give Mask a dtype"
        )

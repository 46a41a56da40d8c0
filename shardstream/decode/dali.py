"""Functions from fields to outputs for DALI graphs, ready to use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from shardstream.decode.crops import TRIES
from shardstream.errors import OptionError
from shardstream.format.pictures import MAX_PIXELS

__all__ = ["NAMED", "Function", "PipelineName", "audio", "image_text", "imagenet_eval", "imagenet_train"]

Function = Callable[..., Any]
Size = tuple[int, int]
Pair = tuple[float, float]
Colour = tuple[float, float, float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def imagenet_train(
    size: int | Size = 224,
    area: Pair = (0.08, 1.0),
    ratio: Pair = (3 / 4, 4 / 3),
    flip: float = 0.5,
    mean: Colour = IMAGENET_MEAN,
    std: Colour = IMAGENET_STD,
    antialias: bool = True,
    upright: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Function:
    """Random resized crops, flipped and normalised. Only the crop of an image is decoded.

    Crops and flips depend only on the seed, the epoch and the position of the sample. They are the same as
    those of `images.Train`.

    Args:
        size: Height and width of the result, in pixels; a single number is both.
        area: The least and the largest part of the image's pixels that a crop takes.
        ratio: The least and the largest width of a crop, divided by its height.
        flip: The share of images that are mirrored, 0 to 1.
        mean: Means of red, green and blue, for colours from 0 to 1.
        std: Standard deviations of red, green and blue, for colours from 0 to 1.
        antialias: Whether the resize is antialiased.
        upright: Whether images are turned as their EXIF orientation says. Not if the function is called in a
            graph of your own.
        max_pixels: The most pixels that an image may have, from its header. One with more is damaged. Not in
            a graph of your own.

    Returns:
        A function for `DaliLoader(pipeline=)`; images become float32 [B, 3, height, width].
    """

    def graph(image: Any, random: Any, device: str) -> dict[str, Any]:
        from nvidia.dali import fn, types

        start, shape = _random_crop(image, random, area, ratio, upright)
        pixels = fn.decoders.image_slice(
            image, start=start, shape=shape, axes=[0, 1], device=device, adjust_orientation=upright
        )
        pixels = fn.resize(pixels, size=_sides(size), antialias=antialias)
        mirror = fn.cast(random[TRIES * 2 + 2] < flip, dtype=types.INT32)
        return {"image": _normalised(pixels, mean, std, mirror=mirror)}

    return _reading(graph, upright, max_pixels)


def imagenet_eval(
    size: int | Size = 224,
    resize: int = 256,
    mean: Colour = IMAGENET_MEAN,
    std: Colour = IMAGENET_STD,
    antialias: bool = True,
    upright: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Function:
    """Resize, centre crop and normalisation.

    Args:
        size: Pixels of a side of the result.
        resize: Pixels of the shorter side after the resize.
        mean, std, antialias, upright, max_pixels: See `imagenet_train`.

    Returns:
        A function for `DaliLoader(pipeline=)`; images become float32 [B, 3, height, width].
    """

    if resize < max(_sides(size)):
        raise OptionError(f"resize={resize} must be at least the size, {size}")

    def graph(image: Any, device: str) -> dict[str, Any]:
        from nvidia.dali import fn

        pixels = fn.decoders.image(image, device=device, adjust_orientation=upright)
        pixels = fn.resize(pixels, resize_shorter=resize, antialias=antialias)
        return {"image": _normalised(pixels, mean, std, crop=tuple(_sides(size)))}

    return _reading(graph, upright, max_pixels)


def image_text(size: int | Size = 224, area: Pair = (0.9, 1.0)) -> Function:
    """Images for pairs of an image and a text: nearly whole, not flipped, and normalised as CLIP does.

    The texts come in the batch beside the images.

    Args:
        size, area: See `imagenet_train`.

    Returns:
        A function for `DaliLoader(pipeline=)`; images become float32 [B, 3, height, width].
    """
    return imagenet_train(size, area, flip=0.0, mean=CLIP_MEAN, std=CLIP_STD)


def audio(sample_rate: int = 16000, seconds: float | None = None) -> Function:
    """Mono sound at one rate.

    Args:
        sample_rate: Of the result, in Hz.
        seconds: The length of the result, in seconds: longer sounds are cut, and shorter ones end with zeros.
            None leaves the length as it is.

    Returns:
        A function for `DaliLoader(pipeline=)`; sounds become a list of tensors float32 [T], or with `seconds`
        one tensor float32 [B, T] and beside it "audio_length", int32 [B]: how many of the T values are sound.
    """

    def graph(audio: Any, device: str) -> dict[str, Any]:
        from nvidia.dali import fn, math, types

        sound, _ = fn.decoders.audio(audio, sample_rate=sample_rate, downmix=True, dtype=types.FLOAT)
        more = {}
        if seconds is not None:
            length = round(seconds * sample_rate)
            found = fn.cast(sound.shape()[0], dtype=types.INT32)
            more["audio_length"] = math.min(found, types.Constant(length, dtype=types.INT32))
            sound = fn.slice(sound, start=[0], shape=[length], axes=[0], out_of_bounds_policy="pad")
        return {"audio": sound.gpu() if device == "mixed" else sound, **more}

    return graph


PipelineName = Literal["imagenet-train", "imagenet-eval", "image-text", "audio"]
NAMED: dict[str, Callable[..., Function]] = {
    "imagenet-train": imagenet_train,
    "imagenet-eval": imagenet_eval,
    "image-text": image_text,
    "audio": audio,
}


def _reading(graph: Function, upright: bool, max_pixels: int) -> Function:
    """A function that says how its images are read."""
    graph.images = {"upright": upright, "max_pixels": max_pixels}  # type: ignore[attr-defined]
    return graph


def _sides(size: int | Size) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _normalised(pixels: Any, mean: Colour, std: Colour, **more: Any) -> Any:
    from nvidia.dali import fn, types

    more |= {"mean": [255 * value for value in mean], "std": [255 * value for value in std]}
    return fn.crop_mirror_normalize(pixels, dtype=types.FLOAT, output_layout="CHW", **more)


def _random_crop(image: Any, random: Any, area: Pair, ratio: Pair, upright: bool = True) -> tuple[Any, Any]:
    """The start and the shape of a random crop, [y, x] in pixels."""
    from nvidia.dali import fn, types

    size = fn.peek_image_shape(image, dtype=types.FLOAT, adjust_orientation=upright)
    return _crop_of(size[0], size[1], random, area, ratio)


def _crop_of(height: Any, width: Any, random: Any, area: Pair, ratio: Pair) -> tuple[Any, Any]:
    """The same as `crops.random_crops`, with the same steps in float32."""
    from nvidia.dali import fn, math, types

    areas = (area[0] + (area[1] - area[0]) * random[:TRIES]) * height * width
    low, high = float(np.log(ratio[0])), float(np.log(ratio[1]))
    ratios = math.exp(low + (high - low) * random[TRIES : 2 * TRIES])
    wide = math.max(math.floor(math.sqrt(areas * ratios) + 0.5), 1.0)
    tall = math.max(math.floor(math.sqrt(areas / ratios) + 0.5), 1.0)
    fits = fn.cast((wide <= width) & (tall <= height), dtype=types.FLOAT)
    # DALI has no argmax. So find the least number among the tries; a try that does not fit gets a larger one.
    turn = types.Constant(np.arange(TRIES, dtype=np.float32)) + (1.0 - fits) * 100.0
    first = fn.reductions.min(turn, axes=[0])
    chosen = fn.cast((turn == first) & (turn < 100.0), dtype=types.FLOAT)
    none = fn.cast(first >= 100.0, dtype=types.FLOAT)
    most_wide = math.min(width, math.max(math.floor(height * ratio[1] + 0.5), 1.0))
    most_tall = math.min(height, math.max(math.floor(width / ratio[0] + 0.5), 1.0))
    wide = fn.reductions.sum(wide * chosen, axes=[0]) + none * most_wide
    tall = fn.reductions.sum(tall * chosen, axes=[0]) + none * most_tall
    # If no try fits, the crop is in the middle.
    across = random[2 * TRIES] * (1.0 - none) + 0.5 * none
    down = random[2 * TRIES + 1] * (1.0 - none) + 0.5 * none
    x = math.floor(across * (width - wide + (1.0 - none)))
    y = math.floor(down * (height - tall + (1.0 - none)))
    return _pair(math.min(y, height - tall), math.min(x, width - wide)), _pair(tall, wide)


def _pair(y: Any, x: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.cast(fn.stack(y, x), dtype=types.INT32)

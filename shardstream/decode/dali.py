"""DALI graphs: those that are ready made, and those of the user, over inputs that are fields of a dataset."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shardstream.errors import OptionError, require

__all__ = [
    "RANDOM",
    "Graph",
    "audio",
    "image_text",
    "imagenet_eval",
    "imagenet_train",
    "reason",
]

RANDOM = 32  # random numbers of each sample
NUMBERS = ("cls", "cls2", "index", "id")  # fields that graphs get as int64, not as bytes
_ROLES = {
    "image": ("jpg", "jpeg", "png", "webp", "bmp", "tiff", "tif", "jp2"),
    "audio": ("wav", "flac", "ogg"),
}
_TRIES = 10

Function = Callable[..., Any]
Pair = tuple[float, float]
Colour = tuple[float, float, float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def imagenet_train(
    size: int = 224,
    area: Pair = (0.08, 1.0),
    ratio: Pair = (3 / 4, 4 / 3),
    flip: float = 0.5,
    mean: Colour = IMAGENET_MEAN,
    std: Colour = IMAGENET_STD,
    antialias: bool = True,
) -> Function:
    """Random resized crops, decoded as crops, flipped and normalised: float32 [B, 3, size, size].

    Crops and flips are a function of the seed, the epoch and the sample's position alone.
    """

    def graph(image: Any, random: Any, device: str) -> dict[str, Any]:
        from nvidia.dali import fn, types

        start, shape = _random_crop(image, random, area, ratio)
        pixels = fn.decoders.image_slice(image, start=start, shape=shape, axes=[0, 1], device=device)
        pixels = fn.resize(pixels, size=[size, size], antialias=antialias)
        mirror = fn.cast(random[_TRIES * 2 + 2] < flip, dtype=types.INT32)
        return {"image": _normalised(pixels, mean, std, mirror=mirror)}

    return graph


def imagenet_eval(
    size: int = 224,
    resize: int = 256,
    mean: Colour = IMAGENET_MEAN,
    std: Colour = IMAGENET_STD,
    antialias: bool = True,
) -> Function:
    """The shorter side resized to `resize`, the centre cropped, normalised: float32 [B, 3, size, size]."""

    def graph(image: Any, device: str) -> dict[str, Any]:
        from nvidia.dali import fn

        pixels = fn.decoders.image(image, device=device)
        pixels = fn.resize(pixels, resize_shorter=resize, antialias=antialias)
        return {"image": _normalised(pixels, mean, std, crop=(size, size))}

    return graph


def image_text(size: int = 224, area: Pair = (0.9, 1.0)) -> Function:
    """Images for contrastive pairs: nearly whole, not flipped, normalised as CLIP does. Texts come beside."""
    return imagenet_train(size, area, flip=0.0, mean=CLIP_MEAN, std=CLIP_STD)


def audio(sample_rate: int = 16000, seconds: float | None = None) -> Function:
    """Mono sound at one rate, float32: a list of tensors [T], or [B, T] cut or filled up to `seconds`."""

    def graph(audio: Any, device: str) -> dict[str, Any]:
        from nvidia.dali import fn, types

        sound, _ = fn.decoders.audio(audio, sample_rate=sample_rate, downmix=True, dtype=types.FLOAT)
        if seconds is not None:
            length = round(seconds * sample_rate)
            sound = fn.slice(sound, start=[0], shape=[length], axes=[0], out_of_bounds_policy="pad")
        return {"audio": sound.gpu() if device == "mixed" else sound}

    return graph


NAMED: dict[str, Callable[..., Function]] = {
    "imagenet-train": imagenet_train,
    "imagenet-eval": imagenet_eval,
    "image-text": image_text,
    "audio": audio,
}


def _normalised(pixels: Any, mean: Colour, std: Colour, **more: Any) -> Any:
    from nvidia.dali import fn, types

    more |= {"mean": [255 * value for value in mean], "std": [255 * value for value in std]}
    return fn.crop_mirror_normalize(pixels, dtype=types.FLOAT, output_layout="CHW", **more)


def _random_crop(image: Any, random: Any, area: Pair, ratio: Pair) -> tuple[Any, Any]:
    """The start and the shape, [y, x] in pixels, of the first of ten random crops that fits the image.

    Where none does, it is the largest crop with the nearest ratio.
    """
    from nvidia.dali import fn, math, types

    size = fn.peek_image_shape(image, dtype=types.FLOAT)
    height, width = size[0], size[1]
    areas = (area[0] + (area[1] - area[0]) * random[:_TRIES]) * height * width
    low, high = float(np.log(ratio[0])), float(np.log(ratio[1]))
    ratios = math.exp(low + (high - low) * random[_TRIES : 2 * _TRIES])
    wide, tall = math.floor(math.sqrt(areas * ratios) + 0.5), math.floor(math.sqrt(areas / ratios) + 0.5)
    wide, tall = math.max(wide, 1.0), math.max(tall, 1.0)
    fits = fn.cast((wide <= width) & (tall <= height), dtype=types.FLOAT)
    # There is no argmax: the number of a try, with those that do not fit put behind all others.
    turn = types.Constant(np.arange(_TRIES, dtype=np.float32)) + (1.0 - fits) * 100.0
    first = fn.reductions.min(turn, axes=[0])
    chosen = fn.cast((turn == first) & (turn < 100.0), dtype=types.FLOAT)
    none = fn.cast(first >= 100.0, dtype=types.FLOAT)
    most_wide = math.min(width, math.floor(height * ratio[1] + 0.5))
    most_tall = math.min(height, math.floor(width / ratio[0] + 0.5))
    wide = fn.reductions.sum(wide * chosen, axes=[0]) + none * most_wide
    tall = fn.reductions.sum(tall * chosen, axes=[0]) + none * most_tall
    x = math.floor(random[2 * _TRIES] * (width - wide + 1.0))
    y = math.floor(random[2 * _TRIES + 1] * (height - tall + 1.0))
    return _pair(math.min(y, height - tall), math.min(x, width - wide)), _pair(tall, wide)


def _pair(y: Any, x: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.cast(fn.stack(y, x), dtype=types.INT32)


class Graph:
    """A function from fields to outputs, as a DALI pipeline that asks a source for its batches.

    function: a name of `NAMED`, or a function whose parameters are fields, with _ for dots and dashes
        ("image" and "audio": the first field of that kind; "random": float32 [RANDOM] in [0, 1) of each
        sample; "device": what decoders want, "mixed" or "cpu"). It gives a dict of outputs; or, decorated
        with `pipeline_def`, a tuple of outputs, called `outputs`, or as its fields if there are as many.
    """

    def __init__(
        self, function: str | Function, fields: Sequence[str], outputs: Sequence[str] | None, gpu: int | None
    ) -> None:
        require("nvidia.dali", "dali")
        if isinstance(function, str):
            if function not in NAMED:
                raise OptionError(f"pipeline={function!r}; choose {', '.join(NAMED)}, or give a function")
            function = NAMED[function]()
        if not callable(function):
            raise OptionError(f"pipeline={function!r} must be a name or a function of fields")
        self._function, self._gpu = function, gpu
        self._decorated = getattr(function, "_is_pipeline_def", False)
        self.inputs: dict[str, str] = {}  # parameter -> field
        self.random = self._device = False
        for name, parameter in inspect.signature(inspect.unwrap(function)).parameters.items():
            field = _field(name, fields)
            if name == "random" and field is None:
                self.random = True
            elif name == "device" and field is None:
                self._device = True
            elif field is not None:
                self.inputs[name] = field
            elif parameter.default is parameter.empty:
                raise OptionError(f"the pipeline wants {name!r}; the dataset's fields are {sorted(fields)}")
        if not self.inputs:
            raise OptionError(f"the pipeline has no parameter that is a field: {sorted(fields)}")
        self.outputs = list(self.inputs) if outputs is None else list(outputs)

    def build(self, source: Callable[[int], list[Any]], **options: Any) -> Any:
        """The pipeline, built. `source` gives the batch of a number: one item for each input, then random."""
        from nvidia.dali import Pipeline

        # Only this executor leaves outputs alone for as long as a tensor lies over them.
        options |= {"device_id": self._gpu, "exec_dynamic": True}
        if self._decorated and not options.get("enable_checkpointing"):
            pipeline = self._function(**self._given(source), **options)
        else:
            # A checkpoint takes no nodes from outside of the pipeline: the function alone, without what
            # else its decorator says.
            pipeline = Pipeline(**options)
            with pipeline:
                made = inspect.unwrap(self._function)(**self._given(source))
                if not self._decorated:
                    if not isinstance(made, Mapping) or not made:
                        kind = type(made).__name__
                        raise OptionError(f"the pipeline's function gave a {kind}, not a dict of outputs")
                    self.outputs, made = list(made), tuple(made.values())
                pipeline.set_outputs(*(made if isinstance(made, tuple) else (made,)))
        pipeline.build()
        if len(self.outputs) != pipeline.num_outputs:
            raise OptionError(
                f"the pipeline has {pipeline.num_outputs} outputs: name them, as in outputs=['jpg', 'cls']"
            )
        return pipeline

    def _given(self, source: Callable[[int], list[Any]]) -> dict[str, Any]:
        """The function's arguments."""
        from nvidia.dali import fn, types

        numbers = [field in NUMBERS for field in self.inputs.values()]
        dtypes = [types.INT64 if number else types.UINT8 for number in numbers]
        dims = [0 if number else 1 for number in numbers]
        if self.random:
            dtypes, dims = [*dtypes, types.FLOAT], [*dims, 1]
        nodes = fn.external_source(source, len(dtypes), dtype=dtypes, ndim=dims, no_copy=True)
        given: dict[str, Any] = dict(zip(self.inputs, nodes, strict=False))
        if self.random:
            given["random"] = nodes[-1]
        if self._device:
            given["device"] = "cpu" if self._gpu is None else "mixed"
        return given

    def names(self) -> list[str]:
        """The outputs' names in a batch: those of a kind are called after the field that they came from."""
        return [self.inputs.get(name, name) for name in self.outputs]


def _field(name: str, fields: Sequence[str]) -> str | None:
    for field in fields:
        if name == field or name == field.replace(".", "_").replace("-", "_"):
            return field
    endings = _ROLES.get(name, ())
    return next((field for field in fields if field.rpartition(".")[2].lower() in endings), None)


def reason(error: Exception) -> str:
    """What DALI says is wrong, without the stack around it."""
    text = str(error).rpartition("encountered:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "pipeline object is no longer valid" not in line]
    return " ".join(told[:2]) or type(error).__name__

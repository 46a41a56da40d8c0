"""Mutated images of every kind: pixels or an error that names the sample, never more memory than allowed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import features

from shardstream.decode import images, pixels
from shardstream.errors import SourceError
from shardstream.format.kinds import PIXELS
from shardstream.format.pictures import orientation, picture_format
from tests.decode.test_kinds import encoded, smooth, with_orientation

KINDS = [
    ("JPEG", {"quality": 80}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("JPEG2000", {}), ("AVIF", {}),
]  # fmt: skip
COUNT = 150
LIMIT = 1 << 20  # pixels


def mutated(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        del made[rng.randrange(len(made)) :]
    elif kind == 1:
        at = rng.randrange(len(made))
        made[at:at] = rng.randbytes(rng.choice([1, 7, 100]))
    else:
        for _ in range(rng.choice([1, 3, 30])):
            made[rng.randrange(len(made) if kind == 2 else min(200, len(made)))] = rng.randrange(256)
    return bytes(made)


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call returns, or the error that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, by Pillow
        try:
            return function(*args, **options)
        except Exception as error:
            return error


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_mutated_images_are_decoded_or_named(kind, options):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    good = [encoded(smooth(), kind, **options)]
    if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        good.append(with_orientation(6, kind, **options))
    how, rng = images.Train(24, dtype="uint8", max_pixels=LIMIT), random.Random(kind)
    numbers, made = how.random(0, np.arange(1)), []
    for number in range(COUNT):
        data = mutated(good[number % len(good)], rng)
        assert 1 <= orientation(data) <= 8
        assert picture_format(data) in {*PIXELS.values(), None}
        made.append(outcome(how.decode, {"jpg": [data]}, ["key"], ["shard"], numbers))
        for function in (pixels.stored, pixels.whole):
            found = outcome(function, data, max_pixels=LIMIT)
            assert not isinstance(found, MemoryError)
            assert isinstance(found, Exception) or found.shape[0] * found.shape[1] <= LIMIT
    errors = [each for each in made if isinstance(each, Exception)]
    assert 0 < len(errors) < COUNT
    assert all(isinstance(error, SourceError) for error in errors)
    told = [str(error) for error in errors]
    assert all(text.startswith("sample 'key' of shard: no image in field jpg (") for text in told)
    assert not any("object at 0x" in text for text in told)
    assert all(each["image"].shape == (1, 3, 24, 24) for each in made if not isinstance(each, Exception))

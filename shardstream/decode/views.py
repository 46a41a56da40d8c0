"""Fields as pictures, as a model sees them: images as the loader decodes them, masks, and waveforms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardstream.errors import MissingExtraError, require
from shardstream.format.kinds import PIXELS, SOUNDS, extension

__all__ = ["View", "joined", "open_image", "open_mask", "open_sound", "views"]

LARGE = 512  # pixels of the shorter side that are enough for a sheet
GAP = 6  # pixels between the pictures of a sample
WAVE, INK = (640, 240), (47, 93, 138)
_MASKS = re.compile(r"(^|[._-])(masks?|seg\w*|labels?|depth|ids?|parts?)([._-]|$)", re.IGNORECASE)
_FEW = 64  # numbers at most that are drawn as classes
_OBJECT = re.compile(r"<_io\.BytesIO object at 0x[0-9a-f]+>")


@dataclass(frozen=True)
class View:
    """One field of a sample.

    Args:
        name: Of the field.
        picture: A PIL image; a str that says why there is none.
        about: What a picture does not show, or "".
    """

    name: str
    picture: Any
    about: str = ""


def views(fields: dict[str, bytes], kinds: dict[str, str]) -> list[View]:
    """The fields of a sample that can be looked at.

    Args:
        fields: The bytes of each field that the sample has.
        kinds: The extension of each field's codec.
    """
    images = [name for name in fields if kinds[name] in PIXELS]
    found: list[View] = []
    for name in sorted(images, key=lambda name: "." in name or _is_mask(name)):
        # The first image is the image itself, whatever it is called.
        masked = bool(found) and (_is_mask(name) or "." in name)
        found.append(_view(name, fields[name], open_mask if masked else open_image))
    sounds = [name for name in fields if kinds[name] in SOUNDS]
    return found + [_view(name, fields[name], open_sound) for name in sounds]


def _is_mask(name: str) -> bool:
    return _MASKS.search(name) is not None


def _view(name: str, data: bytes, opened: Any) -> View:
    found = open_sound(data, extension(name)) if opened is open_sound else opened(data)
    return View(name, *found) if isinstance(found, tuple) else View(name, found)


def open_image(data: bytes) -> Any:
    """An image as the loader decodes it, maybe smaller; a str that says why it cannot be decoded."""
    import numpy as np

    from shardstream.decode import pixels
    from shardstream.decode.crops import Cut

    pillow = require("PIL.Image", "images")
    try:
        head = pixels.header(data)
        scale = 1
        while scale < 8 and min(head.height, head.width) >= 2 * scale * LARGE:
            scale *= 2
        size = -(-head.height // scale), -(-head.width // scale)
        how = Cut(scale, 0, 0, *size, *size)
        part = pixels.region(data, head, how, lambda height, width: np.empty((height, width, 3), np.uint8))
        return pillow.fromarray(part)
    except MissingExtraError:
        raise
    except Exception as error:  # noqa: BLE001 - a sheet shows damaged images, too
        return f"cannot be decoded: {error}"


def open_mask(data: bytes) -> Any:
    """An image beside another one: colours as they are; classes in a colour each; depths as greys.

    Returns:
        A PIL image, and which values it has; or as `open_image`.
    """
    import numpy as np

    from shardstream.decode import pixels

    pillow = require("PIL.Image", "images")
    try:
        values = pixels.stored(data)
    except MissingExtraError:
        raise
    except Exception:  # noqa: BLE001 - such as colours of 16 bits, which are no mask
        return open_image(data)
    if values.ndim != 2:
        return open_image(data)
    least, most = values.min().item(), values.max().item()
    some = np.unique(values) if values.dtype.kind in "bu" else np.arange(_FEW + 1)
    if len(some) > _FEW:
        shown = (values.astype(np.float64) - least) * (255 / max(most - least, 1e-9))
        about = f"{least:,} to {most:,}" if values.dtype.kind in "iu" else f"{least:g} to {most:g}"
        return pillow.fromarray(shown.astype(np.uint8)).convert("RGB"), f"{about} ({values.dtype})"
    listed = ", ".join(str(int(one)) for one in some[:12]) + ("..." if len(some) > 12 else "")
    colours = np.array([_colour(int(one)) for one in some], np.uint8)
    return pillow.fromarray(colours[np.searchsorted(some, values)]), f"ids {listed}"


def _colour(number: int) -> tuple[int, int, int]:
    """A colour for each class, as in PASCAL VOC: the bits of the number, mixed; 0 is black."""
    red = green = blue = 0
    for place in range(7, -1, -1):
        red, green, blue = (
            value | (number >> bit & 1) << place for value, bit in ((red, 0), (green, 1), (blue, 2))
        )
        number >>= 3
    return red, green, blue


def open_sound(data: bytes, codec: str) -> Any:
    """The waveform of a sound, and its length, rate and channels; or as `open_image`."""
    import numpy as np

    from shardstream.decode.registry import find

    pillow = require("PIL.Image", "images")
    decode = find(codec)
    if decode is None:
        return f"no decoder for {codec}"
    try:
        samples, rate = decode(data)
    except MissingExtraError:
        raise
    except Exception as error:  # noqa: BLE001
        return f"cannot be decoded: {_OBJECT.sub('the data', str(error))}"
    samples = np.atleast_2d(np.asarray(samples))
    channels, length = samples.shape
    width, height = WAVE
    page = np.full((height, width, 3), 255, np.uint8)
    high = height // channels
    for number in range(channels if length and high else 0):
        # The least and the largest value in each column of pixels.
        edges = np.minimum(np.arange(width) * length // width, length - 1)
        low, top = (f.reduceat(samples[number], edges) for f in (np.minimum, np.maximum))
        middle = number * high + high / 2
        begin, end = (middle - np.clip(values, -1, 1) * (high / 2 - 1) for values in (top, low))
        rows = np.arange(height)[:, None]
        page[(rows >= np.floor(begin)) & (rows <= np.ceil(end))] = INK
    of = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    return pillow.fromarray(page), f"{length / rate:.2f} s, {rate:,} Hz, {of}"


def joined(found: Sequence[View]) -> Any:
    """The pictures side by side, all of one height; a str if there is none."""
    pictures = [view.picture for view in found if not isinstance(view.picture, str)]
    if len(pictures) < 2:
        return pictures[0] if pictures else "; ".join(f"{view.name}: {view.picture}" for view in found)
    pillow = require("PIL.Image", "images")
    high = min(LARGE, max(picture.height for picture in pictures))
    # Between the classes of a mask there are no others.
    nearest = pillow.Resampling.NEAREST
    sized = [
        each.resize((max(1, round(each.width * high / each.height)), high), nearest) for each in pictures
    ]
    page = pillow.new("RGB", (sum(each.width for each in sized) + GAP * (len(sized) - 1), high), "white")
    left = 0
    for each in sized:
        page.paste(each, (left, 0))
        left += each.width + GAP
    return page

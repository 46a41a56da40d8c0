"""How each field of a dataset is decoded: what `decode=` says, checked against the fields that there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from shardstream.decode.images import Images, Mask, Whole
from shardstream.decode.picture_batch import IMAGE, Picture
from shardstream.errors import OptionError
from shardstream.format.kinds import PIXELS, extension

__all__ = ["Decode", "FieldMode", "Modes", "Plain", "frozen", "modes", "viewless"]

Plain = bool | Literal["stored", "view"] | Whole
FieldMode = Plain | Images | Mask
Decode = bool | Literal["view"] | Images | Whole | Mapping[str, FieldMode]


@dataclass(frozen=True)
class Modes:
    """How the fields of a dataset are decoded.

    Attributes:
        plain: The mode of each field that stays a field of its own.
        pictures: What is made of the other fields.
        draws: The images whose random numbers are needed.
        aliases: Names that pictures had in 0.1, or would have with another decoder, and their names here.
    """

    plain: Mapping[str, Plain]
    pictures: tuple[Picture, ...] = ()
    draws: tuple[Images, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def views(self) -> bool:
        """Whether values of some fields are views of the memory that holds the stored bytes."""
        return "view" in self.plain.values()

    @property
    def taken(self) -> tuple[str, ...]:
        """The fields that become pictures."""
        return tuple(dict.fromkeys(name for picture in self.pictures for name in picture.fields))

    def random(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The random numbers of samples, float32 [B, R]; None if none are needed.

        Args:
            epoch: The number of the epoch.
            positions: int64 [B], the positions of the samples in the order of the epoch.
        """
        found = [image.random(epoch, positions) for image in self.draws]
        drawn = [numbers for numbers in found if numbers is not None]
        return np.concatenate(drawn, axis=1) if len(drawn) > 1 else next(iter(drawn), None)


def frozen(decode: Decode) -> Decode:
    """The value of `decode`, of which nobody else has a part.

    Raises:
        OptionError: It is no mode.
    """
    if isinstance(decode, Mapping):
        for name, mode in decode.items():
            if not isinstance(mode, (bool, Images, Mask, Whole)) and not _named(mode, "stored", "view"):
                raise OptionError(
                    f"decode={{{name!r}: {mode!r}}}: a mode is True, False, 'stored', 'view', "
                    "images.Train(...), images.Evaluate(...), images.Mask(...) or images.Whole(...)"
                )
        return dict(decode)
    if not isinstance(decode, (bool, Images, Whole)) and not _named(decode, "view"):
        raise OptionError(
            f"decode={decode!r} must be True, False, 'view', images.Train(...), images.Evaluate(...), "
            "images.Whole(...), or a mode for each field, such as "
            "{'jpg': images.Train(224), 'mask.png': 'stored'}"
        )
    return decode


def _named(mode: object, *names: str) -> bool:
    # Not `mode in names` alone: what is no string, as an array, may have an equality of its own.
    return isinstance(mode, str) and mode in names


def viewless(decode: Decode) -> Decode:
    """The same, with bytes in place of views."""
    if isinstance(decode, Mapping):
        return {name: False if _named(mode, "view") else mode for name, mode in decode.items()}
    return False if _named(decode, "view") else decode


def modes(decode: Decode, kinds: Mapping[str, str]) -> Modes:
    """How each field is decoded.

    Args:
        decode: See `StreamingDataset`.
        kinds: The codec of each field that is read.

    Raises:
        OptionError: It names a field that is not read, or it is not clear which image is meant.
    """
    if isinstance(decode, (bool, str)):
        return Modes(dict.fromkeys(kinds, decode))
    if isinstance(decode, Whole):
        pixels = [name for name, codec in kinds.items() if extension(codec or name) in PIXELS]
        decode = dict.fromkeys(pixels, decode)
    given: dict[str, FieldMode] = {IMAGE: decode} if isinstance(decode, Images) else dict(decode)
    role = isinstance(given.get(IMAGE), Images) and (IMAGE not in kinds or isinstance(decode, Images))
    unknown = [name for name in given if name not in kinds and not (role and name == IMAGE)]
    if unknown:
        raise OptionError(f"decode names {unknown[0]!r}, which is not read; there are {sorted(kinds)}")
    pictures: list[Picture] = []
    images: dict[str, tuple[int, Images]] = {}  # of each key its picture
    draws: list[Images] = []
    for name, mode in given.items():
        if not isinstance(mode, Images):
            continue
        others = {each: codec for each, codec in kinds.items() if each == name or each not in given}
        is_role = role and name == IMAGE
        if mode.fields is not None and not is_role:
            raise OptionError(f"decode={{{name!r}: ...}} names its field already: leave fields= out")
        fields = mode.choose(others) if is_role else (name,)
        like, draw = None, 0
        for number, known in images.values():
            if mode.draws_like(known):
                like = number if pictures[number].like is None else pictures[number].like
                draw = pictures[number].draw
                break
        else:
            if hasattr(mode, "seed"):
                draw = len(draws)
                draws.append(mode)
        images[name] = (len(pictures), mode)
        pictures.append(Picture(name, fields, mode, like, draw))
    for name, mode in given.items():
        if isinstance(mode, Mask):
            pictures.append(Picture(name, (name,), mode, _image(name, mode, images)))
    taken = {each for picture in pictures for each in picture.fields}
    left = [name for name in kinds if name not in taken]
    twice = [picture.name for picture in pictures if picture.name in left]
    if twice:
        raise OptionError(f"there is a field {twice[0]!r} beside the image; name the image's field in decode")
    plain = {name: _plain(name, given.get(name, True), kinds[name]) for name in left}
    return Modes(plain, tuple(pictures), tuple(draws), _aliases(pictures, plain))


def _image(name: str, mask: Mask, images: Mapping[str, tuple[int, Images]]) -> int:
    """The number of the picture that a mask is cut as."""
    if mask.like is None and len(images) == 1:
        return next(iter(images.values()))[0]
    if mask.like is None or mask.like not in images:
        said = f"like={mask.like!r} is no image of decode" if mask.like else "like= has to say which image"
        raise OptionError(f"decode={{{name!r}: images.Mask(...)}}: {said}; there are {sorted(images)}")
    return images[mask.like][0]


def _plain(name: str, mode: FieldMode, codec: str) -> Plain:
    if not isinstance(mode, bool) and mode != "view" and extension(codec or name) not in PIXELS:
        raise OptionError(f"decode={{{name!r}: {mode!r}}} is for images; {name!r} is {codec or 'bytes'}")
    return cast("Plain", mode)


def _aliases(pictures: list[Picture], plain: Mapping[str, Plain]) -> dict[str, str]:
    """If there is one image: the names of its fields for the role, and the other way round."""
    images = [picture for picture in pictures if not picture.mask]
    if len(images) != 1:
        return {}
    (image,) = images
    names = set(image.fields) | {IMAGE}
    return dict.fromkeys(sorted(names - set(plain) - {picture.name for picture in pictures}), image.name)

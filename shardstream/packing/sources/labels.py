"""Which folder is the class of an image."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shardstream.errors import OptionError

__all__ = ["Labelled", "Labels", "check", "labelled"]

Labels = Literal["none", "leaf", "top"]

# The parts of a dataset and what lies in it. Where all folders of a level are among these, none is a class.
_PARTS = re.compile(
    r"(train|training|trainval|val|valid|validation|dev|test|testing|eval|minival|holdout)[-_]?\d*|"
    r"(image|img|jpegimage|jpg|jpeg|png|picture|photo|mask|label|annotation|segmentation)s?|data|dataset",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Labelled:
    """The classes of images.

    Attributes:
        told: Where the classes come from, or why there are none.
        counts: The number of images of each class. The order is that of the numbers of the classes.
        depth: Which of the folders of an image is its class.
    """

    told: str
    counts: dict[str, int]
    depth: int = 0

    def of(self, path: str) -> str:
        """The class of an image, by its path, if there are classes."""
        return path.split("/")[:-1][self.depth]

    def record(self) -> dict[str, Any]:
        """What the provenance in the manifest says of them."""
        found: dict[str, Any] = {"labels": self.told}
        if self.counts:
            found["classes"] = [name.encode("utf-8", "backslashreplace").decode() for name in self.counts]
            found["class_counts"] = list(self.counts.values())
        return found


def check(labels: Labels | None) -> Labels | None:
    """The option, or OptionError if there is no such choice."""
    if labels is not None and labels not in get_args(Labels):
        raise OptionError(f"labels={labels!r} must be 'none', 'leaf' or 'top'")
    return labels


def labelled(paths: Iterable[str], labels: Labels | None, paired: Callable[[], bool]) -> Labelled:
    """The classes of images, by the folders that they lie in.

    By default the class is the first folder that is not the same kind of thing for all images: folders such
    as train and val, or images, are left out. There are no classes if an image lies in no folder behind
    these, or if other files lie beside images.

    Args:
        paths: The path of each image, below the folder that was given. They are not kept.
        labels: "top": the first folder. "leaf": the folder that holds the image. "none": there are no
            classes. None: the default.
        paired: Whether other files lie beside images. It is asked when all paths were taken.

    Raises:
        OptionError: With "top" or "leaf", an image lies in no folder.
    """
    if labels == "none":
        return Labelled("none", {})
    if labels is not None:
        depth = 0 if labels == "top" else -1
        counts: Counter[str] = Counter()
        for path in paths:
            above = path.split("/")[:-1]
            if not above:
                raise OptionError(f"labels={labels!r}: {path} lies in no folder, so that it has no class")
            counts[above[depth]] += 1
        return _made(counts, "top folders" if labels == "top" else "the folders that hold the images", depth)
    levels, least = _levels(paths)
    if paired():
        return Labelled("none: other files lie beside images", {})
    skipped = set[str]()
    for depth, level in enumerate(levels[:least]):
        if not all(map(_PARTS.fullmatch, level)):
            below = f"folders below {_listed(skipped)}" if skipped else "top folders"
            return _made(level, below, depth)
        skipped |= level.keys()
    why = f"{_listed(skipped)} are no classes" if skipped else "images lie in no folder"
    return Labelled(f"none: {why}", {})


def _levels(paths: Iterable[str]) -> tuple[list[Counter[str]], int]:
    """(how many images each folder has, by its depth; how many folders all images lie in, at least).

    What lies below folders that may be classes is not counted.
    """
    levels: list[Counter[str]] = []
    least, most = sys.maxsize, sys.maxsize
    for path in paths:
        above = path.split("/")[:-1]
        least = min(least, len(above))
        for depth, name in enumerate(above[: min(least, most)]):
            if depth == len(levels):
                levels.append(Counter())
            counts = levels[depth]
            counts[name] += 1
            if counts[name] == 1 and not _PARTS.fullmatch(name):
                most = min(most, depth + 1)
                break
        del levels[min(least, most) :]
    return levels, min(least, len(levels))


def _made(counts: Counter[str], told: str, depth: int) -> Labelled:
    return Labelled(told, {name: counts[name] for name in sorted(counts)}, depth)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")

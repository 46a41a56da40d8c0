"""Which folder is the class of an image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
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
        of: The class of each image, in the order of the images; empty if there are no classes.
        told: Where the classes come from, or why there are none.
        counts: The number of images of each class. The order is that of the numbers of the classes.
    """

    of: tuple[str, ...]
    told: str
    counts: dict[str, int]

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


def labelled(paths: Sequence[str], labels: Labels | None, paired: bool) -> Labelled:
    """The classes of images, by the folders that they lie in.

    By default the class is the first folder that is not the same kind of thing for all images: folders such
    as train and val, or images, are left out. There are no classes if an image lies in no folder behind
    these, or if other files lie beside images.

    Args:
        paths: The path of each image, below the folder that was given.
        labels: "top": the first folder. "leaf": the folder that holds the image. "none": there are no
            classes. None: the default.
        paired: Whether other files lie beside images.

    Raises:
        OptionError: With "top" or "leaf", an image lies in no folder.
    """
    folders = [path.split("/")[:-1] for path in paths]
    if labels == "none" or (labels is None and paired):
        return Labelled((), "none: other files lie beside images" if labels is None else "none", {})
    bare = next((path for path, above in zip(paths, folders, strict=True) if not above), None)
    if labels is not None:
        if bare is not None:
            raise OptionError(f"labels={labels!r}: {bare} lies in no folder, so that it has no class")
        end = 0 if labels == "top" else -1
        where = "top folders" if labels == "top" else "the folders that hold the images"
        return _made([above[end] for above in folders], where)
    depth, skipped = 0, set[str]()
    while folders and all(len(above) > depth for above in folders):
        level = {above[depth] for above in folders}
        if not all(map(_PARTS.fullmatch, level)):
            below = f"folders below {_listed(skipped)}" if skipped else "top folders"
            return _made([above[depth] for above in folders], below)
        skipped |= level
        depth += 1
    why = f"{_listed(skipped)} are no classes" if skipped else "images lie in no folder"
    return Labelled((), f"none: {why}", {})


def _made(names: list[str], told: str) -> Labelled:
    found = Counter(names)
    return Labelled(tuple(names), told, {name: found[name] for name in sorted(found)})


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")

"""Images: folders as classes, or images with other files of the same name beside them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shardstream.errors import MissingExtraError, reason
from shardstream.format.kinds import COMPANIONS, IMAGES, PIXELS
from shardstream.format.pictures import orientation, picture_format
from shardstream.packing.resize import Resize
from shardstream.packing.sources.base import (
    HUB_FILES,
    FileSpan,
    Reject,
    Sample,
    SourceOptions,
    Streamed,
    Task,
    grouped,
    read_whole,
    relative,
)
from shardstream.packing.sources.file_keys import keyed
from shardstream.packing.sources.labels import Labelled, Labels, check, labelled
from shardstream.packing.sources.windows import Windows, windows
from shardstream.storage.inputs import FileInfo
from shardstream.storage.store import Options, redact


def _extension(url: str) -> str:
    return os.path.splitext(redact(url))[1][1:].lower()


def _stem(url: str) -> str:
    return os.path.splitext(url)[0]


def _groups(found: Windows) -> Iterator[list[FileInfo]]:
    """The files in groups: a group has the same folder and the same name without extension."""
    for window in found:
        stems: dict[tuple[str, str], list[FileInfo]] = {}
        for info in window:
            stems.setdefault((info.root, _stem(info.url)), []).append(info)
        yield from stems.values()


@dataclass(frozen=True)
class ImagesSource(Streamed):
    """Images as samples. The name of a field is the extension of its file in lower case; `cls` is the class.

    Args:
        resize: How images are made smaller, or None.
        labels: Which folder is the class: "none", "leaf", "top" or None, see `labels.labelled`.
        storage_options: Options for the stores of the input.
    """

    resize: Resize | None = None
    labels: Labels | None = None
    storage_options: Options = field(default=None, repr=False)
    name: str = "images"
    extensions: ClassVar[tuple[str, ...]] = tuple(f".{extension}" for extension in IMAGES)
    # What may lie beside images and does not make the files another format.
    companions: ClassVar[tuple[str, ...]] = tuple(f".{extension}" for extension in COMPANIONS)
    left_out: ClassVar[tuple[str, ...]] = HUB_FILES
    keys: ClassVar[str] = "the path of the image below the given folder, without its extension"
    takes: ClassVar[frozenset[str]] = frozenset({"resize", "labels"})

    @classmethod
    def make(cls, options: SourceOptions) -> ImagesSource:
        return cls(options.resize, check(options.labels), options.storage_options)

    def options(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if self.resize is not None:
            made |= {"resize": self.resize.side, "quality": self.resize.quality}
        return made if self.labels is None else made | {"labels": self.labels}

    def labelled(self, files: Sequence[FileInfo]) -> Labelled:
        """The classes of all images among the files."""
        return self._labelled(windows(files, _stem))

    def _labelled(self, found: Windows) -> Labelled:
        paired = False

        def paths() -> Iterator[str]:
            nonlocal paired
            for window in found:
                for members in () if self.labels is not None or paired else _groups([window]):
                    extensions = {_extension(info.url) for info in members} if len(members) > 1 else set()
                    paired |= bool(extensions & set(COMPANIONS) and extensions & set(IMAGES))
                for info in window:
                    if _extension(info.url) in IMAGES:
                        yield relative(info)

        return labelled(paths(), self.labels, lambda: paired)

    def tasks(self, files: Sequence[FileInfo], target: int) -> Iterator[Task]:
        """Tasks of about `target` bytes. The files beside an image are in the same task."""
        found = windows(files, _stem)
        classes = self._labelled(found)
        numbers = {name: str(number) for number, name in enumerate(classes.counts)}

        def label(info: FileInfo) -> str:
            return numbers[classes.of(relative(info))] if numbers and _extension(info.url) in IMAGES else ""

        def spans(members: list[FileInfo], key: str) -> list[FileSpan]:
            return [FileSpan(m.url, 0, m.size, m.size, key, label(m)) for m in members]

        groups = keyed(lambda: _groups(found), lambda each: _stem(relative(each[0])))
        return grouped((spans(members, key) for members, key in groups), target)

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """A sample for each image. An image whose content does not fit its name is a Reject."""
        for key, members in itertools.groupby(task.files, key=lambda span: span.key_base):
            yield self._sample(key, list(members))

    def _sample(self, key: str, members: list[FileSpan]) -> Sample | Reject:
        where = redact(members[0].url)
        images = [span for span in members if _extension(span.url) in IMAGES]
        if not images:
            return Reject(where, "not an image, and no image of the same name lies beside it")
        if len(images) > 1:
            names = " and ".join(redact(span.url) for span in images)
            return Reject(where, f"two images of one name: {names}; rename one of them")
        where = redact(images[0].url)
        fields: dict[str, bytes] = {}
        for span in members:
            extension = _extension(span.url)
            if extension not in IMAGES and extension not in COMPANIONS:
                return Reject(redact(span.url), "neither an image nor a sidecar (txt, json, cls, caption)")
            if extension in fields:
                return Reject(where, f"two files give field {extension!r}")
            fields[extension] = read_whole(span, self.storage_options)
        extension = _extension(images[0].url)
        if not fields[extension]:
            return Reject(where, "the image file is empty")
        kind = picture_format(fields[extension])
        if kind is None:
            return Reject(where, f"the content is not {extension}, nor another kind of image")
        if images[0].label:
            if "cls" in fields:
                return Reject(
                    where, "its class is in a file beside it, and also its folder: leave labels out"
                )
            fields["cls"] = images[0].label.encode()
        counts = {} if kind == PIXELS[extension] else {"misnamed": 1}
        if self.resize is None:
            return Sample(key, fields, where, counts | _turned(fields[extension]))
        try:
            made = self.resize.apply(extension, fields[extension])
        except MissingExtraError:
            raise
        except Exception as error:  # noqa: BLE001 - a decoder raises what it likes
            return Reject(where, f"the image cannot be decoded ({reason(error)})")
        if made is None:
            return Sample(key, fields, where, counts | _turned(fields[extension]))
        fields[extension] = made.data
        counts |= {
            "images": 1,
            "resized": int(made.pixels < made.pixels_before),
            "bytes_before": made.bytes_before,
            "bytes": len(made.data),
            "pixels_before": made.pixels_before,
            "pixels": made.pixels,
        }
        return Sample(key, fields, where, counts)


def _turned(data: bytes) -> dict[str, int]:
    """The count of an image that is turned when it is decoded."""
    return {} if orientation(data) == 1 else {"turned": 1}

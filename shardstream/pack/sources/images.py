"""Images: folders as classes, or images with sidecar files of the same stem."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardstream.errors import MissingExtraError
from shardstream.pack.shrink import Shrink
from shardstream.pack.sources.base import (
    FileSpan,
    Reject,
    Sample,
    Task,
    group,
    read_whole,
    relative,
    unique_keys,
)
from shardstream.storage.files import FileInfo
from shardstream.storage.remote import Options, redact

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
SIDECARS = ("txt", "json", "cls", "caption")


def _extension(url: str) -> str:
    return os.path.splitext(redact(url))[1][1:].lower()


def _groups(files: Sequence[FileInfo]) -> list[list[FileInfo]]:
    """The files that share a folder and a stem, together."""
    stems: dict[tuple[str, str], list[FileInfo]] = {}
    for info in files:
        stems.setdefault((info.root, os.path.splitext(info.url)[0]), []).append(info)
    return list(stems.values())


@dataclass(frozen=True)
class ImagesSource:
    """Image files to samples; the field is the lower-case extension, the class `cls`."""

    shrink: Shrink | None = None
    storage_options: Options = field(default=None, repr=False)
    name: str = "images"

    def options(self) -> dict[str, Any]:
        return {} if self.shrink is None else {"resize": self.shrink.side, "quality": self.shrink.quality}

    def classes(self, files: Sequence[FileInfo]) -> list[str]:
        """The names of the classes in the order of their numbers: the folders, where no sidecars are."""
        images = [info for info in files if _extension(info.url) in EXTENSIONS]
        paired = any(
            {_extension(info.url) for info in members} & set(SIDECARS)
            and {_extension(info.url) for info in members} & set(EXTENSIONS)
            for members in _groups(files)
        )
        if paired or not all("/" in relative(info) for info in images):
            return []
        return sorted({relative(info).partition("/")[0] for info in images})

    def plan(self, files: Sequence[FileInfo], target: int) -> list[Task]:
        """Runs of images, each with its sidecars, of about `target` bytes."""
        groups = _groups(files)
        keys = unique_keys(os.path.splitext(relative(members[0]))[0] for members in groups)
        labels = {name: str(number) for number, name in enumerate(self.classes(files))}

        def spans(members: list[FileInfo], key: str) -> list[FileSpan]:
            label = labels.get(relative(members[0]).partition("/")[0], "")
            return [FileSpan(m.url, 0, m.size, m.size, key, label) for m in members]

        return group((spans(m, key) for m, key in zip(groups, keys, strict=True)), target)

    def read(self, task: Task) -> Iterator[Sample | Reject]:
        """One sample per image that looks like what its name says."""
        for key, members in itertools.groupby(task.files, key=lambda span: span.key_base):
            yield self._sample(key, list(members))

    def _sample(self, key: str, members: list[FileSpan]) -> Sample | Reject:
        where = redact(members[0].url)
        images = [span for span in members if _extension(span.url) in EXTENSIONS]
        if not images:
            return Reject(where, "not an image, and no image of the same name lies beside it")
        if len(images) > 1:
            names = " and ".join(redact(span.url) for span in images)
            return Reject(where, f"two images of one name: {names}; rename one of them")
        where = redact(images[0].url)
        fields: dict[str, bytes] = {}
        for span in members:
            extension = _extension(span.url)
            if extension not in EXTENSIONS and extension not in SIDECARS:
                return Reject(redact(span.url), "neither an image nor a sidecar (txt, json, cls, caption)")
            if extension in fields:
                return Reject(where, f"two files give field {extension!r}")
            fields[extension] = read_whole(span, self.storage_options)
        extension = _extension(images[0].url)
        if not fields[extension]:
            return Reject(where, "the image file is empty")
        if not _looks_like(extension, fields[extension]):
            return Reject(where, f"the content is not {extension}")
        if images[0].label:
            fields["cls"] = images[0].label.encode()
        if self.shrink is None:
            return Sample(key, fields, where)
        try:
            made = self.shrink.apply(extension, fields[extension])
        except MissingExtraError:
            raise
        except Exception as error:  # noqa: BLE001 - a decoder raises what it likes
            return Reject(where, f"the image cannot be decoded ({error})")
        if made is None:
            return Sample(key, fields, where)
        fields[extension] = made.data
        counts = {
            "images": 1,
            "resized": int(made.pixels < made.pixels_before),
            "bytes_before": made.bytes_before,
            "bytes": len(made.data),
            "pixels_before": made.pixels_before,
            "pixels": made.pixels,
        }
        return Sample(key, fields, where, counts)


def _looks_like(extension: str, data: bytes) -> bool:
    if extension in ("jpg", "jpeg"):
        return data.startswith(b"\xff\xd8\xff")
    if extension == "png":
        return data.startswith(b"\x89PNG\r\n\x1a\n")
    if extension == "webp":
        return data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return True

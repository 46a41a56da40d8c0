"""Kinds of fields, by the extension of their name: which are images, texts, or compressed already."""

from __future__ import annotations

import functools

__all__ = ["COMPANIONS", "COMPRESSED", "IMAGES", "PIXELS", "SOUNDS", "extension"]

# The extensions of images, and the name of each format in Pillow. They can be packed and decoded.
PIXELS = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "jpe": "JPEG",
    "jfif": "JPEG",
    "mpo": "JPEG",  # the first picture of such a file is a JPEG
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "avif": "AVIF",
    "jp2": "JPEG2000",
    "j2k": "JPEG2000",
    "jpx": "JPEG2000",
}
IMAGES = tuple(PIXELS)
# The extensions of sounds. Which of them can be decoded depends on what is installed.
SOUNDS = ("wav", "flac", "ogg", "mp3", "opus", "aiff", "aif", "m4a", "aac", "wma")
# Files that may lie beside an image of the same name.
COMPANIONS = ("txt", "json", "cls", "caption")
# These are compressed already: to compress them again costs time and saves nothing.
COMPRESSED = frozenset(
    (set(PIXELS) - {"bmp", "tif", "tiff"})
    | {"heic", "jxl", "mp3", "m4a", "aac", "wma", "ogg", "opus", "flac", "mp4", "mkv", "webm"}
    | {"mov", "gz", "bz2", "xz", "zst", "zip", "npz", "parquet"}
)


@functools.lru_cache(maxsize=1024)  # batches ask for those of their fields
def extension(name: str) -> str:
    """The last extension of a name, in lower case: "seg.PNG" -> "png". Without a dot it is the whole name."""
    return name.rpartition(".")[2].lower()

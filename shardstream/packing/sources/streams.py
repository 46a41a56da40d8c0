"""Compressed input files, read as a stream. If a file is cut off, it is an error."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Literal, cast

import zstandard

from shardstream.errors import ShardstreamError, SourceError, require
from shardstream.format.frames import WINDOW_LOG_MAX, damaged
from shardstream.packing.sources.content import file_type
from shardstream.storage.inputs import open_input, read_slice
from shardstream.storage.store import Options, redact

SUFFIXES = ("", ".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4")  # of the names of files of one format
Compression = Literal["gzip", "zstd", "bz2", "xz", "lz4"]
_BEGINNINGS: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
_BY_NAME: dict[str, Compression] = {
    ".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz", ".lz4": "lz4"
}  # fmt: skip
_HEAD = 8  # bytes that show how a file is compressed
_READ = 1 << 17
_PIECE = 1 << 11  # bytes at once: 4 bytes may become 128 KiB, and so these become 64 MiB at most


def names_compressed(url: str) -> bool:
    """Whether the name of a file says that it is compressed. It can then only be read from its beginning."""
    return url.lower().endswith(tuple(_BY_NAME))


def compression(head: bytes) -> Compression | None:
    """How a file is compressed, by its first bytes; None if it is not."""
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    # Skippable frames of zstd, as the seek table is one.
    return "zstd" if head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F else None


class CutOffError(SourceError):
    """A compressed file that ends too early. What it had until then is right."""


class _Zstd:
    """A file of one or more zstd frames as a stream of bytes.

    The reader of zstandard does not notice a file that ends inside a frame.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self._ready = bytearray()
        self._position = 0
        self._context: Any = None
        self._input = memoryview(b"")
        self._fed = False

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the data, or where it is cut off.

        Raises:
            CutOffError: The file is cut off here. All bytes before were returned.
        """
        try:
            while len(self._ready) < size and self._more():
                pass
        except CutOffError:
            if not self._ready:
                raise  # else the next read finds the same
        data = bytes(self._ready[:size])
        del self._ready[:size]
        self._position += len(data)
        return data

    def _more(self) -> bool:
        if not self._input:
            self._input = memoryview(self._file.read(_READ))
            if not self._input:
                if self._fed:
                    raise CutOffError(f"{self._where}: it ends inside a zstd frame; is it cut off?")
                return False
        if self._context is None:
            self._context = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX).decompressobj()
        piece = self._input[:_PIECE]
        try:
            self._ready += self._context.decompress(piece)
        except zstandard.ZstdError as error:
            raise SourceError(damaged(self._where, "zstd data", error)) from error
        self._fed = not self._context.eof
        unused = 0
        if self._context.eof:
            unused = len(self._context.unused_data)
            self._context = None
        self._input = self._input[len(piece) - unused :]
        return True


class _Errors:
    """A decompressing file of a library, as a stream whose errors name the file."""

    def __init__(self, file: Any, kind: Compression, where: str) -> None:
        self._file, self._kind, self._where = file, kind, where
        self._cut_off: CutOffError | None = None

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the data, or where it is cut off.

        Raises:
            CutOffError: The file is cut off here. All bytes before were returned.
        """
        if self._cut_off is not None:
            raise self._cut_off
        pieces, left = [], size
        try:
            # Not `read`: where a file is cut off, it loses what it has read until then.
            while left > 0 and (piece := self._file.read1(left)):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)
        except EOFError as error:
            self._cut_off = CutOffError(
                f"{self._where}: it ends inside its {self._kind} data; is it cut off?"
            )
            if not pieces:
                raise self._cut_off from error
            return b"".join(pieces)  # the next read raises
        except (OSError, RuntimeError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the file itself
            raise SourceError(damaged(self._where, f"{self._kind} data", error)) from error


def zstd_stream(file: BinaryIO, where: str) -> BinaryIO:
    """The decompressed bytes of a file of zstd frames, whatever its name is."""
    return cast(BinaryIO, _Zstd(file, where))


def decompressed(file: BinaryIO, url: str) -> BinaryIO:
    """The bytes of a file from its beginning on, decompressed if its content shows that it is compressed.

    Args:
        file: The file, which can peek.
        url: Its URL, for messages.

    Raises:
        MissingExtraError: It is compressed with lz4, and the package lz4 is not installed.
    """
    head = peek(file)
    kind = compression(head)
    if kind is None and 0 < len(head) < _HEAD:  # too short to show it: it may be cut off
        kind = next((kind for suffix, kind in _BY_NAME.items() if url.lower().endswith(suffix)), None)
    return file if kind is None else decompress(file, kind, url)


def decompress(file: BinaryIO, kind: Compression, url: str) -> BinaryIO:
    """The bytes of a file that is compressed in a known way.

    Args:
        file: The file.
        kind: How it is compressed.
        url: Its URL, for messages.

    Raises:
        MissingExtraError: It is compressed with lz4, and the package lz4 is not installed.
    """
    where = redact(url)
    if kind == "zstd":
        return cast(BinaryIO, _Zstd(file, where))
    if kind == "lz4":
        opened = require("lz4.frame", "lz4").LZ4FrameFile(file)
    else:
        opened = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}[kind](file)  # type: ignore[operator]
    return cast(BinaryIO, _Errors(opened, kind, where))


def peek(file: BinaryIO) -> bytes:
    """The first bytes from here on, which are not taken."""
    return bytes(file.peek(_HEAD)[:_HEAD])  # type: ignore[attr-defined]


@contextmanager
def open_stream(url: str, options: Options = None) -> Iterator[BinaryIO]:
    """A file that is read forward, and decompressed if its content shows that it is compressed."""
    with open_input(url, options) as file:
        yield decompressed(file, url)


def check_stream(url: str, options: Options = None) -> None:
    """Read a compressed file to its end, where its checksum is. Until then wrong bytes may look right.

    A file that is not compressed is not read. One that is cut off has no checksum, and is no error here.

    Raises:
        SourceError: The file is damaged.
    """
    if compression(bytes(read_slice(url, 0, _HEAD, options))) is None:
        return
    with suppress(CutOffError), open_stream(url, options) as file:
        while file.read(1 << 20):
            pass


def head_of(url: str, options: Options = None, size: int = 512) -> bytes:
    """At most `size` bytes from the beginning of a file, decompressed."""
    with open_stream(url, options) as file:
        return file.read(size)


def another_type(url: str, options: Options = None) -> str | None:
    """What a file is that is no text, such as "a zip file"; None if its beginning does not show it.

    It is for the message about a file that cannot be read, and asks for the beginning of the file once more.
    """
    with suppress(ShardstreamError, OSError):
        return file_type(head_of(url, options))
    return None

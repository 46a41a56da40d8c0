"""Compressed input files, read as a stream; one that is cut off is an error, never short data."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import zstandard

from shardstream.errors import SourceError
from shardstream.format.frames import WINDOW_LOG_MAX
from shardstream.storage.files import open_input
from shardstream.storage.remote import Options, redact

GZIP = (".gz", ".tgz")
ZSTD = (".zst", ".zstd")
_READ = 1 << 17
_PIECE = 1 << 11  # a block of 4 bytes can hold 128 KiB of one letter: this much makes 64 MiB at most


def is_compressed(url: str) -> bool:
    """Whether a file's name says that it must be read from its beginning."""
    return url.lower().endswith(GZIP + ZSTD)


class _Zstd:
    """A file of one or more zstd frames as a stream of bytes.

    zstandard's own reader takes the end of the file inside a frame for the end of the data.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self._held = bytearray()
        self._position = 0
        self._context: Any = None
        self._input = memoryview(b"")
        self._fed = False

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the data."""
        while len(self._held) < size and self._more():
            pass
        data = bytes(self._held[:size])
        del self._held[:size]
        self._position += len(data)
        return data

    def _more(self) -> bool:
        if not self._input:
            self._input = memoryview(self._file.read(_READ))
            if not self._input:
                if self._fed:
                    raise SourceError(f"{self._where}: it ends inside a zstd frame; is it cut off?")
                return False
        if self._context is None:
            self._context = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX).decompressobj()
        piece = self._input[:_PIECE]
        try:
            self._held += self._context.decompress(piece)
        except zstandard.ZstdError as error:
            raise SourceError(f"{self._where}: the zstd data is damaged ({error})") from error
        self._fed = not self._context.eof
        unused = 0
        if self._context.eof:
            unused = len(self._context.unused_data)
            self._context = None
        self._input = self._input[len(piece) - unused :]
        return True


class _Gzip:
    """A gzip file as a stream whose errors name the file."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = gzip.GzipFile(fileobj=file)
        self._where = where

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self._where}: the gzip data is damaged or cut off ({error})") from error


def decompressed(file: BinaryIO, url: str) -> BinaryIO:
    """The bytes of a file whose URL ends in .gz or .zst, decompressed; else the file itself."""
    if url.lower().endswith(GZIP):
        return cast(BinaryIO, _Gzip(file, redact(url)))
    if url.lower().endswith(ZSTD):
        return cast(BinaryIO, _Zstd(file, redact(url)))
    return file


@contextmanager
def open_stream(url: str, options: Options = None) -> Iterator[BinaryIO]:
    """A file for reading forward, decompressed where its name says so."""
    with open_input(url, options) as file:
        yield decompressed(file, url)

"""Reads checkpoints that torch itself wrote: a pickled `.metadata`, and `.distcp` files.

The tensors of such a file lie one after another, each a zip archive as torch.save makes it. The ends of the
archive say where the elements are, so a slice is read by ranges, and not the whole tensor.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from shardstream.checkpoint.dcp.boxes import Piece
from shardstream.checkpoint.dcp.pickles import Place, SavedTensor, read_metadata, read_tensor_pickle
from shardstream.checkpoint.dcp.requests import Request
from shardstream.errors import CorruptionError, ShardstreamError, SourceError, reason
from shardstream.storage.fetch.ranges import read_ranges
from shardstream.storage.store import Store

__all__ = ["METADATA", "TorchFolder"]

METADATA = ".metadata"
_MOST_METADATA = 4 << 30
_END = 16 << 10  # bytes at each end of an archive that say where the elements lie
_AT_ONCE = 1 << 20  # archives up to this size are read as one
_LOCAL_HEADER = struct.Struct("<4s22sHH")
_THREADS = 4
_BATCH = 256 << 20  # bytes that are held at a time, beside the targets


class TorchFolder:
    """A checkpoint of torch's FileSystemWriter or FsspecWriter.

    Args:
        store: the folder.
        verify: whether elements that are read as a whole are compared with the CRC-32 of their archive.
        name: the file that describes it.

    Raises:
        StorageError: `.metadata` cannot be read.
        SourceError, CorruptionError: as `read_metadata`.
    """

    def __init__(self, store: Store, verify: bool, name: str = METADATA) -> None:
        self._store, self._verify, self._where = store, verify, store.where(name)
        self.metadata: Metadata
        self.bytes_read = 0
        self.metadata, self._places = read_metadata(store.read(name, _MOST_METADATA), self._where)

    def objects(self, indexes: Sequence[MetadataIndex]) -> Iterator[tuple[bool, bytes]]:
        """For each object: whether its bytes are made here (they are not), and the bytes of torch.save."""
        places = [self._place(index) for index in indexes]
        found = [bytearray(place.length) for place in places]
        self._read(
            [(place.path, place.offset, memoryview(data)) for place, data in zip(places, found, strict=True)]
        )
        for data in found:
            yield False, bytes(data)

    def fill(self, requests: Sequence[Request]) -> None:
        """Read the boxes of tensors into their targets.

        Raises:
            CorruptionError: an archive is damaged, or holds another tensor than `.metadata` says.
            StorageError: the store has failed.
        """
        batch: list[Request] = []
        held = 0
        for request in requests:
            place = self._place(request.index)
            batch.append(request)
            held += min(place.length, _AT_ONCE) + (0 if request.is_direct else request.nbytes)
            if held > _BATCH:
                self._fill(batch)
                batch, held = [], 0
        self._fill(batch)

    def _fill(self, requests: list[Request]) -> None:
        """Two rounds: the ends of all archives, then the elements."""
        archives = [_Archive(self._store, self._place(request.index)) for request in requests]
        self._read([part for archive in archives for part in archive.ends])
        reads: list[_Read] = []
        for request, archive in zip(requests, archives, strict=True):
            what = self._what(request)
            with _named(what):
                reads += self._elements(request, archive, what)
        self._read([(read.path, read.start, read.view) for read in reads])
        with ThreadPoolExecutor(_THREADS, "shardstream-dcp-check") as pool:
            for _ in pool.map(self._finish, reads):
                pass

    def _read(self, parts: list[tuple[str, int, memoryview]]) -> None:
        self.bytes_read += sum(len(view) for _, _, view in parts)
        read_ranges(self._store, [part for part in parts if len(part[2])])

    def _elements(self, request: Request, archive: _Archive, what: str) -> Iterator[_Read]:
        """Where the elements of a box lie."""
        archive.open()
        saved = archive.tensor()
        if saved is None or not _row_major(saved):
            _by_torch(archive, request, what)
            return
        if saved.dtype != request.dtype or saved.size != tuple(request.shape):
            raise CorruptionError(
                f"{what} is a tensor of {saved.dtype} {saved.size}, and not of {request.dtype} "
                f"{tuple(request.shape)}, as {METADATA} says"
            )
        info = archive.record(f"data/{saved.storage}")
        itemsize = saved.dtype.itemsize
        count = request.shape.numel()
        if info is None or info.compress_type or (saved.offset + count) * itemsize > info.file_size:
            raise CorruptionError(f"{what}: its archive does not hold its {count} elements")
        begin = archive.begin(info) + saved.offset * itemsize
        place = archive.place
        if begin + count * itemsize > place.offset + place.length:
            raise CorruptionError(f"{what}: its elements do not lie inside its archive")
        for piece in request.pieces():
            view = request.direct(piece)
            crc = info.CRC if self._verify and piece.size == info.file_size else None
            yield _Read(
                place.path,
                begin + piece.start,
                memoryview(bytearray(piece.size)) if view is None else view,
                crc,
                request,
                None if view is not None else piece,
            )

    def _finish(self, read: _Read) -> None:
        if read.crc is not None and zlib.crc32(read.view) != read.crc:
            raise CorruptionError(
                f"{self._what(read.request)} is damaged: its elements have another CRC-32 than "
                "when they were saved"
            )
        if read.piece is not None:
            read.request.copy(read.view, read.piece)

    def _what(self, request: Request) -> str:
        return f"{self._store.where(self._place(request.index).path)}: {request.index.fqn}"

    def _place(self, index: MetadataIndex) -> Place:
        try:
            return self._places[index]
        except KeyError:
            raise CorruptionError(
                f"{self._where}: it does not say where {index.fqn} lies: the program that wrote it "
                "lost the error of a thread (pytorch#191391). Use an earlier checkpoint"
            ) from None


class _Read(NamedTuple):
    """A range of elements: where it lies, the memory it goes to, and what is done with it then."""

    path: str
    start: int
    view: memoryview
    crc: int | None
    request: Request
    piece: Piece | None


class _Archive:
    """The zip archive of one tensor inside a file. `ends` are read before it is opened."""

    def __init__(self, store: Store, place: Place) -> None:
        self._store, self.place = store, place
        whole = place.length <= _AT_ONCE
        cuts = [(0, place.length)] if whole else [(0, _END), (place.length - _END, _END)]
        self._parts = [(start, bytearray(size)) for start, size in cuts if size]

    @property
    def ends(self) -> list[tuple[str, int, memoryview]]:
        """What is to be read first."""
        return [(self.place.path, self.place.offset + start, memoryview(data)) for start, data in self._parts]

    def open(self) -> None:
        """Read the directory of the archive."""
        self._zip = zipfile.ZipFile(_Window(self, self.place.length))
        names = self._zip.namelist()
        self._root = names[0].split("/")[0] if names else ""

    def record(self, name: str) -> zipfile.ZipInfo | None:
        """A record of the archive by its name."""
        try:
            return self._zip.getinfo(f"{self._root}/{name}")
        except KeyError:
            return None

    def tensor(self) -> SavedTensor | None:
        """What the archive says of its tensor, or None if it is not plain or not little-endian."""
        order = self.record("byteorder")
        if order is not None and self._zip.read(order) != b"little":
            return None
        info = self.record("data.pkl")
        return None if info is None else read_tensor_pickle(self._zip.read(info), "its description")

    def begin(self, info: zipfile.ZipInfo) -> int:
        """The byte of the file at which a record begins."""
        head = self.read(info.header_offset, _LOCAL_HEADER.size)
        mark, _, name, extra = _LOCAL_HEADER.unpack(head)
        if mark != b"PK\x03\x04":
            raise zipfile.BadZipFile("a record has no header")
        return self.place.offset + info.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)

    def whole(self) -> bytes:
        """All bytes of the archive."""
        return self.read(0, self.place.length)

    def read(self, start: int, size: int) -> bytes:
        """Some bytes: those that are here, or from the store."""
        if start < 0 or start + size > self.place.length:
            raise zipfile.BadZipFile("it ends too early")
        for first, data in self._parts:
            if first <= start and start + size <= first + len(data):
                return bytes(data[start - first : start - first + size])
        return bytes(self._store.read_range(self.place.path, self.place.offset + start, size))


class _Window(io.RawIOBase):
    """The archive as a file, for zipfile."""

    def __init__(self, archive: _Archive, size: int) -> None:
        self._archive, self._size, self._at = archive, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise OSError("before the beginning")
        self._at = at
        return at

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        data = self._archive.read(self._at, size) if size else b""
        self._at += size
        return data


def _by_torch(archive: _Archive, request: Request, what: str) -> None:
    """A tensor that is not stored row by row: read as a whole."""
    loaded = torch.load(io.BytesIO(archive.whole()), map_location="cpu", weights_only=True)
    if not isinstance(loaded, torch.Tensor) or loaded.shape != request.shape:
        raise CorruptionError(f"{what} is no tensor of size {tuple(request.shape)}")
    part = loaded.detach()
    for dim, (start, length) in enumerate(zip(request.offsets, request.lengths, strict=True)):
        part = part.narrow(dim, start, length)
    request.target.copy_(part)


def _row_major(saved: SavedTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(saved.size), reversed(saved.stride), strict=True):
        if size != 1 and stride != expected and 0 not in saved.size:
            return False
        expected *= size
    return saved.offset >= 0 and min(saved.size, default=0) >= 0


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn what zipfile and torch say of damaged archives into a CorruptionError that says which."""
    try:
        yield
    except ShardstreamError:
        raise
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, struct.error) as error:
        raise CorruptionError(f"{what} is damaged: {reason(error)}") from error
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{what} is more than a plain tensor, and torch.load refuses it: {reason(error)}"
        ) from error

"""The manifest of a checkpoint, and the receipts of its ranks: JSON with a checksum, read without torch."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
import xxhash

from shardstream.checkpoint.layout import BLOCK, byte_size
from shardstream.errors import CorruptionError

__all__ = [
    "FORMAT", "MAX_BYTES", "VERSION", "Chunk", "FileInfo", "Manifest", "Pending", "Receipt", "TensorInfo",
    "decode", "encode",
]  # fmt: skip

FORMAT = "shardstream-checkpoint"
VERSION = 1
MAX_BYTES = 4 << 30

Data = bytes
_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
T = TypeVar("T", "Manifest", "Pending", "Receipt")


class FileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a checkpoint.

    Args:
        name: Below the folder of the attempt.
        bytes: Its size.
        digests: xxh3_64 of every block of 8 MiB, the last one shorter, 16 hex digits each.
    """

    name: str
    bytes: int
    digests: list[str]


class Chunk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tensor, or a part of it, in a file.

    Args:
        file: The number of the file in the list of files.
        start: The first byte in the file.
        shape: Of this part.
        offsets: Where in the tensor the part begins; empty for a part that begins at 0 in all dimensions.
    """

    file: int
    start: int
    shape: tuple[int, ...]
    offsets: tuple[int, ...] = ()


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tensor.

    Args:
        dtype: As safetensors names it, or a name of ours for what safetensors lacks.
        shape: Of the whole tensor.
        chunks: The parts, which cover the tensor and do not overlap.
    """

    dtype: str
    shape: tuple[int, ...]
    chunks: list[Chunk]


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one rank has written, once all of it is in the store.

    Args:
        rank: Which rank.
        files: Its files.
        tensors: What lies in them. The numbers of files count in `files`.
    """

    rank: int
    files: list[FileInfo]
    tensors: dict[str, TensorInfo]


class Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the manifest of an attempt will have beside the receipts; on the local disk until the commit.

    Args:
        step: See `Manifest`; so are `attempt`, `world`, `values`, `modules` and `data`.
        texts: Objects for the folder beside the tensors, by name, such as config.json.
    """

    step: int
    attempt: str
    world: int
    values: dict[str, Any]
    modules: list[str]
    data: dict[str, Any]
    texts: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole checkpoint.

    Args:
        step: The step that it was saved at.
        attempt: The folder of its files, below the folder of the checkpoint.
        world: How many ranks wrote it.
        created: When it was committed, in UTC, as ISO 8601.
        tool: The version of shardstream that wrote it.
        files: All files.
        tensors: All tensors, by name.
        values: The state without its tensors; `state.py` says how.
        modules: The state's names of whole modules, such as "model". Their files have plain names of tensors.
        data: What the state's loaders say of their position: by name, the step and the dataset.
        extra: What other writers keep here.
    """

    step: int
    attempt: str
    world: int
    created: str
    tool: str
    files: list[FileInfo]
    tensors: dict[str, TensorInfo]
    values: Any = None
    modules: list[str] = []
    data: dict[str, Any] = {}
    extra: dict[str, Any] = {}

    @property
    def bytes(self) -> int:
        """The sizes of all files, added up."""
        return sum(file.bytes for file in self.files)

    def path(self, file: FileInfo) -> str:
        """The path of a file below the folder of the checkpoint."""
        return f"{self.attempt}/{file.name}"

    def check(self, where: str) -> Manifest:
        """This manifest, whose parts fit each other.

        Raises:
            CorruptionError: They do not.
        """
        names = [self.attempt, *(file.name for file in self.files)]
        if not all(_NAME.match(name) and name not in (".", "..") for name in names):
            raise CorruptionError(f"{where}: a file has a name that no checkpoint has")
        for file in self.files:
            if file.bytes < 0 or len(file.digests) != -(-file.bytes // BLOCK):
                raise CorruptionError(f"{where}: {file.name} has {file.bytes} bytes and other checksums")
        for name, tensor in self.tensors.items():
            self._check_tensor(where, name, tensor)
        return self

    def _check_tensor(self, where: str, name: str, tensor: TensorInfo) -> None:
        try:
            total = byte_size(tensor.dtype, tensor.shape)
            held = 0
            for chunk in tensor.chunks:
                size = byte_size(tensor.dtype, chunk.shape)
                offsets = chunk.offsets or (0,) * len(chunk.shape)
                inside = len(offsets) == len(chunk.shape) == len(tensor.shape) and all(
                    first >= 0 and count >= 0 and first + count <= most
                    for first, count, most in zip(offsets, chunk.shape, tensor.shape, strict=True)
                )
                if not inside or chunk.start < 0 or chunk.start + size > self.files[chunk.file].bytes:
                    raise CorruptionError(f"{where}: a part of tensor {name!r} lies outside of it")
                held += size
        except (IndexError, KeyError) as error:
            raise CorruptionError(f"{where}: tensor {name!r} has an unknown file or dtype") from error
        if held != total or min(tensor.shape, default=0) < 0:
            raise CorruptionError(f"{where}: tensor {name!r} has {held} bytes of {total}")


class _Sealed(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    checksum: str  # xxh3_128 of the content
    content: msgspec.Raw


def encode(value: Manifest | Pending | Receipt) -> bytes:
    """One of these as JSON, with its checksum."""
    content = msgspec.json.encode(value)
    return msgspec.json.encode(
        _Sealed(FORMAT, VERSION, xxhash.xxh3_128_hexdigest(content), msgspec.Raw(content))
    )


def decode(data: Data, kind: type[T], where: str) -> T:
    """One of these from its JSON.

    Args:
        data: The file.
        kind: Manifest, Pending or Receipt.
        where: The name of the file, for messages.

    Raises:
        CorruptionError: It is not what was written, or of a newer version.
    """
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(f"{where}: this is no manifest of a checkpoint, or it is damaged") from error
    if sealed.format != FORMAT:
        raise CorruptionError(f"{where}: this is no manifest of a checkpoint, or it is damaged")
    content = bytes(sealed.content)
    if sealed.checksum != xxhash.xxh3_128_hexdigest(content):
        raise CorruptionError(f"{where}: damaged: its checksum differs")
    if sealed.version != VERSION:
        raise CorruptionError(f"{where}: version {sealed.version} is newer than this shardstream; update it")
    try:
        found = msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise CorruptionError(f"{where}: this is no manifest of a checkpoint: {error}") from error
    if isinstance(found, Manifest):
        found.check(where)
    return found

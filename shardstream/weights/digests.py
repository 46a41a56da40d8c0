"""Checksums of files: safetensors has none, so they lie in a file beside, or in a checkpoint's manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import xxhash

from shardstream.errors import CorruptionError
from shardstream.storage.spans import LARGEST, Part

__all__ = ["ANEW", "BLOCK", "NAME", "Digests", "decode", "encode", "filled"]

NAME = "shardstream.digests.json"
# For messages: what else it may be when bytes differ from those of this file.
ANEW = (
    ", or the file was written anew: then record its checksums again "
    f"(shardstream weights URL verify --record), or delete {NAME}"
)
BLOCK = LARGEST  # bytes that have one checksum
_STEP = 1 << 20  # bytes that are read and checked in turn: the cache of a processor has them
_FORMAT = "shardstream-digests"


class Digests(msgspec.Struct, frozen=True):
    """The checksums of one file.

    Args:
        bytes: The size of the file.
        blocks: xxh3_64 of every block of 8 MiB, the last one shorter, 16 hex digits each.
    """

    bytes: int
    blocks: list[str]


class _File(msgspec.Struct, frozen=True):
    format: str
    version: int
    files: dict[str, Digests]


def encode(files: Mapping[str, Digests]) -> bytes:
    """The file of digests, as JSON."""
    return msgspec.json.format(msgspec.json.encode(_File(_FORMAT, 1, dict(files))), indent=1)


def decode(data: bytes, where: str) -> dict[str, Digests]:
    """The digests in such a file.

    Raises:
        CorruptionError: It is damaged, or of a later version.
    """
    try:
        found = msgspec.json.decode(data, type=_File)
    except msgspec.DecodeError as error:
        raise CorruptionError(f"{where}: no digests of shardstream: {error}") from error
    if (found.format, found.version) != (_FORMAT, 1):
        raise CorruptionError(
            f"{where}: digests of version {found.version} of {found.format!r} are not known"
        )
    return check(found.files, where)


def check(files: dict[str, Digests], where: str) -> dict[str, Digests]:
    """`files`, each with as many blocks as its size needs, else CorruptionError."""
    for name, digests in files.items():
        if digests.bytes < 0 or len(digests.blocks) != -(-digests.bytes // BLOCK):
            raise CorruptionError(
                f"{where}: {len(digests.blocks)} checksums for {digests.bytes} bytes of {name}"
            )
    return files


def filled(parts: list[Part], into: Callable[[list[Part]], None], in_steps: bool) -> str:
    """Fill parts, which follow each other. Bytes that a part repeats count once.

    Args:
        parts: Where each begins in the file, and its memory.
        into: What fills parts.
        in_steps: Whether it may be called for 1 MiB after the other.

    Returns:
        The checksum of what is in them.
    """
    hasher: Any = xxhash.xxh3_64()
    end = parts[0][0] if parts else 0
    for step in _steps(parts) if in_steps else [parts]:
        into(step)
        for start, view in step:
            hasher.update(view[max(0, end - start) :])
            end = max(end, start + len(view))
    digest: str = hasher.hexdigest()
    return digest


def _steps(parts: list[Part]) -> Iterator[list[Part]]:
    step: list[Part] = []
    size = 0
    for start, view in parts:
        for at in range(0, len(view), _STEP):
            step.append((start + at, view[at : at + _STEP]))
            size += len(step[-1][1])
            if size >= _STEP:
                yield step
                step, size = [], 0
    if step:
        yield step

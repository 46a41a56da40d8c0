"""How a checkpoint lies in its folder: names, sizes, and the headers of its safetensors files.

    RUN/step-500/manifest.json                  the commit, put once
    RUN/step-500/ATTEMPT/*.safetensors          the tensors, written by all ranks
    RUN/step-500/ATTEMPT/*.sums                 xxh3_64 of every 64 KiB of such a file, 8 bytes each
    RUN/step-500/ATTEMPT/rank-00000.json        what a rank has written: its receipt

The format of the files: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import functools
import json
import math
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

__all__ = [
    "BLOCK", "CELL", "ITEM_BITS", "MANIFEST", "MAX_FILE", "PENDING", "FilePlan", "Item", "Placed",
    "byte_size", "is_attempt", "new_attempt", "plan_files", "rank_of", "receipt_name", "step_folder",
    "step_of", "sums_name",
]  # fmt: skip

MANIFEST = "manifest.json"
PENDING = "pending.json"  # on the local disk of the first rank, until the commit
BLOCK = 8 << 20  # bytes that have one checksum
CELL = 64 << 10  # bytes that have one more, so that a small slice need not read its block
MAX_FILE = 256 << 20  # bytes of a file, unless one tensor that must stay whole has more
ALIGN = 64  # bytes

_STEP = re.compile(r"step-(\d+)\Z")
_ATTEMPT = re.compile(r"[0-9a-f]{16}\Z")
_RECEIPT = re.compile(r"rank-(\d{5,})\.json\Z")

# Bits of an element, by the names that safetensors has for dtypes.
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
# Dtypes that safetensors does not have. Their files say U8, with one dimension more; the manifest knows.
_OTHER_BITS = {"F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F4_E2M1X2": 8, "C32": 32, "C128": 128}


def step_folder(step: int) -> str:
    """The name of the folder of a step."""
    return f"step-{step}"


def step_of(name: str) -> int | None:
    """The step of a folder's name; None if the folder is not of a step."""
    match = _STEP.match(name)
    return None if match is None else int(match[1])


def new_attempt() -> str:
    """A name that no other attempt has."""
    return secrets.token_hex(8)


def is_attempt(name: str) -> bool:
    """Whether a folder has such a name. Others in a checkpoint's folder are those of users."""
    return _ATTEMPT.match(name) is not None


def receipt_name(rank: int) -> str:
    """The name of a rank's receipt, in the folder of the attempt."""
    return f"rank-{rank:05d}.json"


def rank_of(name: str) -> int | None:
    """The rank of a receipt's name; None if it is no receipt."""
    match = _RECEIPT.match(name)
    return None if match is None else int(match[1])


def sums_name(name: str) -> str:
    """The name of the object with the checksums of a file's cells."""
    return f"{name}.sums"


def byte_size(dtype: str, shape: Sequence[int]) -> int:
    """The bytes of a tensor.

    Args:
        dtype: A name of safetensors, or one of ours for what safetensors lacks.
        shape: The sizes of its dimensions.
    """
    bits = ITEM_BITS.get(dtype) or _OTHER_BITS[dtype]
    return math.prod(shape) * bits // 8


@dataclass(frozen=True)
class Item:
    """A tensor, or a part of one, that becomes one tensor of a file.

    Attributes:
        name: Its name in the file, unique there.
        dtype: See `byte_size`.
        shape: Of this part.
        copy: (start, into) -> copies the bytes from `start` into writable memory, as many as it has.
        tensor: The tensor's name in the manifest.
        offsets: Where in the tensor this part begins; empty for the whole tensor.
        whole: The shape of the tensor; empty for the whole tensor.
        memory: Its bytes if they can be written as they lie in memory, since nobody changes them meanwhile.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    copy: Callable[[int, memoryview], None]
    tensor: str
    offsets: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    memory: memoryview | None = None

    @functools.cached_property
    def size(self) -> int:
        """Its bytes."""
        return byte_size(self.dtype, self.shape)


@dataclass(frozen=True)
class Placed:
    """An item, and where its bytes begin in the file."""

    item: Item
    start: int


@dataclass(frozen=True)
class FilePlan:
    """A file that is not written yet.

    Attributes:
        name: Below the folder of the attempt.
        header: The length and the JSON that safetensors files begin with, padded to 64 bytes.
        items: In the order of their bytes, without gaps.
        size: The bytes of the file.
    """

    name: str
    header: bytes
    items: tuple[Placed, ...]
    size: int

    @classmethod
    def make(cls, name: str, items: Sequence[Item]) -> FilePlan:
        """A file of these items.

        Safetensors allows no gap between tensors. So the items whose sizes are multiples of 64 bytes come
        first: they and all items between them are aligned to 64 bytes, and the rest to its elements.
        """
        ordered = sorted(items, key=lambda item: (-_alignment(item.size), item.name))
        table: dict[str, object] = {"__metadata__": {"format": "pt"}}
        place, starts = 0, []
        for item in ordered:
            known = item.dtype in ITEM_BITS
            shape = list(item.shape) if known else [*item.shape, _OTHER_BITS[item.dtype] // 8]
            offsets = [place, place + item.size]
            table[item.name] = {
                "dtype": item.dtype if known else "U8",
                "shape": shape,
                "data_offsets": offsets,
            }
            starts.append(place)
            place += item.size
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGN)
        header = len(text).to_bytes(8, "little") + text
        placed = tuple(Placed(item, len(header) + start) for item, start in zip(ordered, starts, strict=True))
        return cls(name, header, placed, len(header) + place)

    def staged(self) -> FilePlan:
        """The same without the functions that copy, which hold the tensors."""
        items = tuple(replace(placed, item=replace(placed.item, copy=_gone)) for placed in self.items)
        return replace(self, items=items)

    def fill(self, start: int, into: memoryview) -> None:
        """Copy the bytes of the file from `start` into memory, as many as it has."""
        end = start + len(into)
        if start < len(self.header):
            part = self.header[start:end]
            into[: len(part)] = part
        for placed in self.items[self._first(start) :]:
            first, last = max(start, placed.start), min(end, placed.start + placed.item.size)
            if placed.start >= end:
                break
            if first < last:
                placed.item.copy(first - placed.start, into[first - start : last - start])

    def views(self, start: int, end: int, most: int) -> list[memoryview] | None:
        """The bytes from `start` to `end` as they lie in memory, in at most `most` parts, or None."""
        found: list[memoryview] = []
        if start < len(self.header):
            found.append(memoryview(self.header)[start:end])
        for placed in self.items[self._first(start) :]:
            first, last = max(start, placed.start), min(end, placed.start + placed.item.size)
            if placed.start >= end:
                break
            if first < last:
                if placed.item.memory is None or len(found) == most:
                    return None
                found.append(placed.item.memory[first - placed.start : last - placed.start])
        return found

    def _first(self, start: int) -> int:
        """The number of an item that no item with bytes at or after `start` comes before."""
        low, high = 0, len(self.items)
        while low < high:
            middle = (low + high) // 2
            placed = self.items[middle]
            if placed.start + placed.item.size <= start:
                low = middle + 1
            else:
                high = middle
        return low


def _gone(start: int, into: memoryview) -> None:
    raise AssertionError("the file was staged, and its tensors may have changed")


def _alignment(size: int) -> int:
    return min(ALIGN, size & -size) if size else ALIGN


def plan_files(items: Sequence[Item], name: Callable[[int], str], limit: int = MAX_FILE) -> list[FilePlan]:
    """Files of at most `limit` bytes for these items, in their order.

    Args:
        items: An item that is larger gets a file of its own.
        name: From the number of a file, from 1 on, to its name.
        limit: Bytes of the items in a file.

    Returns:
        The files; none if there is no item.
    """
    groups: list[list[Item]] = []
    room = 0
    for item in items:
        cost = item.size + 256 + len(item.name) + 8 * len(item.shape)  # with its part of the header
        if not groups or cost > room:
            groups.append([])
            room = limit
        groups[-1].append(item)
        room -= cost
    return [FilePlan.make(name(number), group) for number, group in enumerate(groups, start=1)]

"""Which rank writes which part of which tensor, and into which file. All ranks find the same."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from shardstream.checkpoint.layout import MAX_FILE, FilePlan, Item, byte_size, plan_files
from shardstream.errors import StateError
from shardstream.slices import Box

__all__ = ["Held", "Tensors", "held_by", "owners", "plan_part"]

_SMALL = 1 << 20  # bytes: what is smaller, and the same on all ranks, is written by the first of them

Copier = Callable[[int, memoryview], None]


class Held(NamedTuple):
    """A tensor as one rank has it.

    Attributes:
        dtype: As files name it.
        shape: Of the whole tensor.
        boxes: The parts that the rank has.
    """

    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


class Tensors(NamedTuple):
    """The tensors of a rank.

    Attributes:
        held: By name.
        copiers: By name, for each box a function that copies its bytes; see `Item`.
    """

    held: dict[str, Held]
    copiers: dict[str, list[Copier]]


def held_by(tensors: Mapping[str, Any], arrays: Mapping[str, Any]) -> Tensors:
    """What a rank has to write.

    Args:
        tensors: Tensors of torch, by name.
        arrays: Arrays of numpy, by name.

    Raises:
        StateError: A tensor is of a kind that cannot be stored.
    """
    held: dict[str, Held] = {}
    copiers: dict[str, list[Copier]] = {}
    for name, array in arrays.items():
        # Whatever the dtype is: its name is among the values.
        held[name] = Held("U8", (array.nbytes,), (Box((0,), (array.nbytes,)),))
        copiers[name] = [_array_copier(array)]
    if tensors:
        from shardstream.checkpoint.tensors import copier, dtype_name, pieces_of

        for name, tensor in tensors.items():
            pieces = pieces_of(tensor, name)
            held[name] = Held(
                dtype_name(tensor.dtype, name), tuple(tensor.shape), tuple(piece.box for piece in pieces)
            )
            copiers[name] = [copier(piece.data) for piece in pieces]
    return Tensors(held, copiers)


def _array_copier(array: Any) -> Copier:
    import numpy as np

    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")

    def copy(start: int, into: memoryview) -> None:
        into[:] = data[start : start + len(into)]

    return copy


def owners(ranks: Sequence[Mapping[str, Held]]) -> list[set[tuple[str, Box]]]:
    """The parts that each rank writes: each part of each tensor once.

    Args:
        ranks: What each rank holds.

    Raises:
        StateError: Two ranks have different tensors of one name, or no rank has a part.
    """
    holders: dict[tuple[str, Box], list[int]] = {}
    known: dict[str, Held] = {}
    for rank, held in enumerate(ranks):
        for name, mine in held.items():
            other = known.setdefault(name, mine)
            if (mine.dtype, mine.shape) != (other.dtype, other.shape):
                raise StateError(
                    f"{name} is {mine.dtype}{list(mine.shape)} on rank {rank} and {other.dtype}"
                    f"{list(other.shape)} on another: give what each rank has of its own in per_rank={{...}}"
                )
            for box in mine.boxes:
                holders.setdefault((name, box), []).append(rank)
    _check_whole(known, holders)
    sizes = {part: byte_size(known[part[0]].dtype, part[1].shape) for part in holders}
    load = [0] * len(ranks)
    mine_of: list[set[tuple[str, Box]]] = [set() for _ in ranks]
    # First what only one rank can write, then the largest of the rest, each by who has the least to do.
    for part in sorted(holders, key=lambda part: (len(holders[part]) > 1, -sizes[part], part)):
        among = holders[part]
        rank = among[0] if sizes[part] < _SMALL else min(among, key=lambda rank: (load[rank], rank))
        load[rank] += sizes[part]
        mine_of[rank].add(part)
    return mine_of


def _check_whole(known: Mapping[str, Held], holders: Mapping[tuple[str, Box], Sequence[int]]) -> None:
    elements = dict.fromkeys(known, 0)
    for name, box in holders:
        elements[name] += box.elements
    for name, held in known.items():
        if elements[name] != math.prod(held.shape):
            raise StateError(
                f"{name} of shape {list(held.shape)} has {math.prod(held.shape)} elements, and the parts of "
                f"the ranks that save have {elements[name]}: save with all ranks that hold it"
            )


def plan_part(
    tensors: Tensors, mine: set[tuple[str, Box]], rank: int, modules: Sequence[str], limit: int = MAX_FILE
) -> list[FilePlan]:
    """The files that a rank writes.

    Whole tensors of a module lie in files of their own, by their plain names, as transformers and vLLM want
    them. All else lies in files named "state", in parts that fit into a file.

    Args:
        tensors: Of the rank.
        mine: The parts that it writes.
        rank: Its number.
        modules: The names of the state's modules.
        limit: Bytes of a file.
    """
    groups: dict[str, list[Item]] = {}
    for name, held in tensors.held.items():
        key, slash, plain = name.partition("/")
        for box, copy in zip(held.boxes, tensors.copiers[name], strict=True):
            if (name, box) not in mine:
                continue
            if box.shape == held.shape and key in modules and slash:
                item = Item(plain, held.dtype, box.shape, copy, name)
                groups.setdefault(_group(key), []).append(item)
            else:
                groups.setdefault("state", []).extend(_parts(name, held, box, copy, limit))
    files: list[FilePlan] = []
    for group, items in groups.items():
        files += plan_files(items, functools.partial(_file_name, group, rank), limit)
    return files


def _file_name(group: str, rank: int, number: int) -> str:
    return f"{group}-{rank:05d}-{number:05d}.safetensors"


def _group(key: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9_]", "_", key)
    return "state_" if safe == "state" else safe


def _parts(name: str, held: Held, box: Box, copy: Copier, limit: int) -> list[Item]:
    """A part of a tensor, cut along its first dimension into items that fit into a file."""
    rows = box.shape[0] if box.shape else 1
    row = byte_size(held.dtype, box.shape[1:])
    at_once = max(1, (limit // 2) // max(1, row)) if rows * row > limit else max(1, rows)
    items = []
    for first in range(0, max(1, rows), at_once):
        count = min(at_once, rows - first)
        shape = (count, *box.shape[1:]) if box.shape else ()
        offsets = (box.offsets[0] + first, *box.offsets[1:]) if box.shape else ()
        whole = shape == held.shape
        label = name if whole else f"{name}[{','.join(map(str, offsets))}]"
        items.append(
            Item(
                label, held.dtype, shape, _from(copy, first * row), name, () if whole else offsets, held.shape
            )
        )
    return items


def _from(copy: Copier, begin: int) -> Copier:
    if not begin:
        return copy
    return lambda start, into: copy(begin + start, into)

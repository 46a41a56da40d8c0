"""One save: what each rank has, and what the ranks agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import xxhash

from shardstream.checkpoint.layout import BLOCK, MAX_FILE, FilePlan
from shardstream.checkpoint.modules import is_module, is_optimizer
from shardstream.checkpoint.objects import state_of
from shardstream.checkpoint.planning import Held, Tensors, held_by, owners, plan_part
from shardstream.checkpoint.ranks import Ranks
from shardstream.checkpoint.staging import BlockPool
from shardstream.checkpoint.values import Arrays, encode, joined, merged
from shardstream.errors import StateError
from shardstream.slices import Box

__all__ = ["Part", "Plans", "checksum", "collected", "merge_values", "rank_prefix"]

_COMPARED = 64 << 10  # bytes: tensors up to this size that are not a module's are compared between the ranks


def rank_prefix(rank: int) -> str:
    """What the names of a rank's own tensors begin with."""
    return f"rank-{rank}"


class Part(NamedTuple):
    """What a rank has to save.

    Attributes:
        values: The state in JSON, the same on all ranks.
        own: What the rank alone has, in JSON.
        sums: Checksums of small tensors that all ranks should have alike.
        tensors: The tensors.
        modules: The names of modules.
        data: What loaders say of their position.
        texts: Objects for the folder beside the tensors, by name, such as config.json.
    """

    values: dict[str, Any]
    own: dict[str, Any]
    sums: dict[str, str]
    tensors: Tensors
    modules: list[str]
    data: dict[str, Any]
    texts: dict[str, str]


def collected(state: Mapping[str, Any], per_rank: Mapping[str, Any], rank: int) -> Part:
    """What a rank has to save.

    Args:
        state: What the user gave.
        per_rank: What the user gave of this rank alone.
        rank: Its number.

    Raises:
        StateError: Something cannot be stored; the message names its key.
    """
    for key in (*state, *per_rank):
        if not isinstance(key, str) or not key or key.startswith(("rank-", "$")):
            raise StateError(f"{key!r} cannot be a name in a checkpoint: use another string")
    found = Arrays({}, {})
    values: dict[str, Any] = {}
    data: dict[str, Any] = {}
    texts: dict[str, str] = {}
    modules: list[str] = []
    compared: list[str] = []
    for key, value in state.items():
        path = joined("", key)
        own = state_of(path, value, state)
        before = len(found.tensors)
        values[key] = encode(own.value, path, found, own.aliases)
        if is_module(value):
            modules.append(path)
            texts |= _config(key, value)
        elif not is_optimizer(value):
            compared += list(found.tensors)[before:]
        if type(value).__module__.startswith("shardstream.") and not _has_nodes(values[key]):
            data[key] = values[key]
    arrays = list(found.arrays)  # without those of this rank alone
    alone: dict[str, Any] = {}
    for key, value in per_rank.items():
        path = joined(rank_prefix(rank), key)
        alone[key] = encode(state_of(path, value, per_rank).value, path, found)
    tensors = held_by(found.tensors, found.arrays)  # before the sums: all of them can be stored
    return Part(values, alone, _sums(found, compared, arrays), tensors, modules, data, texts)


def _config(key: str, module: Any) -> dict[str, str]:
    """The config of a model of transformers, by which others know what to load the weights into."""
    config = getattr(getattr(module, "module", module), "config", None)
    write = getattr(config, "to_json_string", None)
    return {"config.json": str(write())} if key == "model" and callable(write) else {}


def _has_nodes(value: Any) -> bool:
    if isinstance(value, dict):
        return "$" in value or any(map(_has_nodes, value.values()))
    return isinstance(value, list) and any(map(_has_nodes, value))


def _sums(found: Arrays, compared: Sequence[str], arrays: Sequence[str]) -> dict[str, str]:
    sums: dict[str, str] = {}
    for name in compared:
        tensor = found.tensors[name]
        if tensor.nbytes <= _COMPARED and not hasattr(tensor, "placements"):
            from shardstream.checkpoint.tensors import copier

            memory = memoryview(bytearray(tensor.nbytes))
            copier(tensor)(0, memory)
            sums[name] = xxhash.xxh3_64_hexdigest(memory)
    for name in arrays:
        array = found.arrays[name]
        if array.nbytes <= _COMPARED:
            sums[name] = xxhash.xxh3_64_hexdigest(array.tobytes())
    return sums


class Plans:
    """Which rank writes what. It is agreed on again only if the tensors of a rank have changed.

    Args:
        ranks: The ranks.
        pool: Memory to stage into; a file has at most half of it.
    """

    def __init__(self, ranks: Ranks, pool: BlockPool) -> None:
        self._ranks = ranks
        self._limit = min(MAX_FILE, max(BLOCK, pool.limit // 2))
        self._held: dict[str, Held] | None = None
        self._mine: set[tuple[str, Box]] = set()

    def changed(self, part: Part) -> bool:
        """Whether the tensors of this rank are others than at its last save."""
        return part.tensors.held != self._held

    def agree(self, part: Part) -> None:
        """Agree with all ranks on who writes what. All ranks call it.

        Raises:
            StateError: The tensors of the ranks do not fit.
        """
        self._held = None
        self._mine = owners(self._ranks.gather(part.tensors.held))[self._ranks.rank]
        self._held = part.tensors.held

    def files(self, part: Part) -> list[FilePlan]:
        """The files that this rank writes."""
        return plan_part(part.tensors, self._mine, self._ranks.rank, part.modules, self._limit)


def merge_values(ranks: Ranks, part: Part, told: Sequence[str]) -> dict[str, Any]:
    """The state in JSON of all ranks together. All ranks call it.

    Args:
        ranks: The ranks.
        part: Of this rank.
        told: The checksums of what the ranks have.

    Raises:
        StateError: Ranks have different values of one name.
    """
    if len(set(told)) == 1:
        return part.values
    union: dict[str, Any] = {"values": {}, "sums": {}}
    for values, sums in ranks.gather((part.values, part.sums)):
        union = {"values": merged(union["values"], values), "sums": merged(union["sums"], sums)}
    found: dict[str, Any] = union["values"]
    return found


def checksum(part: Part) -> str:
    """A checksum of the values that all ranks should have alike."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode([part.values, part.sums]))

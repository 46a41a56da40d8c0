"""Reads the two pickles of torch's own checkpoints without running what they say.

`.metadata` and the description of a saved tensor are pickles. A pickle may name any function of the machine.
Here each name is looked up in a short list, and stands for a record that only holds what was saved.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from shardstream.errors import CorruptionError, SourceError, reason

__all__ = ["Place", "SavedTensor", "read_metadata", "read_tensor_pickle"]

_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"  # where torch 2.1 and older have properties

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where an item lies: `length` bytes from `offset` of the file `path` of the folder."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True)
class SavedTensor:
    """What the pickle inside a saved tensor says.

    dtype, size, stride: those of the tensor, in elements.  offset: its first element in the storage.
    storage: the name of the record that holds the bytes.
    """

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: str


class _Record:
    """Holds what a pickle says about an object of one class."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Any:
        return self.state[name]

    def get(self, name: str) -> Any:
        """A field that older versions of torch do not write."""
        return self.state.get(name)


class _Listed(pickle.Unpickler):
    """Finds the names of a list, and nothing else."""

    def __init__(self, data: bytes, known: dict[tuple[str, str], Any], what: str) -> None:
        super().__init__(io.BytesIO(data))
        self._known, self._what = known, what

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        try:
            return self._known[module, name]
        except KeyError:
            raise SourceError(
                f"{self._what} names {module}.{name}, which is not among what torch's checkpoints "
                "hold, and is not loaded: if you trust this checkpoint, load it with torch's own reader and "
                "save it again"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _unpickled(data: bytes, known: dict[tuple[str, str], Any], what: str) -> Any:
    try:
        return _Listed(data, known, what).load()
    except SourceError:
        raise
    except Exception as error:  # bytes that are damaged make the machine of pickle fail in any way
        raise CorruptionError(f"{what} is damaged: {type(error).__name__}: {reason(error)}") from error


def read_metadata(data: bytes, where: str) -> tuple[Metadata, dict[MetadataIndex, Place]]:
    """The description of a checkpoint that torch's FileSystemWriter or FsspecWriter wrote.

    Args:
        data: the bytes of `.metadata`.
        where: its name, for messages.

    Returns:
        The description, whose `storage_data` is empty, and where each item lies.

    Raises:
        SourceError: it names something that is no part of such a description, or a file outside the folder.
        CorruptionError: it is damaged.
    """
    # Made anew each time, so that a pickle that sets attributes of a class changes nothing that stays.
    kinds = {
        name: type(name, (_Record,), {})
        for name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
            "TensorProperties", "MetadataIndex", "StorageMeta",
        )
    }  # fmt: skip
    place = type("_StorageInfo", (_Record,), {})
    known: dict[tuple[str, str], Any] = {(_METADATA, name): kind for name, kind in kinds.items()} | {
        (_FILESYSTEM, "_StorageInfo"): place,
        (_METADATA, "_MEM_FORMAT_ENCODING"): int,
        (_SHARDED, "MEM_FORMAT_ENCODING"): int,
        (_SHARDED, "TensorProperties"): kinds["TensorProperties"],
        ("torch", "Size"): _numbers,
        ("torch.serialization", "_get_layout"): str,
        ("pathlib", "PosixPath"): _path,
        ("pathlib", "Path"): _path,
        ("pathlib._local", "PosixPath"): _path,
        ("collections", "OrderedDict"): dict,
    }
    root = _unpickled(data, known, where)
    try:
        return _checked(root, kinds, place, where)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptionError(f"{where} is damaged: {type(error).__name__}: {reason(error)}") from error


def _checked(
    root: Any, kinds: dict[str, type[_Record]], place: type[_Record], where: str
) -> tuple[Metadata, dict[MetadataIndex, Place]]:
    _is(root, kinds["Metadata"])
    items: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for name, item in root["state_dict_metadata"].items():
        _is(name, str)
        if isinstance(item, kinds["BytesStorageMetadata"]):
            items[name] = BytesStorageMetadata()
        else:
            _is(item, kinds["TensorStorageMetadata"])
            items[name] = _tensor(item, kinds)
    places: dict[MetadataIndex, Place] = {}
    for index, info in root["storage_data"].items():
        _is(index, kinds["MetadataIndex"])
        _is(info, place)
        _is(index["fqn"], str)
        offset = index.get("offset")
        key = MetadataIndex(index["fqn"], None if offset is None else _numbers(offset), index.get("index"))
        places[key] = _place(info, f"{where}: {index['fqn']}")
    version = root.get("version")
    _is(version, str, type(None))
    return Metadata(items, planner_data=_plain(root.get("planner_data"), where), version=version), places


def _tensor(item: _Record, kinds: dict[str, type[_Record]]) -> TensorStorageMetadata:
    properties = item["properties"]
    _is(properties, kinds["TensorProperties"])
    # torch writes a tuple: dtype, layout, requires_grad, memory_format, pin_memory. Only the first is used.
    dtype = properties.state[0]
    _is(dtype, torch.dtype)
    size = torch.Size(_numbers(item["size"]))
    chunks = []
    for chunk in item["chunks"]:
        _is(chunk, kinds["ChunkStorageMetadata"])
        offsets, sizes = _numbers(chunk["offsets"]), _numbers(chunk["sizes"])
        if not len(offsets) == len(sizes) == len(size) or any(
            start < 0 or length < 0 or start + length > all_
            for start, length, all_ in zip(offsets, sizes, size, strict=True)
        ):
            raise ValueError(f"a part at {offsets} of size {sizes} in a tensor of size {tuple(size)}")
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)


def _place(info: _Record, what: str) -> Place:
    path, offset, length = info["relative_path"], info["offset"], info["length"]
    _is(path, str)
    if path.startswith("/") or "\\" in path or "\0" in path or ".." in path.split("/") or not path:
        raise SourceError(f"{what} lies in {path!r}, which is outside the checkpoint's folder")
    if info.get("transform_descriptors"):
        raise SourceError(
            f"{what} was changed by an extension of torch ({info['transform_descriptors']}), which is not "
            "known here: load it with torch's own reader and save it again"
        )
    if min(_numbers((offset, length))) < 0:
        raise ValueError(f"{length} bytes from {offset}")
    return Place(path, offset, length)


def _plain(value: object, where: str) -> Any:
    """What a planner has stored: numbers, texts and containers of these."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if type(value) in (list, tuple):
        return type(value)(_plain(each, where) for each in value)  # type: ignore[call-arg, attr-defined]
    if type(value) is dict:
        return {_plain(key, where): _plain(each, where) for key, each in value.items()}
    raise SourceError(f"{where}: a planner has stored a {type(value).__name__}, which is not loaded")


def read_tensor_pickle(data: bytes, where: str) -> SavedTensor | None:
    """What the pickle of a saved tensor says, or None if it is more than a plain tensor.

    Raises:
        CorruptionError: it is damaged.
    """
    known: dict[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor_v2"): _version_2,
        ("torch._utils", "_rebuild_tensor_v3"): _version_3,
        ("collections", "OrderedDict"): dict,
        ("torch.storage", "UntypedStorage"): None,
    } | {("torch", name): dtype for name, dtype in _STORAGES.items()}
    try:
        found = _unpickled(data, known, where)
    except SourceError:
        return None  # torch.load, which has a list of its own, says what it thinks of it
    return found if isinstance(found, SavedTensor) else None


def _version_2(pid: Any, offset: Any, size: Any, stride: Any, *_: Any) -> SavedTensor:
    _, dtype, key, *_ = pid
    return _saved(dtype, size, stride, offset, key)


def _version_3(
    pid: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> SavedTensor:
    return _saved(dtype, size, stride, offset, pid[2])


def _saved(dtype: Any, size: Any, stride: Any, offset: Any, key: Any) -> SavedTensor:
    _is(dtype, torch.dtype)
    _is(key, str)
    return SavedTensor(dtype, _numbers(size), _numbers(stride), _numbers((offset,))[0], key)


def _numbers(values: Any) -> tuple[int, ...]:
    found: tuple[int, ...] = tuple(values)
    for value in found:
        _is(value, int)
    return found


def _path(*parts: object) -> str:
    return "/".join(str(part) for part in parts)


def _is(value: object, *kinds: type) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"a {type(value).__name__} where a {kinds[0].__name__} was expected")

"""What weights a URL holds: the tensors of all its files, checked against each other."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from shardstream.errors import CorruptionError, OptionError, StorageError
from shardstream.storage.options import Options
from shardstream.weights import digests
from shardstream.weights.digests import Digests
from shardstream.weights.header import FileHeader, TensorInfo, read_header, without_duplicates
from shardstream.weights.urls import PICKLES, Place, open_place

__all__ = ["INDEX", "SINGLE", "Catalog", "Wanted", "open_catalog", "optional"]

# Which tensors are wanted: all, those of a list, or those of which a function says so.
Wanted = Iterable[str] | Callable[[str], bool] | None

log = logging.getLogger("shardstream")

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MANIFEST = "manifest.json"
_MOST = 1 << 30  # bytes of an index
_REQUESTS = 16  # headers at a time


@dataclass(frozen=True)
class Catalog:
    """The weights at one URL.

    Attributes:
        place: Where the files are.
        files: The files, by their paths, with their headers.
        tensors: All tensors by name, in the order of the files and of the bytes in them.
        digests: The checksums of the files that have some.
        index: The path of the index, or None.
        anew: What messages add if the checksums are those of `shardstream.digests.json`.
    """

    place: Place
    files: Mapping[str, FileHeader]
    tensors: Mapping[str, TensorInfo]
    digests: Mapping[str, Digests]
    index: str | None
    anew: str = ""

    @property
    def bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())

    def where(self, file: str) -> str:
        """A file's name for messages."""
        return self.place.where(file)

    def chosen(self, names: Wanted) -> list[TensorInfo]:
        """The tensors that are wanted, in the order of their bytes.

        Raises:
            OptionError: There is no tensor of a name.
        """
        if names is None:
            return list(self.tensors.values())
        if callable(names):
            return [tensor for name, tensor in self.tensors.items() if names(name)]
        if isinstance(names, str):
            raise OptionError(f"names={names!r} must be a list of names")
        wanted = set(names)
        for name in sorted(wanted - self.tensors.keys()):
            raise OptionError(
                f"{self.place.store.url}: no tensor {name!r} here; there are {_some(self.tensors)}"
            )
        return [tensor for name, tensor in self.tensors.items() if name in wanted]


def _some(names: Iterable[str]) -> str:
    known = sorted(names)
    return ", ".join(known[:5]) + (f" and {len(known) - 5:,} more" if len(known) > 5 else "")


def open_catalog(url: str, options: Options = None, recorded: bool = True, connections: int = 0) -> Catalog:
    """Read the index and all headers at a URL.

    Args:
        url: See `load_weights`.
        options: For the store.
        recorded: Whether `shardstream.digests.json` is of use.
        connections: How many to open meanwhile, since much will be read soon.

    Raises:
        CorruptionError: A file is damaged, or files contradict each other.
        OptionError: No such URL is possible.
        StorageError: There are no weights, or they cannot be read.
    """
    place = open_place(url, options, connections)
    prefix, known = "", dict[str, Digests]()
    anew, index = "", None
    names: dict[str, str] | None = None
    headers = dict[str, FileHeader]()
    if place.file is None:
        texts, headers = _texts(place)
        if (manifest := texts[_MANIFEST]) is not None:
            prefix, known = _of_checkpoint(manifest, place.where(_MANIFEST))
            texts[INDEX] = optional(place, prefix + INDEX)
        if recorded and (listed := texts[digests.NAME]) is not None:
            anew = digests.ANEW
            known = digests.decode(listed, place.where(digests.NAME))
        if texts[INDEX] is not None:
            index = prefix + INDEX
            names = _of_index(texts[INDEX], place.where(index), prefix)
            if SINGLE in set(place.names or ()) - set(names.values()):
                log.warning(
                    "%s: the files of %s are read, not %s, which is here, too: delete what is not needed",
                    place.store.url, index, SINGLE,
                )  # fmt: skip
        files = sorted(set(names.values())) if names is not None else _without_index(place)
    elif place.file.endswith(".index.json"):
        index = place.file
        names = _of_index(place.store.read(index, _MOST), place.where(index), "")
        files = sorted(set(names.values()))
    else:
        files = [place.file]
    try:
        headers = headers or _headers(place, files)
    except StorageError as error:
        if names is None or not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise StorageError(
            f"{error}; {place.where(str(index))} names it: fetch it again"
        ) from error.__cause__
    for file, header in headers.items():
        sizes = {
            place.hub[file].bytes if file in place.hub else None,
            known[file].bytes if file in known else None,
        }
        for size in sizes - {None, header.bytes}:
            raise CorruptionError(
                f"{place.where(file)}: {header.bytes} bytes here, {size} when it was recorded{anew}"
            )
    tensors = _joined(place, headers, names)
    used = {file: known[file] for file in files if file in known}
    return Catalog(place, headers, tensors, used, index, anew)


def optional(place: Place, name: str, most: int = _MOST) -> bytes | None:
    """A file that need not be there; stores may refuse access to names that do not exist."""
    if place.names is not None and "/" not in name and name not in place.names:
        return None
    try:
        return place.store.read(name, most)
    except StorageError as error:
        if isinstance(error.__cause__, (FileNotFoundError, PermissionError, NotADirectoryError)):
            return None
        raise


def _texts(place: Place) -> tuple[dict[str, bytes | None], dict[str, FileHeader]]:
    """The texts beside the weights; and the headers, where it is plain without the texts whose they are."""
    names = (INDEX, digests.NAME, _MANIFEST)
    plain = SINGLE in (place.names or ()) and not {INDEX, _MANIFEST} & set(place.names or ())
    with ThreadPoolExecutor(len(names) + 1, "shardstream-weights") as pool:
        texts = {name: pool.submit(optional, place, name) for name in names}
        headers = _headers(place, [SINGLE]) if plain else {}
        return {name: text.result() for name, text in texts.items()}, headers


def _of_checkpoint(data: bytes, where: str) -> tuple[str, dict[str, Digests]]:
    """(the folder of the files, their checksums) of a checkpoint of shardstream; nothing for others."""
    try:
        found = msgspec.json.decode(data)
        if found.get("format") != "shardstream-checkpoint":
            return "", {}
        content = found["content"]
        prefix = f"{_safe(content['attempt'], where)}/"
        files = {
            prefix + _safe(file["name"], where): Digests(file["bytes"], list(file["digests"]))
            for file in content["files"]
        }
        return prefix, digests.check(files, where)
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError) as error:
        raise CorruptionError(f"{where}: this is no manifest of a checkpoint, or it is damaged") from error


def _of_index(data: bytes | None, where: str, prefix: str) -> dict[str, str]:
    """The file of each tensor, as the index of Hugging Face says."""
    try:
        found: Any = json.loads(data or b"", object_pairs_hook=without_duplicates)
        names = {str(name): prefix + _safe(file, where) for name, file in found["weight_map"].items()}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CorruptionError(
            f"{where}: an index must have a weight_map of tensors and files: {error}"
        ) from error
    if not names:
        raise CorruptionError(f"{where}: its weight_map is empty")
    return names


def _safe(name: Any, where: str) -> str:
    """A name of a file that lies below the folder, else CorruptionError."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if (
        len(str(name)) > 1024
        or "\\" in name
        or "\0" in name
        or ":" in parts[0]
        or {"", ".", ".."} & set(parts)
    ):
        raise CorruptionError(f"{where}: {name!r} cannot be the name of a file here")
    return str(name)


def _without_index(place: Place) -> list[str]:
    if place.names is None or SINGLE in place.names:
        return [SINGLE]
    files = [name for name in place.names if name.endswith(".safetensors")]
    if not files and any(name.endswith(PICKLES) for name in place.names):
        raise StorageError(
            f"{place.store.url}: only pickles (.bin, .pt) are here, which are never loaded: "
            "convert them to safetensors"
        )
    if not files:
        raise StorageError(f"{place.store.url}: there is no .safetensors file here, and no {INDEX}")
    return files


def _headers(place: Place, files: Sequence[str]) -> dict[str, FileHeader]:
    with ThreadPoolExecutor(min(_REQUESTS, len(files)), "shardstream-weights") as pool:
        found = pool.map(lambda file: read_header(place.store, file, place.where(file)), files)
        return dict(zip(files, found, strict=True))


def _joined(
    place: Place, headers: Mapping[str, FileHeader], names: Mapping[str, str] | None
) -> dict[str, TensorInfo]:
    """All tensors by name. The index decides which file has a name that several files have."""
    found: dict[str, TensorInfo] = {}
    for file, header in headers.items():
        for tensor in header.tensors:
            if names is not None and names.get(tensor.name, file) != file:
                continue
            if tensor.name in found:
                other = place.where(found[tensor.name].file)
                if names is None:
                    raise OptionError(
                        f"{place.where(file)}: tensor {tensor.name!r} is in {other}, too: several variants "
                        "are in this folder, without an index: give the URL of one file"
                    )
                raise CorruptionError(f"{place.where(file)}: tensor {tensor.name!r} is in {other}, too")
            found[tensor.name] = tensor
    for name, file in (names or {}).items():
        if name not in found:
            raise CorruptionError(f"{place.where(file)}: tensor {name!r} is missing, which the index lists")
    return found

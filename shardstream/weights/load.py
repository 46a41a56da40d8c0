"""Weights as tensors: all of them, or one after the other as they land."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from shardstream.errors import OptionError, require
from shardstream.format.sizes import parse_size
from shardstream.storage.cache.options import Cache
from shardstream.storage.options import Options
from shardstream.storage.spans import GAP
from shardstream.weights.catalog import Catalog, Wanted, open_catalog
from shardstream.weights.cuda import can_prefetch, prefetched
from shardstream.weights.header import TensorInfo
from shardstream.weights.pieces import Job, landed

if TYPE_CHECKING:
    import torch

    from shardstream.weights.tensors import Buffer

__all__ = ["Buffers", "gap_of", "load_weights", "located", "stream_weights"]

_LOCAL_GAP = 16 << 10  # bytes that take less time than another call of the system
_BUDGET = "512MiB"
_CONNECTIONS = 16  # to stores: as many ranges are on their way at least


def located(url: str | os.PathLike[str], cache: Any, options: Options) -> Catalog:
    """The weights at a URL, or of the local folder that they are fetched to."""
    if cache is None:
        return open_catalog(os.fspath(url), options, connections=_CONNECTIONS)
    from shardstream.weights.fetch import fetch_weights

    return open_catalog(fetch_weights(url, cache, storage_options=options))


def gap_of(catalog: Catalog) -> int:
    """Bytes that are cheaper to read than to leave out."""
    return _LOCAL_GAP if catalog.place.store.backend == "local" else GAP


class Buffers:
    """Bounce buffers, as many as there are threads at a time, each as large as was needed.

    Args:
        device: Where the bytes go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[Buffer] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> _Lent:
        """A buffer of `size` bytes or more, until `done` is called."""
        from shardstream.weights.tensors import Buffer

        if not size:
            return _Lent(self, None)
        with self._lock:
            found = self._free.pop() if self._free else None
        if found is None or len(found.view) < size:
            found = Buffer(size, self._device)
        return _Lent(self, found)

    def back(self, buffer: Buffer) -> None:
        """Give a buffer back."""
        with self._lock:
            self._free.append(buffer)


class _Lent:
    def __init__(self, owner: Buffers, buffer: Buffer | None) -> None:
        self._owner, self._buffer = owner, buffer
        self.view = memoryview(b"") if buffer is None else buffer.view

    def tensor(self, place: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        assert self._buffer is not None
        return self._buffer.tensor(place, size, dtype)

    def done(self) -> None:
        if self._buffer is not None:
            self._owner.back(self._buffer)


def load_weights(
    url: str | os.PathLike[str],
    names: Wanted = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    cache: Cache | str | os.PathLike[str] | None = None,
    storage_options: Options = None,
) -> dict[str, torch.Tensor]:
    """The weights at a URL, as a state dict.

    Example:
        ``model.load_state_dict(ss.load_weights(url, dtype=torch.bfloat16), assign=True)``

    Args:
        url: A folder with `model.safetensors.index.json` or `.safetensors` files, such a file or index, or a
            checkpoint of shardstream: a local path, https://, s3://, gs://, az://, or
            hf://ORGANISATION/MODEL[@REVISION].
        names: The tensors that are wanted: a list of names, or a function that says of a name whether it is;
            None for all.
        dtype: What float64, float32, float16 and bfloat16 become. Integers, fp8 and fp4 stay as they are:
            their scales are tensors of their own.
        device: Where they go; None for the CPU.
        cache: A folder on a local disk, or a `Cache` with one: the files are fetched to it, once for all
            processes of the machine, and read from there. See `fetch_weights`.
        storage_options: For the store.

    Returns:
        Tensors by name, each in memory of its own, in the order of the files.

    Raises:
        CorruptionError: A file is damaged; the message names it, and the tensor.
        MissingExtraError: torch is not installed.
        OptionError: There is no tensor of a name, or no such URL is possible.
        StorageError: The weights cannot be read.
    """
    torch = require("torch", "torch")
    catalog = located(url, cache, storage_options)
    wanted = catalog.chosen(names)
    target = torch.device("cpu" if device is None else device)
    budget = max(parse_size(_BUDGET, "budget"), 1)
    found = dict(_tensors(catalog, wanted, dtype, target, budget))
    return {info.name: found[info.name] for info in wanted}


def stream_weights(
    url: str | os.PathLike[str],
    names: Wanted = None,
    device: str | torch.device | None = None,
    *,
    dtype: torch.dtype | None = None,
    memory: str | int = _BUDGET,
    cache: Cache | str | os.PathLike[str] | None = None,
    storage_options: Options = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights at a URL one after the other, each as soon as it has landed.

    Example:
        ``for name, tensor in ss.stream_weights(url): ...``

    Args:
        url: See `load_weights`.
        names: See `load_weights`.
        device: Where they go; None for the CPU.
        dtype: See `load_weights`.
        memory: Bytes of tensors that are on their way or wait to be taken: a number, or a text such as
            "2GB", at least 32 MiB. A tensor that is larger comes alone.
        cache: See `load_weights`.
        storage_options: For the store.

    Yields:
        (name, tensor) pairs, roughly in the order of the files. The next ones are read meanwhile.

    Raises:
        CorruptionError, MissingExtraError, OptionError, StorageError: As `load_weights`.
        StateError: A forked process goes on with what its parent began.
    """
    torch = require("torch", "torch")
    budget = parse_size(memory, "memory")
    catalog = located(url, cache, storage_options)
    wanted = catalog.chosen(names)
    # A function of its own yields: what is wrong is raised at the call, not at the first tensor.
    return _tensors(catalog, wanted, dtype, torch.device("cpu" if device is None else device), budget)


def _tensors(
    catalog: Catalog,
    wanted: Iterable[TensorInfo],
    dtype: torch.dtype | None,
    device: torch.device,
    budget: int,
) -> Iterator[tuple[str, torch.Tensor]]:
    from shardstream.weights.tensors import convertible, dtype_of, empty, pieces_of, shape_of

    if dtype is not None and not convertible(dtype):
        raise OptionError(
            f"dtype={dtype!r} must be torch.float64, torch.float32, torch.float16 or torch.bfloat16"
        )
    if device.type == "meta":
        raise OptionError("device='meta' has no memory for weights")
    if can_prefetch(catalog, device):
        found = prefetched(catalog, list(wanted), device)
        return (
            (info.name, tensor.to(dtype) if dtype is not None and convertible(tensor.dtype) else tensor)
            for info, tensor in found
        )
    gap = gap_of(catalog)

    def job(info: TensorInfo) -> Job[tuple[str, list[torch.Tensor]]]:
        source = dtype_of(info, catalog.where(info.file))
        kind = dtype if dtype is not None and convertible(source) else source
        shape = shape_of(info)
        made: list[torch.Tensor] = []

        def make() -> Any:
            made.append(empty(shape, kind, device))
            return pieces_of(info, made[0], source, [0] * len(shape), gap, info.file in catalog.digests)

        size = kind.itemsize * info.size // source.itemsize
        return Job((info.name, made), info.file, info.start, size, make)

    return _named(landed(catalog, [job(info) for info in wanted], budget, _buffers(device)))


def _buffers(device: torch.device) -> Callable[[int], _Lent]:
    return Buffers(device).take


def _named(found: Iterator[tuple[str, list[torch.Tensor]]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, made in found:
        yield name, made.pop()

"""What is said of weights, and whether their bytes are those that were recorded."""

from __future__ import annotations

from collections import Counter

import msgspec

from shardstream.errors import OptionError
from shardstream.progress import Bytes, Report
from shardstream.storage.options import Options
from shardstream.weights import digests
from shardstream.weights.catalog import open_catalog
from shardstream.weights.digests import Digests
from shardstream.weights.download import read_blocks

__all__ = ["FileSummary", "Summary", "Verified", "summary", "verify_weights"]


class FileSummary(msgspec.Struct, frozen=True):
    """One file: its path, its size, how many tensors it has, and whether checksums of it are known."""

    file: str
    bytes: int
    tensors: int
    checksums: bool


class TensorSummary(msgspec.Struct, frozen=True):
    """One tensor: its name, dtype and shape, its bytes, and the file that it is in."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int
    file: str


class Summary(msgspec.Struct, frozen=True):
    """The weights at a URL. `bytes` are those of the tensors, `dtypes` count elements' bytes by dtype."""

    url: str
    index: str | None
    bytes: int
    dtypes: dict[str, int]
    metadata: dict[str, str]
    files: list[FileSummary]
    tensors: list[TensorSummary]


class Verified(msgspec.Struct, frozen=True):
    """A check of all bytes.

    Args:
        url: What was read.
        bytes: The bytes that were read.
        checked: The files whose checksums were compared, and agree.
        unchecked: The files of which nothing but the header could be checked.
    """

    url: str
    bytes: int
    checked: list[str]
    unchecked: list[str]


def summary(url: str, options: Options = None) -> Summary:
    """What the headers at a URL say.

    Raises:
        CorruptionError, OptionError, StorageError: As `load_weights`.
    """
    catalog = open_catalog(url, options)
    dtypes: Counter[str] = Counter()
    metadata: dict[str, str] = {}
    for tensor in catalog.tensors.values():
        dtypes[tensor.dtype] += tensor.size
    for header in catalog.files.values():
        metadata |= header.metadata
    return Summary(
        catalog.place.store.url,
        catalog.index,
        catalog.bytes,
        dict(dtypes),
        metadata,
        [
            FileSummary(catalog.where(file), header.bytes, len(header.tensors), file in catalog.digests)
            for file, header in catalog.files.items()
        ],
        [
            TensorSummary(each.name, each.dtype, list(each.shape), each.size, catalog.where(each.file))
            for each in catalog.tensors.values()
        ],
    )


def verify_weights(
    url: str, options: Options = None, record: bool = False, progress: Report = None
) -> Verified:
    """Read all bytes, and compare them with the checksums that are known.

    Args:
        url: See `load_weights`.
        options: For the store.
        record: Whether to write the checksums of all files beside them, for later checks. Those that were
            recorded before are replaced; they are not compared.
        progress: Called with a Progress after each block, or None.

    Raises:
        CorruptionError: Bytes differ from their checksum, or a header is damaged.
        OptionError, StorageError: As `load_weights`.
    """
    catalog = open_catalog(url, options, recorded=not record)
    store = catalog.place.store
    if record and list(catalog.files) == [""]:
        raise OptionError(f"{store.url}: checksums are recorded of a folder: give its URL")
    files = [(file, header.bytes, catalog.digests.get(file)) for file, header in catalog.files.items()]
    done = Bytes(progress, sum(size for _, size, _ in files))
    found: dict[str, Digests] = dict(
        read_blocks(store, files, lambda *_: None, catalog.where, catalog.anew, done.add)
    )
    if record:
        store.write(digests.NAME, digests.encode({file: found[file] for file in catalog.files}))
    return Verified(
        store.url,
        sum(size for _, size, _ in files),
        [catalog.where(file) for file, _, known in files if known is not None],
        [catalog.where(file) for file, _, known in files if known is None],
    )

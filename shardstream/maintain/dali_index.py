"""Indexes of plain tars for DALI's webdataset reader, in its format v1.2.

The first line is the version and the number of samples. Each line after it is a sample: for each of its
members the extension, the offset and the size of the data in bytes, and the name. The format is that of
DALI's tool wds2idx (tools/wds2idx.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from shardstream.errors import OptionError
from shardstream.format.index import ShardIndex
from shardstream.read.reader import DatasetReader
from shardstream.storage.store import Options, Store

__all__ = ["write_dali_index"]


def write_dali_index(url: str, dest: str, storage_options: Options = None) -> list[str]:
    """Write NAME.idx to `dest` for each NAME.tar of the dataset.

    Args:
        url: the dataset.
        dest: a folder, a path or a URL.
        storage_options: for fsspec.

    Returns:
        The names of the files, in the order of the shards.

    Raises:
        OptionError: a shard is compressed, two files would have one name, or a name has a space in it.
        StorageError: no access, or a full disk.
    """
    reader = DatasetReader.open(url, storage_options)
    packed = [shard.url for shard in reader.manifest.shards if shard.codec != "none"]
    if packed:
        raise OptionError(
            f"{reader.url}: {packed[0]} is compressed, and DALI reads plain tars alone; "
            f"pack with compression='none', or export --format webdataset first"
        )
    names = [_name(shard.url) for shard in reader.manifest.shards]
    twice = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise OptionError(f"{reader.url}: two of its tars would have the index {twice[0]}")
    store = Store.open(dest, storage_options)
    fields = [info.name for info in reader.manifest.fields]

    def write(shard: int) -> None:
        lines = list(_lines(reader.read_index(shard), fields))
        store.write(names[shard], f"v1.2 {len(lines)}\n".encode(), "".join(lines).encode())

    # A shard is two requests, which are waited for.
    with ThreadPoolExecutor(store.concurrency, "shardstream-index") as pool:
        for _ in pool.map(write, range(len(names))):
            pass
    return names


def _name(url: str) -> str:
    return url.rpartition("/")[2].removesuffix(".tar") + ".idx"


def _lines(index: ShardIndex, fields: list[str]) -> Iterator[str]:
    """The line of each sample; its members are sorted by where they lie."""
    bounds = np.asarray(index.frame_first).tolist()
    for frame, (begin, end) in enumerate(pairwise(bounds)):
        start = int(index.frame_offset[frame])
        keys = index.keys_list(begin, end)
        rows = zip(
            keys, index.field_offset[begin:end].tolist(), index.field_size[begin:end].tolist(), strict=True
        )
        for key, offsets, sizes in rows:
            members = sorted(
                (start + offset, size, field)
                for offset, size, field in zip(offsets, sizes, fields, strict=True)
                if size >= 0
            )
            if any(letter.isspace() for letter in key + "".join(fields)):
                raise OptionError(f"sample {key!r}: DALI's index cannot hold names with spaces")
            yield " ".join(f"{field} {at} {size} {key}.{field}" for at, size, field in members) + "\n"

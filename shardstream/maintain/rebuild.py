"""rebuild(): a lost manifest again, from the shards and the indexes. Every byte is checked before."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash

from shardstream.errors import CommitError, CorruptionError, OptionError, StorageError
from shardstream.format import frames
from shardstream.format.index import ShardIndex
from shardstream.format.index_contents import columns_from_bytes, index_counts
from shardstream.format.manifest import NAME, FieldInfo, Manifest, ShardInfo
from shardstream.format.manifest_files import load_stub
from shardstream.format.names import split_name
from shardstream.format.sparse import SparseTable
from shardstream.format.tar import TRAILER, scan
from shardstream.maintain.verify import check
from shardstream.packing import reservation
from shardstream.packing.build_manifest import field_infos, tool
from shardstream.packing.shard_names import shard_files, shard_name
from shardstream.progress import Report, with_bar
from shardstream.read.reader import DatasetReader
from shardstream.storage.manifests import commit_manifest, read_manifest
from shardstream.storage.store import Options, Store

__all__ = ["rebuild"]

Dtype = Literal["uint16", "uint32"]
_CHUNK = 8 << 20
_TOKENS = "tokens"


@dataclass(frozen=True)
class _Shard:
    """What the files of one shard say.

    Args:
        info: The shard.
        documents: Whether it holds documents of tokens.
        odd: Whether a document has a size that only tokens of two bytes have.
    """

    info: ShardInfo
    documents: bool
    odd: bool


@with_bar("rebuilding")
def rebuild(
    url: str | os.PathLike[str],
    *,
    tokens: Dtype | None = None,
    storage_options: Options = None,
    progress: Report = None,
) -> Manifest:
    """Make the manifest of a dataset again, of which only shards and indexes are left.

    All frames are decompressed and compared with the indexes. The order of the shards is that of their
    numbers, as packs write them. What only the manifest knew is lost: the provenance, with the names of
    classes and the tokenizer. A shard that is lost together with its index is not noticed, unless its number
    is missing in the middle; not every number has to be there.

    Args:
        url: The dataset, a path or a URL.
        tokens: Only for tokens: how they are stored. The shards do not say it.
        storage_options: Options for the store, as fsspec takes them.
        progress: True shows a bar on stderr. A function is called with a Progress after each shard.

    Returns:
        The new manifest.

    Raises:
        CommitError: There is a manifest that can be read, or an unfinished pack.
        CorruptionError: A shard or an index is damaged, or one of the two is missing. The message names it.
        OptionError: There are no shards; or `tokens` is missing, or fits the shards not.
        StorageError: The store cannot be accessed.
    """
    store = Store.open(os.fspath(url), storage_options)
    damaged = _damaged_manifest(store)
    infos: list[_Shard] = [_read(store, stem, suffix) for stem, suffix in _pairs(store)]
    shards = tuple(one.info for one in infos)
    fields = field_infos(shards)
    kinds = {one.documents for one in infos}
    if len(kinds) > 1:
        raise CorruptionError(
            f"{store.url}: some shards hold samples, others tokens; keep those of one dataset"
        )
    if True in kinds:
        dtype = _dtype(store, tokens, any(one.odd for one in infos))
        fields = (FieldInfo(_TOKENS, _TOKENS, dtype),)
        width = 2 if dtype == "uint16" else 4
        shards = tuple(_with_tokens(one.info, width) for one in infos)
    elif tokens is not None:
        raise OptionError(f"{store.url} holds samples; tokens={tokens!r} is for datasets of tokens")
    record = {"tool": tool(), "options": {"format": "rebuilt"}, "rejected": 0}
    manifest = Manifest.build("tokens" if True in kinds else "samples", fields, shards, record)
    found = check(DatasetReader(store, manifest, storage_options), True, progress)
    if found.problems:
        raise CorruptionError(f"{found.problems[0]}; nothing was written ({len(found.problems)} problems)")
    # If it is the stub that was lost, a body may still say what was not rebuilt.
    commit_manifest(store, manifest, "" if damaged else None, keep_bodies=not _has_stub(store))
    return manifest


def _damaged_manifest(store: Store) -> bool:
    """Whether there is a manifest, which is damaged. Raises CommitError if there is a good one."""
    if store.exists(reservation.NAME):
        raise CommitError(
            f"{store.url} holds an unfinished pack; end it with --resume, or delete "
            f"{store.where(reservation.NAME)}"
        )
    if not store.exists(NAME):
        return False
    try:
        read_manifest(store)
    except CorruptionError:
        return True
    raise CommitError(f"{store.where(NAME)} is there and can be read; there is nothing to rebuild")


def _has_stub(store: Store) -> bool:
    """Whether there is a sound stub: then its body is what was lost or damaged."""
    try:
        load_stub(store.read(NAME))
    except (CorruptionError, StorageError):
        return False
    return True


def _pairs(store: Store) -> list[tuple[str, str]]:
    """The stem and the suffix of each shard in order. Raises CorruptionError if a file is missing."""
    found: dict[tuple[int, int], dict[str, str]] = {}
    for name in shard_files(store, store.list()):
        named = shard_name(name)
        assert named is not None
        suffixes = found.setdefault((named.number, named.place), {})
        other = suffixes.setdefault(named.suffix, named.stem)
        if other != named.stem:
            raise CorruptionError(
                f"{store.where(other)}.{named.suffix} and {store.where(name)} are one shard of two packs; "
                "keep one"
            )
    if not found:
        raise OptionError(f"{store.url}: there are no shards, so there is nothing to rebuild")
    pairs = []
    for place in sorted(found):
        have = sorted(found[place])
        stem = found[place][have[0]]
        if "index" not in have:
            raise CorruptionError(f"{store.where(stem)}.{have[0]}: its index is missing; pack the data again")
        if len(have) != 2 or len(set(found[place].values())) != 1:
            raise CorruptionError(f"{store.where(stem)}.index: there has to be one shard with it")
        pairs.append((stem, have[1]))
    return pairs


def _read(store: Store, stem: str, suffix: str) -> _Shard:
    url, index_url = f"{stem}.{suffix}", f"{stem}.index"
    data = store.read(index_url)
    where = store.where(index_url)
    counts = index_counts(data, where)
    size, raw = store.size(url), counts.raw_bytes + len(TRAILER)
    index = ShardIndex.from_bytes(
        data, where=where, fields=counts.fields, samples=counts.samples, frames=counts.frames,
        shard_bytes=size, raw_bytes=raw, columns=counts.columns,
    )  # fmt: skip
    columns_from_bytes(data, where, counts.columns, counts.samples)  # raises CorruptionError for bad values
    codec: Literal["zstd", "none"] = "none" if suffix == "tar" else "zstd"
    names, documents = _names(store, url, codec, index)
    digest = xxhash.xxh3_128()
    for start in range(0, size, _CHUNK):
        digest.update(store.read_range(url, start, min(_CHUNK, size - start)))
    info = ShardInfo(
        url=url, codec=codec, fields=names, bytes=size, raw_bytes=raw, samples=counts.samples,
        # The bytes of the tokens, until their dtype is known.
        tokens=int(np.asarray(index.field_size).clip(0).sum()) if documents else 0,
        frames=counts.frames, checksum=digest.hexdigest(), index_url=index_url, index_bytes=len(data),
        index_checksum=xxhash.xxh3_128_hexdigest(data), columns=counts.columns, index_head=counts.head,
        index_head_checksum=xxhash.xxh3_128_hexdigest(data[: counts.head]) if counts.columns else "",
        sparse=isinstance(index.field_size, SparseTable),
    )  # fmt: skip
    return _Shard(info, documents, documents and bool((np.asarray(index.field_size) % 4).any()))


def _names(store: Store, url: str, codec: str, index: ShardIndex) -> tuple[tuple[str, ...], bool]:
    """The name of the field in each column, and whether the shard holds documents of tokens."""
    names: list[str] = []
    documents = False
    for column in range(index.field_size.shape[1]):
        rows = np.flatnonzero(index.field_size[:, column] >= 0)
        if not len(rows):
            raise CorruptionError(f"{store.where(url)}: no sample has a field in column {column}")
        row = int(rows[0])
        members = _members(store, url, codec, index, index.frame_of(row))
        name = members.get(int(index.field_offset[row, column]))
        if name is None:
            raise CorruptionError(
                f"{store.where(url)}: where the index has sample {index.key(row)!r}, the shard has no member"
            )
        key, field = split_name(name)
        names.append(field)
        documents = documents or (field == _TOKENS and key != index.key(row))
    return tuple(names), documents


def _members(store: Store, url: str, codec: str, index: ShardIndex, frame: int) -> dict[int, str]:
    """The names of the members of a frame by where their data begins."""
    where = f"{store.where(url)}, frame {frame}"
    offset, size = int(index.frame_offset[frame]), int(index.frame_size[frame])
    stored = store.read_range(url, offset, size)
    if frames.checksum(stored) != int(index.frame_checksum[frame]):
        raise CorruptionError(f"{where}: its checksum is not that of the index")
    raw = frames.decompress(codec, stored, int(index.frame_raw_size[frame]), where)
    archive = io.BytesIO(bytes(raw) + TRAILER)
    return {member.offset: member.name for member in scan(archive, len(raw), where)}


def _dtype(store: Store, tokens: Dtype | None, odd: bool) -> Dtype:
    if odd and tokens == "uint32":
        raise OptionError(f"{store.url}: there are documents whose size is no multiple of 4; give uint16")
    if tokens is None and not odd:
        raise OptionError(
            f"{store.url} holds tokens, and the shards do not say how they are stored; give tokens='uint16' "
            "or 'uint32' (--tokens), as the vocabulary of the tokenizer needs it"
        )
    return tokens or "uint16"


def _with_tokens(info: ShardInfo, width: int) -> ShardInfo:
    import msgspec

    return msgspec.structs.replace(info, tokens=info.tokens // width)

"""From shards to a manifest: its fields, its provenance, and the checks of an append."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from shardstream.errors import OptionError, StorageError
from shardstream.format.manifest import FieldInfo, Manifest, ShardInfo
from shardstream.packing.job import Job
from shardstream.packing.shard_names import task_shard
from shardstream.packing.sources import ImagesSource
from shardstream.packing.sources.base import relative
from shardstream.storage.inputs import FileInfo, read_slice
from shardstream.version import __version__

_HEAD = 4096

_MANY_FIELDS = 100


def tool() -> str:
    """The name and the version of this program, as they stand in a manifest."""
    return f"shardstream {__version__}"


def field_infos(shards: Iterable[ShardInfo], before: Sequence[FieldInfo] = ()) -> tuple[FieldInfo, ...]:
    """The fields of all shards, in the order in which they first appear. The codec is the extension.

    Args:
        shards: The shards.
        before: The fields of the dataset that is appended to.
    """
    names = [info.name for info in before] + [name for shard in shards for name in shard.fields]
    return tuple(FieldInfo(name, name.rpartition(".")[2].lower()) for name in dict.fromkeys(names))


def warn_of_many_fields(manifest: Manifest) -> None:
    """Warn if there are so many fields that dots in the names of files were probably taken for extensions."""
    if len(manifest.fields) > _MANY_FIELDS:
        warnings.warn(
            f"the dataset has {len(manifest.fields)} fields, such as {manifest.fields[0].name!r} and "
            f"{manifest.fields[-1].name!r}. If the names of the files have dots in them, split_key='last' "
            "(--split-key last) ends the key at the last one",
            stacklevel=3,
        )


def next_number(old: Manifest | None) -> int:
    """The number of the first new shard; `old` is the manifest that is appended to, or None."""
    numbers = (task_shard(shard.index_url) for shard in (old.shards if old else ()))
    return max((number for number in numbers if number is not None), default=-1) + 1


def provenance(job: Job, kind: str, files: Sequence[FileInfo], keys: str | None = None) -> dict[str, Any]:
    """Where the data came from and how it is packed.

    It is the same for any number of workers, and wherever the input lies: files are named relative to what
    was given.

    Args:
        job: The pack.
        kind: The format of the input.
        files: The files of the input.
        keys: The rule of its keys, or None. Appends go on with it.
    """
    listing = hashlib.sha256()
    for file in files:
        listing.update(f"{relative(file)}\0{file.size}\n".encode("utf-8", "surrogateescape"))
    options: dict[str, Any] = {
        "format": kind,
        "compression": job.layout.codec,
        "level": job.layout.level,
        "frame_size": job.layout.frame_size,
        "shard_size": job.layout.shard_size,
        "shuffle": job.shuffle,
        "limit": job.limit,
        "on_error": job.on_error,
        **job.source.options(),
    }
    record: dict[str, Any] = {
        "tool": tool(),
        "options": options,
        "sources": {
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "first": relative(files[0]).encode("utf-8", "backslashreplace").decode(),
            "listing_sha256": listing.hexdigest(),
            "heads_sha256": _heads(job, files),
        },
    }
    if keys is not None:
        record["keys"] = keys
    if isinstance(job.source, ImagesSource):
        record |= job.source.labelled(files).record()
    if job.tokenizer is not None:
        from shardstream.packing.tokenize import load_tokenizer

        tokenizer = load_tokenizer(job.tokenizer)
        record["tokenizer"] = {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos": job.eos,
        }
    elif job.kind == "tokens":
        record["tokens"] = {"dtype": job.token_dtype(), "eos": job.eos}
    return record


def _heads(job: Job, files: Sequence[FileInfo]) -> str:
    """A checksum of the first bytes of the first file and of the last one.

    Other data of the same names and sizes, such as the archives of another day, is then not taken for the
    same input by `resume`. A database has no first bytes: its source records the keys.
    """
    digest = hashlib.sha256()
    if getattr(job.source, "is_database", False):
        return digest.hexdigest()
    for file in dict.fromkeys((files[0], files[-1])):
        with contextlib.suppress(StorageError):  # whoever reads the file says that it cannot be read
            digest.update(read_slice(file.url, 0, min(file.size, _HEAD), job.storage_options))
    return digest.hexdigest()


def build_manifest(
    job: Job, old: Manifest | None, shards: tuple[ShardInfo, ...], record: dict[str, Any]
) -> Manifest:
    """The manifest of a dataset with new shards.

    Args:
        job: The pack.
        old: The manifest that is appended to, or None.
        shards: The new shards. They come behind the old ones.
        record: The provenance of the new shards.
    """
    fields = field_infos(shards, old.fields if old else ())
    if job.kind == "tokens":
        fields = (FieldInfo("tokens", "tokens", job.token_dtype()),)
    return assemble(job.kind, fields, old, shards, record)


def assemble(
    kind: Literal["samples", "tokens"],
    fields: tuple[FieldInfo, ...],
    old: Manifest | None,
    shards: tuple[ShardInfo, ...],
    record: dict[str, Any],
) -> Manifest:
    """The manifest of a dataset with new shards, whose fields are known.

    Args:
        kind: The kind of the dataset.
        fields: All its fields.
        old, shards, record: As for `build_manifest`.
    """
    if old is not None:
        record = {**old.provenance, "appended": [*old.provenance.get("appended", []), record]}
        shards = (*old.shards, *shards)
    return Manifest.build(kind, fields, shards, record, bool(old and old.external))


def check_append(job: Job, old: Manifest, where: str, record: dict[str, Any]) -> None:
    """Check that new samples fit the dataset that they are appended to.

    Args:
        job: The pack.
        old: The manifest of the dataset.
        where: The dataset, for messages.
        record: The provenance of the new samples.

    Raises:
        OptionError: The kind, the classes or the tokens differ.
    """
    if old.kind != job.kind:
        hint = "give the tokenizer and eos of its pack, or " if old.kind == "tokens" else ""
        raise OptionError(
            f"{where} holds {old.kind}; {job.kind} cannot be appended to it; {hint}choose another target"
        )
    # The manifests of earlier versions do not list the classes.
    before, classes = old.provenance.get("classes"), record.get("classes")
    if before is not None and classes is not None and before != classes:
        odd = sorted(set(before) ^ set(classes))
        raise OptionError(
            f"{where} numbers its classes over {len(before)} folders, these are {len(classes)}: {odd[0]!r} "
            "is in one alone, so that `cls` would mean two things; give the same folders, or pack them anew"
        )
    if job.kind == "samples":
        return
    packed = old.provenance.get("tokenizer", {})
    if job.tokenizer is None and packed:
        raise OptionError(
            f"{where} was packed with the tokenizer {packed.get('name')!r}, these tokens were there already; "
            "choose another target"
        )
    if job.tokenizer is not None:
        _check_tokenizer(job.tokenizer, packed, where)
    dtype = job.token_dtype()
    if dtype is not None and old.fields[0].dtype != dtype:
        raise OptionError(
            f"the tokens of {where} are {old.fields[0].dtype}, these would be {dtype}; choose another target"
        )


def _check_tokenizer(spec: str, packed: dict[str, Any], where: str) -> None:
    from shardstream.packing.tokenize import load_tokenizer

    tokenizer = load_tokenizer(spec)
    if packed.get("fingerprint") != tokenizer.fingerprint:
        raise OptionError(
            f"{where} was packed with the tokenizer {packed.get('name')!r}, not {tokenizer.name!r}; "
            "give the same, or choose another target"
        )

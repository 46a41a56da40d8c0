"""Shards to a manifest: fields, provenance, and what an append adds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from shardstream.errors import OptionError
from shardstream.format.manifest import FieldInfo, Manifest, ShardInfo
from shardstream.pack.job import Job
from shardstream.pack.sources import ImagesSource
from shardstream.storage.files import FileInfo
from shardstream.storage.remote import redact

TOOL = "shardstream 0.1.0"


def field_infos(shards: Iterable[ShardInfo], before: Sequence[FieldInfo] = ()) -> tuple[FieldInfo, ...]:
    """The fields of all shards in the order of their first appearance; the codec is the extension."""
    names = [info.name for info in before] + [name for shard in shards for name in shard.fields]
    return tuple(FieldInfo(name, name.rpartition(".")[2].lower()) for name in dict.fromkeys(names))


def next_number(old: Manifest | None) -> int:
    """The first shard number that an append may use."""
    numbers = [
        int(match[1])
        for shard in (old.shards if old else ())
        if (match := re.match(r"shard-(\d{6})", shard.index_url))
    ]
    return max(numbers, default=-1) + 1


def provenance(job: Job, kind: str, files: Sequence[FileInfo]) -> dict[str, Any]:
    """Where the data came from and how it was packed; nothing in it depends on the number of workers."""
    listing = hashlib.sha256()
    for file in files:
        listing.update(f"{redact(file.url)}\0{file.size}\n".encode("utf-8", "surrogateescape"))
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
        "tool": TOOL,
        "options": options,
        "sources": {
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "first": redact(files[0].url).encode("utf-8", "replace").decode(),
            "listing_sha256": listing.hexdigest(),
        },
    }
    if isinstance(job.source, ImagesSource) and (classes := job.source.classes(files)):
        record["classes"] = [name.encode("utf-8", "backslashreplace").decode() for name in classes]
    if job.tokenizer is not None:
        from shardstream.pack.tokenize import load_tokenizer

        tokenizer = load_tokenizer(job.tokenizer)
        record["tokenizer"] = {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos": job.eos,
        }
    return record


def compose(
    job: Job, old: Manifest | None, shards: tuple[ShardInfo, ...], record: dict[str, Any]
) -> Manifest:
    """The manifest of the new shards, after those of the dataset that is appended to."""
    fields = field_infos(shards, old.fields if old else ())
    if job.tokenizer is not None:
        from shardstream.pack.tokenize import load_tokenizer

        dtype = load_tokenizer(job.tokenizer).dtype(job.eos).name
        fields = (FieldInfo("tokens", "tokens", "uint16" if dtype == "uint16" else "uint32"),)
    if old is not None:
        record = {**old.provenance, "appended": [*old.provenance.get("appended", []), record]}
        shards = old.shards + shards
    kind: Literal["samples", "tokens"] = "samples" if job.tokenizer is None else "tokens"
    return Manifest.build(kind, fields, shards, record, bool(old and old.external))


def check_append(job: Job, old: Manifest, where: str, record: dict[str, Any]) -> None:
    """Refuse an append whose samples would not be of the dataset's kind."""
    kind = "samples" if job.tokenizer is None else "tokens"
    if old.kind != kind:
        raise OptionError(f"{where} holds {old.kind}; {kind} cannot be appended to it; choose another target")
    # Datasets of earlier versions do not say what their classes are.
    before, classes = old.provenance.get("classes"), record.get("classes")
    if before is not None and classes is not None and before != classes:
        odd = sorted(set(before) ^ set(classes))
        raise OptionError(
            f"{where} numbers its classes over {len(before)} folders, these are {len(classes)}: {odd[0]!r} "
            "is in one alone, so that `cls` would mean two things; give the same folders, or pack them anew"
        )
    if job.tokenizer is None:
        return
    from shardstream.pack.tokenize import load_tokenizer

    tokenizer = load_tokenizer(job.tokenizer)
    packed = old.provenance.get("tokenizer", {})
    if packed.get("fingerprint") != tokenizer.fingerprint:
        raise OptionError(
            f"{where} was packed with the tokenizer {packed.get('name')!r}, not {tokenizer.name!r}; "
            "give the same, or choose another target"
        )
    dtype = tokenizer.dtype(job.eos).name
    if old.fields[0].dtype != dtype:
        raise OptionError(
            f"the tokens of {where} are {old.fields[0].dtype}, these would be {dtype}; choose another target"
        )

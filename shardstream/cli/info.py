"""shardstream info: what a dataset is, on one screen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardstream.cli import options
from shardstream.cli.image_lines import image_lines
from shardstream.cli.screen import clean, facts, say
from shardstream.errors import ShardstreamError
from shardstream.format.shown import counted
from shardstream.format.sizes import human_size

if TYPE_CHECKING:
    from shardstream.format.manifest import Manifest
    from shardstream.read.reader import DatasetReader

_FRAME = 16 << 20  # bytes of a frame, decompressed, above which it is not read for a shape
# What is counted of images that are made smaller.
_RESIZED = {"images", "resized", "bytes_before", "bytes", "pixels_before", "pixels"}


def info(
    url: Annotated[str, typer.Argument(help="Directory or URL of the dataset.")],
    provenance: Annotated[
        bool,
        typer.Option("--provenance", help="Show the options and sources of the pack, too."),
    ] = False,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Show what a dataset is: samples, bytes, fields, columns, and how it was packed."""
    from shardstream.read.reader import DatasetReader

    reader = DatasetReader.open(url, options.storage_options(storage_option))
    manifest = reader.manifest
    if json:
        options.print_json({"url": reader.url, **_facts(manifest)})
        return
    say(f"{clean(reader.url)}: a dataset of {manifest.kind}")
    facts(_summary(manifest))
    say("  fields")
    facts(_fields(reader), indent="    ")
    if manifest.columns:
        say("  columns")
        facts(
            (
                (column.name, column.dtype + (f", {column.missing:,} missing" if column.missing else ""))
                for column in manifest.columns
            ),
            indent="    ",
        )
    for line in (*_resized(manifest), *image_lines(manifest.provenance)):
        say(f"  {clean(line)}", "    ")
    if not provenance:
        return
    import msgspec

    say("  provenance")
    for line in msgspec.json.format(msgspec.json.encode(manifest.provenance)).decode().splitlines():
        say(f"  {clean(line)}", "      ")


def _summary(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What matters most, each with its name."""
    record, sizes = manifest.provenance, [shard.bytes for shard in manifest.shards]
    yield "samples", f"{manifest.samples:,}"
    if manifest.kind == "tokens":
        yield "tokens", f"{manifest.tokens:,}"
    held = manifest.sample_bytes
    raw = f"{human_size(manifest.raw_bytes)} as plain tar"
    if held is not None:
        raw = f"{human_size(held)} in the samples (ratio {held / max(1, manifest.bytes):.2f}), {raw}"
    yield "bytes", f"{human_size(manifest.bytes)} stored, {raw}"
    each = ""
    if sizes:
        low, high = human_size(min(sizes)), human_size(max(sizes))
        each = f", each {low}" if low == high else f", {low} to {high} each"
    frames = sum(shard.frames for shard in manifest.shards)
    yield "shards", f"{len(sizes):,}{each}; {counted(frames, 'frame')}"
    options_of = _dict(record.get("options"))
    level = options_of.get("level") if options_of.get("compression") == "zstd" else None
    codecs = ", ".join(sorted({shard.codec for shard in manifest.shards}))
    yield "compression", f"{codecs}{'' if level is None else f', level {level}'}"
    if manifest.external:
        yield "archives", "stay where they are; only indexes and the manifest are here"
    elif options_of:
        seed = options_of.get("shuffle")
        yield "order", "as in the sources" if seed is None else f"shuffled when it was packed, seed {seed}"
    if tokenizer := _dict(record.get("tokenizer")):
        eos = tokenizer.get("eos")
        yield "tokenizer", f"{clean(str(tokenizer.get('name')))}, {'no eos' if eos is None else f'eos {eos}'}"
    sources = _dict(record.get("sources"))
    if isinstance(sources.get("bytes"), int):
        kind = options_of.get("format", "sources")
        files = counted(_count(sources, "files"), "file")
        yield "sources", f"{kind}: {files}, {human_size(sources['bytes'])}"
    packs = _packs(record)
    if rejected := sum(_count(pack, "rejected") for pack in packs):
        yield "rejected", f"{counted(rejected, 'sample')}, which the sources have and the dataset has not"
    if len(packs) > 1:
        yield "appends", f"{len(packs) - 1:,}"
    yield (
        "created by",
        f"{clean(str(record.get('tool', 'an unknown tool')))}; format version {manifest.version}",
    )
    yield "fingerprint", manifest.fingerprint


def _dict(value: Any) -> dict[str, Any]:
    """A part of the provenance, which other programs may have written."""
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(record: dict[str, Any], name: str) -> int:
    value = record.get(name)
    return value if isinstance(value, int) else 0


def _packs(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The provenance of the first pack, and of each that was appended."""
    return [record, *map(_dict, _list(record.get("appended")))]


def _fields(reader: DatasetReader) -> Iterator[tuple[str, str]]:
    """The fields with their codecs. The shape of arrays is that of the first sample."""
    from shardstream.read.dataset_blocks import STREAMS

    arrays = [field for field in reader.manifest.fields if field.codec == "npy"]
    first: dict[str, bytes] = {}
    if arrays and reader.manifest.samples:
        shard, sample = reader.locate(0)
        # The manifest is what was asked for; `verify` says what is damaged.
        with contextlib.suppress(ShardstreamError):
            # A shard that is one compressed stream would be read as a whole.
            if reader.manifest.shards[shard].codec not in STREAMS:
                index = reader.index(shard)
                if index.frame_raw_size[index.frame_of(sample)] <= _FRAME:
                    first = reader.sample(shard, sample)[1]
    for field in reader.manifest.fields:
        parts = [field.codec, field.dtype or ""]
        if field.codec == "npy" and field.name in first:
            parts.append(_shape(first[field.name]))
        yield field.name, clean(", ".join(part for part in parts if part))


def _shape(data: bytes) -> str:
    from shardstream.decode.arrays import viewed

    array = viewed(data)
    if array is None:
        return ""
    shape = " x ".join(f"{size:,}" for size in array.shape)
    return f"{array.dtype}{f', {shape}' if shape else ''} in the first sample"


def _resized(manifest: Manifest) -> Iterator[str]:
    images = _images(manifest.provenance).get("images", {})
    if "ratio" in images:
        yield (
            f"images: {images['resized']:,} of {images['images']:,} made smaller: "
            f"{human_size(images['bytes_before'])} -> {human_size(images['bytes'])} "
            f"(ratio {images['ratio']:.2f}), {images['pixel_ratio']:.2f} x fewer pixels to decode"
        )


def _images(provenance: dict[str, Any]) -> dict[str, Any]:
    """The counts of images, of all packs that made the dataset; empty if nothing was counted."""
    counts: dict[str, Any] = {}
    for record in _packs(provenance):
        images = _dict(record.get("images"))
        for name in images:
            counts[name] = counts.get(name, 0) + _count(images, name)
    if not counts:
        return {}
    if not counts.keys() >= _RESIZED:
        return {"images": counts}
    counts["ratio"] = round(counts["bytes_before"] / max(1, counts["bytes"]), 4)
    counts["pixel_ratio"] = round(counts["pixels_before"] / max(1, counts["pixels"]), 4)
    return {"images": counts}


def _facts(manifest: Manifest) -> dict[str, Any]:
    import msgspec

    sizes = [shard.bytes for shard in manifest.shards]
    held = manifest.sample_bytes
    return {
        "version": manifest.version,
        "kind": manifest.kind,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "shards": len(sizes),
        "frames": sum(shard.frames for shard in manifest.shards),
        "bytes": manifest.bytes,
        "raw_bytes": manifest.raw_bytes,
        "sample_bytes": held,
        # Of what the samples hold. Version 0.1 compared with the tar, whose padding compresses well.
        "ratio": None if held is None else round(held / max(1, manifest.bytes), 4),
        "shard_bytes": {
            "min": min(sizes, default=0),
            "mean": sum(sizes) // max(1, len(sizes)),
            "max": max(sizes, default=0),
        },
        "codecs": sorted({shard.codec for shard in manifest.shards}),
        "fields": msgspec.to_builtins(manifest.fields),
        "columns": [
            {"name": column.name, "dtype": column.dtype, "missing": column.missing}
            for column in manifest.columns
        ],
        "external": manifest.external,
        "fingerprint": manifest.fingerprint,
        **_images(manifest.provenance),
        "provenance": manifest.provenance,
    }

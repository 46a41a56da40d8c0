"""shardstream info, ls and cat: look into a dataset."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardstream.cli import options
from shardstream.cli.image_lines import image_lines
from shardstream.errors import OptionError

if TYPE_CHECKING:
    from shardstream.format.manifest import Manifest
    from shardstream.read.reader import DatasetReader

Url = Annotated[str, typer.Argument(help="Directory or URL of the dataset.")]


def _open(url: str, pairs: list[str] | None) -> DatasetReader:
    from shardstream.read.reader import DatasetReader

    return DatasetReader.open(url, options.storage_options(pairs))


def info(url: Url, storage_option: options.StorageOptions = None, json: options.Json = False) -> None:
    """Show what is in a dataset: totals, fields, sizes, ratios, provenance."""
    reader = _open(url, storage_option)
    facts = _facts(reader.manifest)
    if json:
        options.print_json({"url": reader.url, **facts})
        return
    from shardstream.format.sizes import human_size

    print(f"{reader.url}: {facts['kind']}, format version {facts['version']}")
    print(f"  samples      {facts['samples']:,}")
    if facts["tokens"]:
        print(f"  tokens       {facts['tokens']:,}")
    low, mean, high = (human_size(facts["shard_bytes"][name]) for name in ("min", "mean", "max"))
    print(f"  shards       {facts['shards']:,} ({low} to {high}, mean {mean})")
    print(f"  frames       {facts['frames']:,}")
    print(f"  stored       {human_size(facts['bytes'])}, {human_size(facts['raw_bytes'])} as plain tar")
    if facts["ratio"] is not None:
        print(f"  ratio        {facts['ratio']:.2f} ({human_size(facts['sample_bytes'])} in samples)")
    print(f"  codecs       {', '.join(facts['codecs'])}")
    print("  fields")
    for field in facts["fields"]:
        dtype = f", {field['dtype']}" if field["dtype"] else ""
        print(f"    {field['name']:<10} {field['codec']}{dtype}")
    if facts["columns"]:
        print("  columns")
    for column in facts["columns"]:
        missing = f", {column['missing']:,} missing" if column["missing"] else ""
        print(f"    {column['name']:<10} {column['dtype']}{missing}")
    if "resized" in (images := facts.get("images", {})):
        print(
            f"  images       {images['resized']:,} of {images['images']:,} made smaller: "
            f"{human_size(images['bytes_before'])} -> {human_size(images['bytes'])} "
            f"(ratio {images['ratio']:.2f}), {images['pixel_ratio']:.2f} x fewer pixels to decode"
        )
    for line in image_lines(facts["provenance"]):
        print(f"  {line}")
    print(f"  fingerprint  {facts['fingerprint']}")
    import msgspec

    print("  provenance   " + msgspec.json.format(msgspec.json.encode(facts["provenance"])).decode())


def _images(provenance: dict[str, Any]) -> dict[str, Any]:
    """The counts of images, of all packs that made the dataset; empty if nothing was counted."""
    counts: dict[str, Any] = {}
    for record in (provenance, *provenance.get("appended", [])):
        for name, count in record.get("images", {}).items():
            counts[name] = counts.get(name, 0) + count
    if not counts:
        return {}
    if "resized" not in counts:
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


def ls(
    url: Url,
    limit: Annotated[int | None, typer.Option(min=1, help="Show the first N samples only.")] = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """List the samples: number, key, fields with their sizes in bytes, shard and frame."""
    reader = _open(url, storage_option)
    names = [field.name for field in reader.manifest.fields]
    number = 0
    for shard, shard_info in enumerate(reader.manifest.shards):
        index = reader.index(shard)
        for sample in range(index.samples):
            if limit is not None and number >= limit:
                return
            sizes = zip(names, index.field_size[sample].tolist(), strict=True)
            fields = {name: size for name, size in sizes if size >= 0}
            key, frame = index.key(sample), index.frame_of(sample)
            if json:
                row = {
                    "number": number,
                    "key": key,
                    "fields": fields,
                    "shard": shard_info.url,
                    "frame": frame,
                }
                options.print_json(row)
            else:
                listed = " ".join(f"{name}={size}" for name, size in fields.items())
                print(f"{number}\t{key}\t{listed}\t{shard_info.url}:{frame}")
            number += 1


def cat(
    url: Url,
    sample: Annotated[str, typer.Argument(metavar="KEY|NUMBER", help="A key, or a sample's number from 0.")],
    field: Annotated[str | None, typer.Option(help="The field to write, as raw bytes.")] = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Write one sample: the raw bytes of a field; or all fields as JSON, if there are several.

    Digits are a number, unless no sample has that number; anything else is a key.
    """
    reader = _open(url, storage_option)
    key, fields = reader.sample(*_place(reader, sample))
    if field is not None:
        if field not in fields:
            raise OptionError(f"sample {key!r} has no field {field!r}; it has {', '.join(fields)}")
        sys.stdout.buffer.write(fields[field])
    elif reader.manifest.kind == "tokens":
        import numpy as np

        tokens = np.frombuffer(fields["tokens"], np.dtype(reader.manifest.fields[0].dtype))
        print(" ".join(map(str, tokens.tolist())))
    elif len(fields) == 1:
        sys.stdout.buffer.write(next(iter(fields.values())))
    else:
        options.print_json({"__key__": key, **{name: _shown(data) for name, data in fields.items()}})
    sys.stdout.flush()


def _place(reader: DatasetReader, sample: str) -> tuple[int, int]:
    from shardstream.format.names import escape_key

    if sample.isdecimal() and int(sample) < reader.manifest.samples:
        return reader.locate(int(sample))
    found = reader.find(sample) or reader.find(escape_key(sample))
    if found is None:
        raise OptionError(
            f"no sample has the key {sample!r}, and there are {reader.manifest.samples:,} in the dataset"
        )
    return found


def _shown(data: bytes) -> object:
    import msgspec

    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"<{len(data)} bytes>"

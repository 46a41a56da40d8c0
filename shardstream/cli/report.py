"""What `shardstream pack` says when it has ended."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from shardstream.cli import options
from shardstream.cli.image_lines import image_lines
from shardstream.cli.screen import say
from shardstream.format.shown import counted
from shardstream.format.sizes import human_size

if TYPE_CHECKING:
    from shardstream.format.manifest import Manifest
    from shardstream.packing.pack_parts import PackedPart
    from shardstream.packing.planning import Plan

_SHOWN = 3  # rejects


def print_plan(plan: Plan, json: bool) -> None:
    """Print what a dry run found."""
    if json:
        options.print_json(plan)
        return
    say(
        f"{plan.format}: {counted(plan.files, 'file')}, {human_size(plan.input_bytes)}, "
        f"in {counted(plan.tasks, 'task')}, shards of {human_size(plan.shard_size)}, compression "
        f"{plan.compression}; nothing was written"
    )
    if plan.keys:
        say(f"keys: {plan.keys}")


def print_part(done: PackedPart, seconds: float, json: bool) -> None:
    """Print what one part of a pack did."""
    if json:
        options.print_json({**dataclasses.asdict(done), "seconds": round(seconds, 3)})
        return
    name = f"part {done.part}/{done.parts}"
    if done.committed:
        say(f"{name}: nothing to do, the dataset is committed")
        return
    rejected = f"; {counted(done.rejected, 'sample')} rejected" if done.rejected else ""
    if done.waits:
        say(
            f"{name} has read its input: {counted(done.tasks, 'task')}, "
            f"{counted(done.samples, 'sample')}{rejected}. "
            "When all parts have, run each once more; or --commit alone puts the samples in order"
        )
        return
    say(
        f"{name} is done: {counted(done.tasks, 'task')}, {counted(done.samples, 'sample')}, "
        f"{counted(done.shards, 'shard')}, {human_size(done.bytes)}{rejected}. "
        "When all parts are done: --commit"
    )


def print_packed(
    manifest: Manifest, dest: str, storage_options: dict[str, Any] | None, seconds: float, limited: bool,
    json: bool,
) -> None:  # fmt: skip
    """Print what a pack did.

    Args:
        manifest: The manifest of the dataset.
        dest: The dataset, as the user named it.
        storage_options: The options for its store.
        seconds: How long it took.
        limited: Whether only a part of the sources was read.
        json: Whether to print one JSON object.
    """
    from shardstream.packing.keys import described
    from shardstream.packing.rejects import first_rejects

    record = (manifest.provenance.get("appended") or [manifest.provenance])[-1]
    rejected = record["rejected"]
    first, listed_at = first_rejects(dest, storage_options, _SHOWN) if rejected else ([], None)
    held = manifest.sample_bytes
    ratio = None if held is None else round(held / max(1, manifest.bytes), 4)
    if json:
        options.print_json(
            {
                "samples": manifest.samples,
                "tokens": manifest.tokens,
                "shards": len(manifest.shards),
                "bytes": manifest.bytes,
                "raw_bytes": manifest.raw_bytes,
                "sample_bytes": held,
                "ratio": ratio,
                "keys": described(record),
                "rejected": rejected,
                "rejects": listed_at,
                "skipped": record.get("skipped", {}),
                "first_rejects": first,
                "seconds": round(seconds, 3),
                "fingerprint": manifest.fingerprint,
                **{name: record[name] for name in ("labels", "classes", "class_counts") if name in record},
            }
        )
        return
    read = record["sources"]["bytes"]
    tokens = f", {counted(manifest.tokens, 'token')}" if manifest.tokens else ""
    # With a limit only a part of the sources was read, so that a rate would be wrong.
    rate = "" if limited else f", {human_size(round(read / max(seconds, 1e-6)))}/s"
    samples = "" if held is None else f"{human_size(held)} in samples -> "
    say(
        f"{counted(manifest.samples, 'sample')}{tokens} in {counted(len(manifest.shards), 'shard')}: "
        f"{human_size(read)} {'in the sources' if limited else 'read'}, "
        f"{samples}{human_size(manifest.bytes)} stored"
        f"{'' if ratio is None else f' (ratio {ratio:.2f})'}, {seconds:.1f} s{rate}"
    )
    if keys := described(record):
        say(f"keys: {keys}")
    for line in image_lines(record):
        say(line)
    if manifest.columns:
        told = (
            f"{c.name} {c.dtype}{f' ({c.missing:,} missing)' if c.missing else ''}" for c in manifest.columns
        )
        say(f"columns: {', '.join(told)}")
    print_skipped(record, dest)
    if rejected:
        say(f"{rejected:,} rejected: see {listed_at}")
        for row in first:
            say(f"  {row['where']}: {row['reason']}")
        if rejected > len(first):
            say(f"  and {rejected - len(first):,} more")


def print_skipped(record: dict[str, Any], dest: str) -> None:
    """Print how many members of archives, and files beside archives, were passed over.

    Args:
        record: The provenance.
        dest: The dataset, as the user named it.
    """
    from shardstream.packing.rejects import REJECTS
    from shardstream.storage.store import redact

    skipped = record.get("skipped", {})
    if skipped:
        each = "; ".join(f"{count:,}: {why}" for why, count in skipped.items())
        say(f"{sum(skipped.values()):,} skipped ({each}): see {redact(dest).rstrip('/')}/{REJECTS}")

"""shardstream pack"""

from __future__ import annotations

from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.cli.progress import shown


def pack(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Files, directories, globs, URLs.")
    ],
    dest: Annotated[str, typer.Argument(help="Directory or URL of the dataset.")],
    format: Annotated[
        str | None,
        typer.Option(help="jsonl, text, images or webdataset; recognised by the extensions if left out."),
    ] = None,
    text_key: Annotated[str, typer.Option(help="JSONL: the key that holds the text.")] = "text",
    keep: Annotated[
        list[str] | None, typer.Option(help="JSONL: a key to keep in field json; repeatable. All by default.")
    ] = None,
    compression: Annotated[
        str | None,
        typer.Option(help="zstd or none; none by default where the data is compressed already."),
    ] = None,
    level: Annotated[int, typer.Option(help="zstd level, 1 to 22.")] = 3,
    frame_size: Annotated[str, typer.Option(help="Bytes of samples in a frame.")] = "1MiB",
    shard_size: Annotated[str, typer.Option(help="Bytes of samples in a shard.")] = "64MiB",
    workers: options.Workers = None,
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="Shuffle the whole corpus.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="bytes, a tokenizers JSON, a tiktoken ranks file or encoding name.")
    ] = None,
    eos: Annotated[int | None, typer.Option(metavar="ID", help="Token that ends each document.")] = None,
    resize: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images: the shorter side to N pixels, if longer.")
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of resized JPEG and WebP images; 90 by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pack the first N samples only.")] = None,
    on_error: Annotated[str, typer.Option(help="raise, or skip bad samples and list them.")] = "raise",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished pack.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add to the dataset at DEST.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Pack sources into a dataset at DEST."""
    import time

    from shardstream.format.sizes import human_size
    from shardstream.pack.packer import Plan
    from shardstream.pack.packer import pack as run
    from shardstream.pack.target import REJECTS
    from shardstream.storage.remote import redact

    started = time.monotonic()
    with shown("packing", quiet=json or dry_run) as progress:
        done = run(
            sources,
            dest,
            format=format,
            text_key=text_key,
            keep=keep,
            compression=compression,
            level=level,
            frame_size=frame_size,
            shard_size=shard_size,
            workers=workers,
            shuffle=shuffle,
            tokenizer=tokenizer,
            eos=eos,
            resize=resize,
            quality=quality,
            limit=limit,
            on_error=on_error,
            resume=resume,
            append=append,
            dry_run=dry_run,
            storage_options=options.storage_options(storage_option),
            progress=progress,
        )
    seconds = time.monotonic() - started
    if isinstance(done, Plan):
        if json:
            options.print_json(done)
        else:
            print(
                f"{done.format}: {done.files:,} files, {human_size(done.input_bytes)}, "
                f"in {done.tasks:,} tasks, compression {done.compression}; nothing was written"
            )
        return
    record = (done.provenance.get("appended") or [done.provenance])[-1]
    rejected = record["rejected"]
    if json:
        options.print_json(
            {
                "samples": done.samples,
                "tokens": done.tokens,
                "shards": len(done.shards),
                "bytes": done.bytes,
                "raw_bytes": done.raw_bytes,
                "ratio": round(done.raw_bytes / max(1, done.bytes), 4),
                "rejected": rejected,
                "rejects": f"{redact(dest).rstrip('/')}/{REJECTS}" if rejected else None,
                "seconds": round(seconds, 3),
                "fingerprint": done.fingerprint,
            }
        )
        return
    read = record["sources"]["bytes"]
    tokens = f", {done.tokens:,} tokens" if done.tokens else ""
    # With a limit, only a part of the sources was read.
    rate = f", {human_size(round(read / max(seconds, 1e-6)))}/s" if limit is None else ""
    print(
        f"{done.samples:,} samples{tokens} in {len(done.shards):,} shards: "
        f"{human_size(read)} {'read' if limit is None else 'in the sources'}, "
        f"{human_size(done.raw_bytes)} as plain tar -> {human_size(done.bytes)} stored "
        f"(ratio {done.raw_bytes / max(1, done.bytes):.2f}), {seconds:.1f} s{rate}"
    )
    if rejected:
        print(f"{rejected:,} rejected: see {redact(dest).rstrip('/')}/{REJECTS}")

"""shardstream index"""

from __future__ import annotations

from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.cli.progress import shown


def index(
    tars: Annotated[list[str], typer.Argument(metavar="TAR...", help="WebDataset tars: .tar, .gz, .zst.")],
    dest: Annotated[str, typer.Argument(help="Directory or URL for the manifest and the indexes.")],
    frame_size: Annotated[str, typer.Option(help="Bytes of samples in a frame.")] = "1MiB",
    workers: options.Workers = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Adopt existing WebDataset tars in place: only indexes and a manifest are written."""
    from shardstream.format.sizes import human_size
    from shardstream.pack.adopt import index as run

    with shown("indexing", quiet=json) as progress:
        done = run(
            tars,
            dest,
            frame_size=frame_size,
            workers=workers,
            storage_options=options.storage_options(storage_option),
            progress=progress,
        )
    if json:
        options.print_json({"samples": done.samples, "shards": len(done.shards), "bytes": done.bytes})
    else:
        print(f"{done.samples:,} samples in {len(done.shards):,} archives, {human_size(done.bytes)}")

"""shardstream index"""

from __future__ import annotations

from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import say
from shardstream.progress import shown


def index(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="TAR... DEST",
            help="WebDataset tars: .tar, .gz, .zst; and last the directory or URL for manifest and indexes.",
        ),
    ],
    frame_size: Annotated[str, typer.Option(help="Bytes of samples in a frame.")] = "1MiB",
    split_key: Annotated[
        str, typer.Option(metavar="first|last", help="The dot at which the key of a member ends.")
    ] = "first",
    on_error: Annotated[str, typer.Option(help="raise, or skip bad samples and list them.")] = "raise",
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Commit nothing if more is skipped.")
    ] = 0.5,
    workers: options.Workers = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Adopt existing WebDataset tars in place: only indexes and a manifest are written."""
    from shardstream.cli.report import print_skipped
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size
    from shardstream.packing.adopt import index as run
    from shardstream.packing.rejects import REJECTS
    from shardstream.storage.store import redact

    tars, dest = options.split_paths(paths, "index", "TAR... DEST")
    with options.warnings_shown(), shown("indexing", quiet=json) as progress:
        done = run(
            tars,
            dest,
            frame_size=frame_size,
            split_key=options.unchecked(split_key),
            max_rejects=max_rejects,
            on_error=options.unchecked(on_error),
            workers=workers,
            storage_options=options.storage_options(storage_option),
            progress=progress,
        )
    if json:
        options.print_json(
            {
                "samples": done.samples,
                "shards": len(done.shards),
                "bytes": done.bytes,
                "rejected": done.provenance.get("rejected", 0),
                "skipped": done.provenance.get("skipped", {}),
            }
        )
    else:
        archives = counted(len(done.shards), "archive")
        say(f"{counted(done.samples, 'sample')} in {archives}, {human_size(done.bytes)}")
        if rejected := done.provenance.get("rejected", 0):
            say(f"{rejected:,} rejected: see {redact(dest).rstrip('/')}/{REJECTS}")
        print_skipped(done.provenance, dest)

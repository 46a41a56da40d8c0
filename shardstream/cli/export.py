"""shardstream export"""

from __future__ import annotations

from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import say
from shardstream.format.shown import counted
from shardstream.progress import shown


def export(
    url: Annotated[str, typer.Argument(help="Directory or URL of the dataset.")],
    dest: Annotated[str, typer.Argument(help="Directory or URL to write to.")],
    format: Annotated[
        str, typer.Option(help="webdataset (plain tars), jsonl, parquet, mds, or dali-index.")
    ] = "webdataset",
    shard_size: Annotated[str, typer.Option(help="Bytes in one output file.")] = "64MiB",
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Write a dataset back as plain WebDataset tars, as JSON Lines, as Parquet or as MDS.

    dali-index writes no samples: for each plain tar of the dataset a file shard-000000.idx, or with the
    name of the tar, which DALI's webdataset reader takes as index_paths.
    """
    from shardstream.maintain.export import export as run
    from shardstream.storage.store import redact

    if format == "dali-index":
        from shardstream.maintain.dali_index import write_dali_index

        written = write_dali_index(url, dest, options.storage_options(storage_option))
        if json:
            options.print_json({"files": written})
        else:
            say(f"{counted(len(written), 'index', 'indexes')} written to {redact(dest)}")
        return
    with shown("exporting", quiet=json) as progress:
        count = run(
            url,
            dest,
            options.unchecked(format),
            shard_size,
            options.storage_options(storage_option),
            progress,
        )
    if json:
        options.print_json({"samples": count})
    else:
        say(f"{counted(count, 'sample')} written to {redact(dest)}")

"""shardstream export"""

from __future__ import annotations

from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.cli.progress import counted


def export(
    url: Annotated[str, typer.Argument(help="Directory or URL of the dataset.")],
    dest: Annotated[str, typer.Argument(help="Directory or URL to write to.")],
    format: Annotated[str, typer.Option(help="webdataset (plain tars) or jsonl.")] = "webdataset",
    shard_size: Annotated[str, typer.Option(help="Bytes in one output file.")] = "64MiB",
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Write a dataset back as plain WebDataset tars or as JSON Lines."""
    from shardstream.read.export import export as run
    from shardstream.storage.remote import redact

    with counted("exporting", quiet=json) as progress:
        count = run(url, dest, format, shard_size, options.storage_options(storage_option), progress)
    if json:
        options.print_json({"samples": count})
    else:
        print(f"{count:,} samples written to {redact(dest)}")

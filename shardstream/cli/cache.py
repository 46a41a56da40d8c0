"""shardstream cache"""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from shardstream.cli import options
from shardstream.cli.screen import say
from shardstream.errors import StorageError


def cache(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The directory of the cache.")],
    action: Annotated[Literal["info", "verify", "clear"], typer.Argument(help="What to do.")] = "info",
    json: options.Json = False,
) -> None:
    """Show what a cache contains, check every block in it, or delete its content.

    Exit code of verify: 0 sound, 1 damaged blocks, named. They are fetched anew when they are read.
    """
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size
    from shardstream.storage.cache.disk import DiskTier

    if not os.path.isdir(DiskTier.path_in(folder)):
        raise StorageError(f"{folder}: no cache here; give the directory that the cache was made with")
    disk = DiskTier.open(folder)
    found = disk.clear() if action == "clear" else disk.info(check=action == "verify")
    if json:
        options.print_json(found)
    else:
        for name in found.damaged:
            say(f"{name}: damaged")
        verb = "deleted" if action == "clear" else "holds"
        size = human_size(found.bytes)
        blocks, shards = counted(found.blocks, "block"), counted(found.groups, "shard")
        say(f"{found.path}: {verb} {blocks} of {shards}, {size}")
        if action == "info":
            say(
                f"  {found.raw_blocks:,} decompressed; used by "
                f"{counted(found.processes, 'other process', 'other processes')}; "
                f"{counted(found.foreign, 'file')} not of the cache"
            )
    if found.damaged:
        raise typer.Exit(1)

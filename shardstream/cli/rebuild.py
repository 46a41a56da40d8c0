"""shardstream rebuild"""

from __future__ import annotations

from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import say
from shardstream.format.shown import counted
from shardstream.progress import shown


def rebuild(
    url: Annotated[str, typer.Argument(help="Directory or URL of the dataset.")],
    tokens: Annotated[
        str | None, typer.Option(help="Only for tokens: uint16 or uint32, which the shards do not say.")
    ] = None,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Make a lost manifest again from the shards and their indexes. All of them are read and checked."""
    from shardstream.errors import OptionError
    from shardstream.maintain.rebuild import rebuild as run

    if tokens not in (None, "uint16", "uint32"):
        raise OptionError(f"--tokens {tokens}: choose uint16 or uint32")
    with shown("rebuilding", quiet=json) as progress:
        manifest = run(
            url,
            tokens=options.unchecked(tokens),
            storage_options=options.storage_options(storage_option),
            progress=progress,
        )
    if json:
        options.print_json(
            {"samples": manifest.samples, "shards": len(manifest.shards), "fingerprint": manifest.fingerprint}
        )
    else:
        say(
            f"{counted(manifest.samples, 'sample')} in {counted(len(manifest.shards), 'shard')}; "
            "the provenance could not be rebuilt"
        )

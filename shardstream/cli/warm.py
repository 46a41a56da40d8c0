"""shardstream warm"""

from __future__ import annotations

from typing import Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import say, warn
from shardstream.errors import OptionError


def warm(
    url: Annotated[str, typer.Argument(help="URL of the dataset.")],
    cache: Annotated[str, typer.Option(metavar="DIR", help="The directory of the cache.")],
    ranks: Annotated[
        str | None, typer.Option(help="Data-parallel ranks of this machine: 0-7 or 0,2. All data by default.")
    ] = None,
    world: Annotated[int | None, typer.Option(min=1, help="How many data-parallel ranks there are.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the job's Shuffle.")] = 0,
    natural: Annotated[bool, typer.Option("--natural", help="The job reads in natural order.")] = False,
    lanes: Annotated[
        int | None, typer.Option(min=1, help="The lanes of the job's Shuffle, if given.")
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="The window of the job's Shuffle.")] = 4,
    scope: Annotated[str, typer.Option(help="The scope of the job's Shuffle: epoch, or lane.")] = "epoch",
    seq_len: Annotated[int | None, typer.Option(min=1, help="The seq_len of the job's TokenDataset.")] = None,
    pack: Annotated[
        str | None, typer.Option(help="The pack of the job's TokenDataset, such as best-fit.")
    ] = None,
    tail: Annotated[str, typer.Option(help="The tail of the job's TokenDataset: drop, or pad.")] = "drop",
    epochs: Annotated[int, typer.Option(min=1, help="How many epochs, from the first one on.")] = 1,
    disk: Annotated[str | None, typer.Option(help="The cache's limit, such as 200GB.")] = None,
    disk_format: Annotated[str, typer.Option(help="stored, or raw: decompressed.")] = "stored",
    limit: Annotated[str | None, typer.Option(help="Stop after this many bytes, such as 10GB.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; report what is missing.")] = False,
    always: Annotated[bool, typer.Option("--always", help="Cache a dataset at a local path, too.")] = False,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Fill a cache with what the ranks of this machine will read, in the order in which they need it.

    Exit code 0: all that was asked for is there; 1: something is missing, damaged or failed, or the cache
    is too small for it; 2: usage. What lies beyond --limit was not asked for.
    """
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size
    from shardstream.maintain.warm import warm as run
    from shardstream.order.shuffle import Shuffle
    from shardstream.progress import shown
    from shardstream.storage.cache.options import Cache

    with shown("warming", json or check) as progress:
        report = run(
            url,
            Cache(cache, disk=disk, disk_format=options.unchecked(disk_format), always=always),
            ranks=None if ranks is None else numbers(ranks),
            dp_size=world,
            epochs=epochs,
            limit=limit,
            check=check,
            shuffle=False if natural else Shuffle(seed, lanes, window, options.unchecked(scope)),
            seq_len=seq_len,
            pack=options.unchecked(pack),
            tail=options.unchecked(tail),
            storage_options=options.storage_options(storage_option),
            progress=progress,
        )
    if json:
        options.print_json({"complete": report.complete, **vars(report)})
    else:
        for name in report.corrupt:
            say(f"{name}: damaged in the cache; it is fetched anew when it is read")
        for message in report.failed:
            warn(f"error: {message}")
        say(
            f"{'complete' if report.complete else 'incomplete'}: {counted(report.wanted, 'block')} wanted, "
            f"{human_size(report.wanted_bytes)}; {report.present:,} were there, {report.fetched:,} fetched, "
            f"{report.missing:,} missing{', more beyond the limit' if report.left_out else ''}"
        )
    if not (report.complete or (limit is not None and report.filled)):
        raise typer.Exit(1)


def numbers(text: str) -> list[int]:
    """The numbers in a text such as "0-3,6"."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            found = range(int(first), int(last if dash else first) + 1)
            if not found:
                raise ValueError("from high to low")
            numbers += found
        except ValueError as error:
            raise OptionError(f"--ranks {text!r}: write for example 0-7, or 0,2,5") from error
    return numbers

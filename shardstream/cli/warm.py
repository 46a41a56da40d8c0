"""shardstream warm"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shardstream.cli import options
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
    lanes: Annotated[int | None, typer.Option(min=1, help="The lanes of its Shuffle, if given.")] = None,
    window: Annotated[int, typer.Option(min=1, help="The window of the job's Shuffle.")] = 4,
    seq_len: Annotated[int | None, typer.Option(min=1, help="The seq_len of the job's TokenDataset.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="The first so many epochs.")] = 1,
    disk: Annotated[str | None, typer.Option(help="The cache's limit, such as 200GB.")] = None,
    disk_format: Annotated[str, typer.Option(help="stored, or raw: decompressed.")] = "stored",
    limit: Annotated[str | None, typer.Option(help="Stop after so many bytes.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Fetch nothing; report what is not there.")] = False,
    always: Annotated[bool, typer.Option("--always", help="Keep a dataset at a local path, too.")] = False,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Fill a cache with what this machine's ranks will read, in the order of need.

    Exit code 0: it is all there; 1: something is missing, damaged or failed; 2: usage.
    """
    from shardstream.cli.progress import moved
    from shardstream.format.sizes import human_size
    from shardstream.order.shuffle import Shuffle
    from shardstream.storage.cache import Cache
    from shardstream.warm import warm as run

    with moved("warm", json or check) as progress:
        report = run(
            url,
            Cache(cache, disk=disk, disk_format=disk_format, always=always),
            ranks=None if ranks is None else _numbers(ranks),
            dp_size=world,
            epochs=epochs,
            limit=limit,
            check=check,
            shuffle=False if natural else Shuffle(seed, lanes, window),
            seq_len=seq_len,
            storage_options=options.storage_options(storage_option),
            progress=None if progress is None else lambda now: progress(*now),
        )
    if json:
        options.print_json({"complete": report.complete, **vars(report)})
    else:
        for name in report.corrupt:
            print(f"{name}: damaged in the cache; it is fetched anew when it is read")
        for message in report.failed:
            print(f"error: {message}", file=sys.stderr)
        print(
            f"{'complete' if report.complete else 'incomplete'}: {report.wanted:,} blocks wanted, "
            f"{human_size(report.wanted_bytes)}; {report.present:,} were there, {report.fetched:,} fetched, "
            f"{report.missing:,} missing, {report.left_out:,} beyond the limit"
        )
    if not report.complete:
        raise typer.Exit(1)


def _numbers(text: str) -> list[int]:
    """The numbers of "0-3,6"."""
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

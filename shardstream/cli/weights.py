"""shardstream weights"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shardstream.cli import options
from shardstream.cli.screen import say, table
from shardstream.errors import OptionError
from shardstream.progress import shown

if TYPE_CHECKING:
    from shardstream.weights.check import Summary, Verified


def weights(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="A folder, a .safetensors file, an index, or hf://.")
    ],
    action: Annotated[Literal["info", "fetch", "verify"], typer.Argument(help="What to do.")] = "info",
    cache: Annotated[
        str | None, typer.Option("--cache", metavar="DIR", help="fetch: the folder to keep weights in.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="info: list all tensors, too.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="verify: write checksums beside the files, for later checks.")
    ] = False,
    storage_option: options.StorageOptions = None,
    json: options.Json = False,
) -> None:
    """Show what weights a URL holds, fetch them to a verified local folder, or check every byte.

    Exit code of verify: 0 sound, 1 damaged or not readable. It names the files that have no checksums.
    """
    store = options.storage_options(storage_option)
    if (cache is None) == (action == "fetch"):
        raise OptionError("fetch needs --cache DIR" if cache is None else "--cache is for fetch")
    if tensors and action != "info":
        raise OptionError("--tensors is for info")
    if record and action != "verify":
        raise OptionError("--record is for verify")
    if action == "fetch":
        from shardstream.weights.fetch import fetch_weights

        with shown("fetching", quiet=json) as progress:
            path = fetch_weights(url, cache or "", storage_options=store, progress=progress)
        options.print_json({"path": path}) if json else say(path)
        return
    from shardstream.weights.check import summary, verify_weights

    if action == "verify":
        with shown("verifying", quiet=json) as progress:
            checked = verify_weights(url, store, record, progress)
        options.print_json(checked) if json else _print_check(checked, record)
        return
    found = summary(url, store)
    options.print_json(found) if json else _print_summary(found, tensors)


def _print_check(checked: Verified, record: bool) -> None:
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size

    for file in checked.unchecked:
        say(f"{file}: read; its header is sound; there are no checksums of its tensors")
    total = len(checked.checked) + len(checked.unchecked)
    said = f"{len(checked.checked):,} of {counted(total, 'file')} verified by checksums"
    say(f"{checked.url}: {human_size(checked.bytes)} read; {said}")
    if record:
        say("checksums recorded")


def _print_summary(found: Summary, tensors: bool) -> None:
    from shardstream.format.shown import counted
    from shardstream.format.sizes import human_size

    say(f"{found.url}: {counted(len(found.tensors), 'tensor')}, {human_size(found.bytes)}")
    for name, size in sorted(found.dtypes.items(), key=lambda pair: -pair[1]):
        say(f"  {name}: {human_size(size)}")
    for file in found.files:
        sums = "with checksums" if file.checksums else "without checksums"
        say(f"  {file.file}: {counted(file.tensors, 'tensor')}, {human_size(file.bytes)}, {sums}")
    if tensors:
        rows = (
            (each.name, each.dtype, " x ".join(map(str, each.shape)) or "one number", human_size(each.bytes))
            for each in found.tensors
        )
        table(("tensor", "dtype", "shape", "bytes"), rows, "<<<>", indent="  ")

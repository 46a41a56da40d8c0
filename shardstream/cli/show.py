"""shardstream show: a contact sheet of some samples, as a picture file or in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardstream.cli import options
from shardstream.errors import OptionError
from shardstream.format.shown import counted

if TYPE_CHECKING:
    from shardstream.decode.tiles import Tile

_BLOCKS = 34  # columns of an image in the terminal


def show(
    url: Annotated[str, typer.Argument(help="Directory or URL of the dataset.")],
    out: Annotated[
        str | None, typer.Option(help="Picture to write, such as sheet.png; without it, the terminal.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=400, help="How many samples; 24, or 6 here.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draw samples at random; else evenly spread.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="bytes, a .json or .tiktoken file, or a name, to read tokens by.")
    ] = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Show some samples: images, masks and waveforms with captions and labels, or texts."""
    from shardstream.decode.tiles import spread, tile
    from shardstream.observe.contact import tokenizer_of
    from shardstream.read.reader import DatasetReader

    reader = DatasetReader.open(url, options.storage_options(storage_option))
    manifest = reader.manifest
    known = tokenizer_of(manifest, tokenizer, "--tokenizer ")
    count = limit or (24 if out else 6)
    tiles = [
        tile(manifest, *reader.sample(*reader.locate(number)), known)
        for number in spread(manifest.samples, count, seed)
    ]
    title = f"{reader.url}: {len(tiles):,} of {counted(manifest.samples, 'sample')}"
    if out is None:
        _in_terminal(title, tiles)
        return
    from shardstream.observe.sheet import sheet

    page = sheet(title, tiles)
    try:
        page.save(out)
    except (OSError, ValueError) as error:  # no such directory; no such kind of picture
        raise OptionError(f"--out {out}: no picture can be written there ({error})") from error
    print(f"{counted(len(tiles), 'sample')} on {out}, {page.width} x {page.height} pixels")


def _in_terminal(title: str, tiles: list[Tile]) -> None:
    from rich.columns import Columns
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.text import Text

    console = Console(file=sys.stdout)
    print(title)
    pictures = any(tile.image is not None for tile in tiles)
    cards: list[Any] = []
    for tile in tiles:
        parts: list[Any] = []
        if isinstance(tile.image, str):
            parts.append(Text(tile.image))
        elif tile.image is not None:
            size = f"{tile.image.width} x {tile.image.height}"
            # A picture of half blocks needs colours.
            parts.append(_blocks(tile.image) if console.color_system else Text(f"image, {size}"))
        lines = tile.text.splitlines()[: 3 if pictures else 12]
        if lines:
            parts.append(Text("\n".join(lines), no_wrap=tile.code, overflow="ellipsis"))
        width = _BLOCKS + 4 if pictures else None
        named, label = Text(tile.key), Text(tile.label) if tile.label else None
        cards.append(Panel(Group(*parts), title=named, title_align="left", subtitle=label, width=width))
    console.print(Columns(cards) if pictures else Group(*cards))


def _blocks(image: Any) -> Any:
    """An image as text. Each character shows two pixels, one above the other."""
    from rich.text import Text

    height = max(2, min(2 * _BLOCKS, round(_BLOCKS * image.height / image.width))) // 2 * 2
    pixels = image.resize((_BLOCKS, height)).load()
    text = Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(_BLOCKS):
            (r, g, b), (s, h, c) = pixels[x, y], pixels[x, y + 1]
            text.append("▀", f"rgb({r},{g},{b}) on rgb({s},{h},{c})")
        if y + 2 < height:
            text.append("\n")
    return text

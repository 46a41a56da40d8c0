"""shardstream show: a contact sheet of some samples, as a picture file or in the terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import clean, say
from shardstream.cli.values import bounded, described, text_width
from shardstream.decode.tiles import SHOWN, TEXTS, kinds_of, pictured, spread, tile, token_tile
from shardstream.errors import OptionError
from shardstream.format.shown import counted

if TYPE_CHECKING:
    from shardstream.decode.tiles import Tile
    from shardstream.format.manifest import Manifest
    from shardstream.packing.tokenize import Tokenizer

_OTHERS = 12  # fields of a sample that are named, beside pictures and its text
_EDGE = 4  # columns of a line that numbers leave free, since they are not broken


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
    lines: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="Lines of the text of a sample in the terminal; 8, or 3 below images."
        ),
    ] = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Show some samples: images, masks and waveforms with captions and labels, texts or tokens.

    Long values are shown by their beginning and their size. `shardstream cat` writes the whole of one sample.
    """
    from shardstream.observe.contact import tokenizer_of
    from shardstream.read.reader import DatasetReader

    reader = DatasetReader.open(url, options.storage_options(storage_option))
    manifest = reader.manifest
    known = tokenizer_of(manifest, tokenizer, "--tokenizer ")
    count = limit or (24 if out else 6)
    pictures = any(kind in SHOWN for kind in kinds_of(manifest).values())
    most = lines or (3 if pictures else 8)
    samples = (reader.sample(*reader.locate(number)) for number in spread(manifest.samples, count, seed))
    if out is None:
        tiles = [_card(manifest, *sample, known, most, pictures) for sample in samples]
    else:
        from shardstream.observe.sheet import sheet, small

        tiles = [small(tile(manifest, *sample, known)) for sample in samples]
    title = f"{clean(reader.url)}: {len(tiles):,} of {counted(manifest.samples, 'sample')}"
    if out is None:
        from shardstream.cli.cards import print_cards

        print_cards(title, tiles, pictures)
        return
    page = sheet(title, tiles)
    try:
        page.save(out)
    except (OSError, ValueError) as error:  # no such directory; no such kind of picture
        raise OptionError(f"--out {out}: no picture can be written there ({error})") from error
    say(f"{counted(len(tiles), 'sample')} on {out}, {page.width} x {page.height} pixels")


def _card(
    manifest: Manifest,
    key: str,
    fields: dict[str, bytes],
    tokenizer: Tokenizer | None,
    lines: int,
    pictures: bool,
) -> Tile:
    """A sample in the terminal, whose text has so many lines at most."""
    width = text_width(pictures)
    if manifest.kind != "tokens":
        return _in_lines(pictured(manifest, key, fields), fields, kinds_of(manifest), lines, width)
    room = lines * (width - _EDGE), lines * width + 1
    found = token_tile(manifest, key, fields["tokens"], tokenizer, *room)
    return found if tokenizer is None else replace(found, text=bounded(found.text, lines, width, "..."))


def _in_lines(tile: Tile, fields: dict[str, bytes], kinds: dict[str, str], lines: int, width: int) -> Tile:
    """The same with its fields in few lines: its text as it is, and the others with their names."""
    rest = [name for name in fields if kinds[name] not in SHOWN and kinds[name] != "cls"]
    texts = sorted((name for name in rest if kinds[name] in TEXTS), key=lambda name: kinds[name] == "json")
    parts = [tile.text] if tile.text else []
    if texts:
        parts.append(described(kinds[texts[0]], fields[texts[0]], lines, width))
        rest.remove(texts[0])
    few = max(1, lines // 4)
    for name in rest[:_OTHERS]:
        shown = described(kinds[name], fields[name], few, max(16, width - len(name) - 2))
        parts.append(f"{clean(name)}: {shown}")
    if len(rest) > _OTHERS:
        parts.append(f"and {counted(len(rest) - _OTHERS, 'more field', 'more fields')}")
    return replace(tile, text="\n".join(parts))

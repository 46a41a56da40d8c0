"""shardstream show: a contact sheet of some samples, as a picture file or in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardstream.cli import options
from shardstream.errors import OptionError
from shardstream.format.kinds import PIXELS, SOUNDS, extension
from shardstream.format.shown import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardstream.cli.sheet import Tile
    from shardstream.cli.views import View
    from shardstream.format.manifest import Manifest
    from shardstream.packing.tokenize import Tokenizer

_SHOWN = {*PIXELS, *SOUNDS}
_TEXTS = ("txt", "text", "caption", "json")
_READ = 6000  # characters of a text that a page could show
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
    from shardstream.read.reader import DatasetReader

    reader = DatasetReader.open(url, options.storage_options(storage_option))
    manifest = reader.manifest
    known = _tokenizer(manifest, tokenizer)
    count = limit or (24 if out else 6)
    tiles = [
        _tile(manifest, *reader.sample(*reader.locate(number)), known)
        for number in _chosen(manifest.samples, count, seed)
    ]
    title = f"{reader.url}: {len(tiles):,} of {counted(manifest.samples, 'sample')}"
    if out is None:
        _in_terminal(title, tiles)
        return
    from shardstream.cli.sheet import sheet

    page = sheet(title, tiles)
    try:
        page.save(out)
    except (OSError, ValueError) as error:  # no such directory; no such kind of picture
        raise OptionError(f"--out {out}: no picture can be written there ({error})") from error
    print(f"{counted(len(tiles), 'sample')} on {out}, {page.width} x {page.height} pixels")


def _chosen(samples: int, count: int, seed: int | None) -> list[int]:
    """The numbers of the samples that are shown, rising; at random if there is a seed."""
    count = min(count, samples)
    if seed is None:
        return [number * samples // count for number in range(count)]
    import random

    return sorted(random.Random(seed).sample(range(samples), count))


def _tokenizer(manifest: Manifest, asked: str | None) -> Tokenizer | None:
    """The tokenizer of a dataset of tokens; None if it is not known.

    Args:
        manifest: Of the dataset.
        asked: The tokenizer that the user gave, or None.
    """
    told = manifest.provenance.get("tokenizer")
    if manifest.kind != "tokens":
        if asked is not None:
            raise OptionError(f"--tokenizer {asked}: the dataset holds no tokens, but {manifest.kind}")
        return None
    name = told.get("name") if isinstance(told, dict) else None
    if asked is None and name != "bytes":
        return None
    from shardstream.packing.tokenize import load_tokenizer

    found = load_tokenizer(asked or "bytes")
    if isinstance(told, dict) and told.get("fingerprint") != found.fingerprint:
        raise OptionError(f"--tokenizer {asked!r} is not {name!r}, which the dataset was packed with")
    return found


def _tile(manifest: Manifest, key: str, fields: dict[str, bytes], tokenizer: Tokenizer | None) -> Tile:
    from shardstream.cli.sheet import Tile
    from shardstream.format.names import unescape_key

    key = _clean(unescape_key(key))
    if manifest.kind == "tokens":
        import numpy as np

        tokens = np.frombuffer(fields["tokens"], np.dtype(manifest.fields[0].dtype))
        some = tokens[:_READ].tolist()
        text = " ".join(map(str, some)) if tokenizer is None else tokenizer.decode(some)
        return Tile(key, None, f"{len(tokens):,} tokens", _clean(text), tokenizer is not None)
    kinds = {info.name: extension(info.codec or info.name) for info in manifest.fields}
    image, told = None, ""
    if any(kinds[name] in _SHOWN for name in fields):
        from shardstream.cli.views import joined, views

        found = views(fields, kinds)
        image, told = joined(found), _told(found)
    texts = {
        name: _clean(data[: 4 * _READ].decode("utf-8", "replace"))
        for name, data in fields.items()
        if kinds[name] in _TEXTS
    }
    label = next((_label(manifest, data) for name, data in fields.items() if kinds[name] == "cls"), "")
    shown = next((text for name, text in texts.items() if kinds[name] != "json"), None)
    if shown is None:
        shown = next(iter(texts.values()), "")
    if image is None and not texts:
        shown = "\n".join(f"{name}  {len(data):,} bytes" for name, data in fields.items())
    code = image is None and _is_code(shown)
    return Tile(key, image, label, "\n".join(part for part in (told, shown[:_READ]) if part), code)


def _told(found: Sequence[View]) -> str:
    """What the pictures of a sample do not show: names, values of masks, lengths of sounds."""
    parts = [
        (view.name, view.about if view.about or not isinstance(view.picture, str) else view.picture)
        for view in found
    ]
    if len(parts) == 1:  # if it cannot be decoded, that is in its place
        return found[0].about
    return "; ".join(f"{name}: {about}" if about else name for name, about in parts)


def _label(manifest: Manifest, data: bytes) -> str:
    """The name of a class; its number if the name is not known."""
    text = data[:80].decode("utf-8", "replace").strip()
    classes = manifest.provenance.get("classes")
    if isinstance(classes, list) and text.isdecimal() and int(text) < len(classes):
        return str(classes[int(text)])
    return f"class {text}"


def _is_code(text: str) -> bool:
    """Whether a text is code: many lines begin with spaces, or all lines are short."""
    lines = [line for line in text[:_READ].splitlines() if line.strip()]
    indented = sum(line[0] in " \t" for line in lines)
    return len(lines) > 3 and (indented > len(lines) / 5 or max(map(len, lines)) < 100)


def _clean(text: str) -> str:
    """The text without characters that control a terminal."""
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


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

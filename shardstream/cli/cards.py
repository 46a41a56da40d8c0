"""Samples in the terminal: a card for each, no longer than asked for."""

from __future__ import annotations

import sys
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from shardstream.cli import screen
from shardstream.cli.values import BLOCKS, FRAME, text_width
from shardstream.decode.tiles import Tile

__all__ = ["print_cards"]

_HALF = "▀"


def print_cards(title: str, tiles: list[Tile], pictures: bool) -> None:
    """Print samples.

    Args:
        title: What is printed above them.
        tiles: The samples, with texts that are short enough.
        pictures: Whether samples have pictures. They are then side by side.
    """
    # Cards are at least as wide as an image, and the same in a pipe.
    width = text_width(pictures) + FRAME
    console = Console(file=sys.stdout, width=max(width, screen.room() or 80), legacy_windows=False)
    colours = console.color_system is not None and not console.no_color and screen.takes(_HALF)
    screen.say(title)
    cards = [_card(tile, width, colours) for tile in tiles]
    console.print(Columns(cards) if pictures else Group(*cards))


def _card(tile: Tile, width: int, colours: bool) -> Panel:
    parts: list[Any] = []
    if isinstance(tile.image, str):
        parts.append(Text(tile.image))
    elif tile.image is not None:
        size = f"{tile.image.width} x {tile.image.height}"
        # A picture of half blocks needs colours.
        parts.append(_blocks(tile.image) if colours else Text(f"image, {size}"))
    if tile.text:
        parts.append(Text(tile.text, overflow="fold"))
    label = Text(tile.label) if tile.label else None
    return Panel(Group(*parts), title=Text(tile.key), title_align="left", subtitle=label, width=width)


def _blocks(image: Any) -> Any:
    """An image as text. Each character shows two pixels, one above the other."""
    height = max(2, min(2 * BLOCKS, round(BLOCKS * image.height / image.width))) // 2 * 2
    pixels = image.resize((BLOCKS, height)).load()
    text = Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(BLOCKS):
            (r, g, b), (s, h, c) = pixels[x, y], pixels[x, y + 1]
            text.append(_HALF, f"rgb({r},{g},{b}) on rgb({s},{h},{c})")
        if y + 2 < height:
            text.append("\n")
    return text

"""Contact sheets: a page with samples as tiles, which are images with captions, or texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from shardstream.decode.tiles import Tile
from shardstream.errors import require

__all__ = ["sheet", "small"]

WIDTH = 1280  # of a page, in pixels
MARGIN = 24
LARGEST = 400  # pixels of a side that a picture may have on a page
GAP = 16
PAPER, CARD, LINE = "#f4f4f1", "#ffffff", "#d9d9d4"
INK, FAINT, TAG = "#1d1d1b", "#85857e", "#2f5d8a"
# The first font that is installed is used. Without any, a font is used that only has Latin letters.
FONTS = {
    "plain": ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf"),
    "code": ("DejaVuSansMono.ttf", "Menlo.ttc", "consola.ttf"),
}


def small(tile: Tile) -> Tile:
    """The tile with its picture no larger than a page shows it: those of all tiles are held at once."""
    if hasattr(tile.image, "thumbnail"):
        tile.image.thumbnail((LARGEST, LARGEST), require("PIL.Image", "images").Resampling.LANCZOS)
    return tile


def sheet(title: str, tiles: Sequence[Tile]) -> Any:
    """The page as a PIL image: the title, then the tiles in rows."""
    pillow, drawing = require("PIL.Image", "images"), require("PIL.ImageDraw", "images")
    pictures = any(tile.image is not None for tile in tiles)
    columns = min(6 if len(tiles) > 15 else 4, max(3, len(tiles))) if pictures else 2
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    cards = [_Card(tile, width, _shape(tiles)) for tile in tiles]
    rows = list(_rows(cards, columns))
    top = MARGIN + 40
    height = top + sum(max(card.height for card in row) + GAP for row in rows) - GAP * bool(rows) + MARGIN
    page = pillow.new("RGB", (WIDTH, height), PAPER)
    pen = drawing.Draw(page)
    head = _font("plain", 20)
    pen.text((MARGIN, MARGIN - 4), _cut(title, head, WIDTH - 2 * MARGIN), INK, head)
    for row in rows:
        tallest = max(card.height for card in row)
        for column, card in enumerate(row):
            card.draw(page, pen, MARGIN + column * (width + GAP), top, tallest)
        top += tallest + GAP
    return page


def _shape(tiles: Sequence[Tile]) -> float:
    """Height by width of the place for a picture: that of most pictures, within limits."""
    found = sorted(tile.image.height / tile.image.width for tile in tiles if hasattr(tile.image, "width"))
    if not found:
        return 0.75 if any(tile.image for tile in tiles) else 0.0
    return float(min(1.0, max(0.6, found[len(found) // 2])))


def _rows(cards: list[_Card], columns: int) -> Iterator[list[_Card]]:
    waiting = iter(cards)
    while row := list(islice(waiting, columns)):
        yield row


class _Card:
    """A tile that is laid out for a width in pixels."""

    _PAD = 10

    def __init__(self, tile: Tile, width: int, shape: float) -> None:
        self._tile, self._width = tile, width
        self._inner = width - 2 * self._PAD
        self._picture = round(self._inner * shape)
        self._small, self._body = _font("plain", 12), _font("code" if tile.code else "plain", 13)
        text = tile.image if isinstance(tile.image, str) else tile.text
        self._lines = _wrapped(text, self._body, self._inner, 3 if shape else 16, tile.code)
        gap = self._PAD if shape else 0
        self.height = (
            2 * self._PAD + self._picture + gap + 16 + (4 + 18 * len(self._lines)) * bool(self._lines)
        )

    def draw(self, page: Any, pen: Any, x: int, y: int, height: int) -> None:
        tile, pad = self._tile, self._PAD
        pen.rounded_rectangle((x, y, x + self._width, y + height), 6, CARD, LINE)
        x, y = x + pad, y + pad
        if self._picture:
            if tile.image is None or isinstance(tile.image, str):
                pen.rectangle((x, y, x + self._inner, y + self._picture), PAPER)
            else:
                image = _fitted(tile.image, self._inner, self._picture)
                at = x + (self._inner - image.width) // 2, y + (self._picture - image.height) // 2
                page.paste(image, at)
            y += self._picture + pad
        room = self._inner
        if tile.label:
            label = _cut(tile.label, self._small, room * 2 // 3)
            width = self._small.getlength(label)
            pen.text((x + room - width, y), label, TAG, self._small)
            room -= round(width) + pad
        pen.text((x, y), _cut(tile.key, self._small, room), FAINT, self._small)
        for number, line in enumerate(self._lines):
            pen.text((x, y + 20 + 18 * number), line, INK, self._body)


def _fitted(image: Any, width: int, height: int) -> Any:
    """The whole image, as large as it fits, but at most twice its size."""
    pillow = require("PIL.Image", "images")
    scale = min(width / image.width, height / image.height, 2.0)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, pillow.Resampling.LANCZOS)


def _font(kind: str, size: int) -> Any:
    fonts = require("PIL.ImageFont", "images")
    for name in FONTS[kind]:
        try:
            return fonts.truetype(name, size)
        except OSError:
            continue
    return fonts.load_default(size)


def _cut(text: str, font: Any, width: float) -> str:
    """The text; or as much of its beginning as fits, with an ellipsis."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "…") <= width else (low, middle - 1)
    return text[:low].rstrip() + "…"


def _wrapped(text: str, font: Any, width: int, most: int, code: bool) -> list[str]:
    """The text in at most `most` lines. Lines of code are not wrapped, but cut off."""
    if code:
        lines = [line.rstrip() for line in text.expandtabs(4).splitlines()]
        shown = [_clip(line, font, width) for line in lines[:most]]
        return [*shown[:-1], "…"] if len(lines) > most else shown
    lines = [
        line for part in text[:8000].splitlines()[: most + 1] for line in _broken(part, font, width, most)
    ]
    if len(lines) > most:
        # Add dots until the line is certainly too long, so that it ends in an ellipsis.
        lines[most - 1 :] = [_cut(f"{lines[most - 1]} {lines[most]} {'.' * width}", font, width)]
    return lines


def _broken(paragraph: str, font: Any, width: int, most: int) -> list[str]:
    """Lines of whole words, at most a few more than `most`. Words that are too long are cut off."""
    lines, line = [], ""
    for word in paragraph.split():
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
            if len(lines) > most:
                break
        line = longer
    return [_cut(one, font, width) for one in [*lines, line]]


def _clip(line: str, font: Any, width: int) -> str:
    letters = max(1, int(width / max(1.0, font.getlength("0"))))
    return line if len(line) <= letters else line[: letters - 1] + "…"

"""Values of fields for people: as much as there is room for, and nothing that would steer a terminal."""

from __future__ import annotations

import io
import re

from shardstream.cli.screen import cells, clean, cut, room
from shardstream.decode.tiles import TEXTS
from shardstream.format.kinds import PIXELS, SOUNDS
from shardstream.format.shown import counted, numbers
from shardstream.format.sizes import human_size

__all__ = ["BLOCKS", "FRAME", "bounded", "described", "text_width"]

BLOCKS = 34  # columns of an image in the terminal
FRAME = 4  # columns of the frame of a card
_BYTES = 16  # of what is no text


def text_width(pictures: bool) -> int:
    """The columns of a line of text in a card of the terminal."""
    return BLOCKS if pictures else max(16, (room() or 80) - FRAME)


def bounded(text: str, lines: int, width: int, note: str = "") -> str:
    """The beginning of a text, and how long it is if that is not all.

    Args:
        text: Any text. Control characters are shown as Python writes them.
        lines: How many lines it may take, the last one included.
        width: The columns of a line.
        note: What the end says if that is not all; the number of characters if left out.
    """
    shown: list[str] = []
    for line in clean(text[: lines * width + 1], lines=True).expandtabs(4).split("\n"):
        shown += _folded(line.rstrip(), width)
        if len(shown) > lines:
            break
    else:
        if len(text) <= lines * width + 1:
            return "\n".join(shown)
    end = note or f"... ({counted(len(text), 'character')})"
    kept, last = shown[: lines - 1], shown[lines - 1] if len(shown) >= lines else ""
    while last and cells(last) + len(end) + 1 > width:
        last = last[:-1]
    return "\n".join([*kept, f"{last} {end}".lstrip()])


def _folded(line: str, width: int) -> list[str]:
    """A line as lines that fit. They break between words, and within a word only if it is too long."""
    rows = [""]
    for word in re.findall(r"\S+\s*|\s+", line):
        if cells(rows[-1]) + cells(word.rstrip()) <= width:
            rows[-1] += word
            continue
        if cells(word.rstrip()) <= width:
            rows.append(word)
            continue
        for letter in word:
            if cells(rows[-1]) + cells(letter) > width:
                rows.append("")
            rows[-1] += letter
    return [row.rstrip() for row in rows]


def described(kind: str, data: bytes, lines: int, width: int) -> str:
    """One field in a few lines.

    Args:
        kind: The extension of its codec.
        data: Its bytes.
        lines: How many lines it may take.
        width: The columns of a line.
    """
    if kind == "npy" and (text := _array(data, lines * width)):
        return text
    if kind not in PIXELS and kind not in SOUNDS and (text := _text(kind, data, lines, width)):
        return text
    begin = " ".join(f"{byte:02x}" for byte in data[:_BYTES])
    more = " ..." if len(data) > _BYTES else ""
    return cut(f"{human_size(len(data))}: {begin}{more}" if data else "0 B", max(width, 20))


def _array(data: bytes, letters: int) -> str:
    import numpy as np

    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        head = f"{array.dtype}, {' x '.join(map(str, array.shape)) or 'one number'}: "
    except Exception:  # noqa: BLE001 - damaged ones are shown as bytes
        return ""
    if not array.size:
        return f"{head}empty"
    most, flat = max(30, letters - len(head)), array.reshape(-1)
    if array.dtype.kind in "US":  # even the first text may be too long
        return head + cut(clean(" ".join(map(str, flat[:most].tolist()))), most)
    return head + cut(clean(numbers(flat, most)), most)


def _text(kind: str, data: bytes, lines: int, width: int) -> str:
    # A letter has at most 4 bytes, and no more letters are shown. The cut may go through one.
    begin = data[: 4 * (lines * width + 1)]
    try:
        text = begin.decode("utf-8", "strict" if len(begin) == len(data) else "ignore")
    except UnicodeDecodeError:
        text = begin.decode("utf-8", "replace") if kind in TEXTS else ""
    odd = sum(not letter.isprintable() and not letter.isspace() for letter in text)
    if not text or (kind not in TEXTS and odd > len(text) // 50):
        return ""
    if len(begin) == len(data):
        return bounded(text, lines, width)
    return bounded(data.decode("utf-8", "replace"), lines, width)

"""Bars with their spread, as an SVG: no library, and the same bytes for the same figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, ROW, TOP = 480, 30, 46
# The reader's light or dark mode; tools/site/hooks.py takes this out, and the theme's colours count.
STYLE = """<style>
svg { --ink: #1f2937; --quiet: #6b7280; }
@media (prefers-color-scheme: dark) { svg { --ink: #e5e7eb; --quiet: #9ca3af; } }
</style>
"""
COLOURS = {"ours": "#2563eb", "peer": "#8b95a5", "ceiling": "#d97706"}
LEGEND = {"ours": "shardstream", "peer": "others", "ceiling": "floor or ceiling"}


class Row(NamedTuple):
    """A bar: what is measured of one contender in each round."""

    name: str
    role: str
    values: Sequence[float]


def number(value: float) -> str:
    """Three digits are enough: 174,012, 5.76, 0.42."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _text(x: float, y: float, text: str, *, size: int = 12, end: bool = False, quiet: bool = False,
          bold: bool = False) -> str:  # fmt: skip
    colour = "--quiet, #6b7280" if quiet else "--ink, #1f2937"
    more = ' text-anchor="end"' * end + ' font-weight="600"' * bold
    more += f' style="fill: var({colour})"'
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{more}>{escape(text)}</text>'


def drawn(name: str, title: str, unit: str, rows: Sequence[Row]) -> str:
    """A bar for each contender, as long as its median, with a line from the least to the largest.

    Args:
        name: Of the question.
        title: What the picture shows, for those who cannot see it.
        unit: Of the values.
        rows: In the order in which they are drawn.

    Returns:
        The SVG.
    """
    most = max((max(row.values) for row in rows), default=1.0)
    parts = [_text(0, 14, f"{name}: {unit}", size=13, bold=True)]
    x = 0.0
    for role, label in LEGEND.items():
        if any(row.role == role for row in rows):
            parts.append(f'<rect x="{x:g}" y="25" width="10" height="10" fill="{COLOURS[role]}"/>')
            parts.append(_text(x + 15, 34, label, size=11, quiet=True))
            x += 30 + 6.5 * len(label)
    for number_, row in enumerate(rows):
        y = TOP + ROW * number_
        middle, low, high = (f(row.values) / most * WIDTH for f in (statistics.median, min, max))
        parts.append(_text(0, y + 12, row.name, bold=row.role == "ours"))
        parts.append(_text(WIDTH, y + 12, number(statistics.median(row.values)), end=True))
        parts.append(
            f'<rect x="0" y="{y + 17}" width="{max(middle, 1):.1f}" height="7" rx="1" '
            f'fill="{COLOURS[row.role]}"/>'
        )
        parts.append(
            f'<path d="M{low:.1f},{y + 20.5:g} H{high:.1f}" fill="none" stroke-width="1.5" '
            'style="stroke: var(--ink, #1f2937)"/>'
        )
    height = TOP + ROW * len(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing bars" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" font-family="Verdana, DejaVu Sans, sans-serif">\n'
        f"<title>{escape(title)}</title>\n{STYLE}" + "\n".join(parts) + "\n</svg>\n"
    )

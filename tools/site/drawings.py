"""Draws the pictures of docs/concepts.md: python3 tools/site/drawings.py writes docs/images/concepts/*.svg.

A picture follows the reader's light or dark mode. In the site tools/site/hooks.py puts it into the page, where
the colours are those of the theme.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
STYLE = """<style>
svg { --ink: #1f2937; --quiet: #6b7280; --paper: #ffffff; }
@media (prefers-color-scheme: dark) { svg { --ink: #e5e7eb; --quiet: #9ca3af; --paper: #111827; } }
</style>
"""
# Fills that are light or dark enough for the ink in both modes: the colour itself, thinned.
GREEN, AMBER, BLUE, VIOLET, RED, GREY = "#16a34a", "#d97706", "#2563eb", "#7c3aed", "#dc2626", "#6b7280"


class Drawing:
    """An SVG that grows.

    Args:
        name: Of the file.
        title: What the picture shows, for those who cannot see it.
        width: In pixels.
        height: In pixels.
    """

    def __init__(self, name: str, title: str, width: int, height: int) -> None:
        self.name, self._title, self._width, self._height = name, title, width, height
        self._parts: list[str] = []

    def text(self, x: float, y: float, text: str, size: int = 13, anchor: str = "start", bold: bool = False,
             quiet: bool = False) -> None:  # fmt: skip
        """A line of text; (x, y) is its baseline."""
        colour = "--quiet, #6b7280" if quiet else "--ink, #1f2937"
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight} '
            f'style="fill: var({colour})">{escape(text)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str, *lines: str,
            strong: float = 0.16, dashed: bool = False, size: int = 13) -> None:  # fmt: skip
        """A box with lines of text in its middle; the first line is bold if there are more."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{colour}" '
            f'fill-opacity="{strong:g}" stroke="{colour}"{dash}/>'
        )
        step = size + 4
        top = y + height / 2 - step * (len(lines) - 1) / 2 + size * 0.36
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + number * step, line, size if not number else size - 1, "middle",
                      bold=len(lines) > 1 and not number, quiet=number > 0)  # fmt: skip

    def arrow(self, *points: tuple[float, float], dashed: bool = False, head: bool = True) -> None:
        """A line through the points, with a head at its end."""
        way = " L".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        end = f' marker-end="url(#{self.name}-head)"' if head else ""
        self._parts.append(
            f'<path d="M{way}" fill="none" stroke-width="1.5" style="stroke: var(--quiet, #6b7280)"{dash}{end}/>'
        )

    def svg(self) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" viewBox="0 0 {self._width} {self._height}" '
            f'role="img" font-family="Verdana, DejaVu Sans, sans-serif">\n<title>{escape(self._title)}</title>\n'
        )
        marker = (
            f'<defs><marker id="{self.name}-head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0,0 L10,5 L0,10 Z" style="fill: var(--quiet, #6b7280)"/>'
            "</marker></defs>\n"
        )
        return head + STYLE + marker + "\n".join(self._parts) + "\n</svg>\n"


# fmt: off
def frames() -> Drawing:
    """A shard, its frames, its index."""
    d = Drawing(
        "frames", "A shard is a tar of independent frames; an index says where each sample lies", 900, 330
    )
    d.text(20, 26, "shard-000007.tar.zst", bold=True)
    d.text(190, 26, "an ordinary file: tar --zstd -xf opens it", quiet=True)
    for number in range(5):
        hot = number == 2
        d.box(20 + number * 150, 40, 142, 44, AMBER, f"frame {number}", strong=0.4 if hot else 0.16)
    d.box(770, 40, 110, 44, GREY, "end, seek table", size=12)
    d.arrow((322, 86), (152, 122), head=False, dashed=True)
    d.arrow((462, 86), (750, 122), head=False, dashed=True)
    d.text(762, 146, "one frame:", quiet=True, size=12)
    d.text(762, 163, "about 1 MiB of", quiet=True, size=12)
    d.text(762, 180, "whole samples", quiet=True, size=12)
    keys = ("doc-41", "doc-42", "doc-43")
    for number, key in enumerate(keys):
        x = 150 + number * 200
        d.box(x, 124, 200, 30, AMBER, key, strong=0.28 if number == 1 else 0.1)
        d.box(x, 154, 120, 28, GREEN, f"{key}.txt", size=11, strong=0.4 if number == 1 else 0.14)
        d.box(x + 120, 154, 80, 28, BLUE, ".json", size=11)
    d.text(20, 226, "shard-000007.index", bold=True)
    d.text(190, 226, "read once, mapped, shared by processes", quiet=True)
    d.box(20, 240, 270, 66, AMBER, "of each frame", "offset, size, checksum", "first sample", size=12)
    d.box(315, 240, 270, 66, GREEN, "of each field of each sample", "offset in its frame, size", size=12)
    d.box(610, 240, 270, 66, VIOLET, "of each sample", "key, kept columns", size=12)
    d.arrow((60, 238), (60, 104), (390, 104), (390, 88))
    d.arrow((450, 238), (415, 186))
    return d


def lanes() -> Drawing:
    """One sequence, four lanes, two or four ranks."""
    d = Drawing(
        "lanes",
        "Lanes interleave the sequence, so that global batches are the same for any number of ranks",
        900,
        400,
    )
    d.text(20, 26, "The shuffled sequence of an epoch, cut into lanes", bold=True)
    colours = (GREEN, AMBER, BLUE, VIOLET)
    for lane in range(4):
        for place in range(6):
            d.box(20 + lane * 217 + place * 34, 40, 32, 30, colours[lane], str(lane * 6 + place), size=11)
        d.text(20 + lane * 217 + 101, 88, f"lane {lane}", 12, "middle", quiet=True)
    d.text(20, 130, "Positions take one sample of each lane in turn", bold=True)
    for position in range(24):
        lane, offset = position % 4, position // 4
        d.box(20 + position * 36, 144, 34, 30, colours[lane], str(lane * 6 + offset), size=11)
    for batch in range(3):
        x = 20 + batch * 288
        d.arrow((x, 186), (x + 286, 186), head=False)
        d.text(x + 143, 204, f"global batch {batch}", 12, "middle", quiet=True)
    d.text(20, 246, "2 ranks, 4 samples each", bold=True)
    for rank in range(2):
        d.text(20, 276 + rank * 32, f"rank {rank}", 12)
        for number in range(4):
            position = rank + 2 * number
            d.box(
                80 + number * 36,
                258 + rank * 32,
                34,
                28,
                colours[position % 4],
                str(position % 4 * 6 + position // 4),
                size=11,
            )
    d.text(460, 246, "4 ranks, 2 samples each", bold=True)
    for rank in range(4):
        x, y = 460 + rank % 2 * 210, 258 + rank // 2 * 32
        d.text(x, y + 18, f"rank {rank}", 12)
        for number in range(2):
            position = rank + 4 * number
            d.box(
                x + 60 + number * 36,
                y,
                34,
                28,
                colours[position % 4],
                str(position % 4 * 6 + position // 4),
                size=11,
            )
    d.text(
        20,
        350,
        "Of R ranks, rank r takes the positions r, r + R, r + 2 R, ...: global batch 0 is the same set of samples either way.",
        quiet=True,
    )
    d.text(
        20,
        370,
        "If R divides the number of lanes (64 or more), a rank reads lanes that no other rank reads.",
        quiet=True,
    )
    return d


def tiers() -> Drawing:
    """The store, the disk, memory, and the threads between them."""
    d = Drawing("tiers", "Three levels of cache between the object store and the training step", 900, 330)
    d.box(
        20,
        50,
        170,
        110,
        BLUE,
        "object store",
        "S3, GCS, Azure, HTTP",
        "ranged reads,",
        "retried, hedged",
        size=13,
    )
    d.box(
        250,
        50,
        170,
        110,
        AMBER,
        "SSD directory",
        "blocks, shared by all",
        "processes of a node,",
        "limited in bytes",
    )
    d.box(480, 50, 170, 110, GREEN, "memory", "frames of the shuffle's", "window, limited", "in bytes")
    d.box(710, 50, 170, 110, VIOLET, "batches", "built ahead by threads,", "limited in bytes")
    for x in (190, 420, 650):
        d.arrow((x + 4, 105), (x + 56, 105))
    d.text(220, 94, "miss", 11, "middle", quiet=True)
    d.text(450, 94, "miss", 11, "middle", quiet=True)
    d.text(335, 34, "cache=ss.Cache(dir, disk=...)", 12, "middle", quiet=True)
    d.text(565, 34, "ss.Cache(ram=...)", 12, "middle", quiet=True)
    d.text(795, 34, "prefetch=...", 12, "middle", quiet=True)
    d.box(20, 196, 400, 44, RED, "each frame is checked once, before its bytes are used", size=12, strong=0.1)
    d.box(480, 196, 350, 44, GREY, "threads plan, fetch, decompress and build", size=12, strong=0.1)
    d.box(710, 270, 170, 44, VIOLET, "your training step", strong=0.3)
    d.arrow((855, 162), (855, 266))
    d.text(
        20,
        298,
        "A local dataset skips the first two levels: its shards are mapped, and read from the page cache.",
        quiet=True,
    )
    return d


def state() -> Drawing:
    """One integer says where to go on."""
    d = Drawing(
        "state",
        "The state counts the positions that were delivered; any number of ranks goes on from it",
        900,
        300,
    )
    d.text(20, 26, "Monday, 4 ranks", bold=True)
    d.box(20, 40, 430, 40, GREEN, "delivered to the loop: positions 0 to 511", strong=0.3)
    d.box(450, 40, 130, 40, AMBER, "being read ahead", dashed=True, size=12)
    d.box(580, 40, 300, 40, GREY, "the rest of the epoch", strong=0.08)
    d.arrow((450, 84), (450, 124))
    d.box(250, 126, 400, 44, VIOLET, 'state_dict(): {"epoch": 0, "position": 512, "seed": 7, ...}', size=12)
    d.arrow((450, 172), (450, 208))
    d.text(20, 202, "Tuesday, 2 ranks", bold=True)
    d.box(20, 212, 430, 40, GREEN, "never read again", strong=0.08)
    d.box(450, 212, 430, 40, GREEN, "positions 512, 513, ...: each sample once, none twice", strong=0.3)
    d.text(
        20,
        284,
        "What was read ahead is not counted: nothing is lost if the job dies. Going on costs a search in the order, not a replay.",
        quiet=True,
    )
    return d


def commit() -> Drawing:
    """A dataset is there as a whole or not at all."""
    d = Drawing(
        "commit", "Workers write shards and receipts; the manifest is put last, in one atomic step", 900, 330
    )
    d.text(20, 26, "tasks, on any machine, in any order", bold=True)
    for number in range(4):
        failed = number == 2
        y = 40 + number * 50
        d.box(
            20,
            y,
            110,
            40,
            RED if failed else BLUE,
            f"task {number}",
            *(["killed, done again"] if failed else []),
            size=12,
        )
        d.arrow((132, y + 20), (186, y + 20), dashed=failed)
        d.box(190, y, 150, 40, AMBER, f"shard-{number:06}", "and its index", size=12)
        d.arrow((342, y + 20), (386, y + 20), dashed=failed)
        d.box(390, y, 100, 40, GREEN, "receipt", "size, digest", size=12)
    d.arrow((492, 135), (546, 135))
    d.box(550, 95, 140, 80, GREY, "commit", "list and compare,", "nothing missing,", "nothing twice", size=12)
    d.arrow((692, 135), (726, 135))
    d.box(730, 105, 150, 60, VIOLET, "manifest.json", "one atomic put", strong=0.35)
    d.arrow((20, 268), (722, 268), head=False)
    d.text(370, 260, "readers see no dataset, or the old one", 12, "middle", quiet=True)
    d.arrow((730, 268), (880, 268), head=False)
    d.text(805, 260, "the new one", 12, "middle", quiet=True)
    d.text(
        20,
        304,
        "A pack that dies at any point leaves no half dataset: --resume goes on from the receipts, and the result has the same bytes.",
        quiet=True,
    )
    return d
# fmt: on


ALL: tuple[Callable[[], Drawing], ...] = (frames, lanes, tiers, state, commit)


def main() -> None:
    """Write all pictures."""
    folder = ROOT / "docs" / "images" / "concepts"
    folder.mkdir(parents=True, exist_ok=True)
    for draw in ALL:
        drawing = draw()
        (folder / f"{drawing.name}.svg").write_text(drawing.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()

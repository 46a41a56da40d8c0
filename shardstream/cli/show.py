"""shardstream show: a contact sheet of some samples, as a picture file or in the terminal."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from shardstream.cli import options
from shardstream.cli.screen import clean, say
from shardstream.cli.values import TEXTS, bounded, described, numbers, text_width
from shardstream.errors import MissingExtraError, OptionError
from shardstream.format.kinds import PIXELS, SOUNDS, extension
from shardstream.format.shown import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardstream.cli.sheet import Tile
    from shardstream.cli.views import View
    from shardstream.format.manifest import Manifest
    from shardstream.packing.tokenize import Tokenizer

_SHOWN = {*PIXELS, *SOUNDS}
_READ = 6000  # characters of a text that a page could show
_OTHERS = 12  # fields of a sample that are named, beside pictures and its text
_EDGE = 4  # columns of a line that numbers leave free, since they are not broken
_IDS = 600  # letters of token ids on a page


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
    from shardstream.read.reader import DatasetReader

    reader = DatasetReader.open(url, options.storage_options(storage_option))
    manifest = reader.manifest
    known = _tokenizer(manifest, tokenizer)
    count = limit or (24 if out else 6)
    pictures = any(extension(info.codec or info.name) in _SHOWN for info in manifest.fields)
    most = lines or (3 if pictures else 8)
    tiles = [
        _tile(manifest, *reader.sample(*reader.locate(number)), known, most if out is None else None)
        for number in _chosen(manifest.samples, count, seed)
    ]
    title = f"{clean(reader.url)}: {len(tiles):,} of {counted(manifest.samples, 'sample')}"
    if out is None:
        from shardstream.cli.cards import print_cards

        print_cards(title, tiles)
        return
    from shardstream.cli.sheet import sheet

    page = sheet(title, tiles)
    try:
        page.save(out)
    except (OSError, ValueError) as error:  # no such directory; no such kind of picture
        raise OptionError(f"--out {out}: no picture can be written there ({error})") from error
    say(f"{counted(len(tiles), 'sample')} on {out}, {page.width} x {page.height} pixels")


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
    # Without being asked nothing is fetched: a file of that name may lie here, and its content is compared.
    if asked is None and not (name == "bytes" or (isinstance(name, str) and os.path.isfile(name))):
        return None
    from shardstream.packing.tokenize import load_tokenizer

    try:
        found = load_tokenizer(asked or str(name))
    except (OptionError, MissingExtraError):
        if asked is None:
            return None
        raise
    if isinstance(told, dict) and told.get("fingerprint") != found.fingerprint:
        if asked is None:
            return None
        raise OptionError(f"--tokenizer {asked!r} is not {name!r}, which the dataset was packed with")
    return found


def _tile(
    manifest: Manifest, key: str, fields: dict[str, bytes], tokenizer: Tokenizer | None, lines: int | None
) -> Tile:
    """A sample.

    Args:
        manifest: Of the dataset.
        key: The key, as it is stored.
        fields: The bytes of its fields.
        tokenizer: For tokens, if it is known.
        lines: The lines that a text may take in the terminal; None for a picture.
    """
    from shardstream.cli.sheet import Tile
    from shardstream.format.names import unescape_key

    key = clean(unescape_key(key))
    if manifest.kind == "tokens":
        import numpy as np

        tokens = np.frombuffer(fields["tokens"], np.dtype(manifest.fields[0].dtype))
        label = f"{counted(len(tokens), 'token')}, {tokens.dtype}"
        if tokenizer is not None:
            width = text_width(False)
            text = tokenizer.decode(tokens[: max(_READ, (lines or 1) * width)].tolist())
            shown = clean(text, lines=True) if lines is None else bounded(text, lines, width, "...")
            return Tile(key, None, label, shown, True)
        return Tile(key, None, label, numbers(tokens, lines * (text_width(False) - _EDGE) if lines else _IDS))
    kinds = {info.name: extension(info.codec or info.name) for info in manifest.fields}
    image, told = None, ""
    if any(kinds[name] in _SHOWN for name in fields):
        from shardstream.cli.views import joined, views

        found = views(fields, kinds)
        image, told = joined(found), _told(found)
    texts = {
        name: clean(data[: 4 * _READ].decode("utf-8", "replace"), lines=True)
        for name, data in fields.items()
        if kinds[name] in TEXTS
    }
    label = next((_label(manifest, data) for name, data in fields.items() if kinds[name] == "cls"), "")
    shown = next((text for name, text in texts.items() if kinds[name] != "json"), None)
    if shown is None:
        shown = next(iter(texts.values()), "")
    if lines is not None:
        return _in_lines(Tile(key, image, label, told), fields, kinds, lines)
    if image is None and not texts:
        shown = "\n".join(f"{name}  {counted(len(data), 'byte')}" for name, data in fields.items())
    code = image is None and _is_code(shown)
    return Tile(key, image, label, "\n".join(part for part in (told, shown[:_READ]) if part), code)


def _in_lines(tile: Tile, fields: dict[str, bytes], kinds: dict[str, str], lines: int) -> Tile:
    """The same with its fields in few lines: its text as it is, and the others with their names."""
    width = text_width(tile.image is not None)
    rest = [name for name in fields if kinds[name] not in _SHOWN and kinds[name] != "cls"]
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

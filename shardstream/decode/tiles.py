"""Samples as a person looks at them: a picture, a label and a text, of no more than fits on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from shardstream.format.kinds import PIXELS, SOUNDS, extension
from shardstream.format.names import unescape_key
from shardstream.format.shown import clean, counted, numbers

if TYPE_CHECKING:
    from shardstream.decode.views import View
    from shardstream.format.manifest import Manifest

__all__ = ["SHOWN", "TEXTS", "Tile", "kinds_of", "pictured", "spread", "tile", "token_tile"]

SHOWN = {*PIXELS, *SOUNDS}  # kinds of fields that have a picture
TEXTS = ("txt", "text", "caption", "json", "jsonl", "md", "html", "csv", "xml", "yaml")  # that are text
_READ = 6000  # characters of a text that a page could show
_IDS = 600  # letters of token ids on a page


class Tokens(Protocol):
    """What reads token ids: a tokenizer."""

    def decode(self, ids: list[int], /) -> str:
        """The text of these ids."""


@dataclass(frozen=True)
class Tile:
    """One sample.

    Args:
        key: Its key.
        image: A PIL image; None if the sample has no image; a str that says why it cannot be decoded.
        label: The name of its class, or "".
        text: Its text, or "".
        code: Whether the text needs a font whose letters have equal widths.
    """

    key: str
    image: Any = None
    label: str = ""
    text: str = ""
    code: bool = False


def spread(samples: int, count: int, seed: int | None) -> list[int]:
    """The numbers of the samples that are shown, rising; at random if there is a seed."""
    count = min(count, samples)
    if seed is None:
        return [number * samples // count for number in range(count)]
    import random

    return sorted(random.Random(seed).sample(range(samples), count))


def tile(manifest: Manifest, key: str, fields: Mapping[str, bytes], tokenizer: Tokens | None = None) -> Tile:
    """What is shown of a sample.

    Args:
        manifest: Of its dataset.
        key: Its key, as it is stored.
        fields: The bytes of its fields.
        tokenizer: Reads tokens; None: they are shown as numbers.
    """
    if manifest.kind == "tokens":
        return token_tile(manifest, key, fields["tokens"], tokenizer)
    found, kinds = pictured(manifest, key, fields), kinds_of(manifest)
    texts = {
        name: clean(data[: 4 * _READ].decode("utf-8", "replace"), lines=True)
        for name, data in fields.items()
        if kinds[name] in TEXTS
    }
    shown = next((text for name, text in texts.items() if kinds[name] != "json"), None)
    if shown is None:
        shown = next(iter(texts.values()), "")
    if found.image is None and not texts:
        shown = "\n".join(f"{name}  {counted(len(data), 'byte')}" for name, data in fields.items())
    code = found.image is None and _is_code(shown)
    return replace(found, text="\n".join(part for part in (found.text, shown[:_READ]) if part), code=code)


def token_tile(
    manifest: Manifest,
    key: str,
    data: bytes,
    tokenizer: Tokens | None = None,
    letters: int = _IDS,
    most: int = _READ,
) -> Tile:
    """What is shown of a document of tokens.

    Args:
        manifest: Of its dataset.
        key: Its key, as it is stored.
        data: The tokens, as they are stored.
        tokenizer: Reads them; None: they are shown as numbers.
        letters: How many letters numbers may take.
        most: How many tokens are read. Three dots follow if there are more.
    """
    import numpy as np

    tokens = np.frombuffer(data, np.dtype(manifest.fields[0].dtype))
    label = f"{counted(len(tokens), 'token')}, {tokens.dtype}"
    key = clean(unescape_key(key))
    if tokenizer is None:
        return Tile(key, None, label, numbers(tokens, letters))
    text = clean(tokenizer.decode(tokens[:most].tolist()), lines=True)
    return Tile(key, None, label, f"{text} ..." if len(tokens) > most else text, True)


def pictured(manifest: Manifest, key: str, fields: Mapping[str, bytes]) -> Tile:
    """The key, the picture and the label of a sample; its text says only what the picture does not."""
    kinds = kinds_of(manifest)
    image, told = None, ""
    if any(kinds[name] in SHOWN for name in fields):
        from shardstream.decode.views import joined, views

        found = views(dict(fields), kinds)
        image, told = joined(found), _told(found)
    label = next((_label(manifest, data) for name, data in fields.items() if kinds[name] == "cls"), "")
    return Tile(clean(unescape_key(key)), image, label, told)


def kinds_of(manifest: Manifest) -> dict[str, str]:
    """By field: the extension of its codec, which says what it holds."""
    return {info.name: extension(info.codec or info.name) for info in manifest.fields}


def _told(found: Sequence[View]) -> str:
    """What the pictures of a sample do not show: names, values of masks, lengths of sounds."""
    parts = [
        (view.name, view.about if view.about or not isinstance(view.picture, str) else view.picture)
        for view in found
    ]
    if len(parts) == 1:  # if it cannot be decoded, that is in its place
        return clean(found[0].about)
    return clean("; ".join(f"{name}: {about}" if about else name for name, about in parts))


def _label(manifest: Manifest, data: bytes) -> str:
    """The name of a class; its number if the name is not known."""
    text = data[:80].decode("utf-8", "replace").strip()
    classes = manifest.provenance.get("classes")
    if isinstance(classes, list) and text.isdecimal() and int(text) < len(classes):
        return clean(str(classes[int(text)]))
    return f"class {clean(text)}"


def _is_code(text: str) -> bool:
    """Whether a text is code: many lines begin with spaces, or all lines are short."""
    lines = [line for line in text[:_READ].splitlines() if line.strip()]
    indented = sum(line[0] in " \t" for line in lines)
    return len(lines) > 3 and (indented > len(lines) / 5 or max(map(len, lines)) < 100)

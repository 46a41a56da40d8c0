"""Samples as a person looks at them: a picture, a label and a text, of no more than fits on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from shardstream.format.kinds import PIXELS, SOUNDS, extension
from shardstream.format.names import unescape_key

if TYPE_CHECKING:
    from shardstream.decode.views import View
    from shardstream.format.manifest import Manifest

__all__ = ["Tile", "spread", "tile"]

_SHOWN = {*PIXELS, *SOUNDS}
_TEXTS = ("txt", "text", "caption", "json")
_READ = 6000  # characters of a text that a page could show


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
        from shardstream.decode.views import joined, views

        found = views(dict(fields), kinds)
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

"""What differs between two processes that should do the same pack, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["differences"]

_SHOWN = 60  # characters of a value
_NAMES = {
    "sources.files": "the number of input files",
    "sources.bytes": "the bytes of the input",
    "sources.first": "the first input file",
}
# Nobody reads checksums and long lists, so that these values are not told.
_UNTOLD = {
    "sources.listing_sha256": "the names or sizes of the input files differ",
    "sources.heads_sha256": "the content of the input files differs",
    "tokenizer.fingerprint": "the content of the tokenizer differs",
    "options.chat_template": "the chat template differs",
    "options.snapshot": "the keys in the database differ",
    "classes": "the classes of the images differ",
}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What differs, such as "level is 5, not 3".

    Args:
        here: The provenance of a pack in this process, with the versions of its packages.
        there: The same in the process that began the pack.
    """
    mine, theirs = dict(_flat(here)), dict(_flat(there))
    found = []
    for path in dict.fromkeys([*mine, *theirs]):
        if mine.get(path) == theirs.get(path):
            continue
        if path in _UNTOLD:
            found.append(_UNTOLD[path])
            continue
        name = _NAMES.get(path, path.removeprefix("options.").removeprefix("versions."))
        found.append(f"{name} is {_shown(mine.get(path))}, not {_shown(theirs.get(path))}")
    return found


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        path = f"{above}{name}"
        if isinstance(each, Mapping) and path not in _UNTOLD:
            yield from _flat(each, f"{path}.")
        else:
            yield path, each


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""Keys and field names: the names that a tar member may have.

The name of a member is `<key>.<field>`. As in WebDataset, the key ends at the first dot of the last path
component, if nothing else is asked for. So a key may contain `/`, but its last component contains no dot.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote

from shardstream.errors import SourceError

SplitKey = Literal["first", "last"]
MAX_NAME = 1024

_UNSAFE = re.compile(r"[%\\\x00-\x1f\x7f\ud800-\udfff]")
_FORBIDDEN = re.compile(r"[\\\x00]")
# Stands for an empty component. Escaped text never contains a percent sign alone.
_EMPTY = "%"
_PLAIN = re.compile(r"[A-Za-z0-9_\-]+\Z")
# A fast test that most keys pass: paths whose components have usual characters and do not begin with a dot.
_PLAIN_KEY = re.compile(r"(?:[A-Za-z0-9_%~+=-][A-Za-z0-9_.%~+=-]*/)*[A-Za-z0-9_%~+=-]+\Z")
# A fast test that most paths pass: only the dots of their last component have to be escaped.
_PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9_~+=-][A-Za-z0-9_.~+=-]*/)*[A-Za-z0-9_.~+=-]+\Z")


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def escape_key(text: str) -> str:
    """A valid key for any text. Characters that a key cannot have are percent-encoded; see `unescape_key`."""
    if _PLAIN.match(text):
        return text
    if _PLAIN_PATH.match(text):
        folder, slash, base = text.rpartition("/")
        return folder + slash + base.replace(".", "%2E")
    text = _UNSAFE.sub(_percent, text)
    folder, slash, base = text.rpartition("/")
    base = base.replace(".", "%2E") if base else _EMPTY
    if not slash:
        return base
    parts = [part if part.strip(".") else _escape_part(part) for part in folder.split("/")]
    return "/".join(parts) + slash + base


def _escape_part(part: str) -> str:
    return part.replace(".", "%2E") if part else _EMPTY


def unescape_key(key: str) -> str:
    """The text of a key that `escape_key` made."""
    parts = ("" if part == _EMPTY else part for part in key.split("/"))
    return unquote("/".join(parts), errors="surrogatepass")


def check_key(key: str) -> str:
    """`key` itself if it may name a sample, else SourceError."""
    if len(key) <= MAX_NAME and _PLAIN_KEY.match(key):
        return key
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise SourceError(f"key {key!r} is not valid Unicode; escape it") from error
    parts = key.split("/")
    if (
        not 0 < size <= MAX_NAME
        or _FORBIDDEN.search(key)
        or any(part in ("", ".", "..") for part in parts)
        or "." in parts[-1]
    ):
        raise SourceError(
            f"{shorten(key)!r} cannot be a key: keys are relative, 1 to {MAX_NAME} bytes, without "
            "'..', backslash or NUL, and without a dot in the last component"
        )
    return key


def check_field(name: str) -> str:
    """`name` itself if it may name a field, else SourceError."""
    if _PLAIN.match(name) and len(name) <= 100:
        return name
    if (
        not name
        or len(name.encode("utf-8", "replace")) > 100
        or any(ord(letter) < 32 or letter in "/\\\x7f" or "\ud800" <= letter <= "\udfff" for letter in name)
        or name.startswith(".")
        or name.endswith(".")
        or ".." in name
    ):
        raise SourceError(f"{shorten(name)!r} cannot be a field name; use letters, digits, '.', '_'")
    return name


def check_member_name(name: str) -> str:
    """`name` itself if a file in an archive may have that name, else SourceError."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise SourceError("its name is not valid UTF-8") from error
    if not 0 < size <= MAX_NAME + 101:
        raise SourceError(f"its name is {size} bytes long")
    if name.startswith("/") or _FORBIDDEN.search(name) or ".." in name.split("/"):
        raise SourceError(f"its name {shorten(name)!r} is absolute or leaves its folder")
    return name


def plain_name(name: str) -> str:
    """The name of a file in an archive, relative to its folder: "./a//b" is "a/b"."""
    if name.startswith(("/", "./")) or "//" in name or "/./" in name:
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def split_name(name: str, at: SplitKey = "first") -> tuple[str, str]:
    """(key, field) of the name of a member. The field is empty if the last component has no dot.

    Args:
        name: The name.
        at: At which dot of the last component it is split. At the last one, the dots before it become "%2E"
            in the key, since the last component of a key has no dot.
    """
    slash = name.rfind("/")
    dot = name.find(".", slash + 1)
    if dot < 0:
        return name, ""
    if at == "last":
        dot = name.rfind(".")
        return name[: slash + 1] + name[slash + 1 : dot].replace(".", "%2E"), name[dot + 1 :]
    return name[:dot], name[dot + 1 :]


def shorten(text: str, limit: int = 80) -> str:
    """`text`, with its middle left out if it has more than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 4 :]}"

"""Credentials: kept out of messages, and out of what other packages log."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["guard_logs", "redact"]

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")  # chained ones, too: simplecache::s3://
_SECRET = re.compile("secret|token|passw|credential|auth|signature|sas|key|connection", re.IGNORECASE)
_KEY = re.compile("key|.*(secret|token|passw|credential|auth|sas|_key|connection|cookie)", re.IGNORECASE)
# Whatever of these is imported may log URLs, headers and canonical requests at level DEBUG.
_LOUD = (
    "fsspec", "s3fs", "gcsfs", "adlfs", "boto", "aioboto", "aiohttp", "urllib3", "azure", "google", "asyncio",
)  # fmt: skip
_SHORTEST = 6  # what is shorter stands in many words


def redact(url: str) -> str:
    """`url` without user, password, query and fragment, for messages and logs; valid Unicode."""
    url = url.encode("utf-8", "backslashreplace").decode()
    scheme, mark, rest = url.partition("://")
    if not mark or not _REMOTE.match(url):
        return url
    # A password may hold what should be escaped, "/" or "?": then it seems to be the port.
    host, _, port = rest.partition("/")[0].rpartition(":")
    if host and not port.isdigit():
        rest = rest.rpartition("@")[2]
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def guard_logs(url: str, options: Mapping[str, Any] | None) -> None:
    """Hide the credentials of a store in the records of the packages that talk to it."""
    found = [*_of_url(url), *_of_options(options), *_of_environment()]
    _filter.secrets |= {secret for secret in found if len(secret) >= _SHORTEST}
    if not _filter.secrets:
        return
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith(_LOUD) and isinstance(logger, logging.Logger):
            logger.addFilter(_filter)  # adding it again does nothing


class _Filter(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.exc_info:  # the texts of exceptions are not ours to change
            text, record.exc_info, record.exc_text = f"{text} ({record.exc_info[0]})", None, None
        for secret in self.secrets:
            text = text.replace(secret, "***")
        record.msg, record.args = text, ()
        return True


_filter = _Filter()


def _of_url(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        found = [parts.username or "", parts.password or "", parts.query, parts.fragment]
    except ValueError:
        found = []
    found += [item.partition("=")[2] for item in url.partition("?")[2].split("&")]
    for text in found:
        yield text
        yield unquote(text)


def _of_options(options: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _of_options(value, secret or bool(_KEY.match(str(name))))
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _of_options(value, secret)
    elif isinstance(options, str):
        if secret:
            yield options
        elif "://" in options:
            yield from _of_url(options)


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "GCS_", "HF_", "FSSPEC_")) and _SECRET.search(name):
            yield value
        elif name.lower().endswith("_proxy") or name.startswith("AWS_ENDPOINT"):
            yield from _of_url(value)

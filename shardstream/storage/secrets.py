"""Credentials: kept out of messages, and out of what other packages log."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = [
    "SHORTEST_SECRET", "TALKERS", "guard_logs", "guard_secrets", "names_secret", "redact", "url_has_secret",
]  # fmt: skip

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")  # chained ones, too: simplecache::s3://
_SECRET = re.compile("secret|token|passw|credential|auth|signature|sas|key|connection", re.IGNORECASE)
_SIGNED = re.compile("sig|se|sp|sv|x-.*|expires?|policy", re.IGNORECASE)  # in the query of a signed URL
# An option of a store, or a header. "accessKey" and "pat" name secrets; "keepalive" and "path" do not.
_KEY = re.compile(
    r"key|.*(secret|token|passw|passphrase|credential|auth|sas|[_-]key|accesskey|connection|cookie)"
    r"|(.*key|pass|(.*[_-])?(pat|pwd|sig|signature|jwt))\Z",
    re.IGNORECASE,
)
# The packages that talk to stores, which log URLs, headers and canonical requests at level DEBUG; and ours.
TALKERS = (
    "fsspec", "s3fs", "gcsfs", "adlfs", "boto3", "botocore", "aiobotocore", "s3transfer", "aiohttp",
    "urllib3", "requests", "azure", "google", "huggingface_hub", "httpx", "asyncio", "sqlalchemy",
    "shardstream",
)  # fmt: skip
SHORTEST_SECRET = 6  # shorter texts are parts of many words
_MOST = 1024  # secrets that are known at a time, so that a job that always opens stores does not grow


def redact(url: str) -> str:
    """`url` without user, password, query and fragment, for messages and logs; valid Unicode."""
    url = url.encode("utf-8", "backslashreplace").decode()
    scheme, mark, rest = url.partition("://")
    if not mark or not _REMOTE.match(url):
        return url
    # A password may have characters that should be escaped, "/" or "?": then it looks like the port.
    host, _, port = rest.partition("/")[0].rpartition(":")
    if host and not port.isdigit():
        rest = rest.rpartition("@")[2]
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def names_secret(option: str) -> bool:
    """Whether an option of a store has a secret for its value, by its name."""
    return bool(_KEY.match(option))


def url_has_secret(url: str) -> bool:
    """Whether a URL has a password or a signature. A user's name alone is no secret."""
    shown = redact(url).partition("://")[2]
    if not shown or shown == url.partition("://")[2]:
        return False
    user, _, query = url.partition("://")[2].partition(shown)
    names = [item.partition("=")[0] for item in re.split("[?#&]", query) if item]
    return ":" in user or any(_SECRET.search(name) or _SIGNED.fullmatch(name) for name in names)


def guard_logs(url: str, options: Mapping[str, Any] | None) -> None:
    """Hide the credentials of a store in the log records of the packages that talk to stores."""
    found = [*_of_url(url), *_of_options(options), *_of_environment()]
    _filter.learn(secret for secret in found if len(secret) >= SHORTEST_SECRET)
    if _filter.secrets:
        _filter.attach()


def guard_secrets(*secrets: str | None) -> None:
    """Hide secrets that a store's package has found by itself, such as those of a role."""
    _filter.learn(secret for secret in secrets if secret and len(secret) >= SHORTEST_SECRET)
    _filter.attach()


class _Filter(logging.Filter):
    """Changes records that contain a secret, and leaves every other record alone. Many threads may use it."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: tuple[str, ...] = ()  # replaced, never changed; the one used last is the last
        self.lock = threading.Lock()

    def learn(self, found: Iterable[str]) -> None:
        """Know these secrets, too."""
        with self.lock:
            new = dict.fromkeys(found)
            if not new.keys() <= set(self.secrets[-len(new) :]):
                known = [secret for secret in self.secrets if secret not in new]
                self.secrets = (*known, *new)[-_MOST:]

    def attach(self) -> None:
        """Filter the records of all loggers that these packages have by now."""
        with self.lock:
            for name in list(logging.root.manager.loggerDict):
                if name.partition(".")[0] in TALKERS:
                    logger = logging.root.manager.loggerDict.get(name)
                    if isinstance(logger, logging.Logger):
                        logger.addFilter(self)  # adding it again does nothing

    def filter(self, record: logging.LogRecord) -> bool:
        secrets = self.secrets
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - the handler says what is wrong with the arguments
            return True
        if any(secret in text for secret in secrets):
            record.msg, record.args = _hidden(text, secrets), ()
        if record.exc_info:
            trace = record.exc_text or _FORMATTER.formatException(record.exc_info)
            if any(secret in trace for secret in secrets):
                # The exception itself is not ours to change: its text takes its place.
                record.exc_info, record.exc_text = None, _hidden(trace, secrets)
        if record.stack_info and any(secret in record.stack_info for secret in secrets):
            record.stack_info = _hidden(record.stack_info, secrets)
        return True


def _hidden(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, "***")
    return text


_FORMATTER = logging.Formatter()
_filter = _Filter()


def _after_fork() -> None:
    _filter.lock = threading.Lock()  # a thread of the parent may have locked it


os.register_at_fork(after_in_child=_after_fork)


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

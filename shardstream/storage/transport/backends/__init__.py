"""Backends, one a file, with one interface; `connect` chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardstream.errors import OptionError
from shardstream.storage.options import Timeouts
from shardstream.storage.secrets import guard_logs
from shardstream.storage.transport.backends.azure import Azure
from shardstream.storage.transport.backends.base import (
    DELETED_AT_ONCE,
    Backend,
    Content,
    Data,
    Entry,
    Wrapper,
)
from shardstream.storage.transport.backends.fsspec import SCHEME, Fsspec, opened
from shardstream.storage.transport.backends.google import Google
from shardstream.storage.transport.backends.http import Http
from shardstream.storage.transport.backends.obstore import forked, obstore_requests, open_obstore
from shardstream.storage.transport.backends.obstore_config import check_bucket, check_endpoint
from shardstream.storage.transport.backends.s3 import S3

__all__ = [
    "DELETED_AT_ONCE", "Backend", "Content", "Data", "Entry", "Wrapper", "by_fsspec", "connect",
    "obstore_requests",
]  # fmt: skip

_BY_SCHEME: dict[str, type[Fsspec]] = {
    "http": Http, "https": Http, "s3": S3, "s3a": S3, "gs": Google, "gcs": Google,
    "az": Azure, "abfs": Azure, "abfss": Azure, "adl": Azure,
}  # fmt: skip
_S3 = ("s3://", "s3a://")
# A user may have registered another file system for a scheme.
_BY_FILE_SYSTEM: dict[str, type[Fsspec]] = {
    "HTTPFileSystem": Http, "S3FileSystem": S3, "GCSFileSystem": Google, "AzureBlobFileSystem": Azure,
}  # fmt: skip


def connect(url: str, options: Mapping[str, Any], timeouts: Timeouts) -> tuple[Backend, str]:
    """(backend, path) of a URL: obstore's if it can, else fsspec's. `options` are for the store's package."""
    guard_logs(url, options)
    if url.lower().startswith(_S3):
        check_bucket(url)
        check_endpoint(options)
    fast = open_obstore(url, options, timeouts)
    if fast is not None:
        return fast
    try:
        return by_fsspec(url, options, timeouts)
    except OptionError as error:
        if forked() and isinstance(error.__cause__, ImportError):
            hint = "obstore cannot be used in a forked process: spawn it instead"
            raise OptionError(f"{error}; {hint}") from error
        raise


def by_fsspec(url: str, options: Mapping[str, Any], timeouts: Timeouts) -> tuple[Fsspec, str]:
    """(fsspec's backend, path) of a URL. Only fsspec knows patterns and directories."""
    guard_logs(url, options)
    match = SCHEME.match(url)
    scheme = match[1].lower() if match else "file"
    if url.lower().startswith(_S3):
        check_bucket(url)
        check_endpoint(options)
    if scheme == "pipe":
        raise OptionError("pipe: URLs run commands and are refused")
    kind = _BY_SCHEME.get(scheme, Fsspec)
    fs, path = opened(url, scheme, lambda: kind.open(url, dict(options), timeouts))
    guard_logs(url, options)  # by now the packages and their loggers are there
    names = [each.__name__ for each in type(fs).__mro__]
    found = next((_BY_FILE_SYSTEM[name] for name in names if name in _BY_FILE_SYSTEM), Fsspec)
    return found(fs, timeouts), path

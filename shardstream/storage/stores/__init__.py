"""Backends, one a file, with one interface; `connect` chooses."""

from __future__ import annotations

from shardstream.errors import OptionError
from shardstream.storage.secrets import guard_logs
from shardstream.storage.stores.base import Backend, Data, Got
from shardstream.storage.stores.fsspec import Fsspec, Options, backend_of, filesystem
from shardstream.storage.stores.obstore import forked, open_obstore

__all__ = ["Backend", "Data", "Got", "Options", "by_fsspec", "connect"]


def connect(url: str, options: Options) -> tuple[Backend, str]:
    """(backend, path) of a URL: obstore's where it can be, else fsspec's."""
    guard_logs(url, options)
    fast = open_obstore(url, options)
    if fast is not None:
        return fast
    try:
        fs, path = filesystem(url, options)
    except OptionError as error:
        if forked() and isinstance(error.__cause__, ImportError):
            hint = "obstore cannot be used in a forked process: spawn it instead"
            raise OptionError(f"{error}; {hint}") from error
        raise
    guard_logs(url, options)  # by now the packages and their loggers are there
    return backend_of(fs), path


def by_fsspec(url: str, options: Options) -> tuple[Fsspec, str]:
    """(fsspec's backend, path), for what only fsspec does: globs and directories."""
    guard_logs(url, options)
    fs, path = filesystem(url, options)
    guard_logs(url, options)
    return backend_of(fs), path

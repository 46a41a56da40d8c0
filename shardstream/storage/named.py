"""The errors of file systems, as StorageError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from shardstream.errors import OptionError, SourceError, StorageError

__all__ = ["named"]


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Turn the errors of file systems into a StorageError that says what was tried."""
    try:
        yield
    except (StorageError, SourceError, OptionError):
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(f"{what}: {reason}") from error
    except Exception as error:  # stores raise what they like; users see typed errors only
        raise StorageError(f"{what}: {type(error).__name__}") from error

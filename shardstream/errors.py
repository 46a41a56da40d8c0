"""The errors a user can meet, one hierarchy.

ShardstreamError
├── OptionError         an option or a combination of options that cannot work (also a ValueError)
├── SourceError         source data or a sample that cannot be packed or decoded; names file and line
├── CorruptionError     a dataset whose bytes are not those that were packed; names shard and frame
├── StorageError        a store that does not answer as it should; names the URL
│   └── CommitError     another packer holds or has changed the target
├── StateError          a saved state that belongs to another dataset or other options
└── MissingExtraError   an optional package that is not installed (also an ImportError)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class ShardstreamError(Exception):
    """Base of every error that shardstream raises on purpose."""


class OptionError(ShardstreamError, ValueError):
    """An option, or a combination of options, that cannot work."""


class SourceError(ShardstreamError):
    """Source data that cannot be packed, or a sample that cannot be decoded."""


class CorruptionError(ShardstreamError):
    """A dataset whose bytes are not the bytes that were packed."""


class StorageError(ShardstreamError):
    """A store that failed, or gave other bytes than it was asked for."""


class CommitError(StorageError):
    """Another packer holds the target, or has committed to it."""


class StateError(ShardstreamError):
    """A saved state that does not belong to this dataset or these options."""


class MissingExtraError(ShardstreamError, ImportError):
    """An optional package that is needed here is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise MissingExtraError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here and is not installed: pip install 'shardstream[{extra}]'"
        ) from error


@contextmanager
def noted(where: str) -> Iterator[None]:
    """Let an exception of the user's own code pass as it is, with a note of where it came from."""
    try:
        yield
    except Exception as error:
        # Notes came with Python 3.11. Errors of ours say themselves where they belong.
        if hasattr(error, "add_note") and not isinstance(error, ShardstreamError):
            error.add_note(where)
        raise

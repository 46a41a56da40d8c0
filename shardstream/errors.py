"""The errors a user can meet, one hierarchy.

ShardstreamError
├── OptionError         an option or a combination of options that cannot work (also a ValueError)
├── SourceError         source data or a sample that cannot be packed or decoded; names file and line
├── CorruptionError     a dataset whose bytes are not those that were packed; names shard and frame
├── StorageError        a store that does not answer as it should; names the URL
│   └── CommitError     another packer is at work at the target, or has changed it; or parts are missing
├── StateError          a saved state that belongs to another dataset or other options
└── MissingExtraError   an optional package that is not installed (also an ImportError)
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = [
    "CommitError",
    "CorruptionError",
    "MissingExtraError",
    "OptionError",
    "ShardstreamError",
    "SourceError",
    "StateError",
    "StorageError",
    "note",
    "noted",
    "reason",
    "require",
]


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
    """Another packer is at work at the target, or has committed to it; or parts are missing.

    Attributes:
        parts: The numbers of the parts that are missing.
        tasks: The numbers of the tasks that are missing.
    """

    parts: tuple[int, ...] = ()
    tasks: tuple[int, ...] = ()


class StateError(ShardstreamError):
    """A saved state that does not belong to this dataset or these options."""


class MissingExtraError(ShardstreamError, ImportError):
    """An optional package that is needed here is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: the full name of the module.
        extra: the extra of shardstream that installs it.

    Returns:
        The module.

    Raises:
        MissingExtraError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here and is not installed: pip install 'shardstream[{extra}]'"
        ) from error


def reason(error: BaseException) -> str:
    """The text of a foreign error for a message of ours, without the addresses of Python objects.

    Decoders are given bytes, and name the object that holds them, as if it were a file.
    """
    return re.sub(r"\s*<[\w.]+ object at 0x[0-9a-fA-F]+>", "", str(error))


def note(error: Exception, where: str) -> None:
    """Add a note to an exception of the user's own code.

    Args:
        error: the exception.
        where: the note: where the exception comes from.
    """
    # Python 3.10 has no notes. The errors of this module name the place in their message.
    if hasattr(error, "add_note") and not isinstance(error, ShardstreamError):
        error.add_note(where)


@contextmanager
def noted(where: str) -> Iterator[None]:
    """Add a note to any exception of the user's own code that passes.

    Args:
        where: the note: where the exception comes from.
    """
    try:
        yield
    except Exception as error:
        note(error, where)
        raise

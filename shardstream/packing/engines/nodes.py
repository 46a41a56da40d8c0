"""What each machine must have before it gets a task: the same versions, and the same files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from shardstream.errors import StorageError
from shardstream.version import __version__

__all__ = ["MARK", "Expected", "has_marks", "marked", "problems", "versions"]

MARK = ".pack-seen-"  # how the names of marks begin
# The bytes of a dataset depend on them, and a machine that does not have one says so in its task.
_OPTIONAL = ("msgspec", "tokenizers", "tiktoken", "pillow", "simplejpeg", "pyarrow", "jinja2")


@dataclass(frozen=True)
class Expected:
    """What a machine must have.

    Args:
        versions: Of packages, by their names.
        marks: Files that the packer wrote, and what is in them.
        files: Files of the input, and their sizes.
        variables: Environment variables.
    """

    versions: Mapping[str, str]
    marks: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    variables: tuple[str, ...] = ()


def versions() -> dict[str, str]:
    """The versions here of all that the bytes of a dataset depend on."""
    import numpy as np
    import zstandard

    found = {
        "shardstream": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "zstandard": zstandard.__version__,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "numpy": np.__version__,
    }
    for name in _OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def problems(expected: Expected) -> list[str]:
    """Why this machine cannot do the job; nothing if it can."""
    found = []
    here = versions()
    for name, version in expected.versions.items():
        if here.get(name, version) != version:
            found.append(
                f"it has {name} {here[name]}, and the packing process has {version}: the bytes could differ. "
                "Install the same version on both"
            )
    for path, text in expected.marks:
        if _read(path) != text:
            found.append(
                f"it does not see what the packing process writes to {os.path.dirname(path)}. Choose a "
                "folder that all machines share, or a store such as s3://"
            )
    for path, size in expected.files:
        if _size(path) != size:
            found.append(f"it does not see the input {path}. Put the input where all machines see it")
    found += [
        f"the environment variable {name} is not set, which has a secret of storage_options"
        for name in expected.variables
        if name not in os.environ
    ]
    return found


def has_marks(expected: Expected) -> bool:
    """Whether the packing process is still at work, as far as its folders show."""
    return all(_read(path) == text for path, text in expected.marks)


def _read(path: str) -> str | None:
    with suppress(OSError, UnicodeDecodeError), open(path, encoding="ascii") as file:
        return file.read()
    return None


def _size(path: str) -> int | None:
    with suppress(OSError):
        return os.path.getsize(path)
    return None


@contextmanager
def marked(folders: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Have a file with a random text in each folder meanwhile, which shows who sees the folder.

    Yields:
        The paths of the files, and their texts.

    Raises:
        StorageError: A folder cannot be written.
    """
    marks: list[tuple[str, str]] = []
    try:
        for folder in folders:
            # Another name for each pack: a node may remember for a while that a file was not there.
            path, text = os.path.join(folder, MARK + secrets.token_hex(8)), secrets.token_hex(16)
            try:
                os.makedirs(folder, exist_ok=True)
                with open(path, "w", encoding="ascii") as file:
                    file.write(text)
            except OSError as error:
                raise StorageError(f"{folder}: cannot write there: {error.strerror}") from error
            marks.append((path, text))
        yield tuple(marks)
    finally:
        for path, _ in marks:
            with suppress(OSError):
                os.unlink(path)

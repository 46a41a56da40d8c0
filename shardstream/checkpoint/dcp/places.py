"""Where a checkpoint lies on a local disk, and which step its name says."""

from __future__ import annotations

import os
import re

import xxhash

from shardstream.errors import OptionError

__all__ = ["folder_of", "has_name", "last_name", "local_folder", "run_mark", "step_in"]

_NUMBER = re.compile(r"(\d+)\Z")


def last_name(url: str) -> str:
    """The last name of a path or URL.

    Raises:
        OptionError: It has none.
    """
    name = url.rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..") or name.endswith(":"):
        raise OptionError(f"{url!r} is no folder of a checkpoint: it has no name")
    return name


def has_name(url: str) -> bool:
    """Whether a path or URL has a last name."""
    try:
        last_name(url)
    except OptionError:
        return False
    return True


def folder_of(url: str) -> str:
    """The folder that a checkpoint lies in, which other checkpoints of its run share."""
    return url.rstrip("/").rpartition("/")[0]


def run_mark(url: str) -> str:
    """What the local folders of all checkpoints that lie beside this one end with.

    Runs have checkpoints of the same names. So the mark is a digest of the URL without its last name.
    """
    return f"-{xxhash.xxh3_64_hexdigest(folder_of(url).encode())}"


def local_folder(local: str, url: str) -> str:
    """The folder of a checkpoint below the folder of local checkpoints.

    Args:
        local: The folder of local checkpoints.
        url: An absolute path or a URL: that of the checkpoint.
    """
    name = last_name(url) + run_mark(url)
    return os.path.join(os.path.abspath(os.path.expanduser(local)), name)


def step_in(url: str) -> int:
    """The step in a name such as "step-500"; 0 if there is no number at its end."""
    match = _NUMBER.search(last_name(url))
    return int(match[1]) if match else 0

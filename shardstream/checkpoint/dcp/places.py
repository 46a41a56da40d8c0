"""Where a checkpoint lies on a local disk, and which step its name says."""

from __future__ import annotations

import os
import re

from shardstream.errors import OptionError

__all__ = ["last_name", "local_folder", "step_in"]

_NUMBER = re.compile(r"(\d+)\Z")


def last_name(url: str) -> str:
    """The last name of a path or URL.

    Raises:
        OptionError: it has none.
    """
    name = url.rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..") or name.endswith(":"):
        raise OptionError(f"{url!r} is no folder of a checkpoint: it has no name")
    return name


def local_folder(local: str, url: str) -> str:
    """The folder of a checkpoint below the folder of local checkpoints."""
    return os.path.join(os.path.abspath(os.path.expanduser(local)), last_name(url))


def step_in(url: str) -> int:
    """The step in a name such as "step-500"; 0 if there is no number at its end."""
    match = _NUMBER.search(last_name(url))
    return int(match[1]) if match else 0

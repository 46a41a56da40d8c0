"""What a task that calls sys.exit() means: an error of the task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["exits_are_errors"]


@contextlib.contextmanager
def exits_are_errors() -> Iterator[None]:
    """Raise RuntimeError if a task calls sys.exit(): else the program ends as if all was well.

    Raises:
        RuntimeError: It did.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"a task called sys.exit({error.code!r})") from error

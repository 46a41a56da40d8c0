"""README.md as PyPI shows it: without what leads into the repository, which PyPI does not have.

hatchling calls it when it builds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"^!\[[^\]]*\]\((?![a-z]+://)[^)]*\)\n+", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+://)[^)]*\)")
_MARK = re.compile(r"^<!--.*?-->\n", re.MULTILINE)


def for_pypi(text: str) -> str:
    """The text without pictures and marks; a link into the repository becomes its text.

    Args:
        text: Of README.md.

    Returns:
        Markdown in which every link is a URL.
    """
    return _LINK.sub(r"\1", _MARK.sub("", _PICTURE.sub("", text)))


class ReadmeHook(MetadataHookInterface):
    """Gives the build its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_pypi(text)}

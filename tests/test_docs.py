"""Every example in the documentation runs, in the order of the page, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# Their examples run in the environments of the frameworks: tests/frameworks/contract.py.
GUIDES = ROOT / "docs" / "frameworks"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A fenced block that is meant to run."""

    language: str
    code: str
    line: int


def examples(text: str) -> list[Example]:
    """The python blocks, and the bash blocks whose first line is `# run`."""
    found = []
    for match in FENCE.finditer(text):
        language, code = match.groups()
        if language == "python" or (language == "bash" and code.startswith("# run\n")):
            found.append(Example(language, code, text.count("\n", 0, match.start(2)) + 1))
    return found


def test_examples_are_found() -> None:
    text = "a\n```python\nx = 1\n```\n```bash\nrm x\n```\n```bash\n# run\nls\n```\n```\nplain\n```\n"
    assert examples(text) == [Example("python", "x = 1\n", 3), Example("bash", "# run\nls\n", 9)]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent != GUIDES and examples(page.read_text(encoding="utf-8"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examples(page.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    namespace: dict[str, Any] = {"__name__": "example"}
    for example in found:
        if example.language == "python":
            # Blank lines in front make the page's own line numbers appear in a traceback.
            code = "\n" * (example.line - 1) + example.code
            exec(compile(code, str(page), "exec"), namespace)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", example.code],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{page}:{example.line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

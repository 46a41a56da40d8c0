"""Every example in the documentation runs, in the order of the page, in an empty directory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# Read, but not run.
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", ROOT / "examples" / "README.md"]
# Their examples run in the environments of the frameworks: tests/frameworks/contract.py.
GUIDES = ROOT / "docs" / "frameworks"
# Those of these pages, but for the two whose library is here, run in an environment of theirs:
# tests/frameworks/test_moving.py.
MOVING, MOVING_HERE = ROOT / "docs" / "moving", {"webdataset", "energon"}
# Needs a bucket, and a job that is stopped: tests/test_walk.py.
WALK = ROOT / "docs" / "walk.md"
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


# As everywhere: pyproject.toml.
WARNINGS = ["-W", "error", "-W", "ignore:'set_vital' is deprecated:UserWarning"]
# torch.distributed.checkpoint says so of every save and load by one process.
WARNINGS += ["-W", "ignore:torch.distributed is disabled:UserWarning"]
# As a reader would: in a fresh interpreter, one block after the other.
RUN = """
import atexit, json, os, subprocess, sys, threading

page, found = json.load(sys.stdin)
namespace = {"__name__": "example"}
for language, code, line in found:
    if language == "python":
        # Blank lines in front make the page's own line numbers appear in a traceback.
        exec(compile("\\n" * (line - 1) + code, page, "exec"), namespace)
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], timeout=250, check=True)
if any("init_process_group" in code for _, code, _ in found):
    # PyTorch may abort at the very end, when it frees its groups ("terminate called without an active
    # exception"). What Python does at the end is done all the same.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
"""


def test_examples_are_found() -> None:
    text = "a\n```python\nx = 1\n```\n```bash\nrm x\n```\n```bash\n# run\nls\n```\n```\nplain\n```\n"
    assert examples(text) == [Example("python", "x = 1\n", 3), Example("bash", "# run\nls\n", 9)]


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page != WALK and page.parent != GUIDES and (page.parent != MOVING or page.stem in MOVING_HERE)
        if examples(page.read_text(encoding="utf-8"))
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, *WARNINGS, "-X", "faulthandler", "-c", RUN],
        input=json.dumps([str(page), examples(page.read_text(encoding="utf-8"))]),
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def anchors(page: Path) -> set[str]:
    """What links into a page may end in: its headings, as GitHub names them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, place in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name} links to {target}"
            assert not place or place in anchors(there), f"{page.name} links to {target}#{place}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_are_named_exist(page: str) -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / page).read_text(encoding="utf-8")))
    folders = [ROOT / "shardstream", ROOT / "tests"]
    known = {"/" + path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.py")}
    assert named
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in known)] == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    folder = ROOT / "docs"
    pages = [page.relative_to(folder).as_posix() for page in folder.glob("**/*.md")]
    assert [page for page in pages if not re.search(rf"[ :]{re.escape(page)}$", listed, re.MULTILINE)] == []


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    assert [page for page in pages if f"]({page})" not in listed] == []

"""What the site has beside docs/: pages of the repository, the page of the command line, and links to them.

mkdocs calls the functions whose names begin with `on_`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
# Files of the repository that are pages of the site, too: where each is in the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/made.md",
    "examples/README.md": "examples.md",
}
# A fenced block, a link, or code within a line: whichever begins first.
_PARTS = re.compile(
    r"^```.*?^```\s*?$|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
    r"|`(?:[^`\n]|\n(?!\n))+`",
    re.MULTILINE | re.DOTALL,
)


def _pages() -> dict[str, str]:
    """All files of the repository that become files of the site, and where they are there."""
    found = dict(PAGES)
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*")):
        if path.suffix in (".md", ".png"):
            name = path.relative_to(ROOT).as_posix()
            found[name] = name
    return found


def command_line() -> str:
    """The page of the command line, as the program itself describes it."""
    command = [sys.executable, "-m", "typer", "shardstream.cli.app", "utils", "docs", "--name", "shardstream"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}
    )
    head, _, commands = done.stdout.partition("## ")
    # The list of the commands is cut short, and stands beside the page anyhow.
    head = head.partition("**Commands**")[0].replace("# `shardstream`", "# Command line", 1)
    return f"{head}## {commands}"


def programs() -> str:
    """The programs of examples/, each folded up, for readers without the repository."""
    found = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text(encoding="utf-8").rstrip()
        lines = "\n".join(f"    {line}".rstrip() for line in ["```python", *code.split("\n"), "```"])
        found.append(f'??? example "{path.name}"\n\n{lines}\n')
    return "\n## The programs\n\n" + "\n".join(found)


def on_files(files: Files, config: Any) -> Files:
    """Add what is not in docs/."""
    for name, place in _pages().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links of files of the repository to where they are in the site.

    A link to a file that is no page of the site, such as a module, becomes its text: the site is also read
    without the repository.
    """
    pages = _pages()
    sources = {place: name for name, place in pages.items()}
    here = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def led(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.group("picture", "text", "target", "anchor")
        if target is None or "://" in target or target.startswith(("mailto:", "/")):
            return match.group()
        there = os.path.normpath(os.path.join(os.path.dirname(here), target))
        if there.startswith("docs/"):
            place = there.removeprefix("docs/")
        elif there in pages:
            place = pages[there]
        elif there == "README.md":
            place, anchor = "index.md", ""
        else:
            return str(text)
        way = os.path.relpath(place, os.path.dirname(page.file.src_uri) or ".")
        return f"{picture}[{text}]({way}{anchor or ''})"

    if here == "examples/README.md":
        markdown += programs()
    # What marks a block for the tests says nothing to readers.
    return _PARTS.sub(led, markdown).replace("```bash\n# run\n", "```bash\n")


def _without_requests(html: str, place: str) -> str:
    """Put our script in the place of the theme's, which comes from the Internet; refuse any other request."""
    way = os.path.relpath("javascripts/search-in-a-folder.js", os.path.dirname(place) or ".")
    html = html.replace("https://unpkg.com/iframe-worker/shim", way)
    if found := re.search(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"', html):
        raise PluginError(f"{place} asks another machine: {found.group()}")
    return html


def on_post_page(output: str, page: Any, config: Any) -> str:
    return _without_requests(output, page.file.dest_uri)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    return (
        _without_requests(output_content, template_name)
        if template_name.endswith(".html")
        else output_content
    )


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Put drawings and bars into the page, so that they have the colours of the theme."""

    def drawn(match: re.Match[str]) -> str:
        svg = (ROOT / "docs" / "images" / match.group(1)).read_text(encoding="utf-8")
        return re.sub(r"<style>.*?</style>\n", "", svg, flags=re.DOTALL)

    return re.sub(r'<img[^>]*src="[^"]*images/((?:concepts|benchmarks)/[\w-]+\.svg)"[^>]*>', drawn, html)

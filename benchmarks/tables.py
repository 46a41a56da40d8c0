"""Writes the figures of the pages from the committed results, and draws the pictures.

    python -m benchmarks tables [--check]

A block of figures stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`; `figures.py` says
which there are. `results.md` beside each `results.json` and `docs/images/benchmarks/*.svg` are written, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import figures, report
from benchmarks.committed import Found, found
from benchmarks.explained import WHY
from benchmarks.processes import ROOT

PAGES = ("README.md", "docs/benchmarks.md", "benchmarks/README.md")
PICTURES = ROOT / "docs" / "images" / "benchmarks"
_BLOCK = re.compile(
    r"^<!-- figures: (?P<name>[^\n]+?) -->\n.*?^<!-- end of figures -->$", re.MULTILINE | re.DOTALL
)


def filled(text: str, everything: Mapping[str, Found]) -> str:
    """A page with its blocks written anew.

    Raises:
        ValueError: If a block has a name that is none.
    """

    def new(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- figures: {name} -->\n{figures.block(name, everything)}<!-- end of figures -->"

    return _BLOCK.sub(new, text)


def wanted(everything: Mapping[str, Found]) -> dict[Path, str]:
    """All files that follow from the results, and what has to be in them."""
    texts = {}
    for page in PAGES:
        path = ROOT / page
        texts[path] = filled(path.read_text(encoding="utf-8"), everything)
    for name, one in everything.items():
        if one.answer is None or one.file is None:
            continue
        texts[PICTURES / f"{name}.svg"] = figures.picture(name, one)
        if one.file.name == "results.json":
            together = [each for each in everything.values() if each.file == one.file]
            results = {
                "facts": one.facts,
                "versions": one.versions,
                "questions": {each.question.name: each.answer for each in together},
            }
            texts[one.file.with_name("results.md")] = report.document(
                [each.question for each in together], results
            )
    return texts


def stale(texts: Mapping[Path, str]) -> list[Path]:
    """Files that are not what they have to be, and pictures that no result has any more."""
    old = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    return old + [path for path in PICTURES.glob("*.svg") if path not in texts]


def main(check: bool) -> int:
    """Write all files, or say which are not what they have to be.

    Args:
        check: Only say it.

    Returns:
        The exit code: 1 if `check` found any.
    """
    everything = found()
    texts = wanted(everything)
    old = stale(texts)
    for path in old:
        print(f"{'differs from the results' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check and path in texts:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path], encoding="utf-8")
        elif not check:
            path.unlink()
    for name, one in everything.items():
        if one.answer is None:
            print(f"no results: {name}", file=sys.stderr)
            continue
        for bar in one.question.bars:
            if report.judged(bar, one.answer)[1] == "no" and bar.text not in WHY.get(name, {}):
                print(
                    f"not met, and not explained in benchmarks/explained.py: {name}: {bar.text}",
                    file=sys.stderr,
                )
    if check and old:
        print("python -m benchmarks tables writes them", file=sys.stderr)
    return 1 if check and old else 0

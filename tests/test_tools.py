"""The scripts in tools/ that people call by hand."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "tools" / "import-graph"
SVG = "{http://www.w3.org/2000/svg}"


def draw(out: Path, *arguments: str) -> tuple[int, list[str]]:
    """The tool's exit code, and the lines that it prints."""
    command = [sys.executable, "-W", "error", str(TOOL), *arguments, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def words(svg: Path, colour: str | None = None) -> set[str]:
    """The texts in a picture, those of one colour if it is given."""
    found = ET.parse(svg).getroot().iter(f"{SVG}text")
    return {str(each.text) for each in found if colour in (None, each.get("fill"))}


def package(folder: Path, **files: str) -> Path:
    """A package of these files; "__" in a name is a folder's slash."""
    for name, source in files.items():
        path = folder / "made" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder / "made"


def test_rooms_do_not_import_each_other_in_a_circle(tmp_path: Path) -> None:
    code, said = draw(tmp_path / "one.svg")
    assert code == 0, said


def test_the_package_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    draw(tmp_path / "one.svg")
    assert {"errors", "reader", "fetcher", "manifest"} <= words(tmp_path / "one.svg")
    draw(tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_circle_of_rooms_is_found(tmp_path: Path) -> None:
    made = package(
        tmp_path,
        up__one="from made import down\n",
        down="def late():\n    from made.up.one import x\n",
        out="import made.down\n",
    )
    code, said = draw(tmp_path / "out.svg", "--package", str(made))
    assert code == 1
    assert "circle: down, up" in said
    assert {"one", "circle: down, up"} <= words(tmp_path / "out.svg", "#c00")
    assert "out" not in words(tmp_path / "out.svg", "#c00")


def test_a_circle_of_files_in_one_room_is_shown(tmp_path: Path) -> None:
    made = package(
        tmp_path,
        room__one="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.room.two import x\n",
        room__two="from made.room.one import y\n",
        room__three="from made.room import two\n",
    )
    code, said = draw(tmp_path / "out.svg", "--package", str(made))
    assert (code, said) == (
        0,
        [
            "3 files, 3 imports. Dashed: only for the type checker, or inside functions.",
            "circle: room.one, room.two",
        ],
    )
    assert words(tmp_path / "out.svg", "#c00") == {"one", "two", "circle: room.one, room.two"}


def test_arrows_are_dashed_if_nothing_is_imported_at_once(tmp_path: Path) -> None:
    made = package(
        tmp_path,
        top="from made import middle\ndef late():\n    from made import low\n",
        middle="from made.low import x\n",
        low="",
    )
    draw(tmp_path / "out.svg", "--package", str(made))
    paths = [path for path in ET.parse(tmp_path / "out.svg").getroot().iter(f"{SVG}path") if len(path)]
    dashed = {path[0].text: path.get("stroke-dasharray") is not None for path in paths}
    assert dashed == {
        "top imports middle: 1 pairs of files": False,
        "middle imports low: 1 pairs of files": False,
        "top imports low: 1 pairs of files": True,
    }


def test_a_revision_is_read_from_git(tmp_path: Path) -> None:
    made = package(tmp_path, one="from made import two\n", two="")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "made"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "made"], check=True)
    (made / "three.py").write_text("from made import one\n", encoding="utf-8")
    draw(tmp_path / "then.svg", "--package", str(made), "--rev", "HEAD")
    draw(tmp_path / "now.svg", "--package", str(made))
    assert words(tmp_path / "now.svg") >= {"one", "two", "three"}
    assert {"one", "two"} <= words(tmp_path / "then.svg")
    assert "three" not in words(tmp_path / "then.svg")

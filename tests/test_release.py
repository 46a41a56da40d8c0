"""What is published: the wheel and the sdist, built as for PyPI, and the wheel in an empty environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from shardstream.storage.transport.backends.fsspec import _EXTRAS as EXTRAS
from shardstream.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")  # as pyproject.toml says
# What a user does without torch.
USE = """
shardstream --version
shardstream pack in.jsonl out --compression zstd
shardstream info out --json
shardstream cat out 1 --field txt
shardstream verify out --deep
shardstream export out tars
shardstream index 'tars/*.tar' adopted
shardstream ls adopted --limit 1
"""


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """What a command prints; its failure shows all of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment | more, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def built(folder: Path) -> tuple[Path, Path]:
    """(wheel, sdist); the wheel is built from the sdist, as `python -m build` does."""
    # Without an environment of its own, which would need a registry: the backend is among the tools here.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist)."""
    return built(tmp_path_factory.mktemp("dist"))


def test_descriptions_are_valid(packages: tuple[Path, Path], tmp_path: Path) -> None:
    told = run(sys.executable, "-m", "twine", "check", "--strict", *packages, cwd=tmp_path)
    assert told.count("PASSED") == 2


def test_wheel_has_the_package_and_nothing_else(packages: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(packages[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "shardstream").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == ours
    assert "shardstream/py.typed" in names
    assert len(licences) == 1


def test_description_leads_nowhere_that_is_not_there(packages: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(packages[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        told = wheel.read(name).decode()
    assert "# shardstream" in told
    assert "## Limits" in told
    # PyPI has no files of the repository, and shows no picture of them.
    assert re.findall(r"!?\[[^\]]*\]\((?!https?://)[^)]*\)", told) == []
    assert "<!--" not in told


def test_sdist_has_what_the_checks_need(packages: tuple[Path, Path]) -> None:
    with tarfile.open(packages[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    wanted = [
        "tests/conftest.py", "docs/index.md", "benchmarks/README.md", "examples/README.md",
        "examples/notebook.ipynb", "examples/tokens_ddp.py", "tools/test", "tools/quickstart",
        "constraints.txt", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md",
        "CITATION.cff", "mkdocs.yml",
    ]  # fmt: skip
    assert [name for name in wanted if name not in names] == []
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "build/"))]


def dependencies() -> dict[str, list[str]]:
    """From an extra, "" for what is always installed, to the names of its packages."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = text[text.index("\ndependencies = [") : text.index("\ndev = [")]
    found = {}
    for name, packages in re.findall(r"^(\w+) = \[(.*?)\](?:$|  #)", text, re.MULTILINE | re.DOTALL):
        lines = re.sub(r"  # .*", "", packages)
        found["" if name == "dependencies" else name] = re.findall(r'"([\w\-]+(?:\[[^\]]*\])?)[^"]*"', lines)
    return found


def test_licences_are_those_of_the_dependencies() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w\-]+) \|(?: `(\w+)`)? \|", page, re.MULTILINE)
    wanted = dependencies()
    del wanted["all"]
    assert len(wanted) > 20
    assert sorted(rows) == sorted((name, extra) for extra, names in wanted.items() for name in names)


def test_every_extra_does_something() -> None:
    extras = dependencies()
    (everything,) = extras.pop("all")
    assert set(everything[12:-1].split(",")) == extras.keys() - {""}
    paths = sorted((ROOT / "shardstream").rglob("*.py"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    # An import that an extra may be needed for says which.
    said = re.findall(r"""require\([\w".]+, "(\w+)"\)|\(extra: (\w+)\)""", code)
    named = {name for names in said for name in names if name} | set(EXTRAS.values())
    assert named <= extras.keys()
    # Two make faster what works without them. They are used if they are there.
    assert "import obstore" in code
    assert 'import_module("google_crc32c")' in code
    assert extras.keys() - {"", *named} == {"fast", "tfrecord"}


def test_readers_are_told_of_every_extra() -> None:
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    counts = {name: page.count(f"\n| `{name}` |") for name in dependencies()}
    assert counts == {name: name not in ("", "all") for name in counts}


def test_version_is_said_once() -> None:
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in cited


def test_no_class_needs_a_newer_python() -> None:
    # Before Python 3.11 a NamedTuple can have no other base.
    both = re.compile(r"^class \w+\((NamedTuple, |[^)]*, NamedTuple\b)", re.MULTILINE)
    paths = sorted((ROOT / "shardstream").rglob("*.py"))
    assert [path.name for path in paths if both.search(path.read_text(encoding="utf-8"))] == []


def use(folder: Path, path: str, **more: str) -> None:
    """Do what a user does without torch."""
    (folder / "in.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
    for line in USE.strip().splitlines():
        told = run("bash", "-c", line, cwd=folder, PATH=f"{path}:{os.environ['PATH']}", **more)
        if " cat " in line:
            assert told.strip() == "two"


def test_wheel_works(packages: tuple[Path, Path], tmp_path: Path) -> None:
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target"]
    run(sys.executable, *install, tmp_path / "site", packages[0], cwd=tmp_path)
    where = "import shardstream; print(shardstream.__file__)"
    found = run(
        "bash", "-c", f"{sys.executable} -c '{where}'", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")
    )
    assert found.startswith(str(tmp_path))
    use(tmp_path, str(tmp_path / "site" / "bin"), PYTHONPATH=str(tmp_path / "site"))


def interpreter(version: str) -> str | None:
    """An interpreter of a version, in PATH or where pyenv has it; None if there is none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(pyenv.glob(f"{version}.*/bin/python{version}"))
    return str(found[-1]) if found else shutil.which(f"python{version}")


@pytest.mark.long
@pytest.mark.parametrize("version", PYTHONS)
def test_wheel_works_in_an_empty_environment(
    version: str, packages: tuple[Path, Path], tmp_path: Path
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    run(python, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(packages[0])]
    run(programs / "python", *install, cwd=tmp_path)
    use(tmp_path, str(programs))
    listed = run(programs / "python", "-m", "pip", "list", "--format", "freeze", cwd=tmp_path)
    assert "torch==" not in listed

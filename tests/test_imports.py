"""No module imports itself, by whatever way round: neither when it runs nor when its types are checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import shardstream

ROOT = Path(shardstream.__file__).parent


def module_of(path: Path, root: Path) -> str:
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements that run when a module is imported, and those under TYPE_CHECKING."""
    for node in body:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for name in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """The modules that a module imports, of those that are known."""
    for node in statements(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield from [name for name in (inside, node.module) if name in known][:1]


def circle(root: Path) -> str | None:
    """The modules of a circle of imports in a package, such as "a -> b -> a"; None if there is none."""
    trees = {module_of(path, root): ast.parse(path.read_text()) for path in root.rglob("*.py")}
    graph = {name: set(imported(tree, set(trees))) for name, tree in trees.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))
    return None


def test_the_package_has_no_circle_of_imports() -> None:
    assert circle(ROOT) is None


@pytest.mark.parametrize(
    "text",
    [
        "from package.b import one",
        "import package.b",
        "from package import b",
        "if TYPE_CHECKING:\n    from package.b import one",
        "try:\n    import zlib\nexcept ImportError:\n    from package.b import one",
        "class A:\n    from package.b import one",
    ],
)
def test_a_circle_is_found_and_named(tmp_path: Path, text: str) -> None:
    root = tmp_path / "package"
    root.mkdir()
    for name, lines in (("__init__", ""), ("a", text), ("b", "from package.c import two"), ("c", "")):
        (root / f"{name}.py").write_text(lines)
    assert circle(root) is None
    (root / "c.py").write_text("from package.a import three")
    found = circle(root)
    assert found is not None
    assert sorted(found.split(" -> ")[1:]) == ["package.a", "package.b", "package.c"]
    # What a function imports, it imports when it is called.
    (root / "c.py").write_text("def late():\n    from package.a import three")
    assert circle(root) is None

"""The names that `import shardstream` gives, at run time and to a type checker."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import shardstream as ss
from shardstream import errors

PACKAGE = Path(ss.__file__).parent


def test_the_names_are_sorted_and_each_is_there() -> None:
    assert ss.__all__ == sorted(set(ss.__all__))
    for name in ss.__all__:
        assert getattr(ss, name).__name__.rpartition(".")[2] == name  # a module has a longer one
    assert {name for name in dir(ss) if not name.startswith("__")} == set(ss.__all__)


def test_a_type_checker_sees_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    assert {name.name: node.module for node in imports for name in node.names} == ss._HOMES
    assert all(name.asname == name.name for node in imports for name in node.names)
    assert set(ss._HOMES) - {"to_tf"} == set(ss.__all__)
    assert (files("shardstream") / "py.typed").is_file()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Streamer'"):
        _ = ss.Streamer  # type: ignore[attr-defined]


def test_every_error_is_exported_and_derives_from_one() -> None:
    found = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert set(found) <= set(ss.__all__)
    for name, value in found.items():
        assert issubclass(value, ss.ShardstreamError)
        assert getattr(ss, name) is value
        # The tree in the module's docstring names each, once.
        assert (errors.__doc__ or "").count(name) == 1
    assert errors.__all__ == sorted(errors.__all__)


def test_the_import_is_quick_and_loads_nothing_heavy() -> None:
    code = "import sys, shardstream; shardstream.__version__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"numpy", "torch", "fsspec", "msgspec", "typer", "rich", "pytest", "importlib.metadata"}
    assert not heavy & set(done.stdout.split())

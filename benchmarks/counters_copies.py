"""Copies of the package in one process, which do what counts never, once, or several times."""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

__all__ = ["Copy", "counting"]

PACKAGE = "shardstream"
_COUNTING = (f"{PACKAGE}.counters.recorder", f"{PACKAGE}.counters.page")  # what counts comes from there
_RECORDERS = ("recorder", "_recorder")  # by these names others have what counts for a loader
_METHODS = ("tell_process", "hold", "let_go")  # of Stats: they count for the process
_INSIDE = (*_METHODS, "_hold")
_STATS = ("stats", "_stats")


class Copy:
    """A copy of the package, with modules of its own.

    Args:
        times: How often each statement that counts is there: 0 for not at all, 1 for the package as it is.
        compiled: A folder of compiled modules, which is filled: under valgrind, to compile takes minutes.
    """

    def __init__(self, times: int, compiled: Path | None = None) -> None:
        for name in [name for name in sys.modules if _is_ours(name)]:
            del sys.modules[name]
        finder = _Finder(times, compiled)
        sys.meta_path.insert(0, finder)
        self._finder = finder
        self.package = importlib.import_module(PACKAGE)
        sys.meta_path.remove(finder)
        self._modules: dict[str, ModuleType] = {}
        self.leave()

    def enter(self) -> None:
        """From now on, who imports the package gets this copy."""
        sys.modules.update(self._modules)
        sys.meta_path.insert(0, self._finder)

    def leave(self) -> None:
        """The package is not there any more; `enter` brings it back."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for name in [name for name in sys.modules if _is_ours(name)]:
            self._modules[name] = sys.modules.pop(name)


def _is_ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, times: int, compiled: Path | None) -> None:
        self._times, self._compiled = times, compiled

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if not _is_ours(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self._times, self._compiled)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles all copies alike, from source, so that they differ in nothing else."""

    def __init__(self, name: str, path: str, times: int, compiled: Path | None) -> None:
        super().__init__(name, path)
        self._times, self._compiled = times, compiled

    def get_code(self, fullname: str) -> CodeType:
        if self._compiled is None:
            return self._compile(fullname)
        file = self._compiled / f"{fullname}.{self._times}"
        if not file.exists():
            file.write_bytes(marshal.dumps(self._compile(fullname)))
        code: CodeType = marshal.loads(file.read_bytes())
        return code

    def _compile(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path))
        if not fullname.startswith(f"{PACKAGE}.counters"):
            tree = counting(tree, self._times)
        return compile(tree, self.path, "exec", dont_inherit=True)


def counting(tree: ast.Module, times: int) -> ast.Module:
    """A module with each call that counts so many times, and each look at the clock that only these need."""
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module in _COUNTING
        for alias in node.names
    }  # fmt: skip
    calls = _Calls(names, times)
    tree = calls.visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            read = {
                each.id
                for part in ast.walk(node)
                if part not in calls.found
                for each in ast.iter_child_nodes(part)
                if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Store)
            }
            _Clocks(read, times).generic_visit(node)
    return ast.fix_missing_locations(tree)


def _repeated(node: ast.stmt, times: int) -> Any:
    return [node] * times if times else ast.copy_location(ast.Pass(), node)


class _Calls(ast.NodeTransformer):
    """Repeats statements that only count, or takes them away."""

    def __init__(self, names: set[str], times: int) -> None:
        self._names, self._times = names, times
        self.found: set[ast.AST] = set()  # these statements, and all that is in them

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        # What is called several times does each thing once.
        return node if self._times and node.name in _INSIDE else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> Any:
        if not self._counts(node.value):
            return node
        self.found.update(ast.walk(node))
        return _repeated(node, self._times)

    def _counts(self, call: ast.expr) -> bool:
        if not isinstance(call, ast.Call):
            return False
        if isinstance(call.func, ast.Name):
            return call.func.id in self._names
        if not isinstance(call.func, ast.Attribute):
            return False
        owner = call.func.value
        last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        return last in _RECORDERS or (last in _STATS and call.func.attr in _METHODS)


class _Clocks(ast.NodeTransformer):
    """The same with looks at the clock whose result nothing else reads."""

    def __init__(self, read: set[str], times: int) -> None:
        self._read, self._times = read, times

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return node  # a function in the function has its own turn

    def visit_Assign(self, node: ast.Assign) -> Any:
        target = node.targets[0]
        if (
            isinstance(target, ast.Name)
            and target.id not in self._read
            and ast.unparse(node.value).startswith("time.monotonic()")
        ):
            return _repeated(node, self._times)
        return node

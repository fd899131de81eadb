"""Reads a source tree by ast and says what breaks the rules of tests/tree_rules.py. Imports nothing of the tree."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tests import tree_rules as rules


class Import(NamedTuple):
    """One imported thing: `target` is a module, or a module's attribute when no such module is in the tree."""

    line: int
    target: str
    relative: bool


class Source:
    """One Python file of a distribution."""

    def __init__(self, root: Path, folder: Path, path: Path) -> None:
        self.where = path.relative_to(root).as_posix()
        self.inside = path.relative_to(folder).as_posix()
        self.module = self.inside.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self.text = path.read_text()
        self.tree = ast.parse(self.text, str(path))

    @cached_property
    def imports(self) -> list[Import]:
        """Everything imported anywhere in the file, in functions and under TYPE_CHECKING too."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [Import(node.lineno, alias.name, relative=False) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                found += [Import(node.lineno, f"{base}.{alias.name}", bool(node.level)) for alias in node.names]
            elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"} and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.append(Import(node.lineno, first.value, relative=False))
        return [one for one in found if not one.target.startswith("__future__")]

    def matches(self, patterns: tuple[str, ...]) -> bool:
        """Whether the path inside the distribution matches one of the patterns."""
        return any(fnmatchcase(self.inside, pattern) for pattern in patterns)


class Tree:
    """All Python files of the three distributions under a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources = [
            Source(root, root / folder, path)
            for folder, package in rules.DISTRIBUTIONS.items()
            for path in sorted((root / folder / package).rglob("*.py"))
        ]
        self.by_module = {source.module: source for source in self.sources}

    def module_of(self, target: str) -> str:
        """The module that an imported name lives in: `a.b.C` → `a.b` unless `a.b.C` is a module itself."""
        if target in self.by_module or "." not in target:
            return target
        return target.rpartition(".")[0] if target.rpartition(".")[0] in self.by_module else target


def _called(node: ast.Call) -> str:
    """The last name of what is called: `a.b.c()` → c."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def _is_ours(module: str) -> bool:
    return any(_within(module, package) for package in rules.DISTRIBUTIONS.values())


def _room(module: str) -> str:
    return max((room for room in rules.ROOMS if _within(module, room)), key=len)


def _layer(source: Source) -> rules.Layer | None:
    return next((layer for layer in rules.LAYERS if source.matches(layer.patterns)), None)


def rooms(tree: Tree) -> Iterator[str]:
    """Who may import whom, between rooms; nobody imports `__main__`; absolute imports; empty `__init__`."""
    for source in tree.sources:
        room = _room(source.module)
        for line, target, relative in source.imports:
            place = f"{source.where}:{line}"
            if relative:
                yield f"{place}: relative import of {target}"
            elif _is_ours(target):
                module = tree.module_of(target)
                if module.endswith(".__main__"):
                    yield f"{place}: nobody imports __main__ ({module})"
                if source.where.endswith("__init__.py") and not source.matches(rules.INIT_MAY_IMPORT):
                    yield f"{place}: an __init__ imports nothing of ours; it would drag its room along"
                if not _may_enter(source, room, module):
                    yield f"{place}: {room} must not import {module}"


def _may_enter(source: Source, room: str, module: str) -> bool:
    if _room(module) == room or (module in rules.DISTRIBUTIONS.values() and _within(room, module)):
        return True  # its own room, or its distribution's __version__
    if _room(module) == rules.PUBLISHER and source.matches(rules.MAY_IMPORT_PUBLISHER):
        return True
    # A whole room is entered only where it is named whole; a room within it is another one.
    return any(module == may or (_within(module, may) and _room(module) == may) for may in rules.ROOMS[room])


def layers(tree: Tree) -> Iterator[str]:
    """Who may import whom inside a room."""
    for source in tree.sources:
        layer = _layer(source)
        if layer is None:
            continue
        for line, target, _ in source.imports:
            other = tree.by_module.get(tree.module_of(target))
            if other is None or other is source or _room(other.module) != _room(source.module):
                continue
            if (source.module, other.module) in _pairs(tree) or other.inside.endswith("__init__.py"):
                continue
            theirs = _layer(other)
            if theirs is not None and theirs.name == rules.SPOKEN_BY_ALL:
                continue
            if (theirs is layer and layer.own_folder) or (theirs.name if theirs else "other") in layer.may:
                continue
            yield f"{source.where}:{line}: {layer.name} must not import {other.module}"


def _pairs(tree: Tree) -> set[tuple[str, str]]:
    return {(one, m) for one, other in rules.ADAPTER_PAIRS for m in tree.by_module if _within(m, other)}


def purity(tree: Tree) -> Iterator[str]:
    """The pure halves: no I/O, no clock, no dice, no await, nobody's library."""
    for source in tree.sources:
        if not source.matches(rules.PURE) or source.inside in rules.PURE_EXCEPT:
            continue
        for line, target, _ in source.imports:
            top = target.split(".")[0]
            impure = top in rules.IMPURE or target == "pathlib" or target.startswith("pathlib.")
            if impure and not any(_within(target, part) for part in rules.PURE_PARTS):
                yield f"{source.where}:{line}: {target} has no place in a pure file"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                yield f"{source.where}:{node.lineno}: a pure file waits for nothing"
            elif isinstance(node, ast.Call) and _called(node) in rules.IMPURE_CALLS:
                yield f"{source.where}:{node.lineno}: {_called(node)}() has no place in a pure file"


def owners(tree: Tree) -> Iterator[str]:
    """Each library has its home."""
    for source in tree.sources:
        for line, target, _ in source.imports:
            top = target.split(".")[0]
            if _is_ours(top) or (top in sys.stdlib_module_names and top not in rules.OWNED_STDLIB):
                continue
            if top not in rules.OWNERS:
                yield f"{source.where}:{line}: {top} has no home; give it one in tests/tree_rules.py"
            elif not source.matches(rules.OWNERS[top]):
                yield f"{source.where}:{line}: {top} is imported outside its home"


def docstrings(tree: Tree) -> Iterator[str]:
    """Every module, public class and public function says what it is."""
    for source in tree.sources:
        if not ast.get_docstring(source.tree):
            yield f"{source.where}: no module docstring"
        for node in source.tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if not node.name.startswith("_") and not ast.get_docstring(node):
                yield f"{source.where}:{node.lineno}: {node.name} has no docstring"


def sizes(root: Path) -> Iterator[str]:
    """No file and no function is too long, tests included."""
    folders = [*(root / folder / package for folder, package in rules.DISTRIBUTIONS.items()), root / "tests"]
    for path in sorted(one for folder in [*folders, root / "packaging"] for one in folder.rglob("*.py")):
        where, text = path.relative_to(root).as_posix(), path.read_text()
        if any(fnmatchcase(where, pattern) for pattern in rules.NOT_MEASURED):
            continue
        if (lines := len(text.splitlines())) > rules.FILE_LINES and where not in rules.LONG_FILES:
            yield f"{where}: {lines} lines; past {rules.FILE_LINES} it is two things"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long = (node.end_lineno or node.lineno) - node.lineno + 1
                if long > rules.FUNCTION_LINES and f"{where}:{node.name}" not in rules.LONG_FUNCTIONS:
                    yield f"{where}:{node.lineno}: {node.name} has {long} lines, more than {rules.FUNCTION_LINES}"


CHECKS: tuple[Callable[[Tree], Iterator[str]], ...] = (rooms, layers, purity, owners, docstrings)

"""The code that a step's number can depend on, as one hash: what its function reaches, without comments and docstrings.

Followed are definitions, not modules: from a function to the functions, classes and constants of ours that it names,
and from these on.  A change to what is not reached, to a comment, a docstring or the text of an error changes no hash;
nor does plumbing, which moves numbers and makes none.  What is found by name at run time (a builder of networks) cannot
be followed and is given as a further root by who knows it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import UserError

# Modules (and packages) that make no number: they store, plan, print, or say what is wrong.
PLUMBING = (
    "bench.apart",
    "bench.cli",
    "bench.code",
    "bench.commands",
    "bench.errors",
    "bench.isolated",
    "bench.models.builders",
    "bench.planning",
    "bench.processes",
    "bench.provenance",
    "bench.report",
    "bench.rowfile",
    "bench.rows",
    "bench.runner",
    "bench.side_by_side",
    "bench.steps",
    "bench.store",
    "bench.threads",
)
_OURS = ("bench", "reproductions")
# What a root may be: "module:name".
Root = str


@dataclass(frozen=True)
class Code:
    """``hash`` of the definitions reached, by sha256; ``packages`` of others that they name (top-level names)."""

    hash: str
    packages: frozenset[str]
    definitions: frozenset[tuple[str, str]]


@dataclass
class _Module:
    """One source file: its top-level ``definitions`` and ``imports`` by name, and the ``effects`` of importing it.

    Without what people read (:class:`_Strip`).
    """

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, ...]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)


def root_of(thing: object) -> Root:
    """The root that a function or class is.  Raises :class:`UserError` where it stands in no file."""
    module, name = str(getattr(thing, "__module__", "")), str(getattr(thing, "__qualname__", ""))
    if _path(module) is None or "<" in name:
        raise UserError(f"{name} of {module} stands in no file of its own: define it at the top level of a script")
    return f"{module}:{name.partition('.')[0]}"


def reached(roots: Iterable[Root], without: Iterable[str] = ()) -> Code:
    """The code behind ``roots``; modules in ``without`` are left out as plumbing is."""
    return _reached(frozenset(roots), frozenset(without))


@functools.cache
def _reached(roots: frozenset[Root], without: frozenset[str]) -> Code:
    waiting = [tuple(root.partition(":")[::2]) for root in roots]
    found: set[tuple[str, str]] = set()
    packages: set[str] = set()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in found or module in without or _is_plumbing(module):
            continue
        found.add((module, name))
        for target in _references(module, name):
            if isinstance(target, str):
                packages.add(target)
            else:
                waiting.append(target)
        if name and (module, "") not in found:
            waiting.append((module, ""))
    hasher = hashlib.sha256()
    for module, name in sorted(found, key=lambda entry: (_public(entry[0]), entry[1])):
        hasher.update(f"{_public(module)}:{name}\n{_text(module, name)}\n".encode())
    return Code(hasher.hexdigest(), frozenset(packages), frozenset(found))


def _is_plumbing(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in PLUMBING)


# --------------------------------------------------------------------------------------------------------------------
# Files


def _public(module: str) -> str:
    """The module's name, also where it runs as a script."""
    if module != "__main__":
        return module
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    path = _path(module)
    return str(spec.name) if spec is not None else path.stem if path is not None else module


@functools.cache
def _path(module: str) -> Path | None:
    """The source file of a module of ours: of this package, of the papers' scripts, or beside the script that runs."""
    if module.partition(".")[0] in _OURS:
        base = importlib.util.find_spec(module.partition(".")[0])
        assert base is not None and base.origin is not None
        return _beside(Path(base.origin).parent.parent, module)
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is None:
        script = getattr(sys.modules["__main__"], "__file__", None)
        return None if script is None else _beside(Path(script).resolve().parent, module)
    path = Path(loaded)
    return path if path.suffix == ".py" and path.is_absolute() and not _installed(path, module) else None


def _installed(path: Path, module: str) -> bool:
    """Whether the file of a module belongs to Python or to an installed package."""
    inside = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(inside) or Path(sys.base_prefix).resolve() in path.resolve().parents or _beside_others(path, module)


def _beside_others(path: Path, module: str) -> bool:
    """Whether an installer put the module where it is: ``pip install --target`` takes any folder."""
    depth = module.count(".") + (path.name == "__init__.py")
    folder = path.parents[min(depth, len(path.parents) - 1)]
    return path.relative_to(folder).parts[0] in _put_into(folder)


@functools.cache
def _put_into(folder: Path) -> frozenset[str]:
    """The files and folders that installers' records in ``folder`` name."""
    records = [record.read_text(encoding="utf-8") for record in folder.glob("*.dist-info/RECORD")]
    return frozenset(line.partition(",")[0].partition("/")[0] for text in records for line in text.splitlines())


def _beside(folder: Path, module: str) -> Path | None:
    base = folder.joinpath(*module.split("."))
    candidates = (base.with_name(f"{base.name}.py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _is_package(module: str) -> bool:
    path = _path(module)
    return path is not None and path.name == "__init__.py"


@functools.cache
def _module(module: str) -> _Module:
    path = _path(module)
    found = _Module()
    if path is not None:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            _enter(_Strip().visit(node), found, module)
    return found


def _enter(node: ast.stmt, found: _Module, module: str) -> None:
    """Files one top-level statement."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        found.imports.update(_bindings(node, module))
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        found.definitions.setdefault(node.name, []).append(node)
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        for name in names:
            found.definitions.setdefault(name, []).append(node)
    elif isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
        pass  # what a script does when it runs is not what its functions do
    elif isinstance(node, (ast.If, ast.Try, ast.With)):
        inner: list[ast.stmt] = [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
        for child in inner:
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found.imports.update(_bindings(child, module))
            elif isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                found.definitions.setdefault(child.name, []).append(node)
            elif isinstance(child, (ast.Assign, ast.AnnAssign)):
                _enter(child, found, module)
    elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        found.effects.append(node)


def _bindings(node: ast.Import | ast.ImportFrom, module: str) -> dict[str, tuple[str, ...]]:
    """The names that an import binds, with the path of what they stand for."""
    if isinstance(node, ast.Import):
        return {
            (alias.asname or alias.name.partition(".")[0]): tuple(
                (alias.name if alias.asname else alias.name.partition(".")[0]).split(".")
            )
            for alias in node.names
        }
    # a package counts as a level of its own: in it, one dot is itself
    above = node.level - _is_package(module)
    package = module.split(".")[: len(module.split(".")) - above] if node.level else []
    source = [*package, *(node.module or "").split(".")] if node.module else package
    return {(alias.asname or alias.name): (*source, alias.name) for alias in node.names}


# --------------------------------------------------------------------------------------------------------------------
# References


@functools.cache
def _references(module: str, name: str) -> tuple[tuple[str, str] | str, ...]:
    """What a definition names: others (module, name), with an empty name for what a module does on import; packages."""
    here = _module(module)
    nodes = here.definitions.get(name, []) if name else here.effects
    found: dict[tuple[str, str] | str, None] = {}
    for node in nodes:
        bound = dict(here.imports)
        for child in ast.walk(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                bound.update(_bindings(child, module))
        for chain in _chains(node):
            if chain[0] in bound:
                found.update(dict.fromkeys(_resolved((*bound[chain[0]], *chain[1:]))))
            elif chain[0] in here.definitions and chain[0] != name:
                found[module, chain[0]] = None
    return tuple(found)


def _chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """The dotted names in ``node``."""
    if isinstance(node, ast.Name):
        if not isinstance(node.ctx, ast.Store):  # a field or variable that happens to have the name is no reference
            yield (node.id,)
    elif isinstance(node, ast.Attribute):
        parts: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield (inner.id, *reversed(parts))
        else:
            yield from _chains(inner)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _chains(child)


def _resolved(path: tuple[str, ...]) -> Iterator[tuple[str, str] | str]:
    """The definition that a dotted path names; all of a module where it names one; the package of another's."""
    length = next((n for n in range(len(path), 0, -1) if _path(".".join(path[:n])) is not None), 0)
    if not length:
        yield path[0]
        return
    module, rest = ".".join(path[:length]), path[length:]
    here = _module(module)
    if not rest:
        for name in here.definitions:
            yield module, name
        yield module, ""
    elif rest[0] in here.definitions:
        yield module, rest[0]
    elif rest[0] in here.imports and here.imports[rest[0]] != path[: length + 1]:  # what names itself is a submodule
        yield from _resolved((*here.imports[rest[0]], *rest[1:]))


@functools.cache
def _text(module: str, name: str) -> str:
    here = _module(module)
    nodes = here.definitions.get(name, []) if name else here.effects
    return "\n".join(map(_dump, nodes))


def _dump(node: object) -> str:
    """A syntax tree as text, the same in every version of Python: what is empty is left out."""
    if isinstance(node, ast.AST):
        parts = [
            f"{name}={_dump(value)}"
            for name, value in ast.iter_fields(node)
            if value is not None and value != [] and not (isinstance(node, ast.Constant) and name == "kind")
        ]
        return f"{type(node).__name__}({', '.join(parts)})"
    return f"[{', '.join(map(_dump, node))}]" if isinstance(node, list) else repr(node)


class _Strip(ast.NodeTransformer):
    """Takes away what people read: docstrings, and what an exception says."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc, node.cause = node.exc.func, None
        elif isinstance(node, ast.Assert):
            node.msg = None
        return node

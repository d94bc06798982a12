"""Imports go downwards only: read from the sources, those inside functions too."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# what plans and runs rows
RUNNING = ("bench.planning", "bench.runner", "bench.commands")
# what may not be imported by whom (prefixes of modules)
FORBIDDEN = {
    "bench.errors": ("bench",),
    "bench.store": (
        "bench.models",
        "bench.steps",
        "bench.rows",
        "bench.data",
        "bench.report",
        "bench.planning",
        "bench.runner",
    ),
    "bench.measure": (
        "bench.report",
        *RUNNING,
        "bench.registry",
        "bench.verdict",
    ),
    "bench.models": (
        "bench.train",
        "bench.report",
        *RUNNING,
        "bench.data",
        "bench.measure",
    ),
    "bench.pruning": ("bench.report", *RUNNING, "bench.gating"),
    "bench.gating": ("bench.report", *RUNNING),
    "bench.versatile": ("bench.report", *RUNNING, "bench.gating"),
    "bench.train": (
        "bench.report",
        *RUNNING,
        "bench.pruning",
        "bench.gating",
        "bench.measure.steps",
    ),
    "bench.data": (
        "bench.report",
        *RUNNING,
        "bench.train",
        "bench.pruning",
        "bench.measure",
    ),
    "bench.report": (
        *RUNNING,
        "bench.models",
        "bench.pruning",
        "bench.train",
        "bench.data",
        "bench.gating",
        "bench.measure",
        "bench.rows",
        "bench.steps",
    ),
    "bench.planning": ("bench.runner", "bench.rowfile", "bench.commands", "bench.cli", "bench.report"),
    "bench.runner": ("bench.commands", "bench.cli", "bench.report"),
    "bench.steps": ("bench.rows", "bench.planning", "bench.runner", "bench.report", "bench.train", "bench.data"),
}


@cache
def modules() -> dict[str, set[str]]:
    """The imports of ours of every module, without those that only the type checker sees."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("bench", "reproductions")
        for path in (ROOT / package).rglob("*.py")
    }
    found = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text())
        typing = {
            id(child)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for child in ast.walk(node)
        }
        targets: set[str] = set()
        for node in ast.walk(tree):
            if id(node) in typing:
                continue
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {target for target in inner if target in paths} or {node.module}
        found[name] = {target for target in targets if target in paths} - {name}
    return found


@pytest.mark.parametrize("who", FORBIDDEN)
def test_nothing_imports_what_stands_above_it(who: str) -> None:
    for name, targets in modules().items():
        if name == who or name.startswith(f"{who}."):
            wrong = {
                target
                for target in targets
                for prefix in FORBIDDEN[who]
                if target == prefix or target.startswith(f"{prefix}.")
            }
            assert not wrong, (name, wrong)


def test_nothing_in_the_harness_imports_a_paper() -> None:
    for name, targets in modules().items():
        if name.startswith("bench"):
            assert not {target for target in targets if target.startswith("reproductions")}, name


def test_no_imports_in_circles() -> None:
    """A module is finished before those that import it."""
    graph, done = modules(), set[str]()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())

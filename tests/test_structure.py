"""No module of the package imports, directly or through others, one that imports it; imports inside functions count too."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sstkern

PACKAGE = Path(sstkern.__file__).parent


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its full name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(file.read_text())
    return found


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Those of the `known` modules that a module names in its imports, wherever they stand.

    `from a import b` is an import of a.b where that is a module. The packages around a module are not counted: Python runs their
    `__init__` first whatever is imported from them.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return found & known


def cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_make_no_cycle():
    trees = modules()
    graph = {name: imports(tree, set(trees)) for name, tree in trees.items()}
    assert "sstkern.onnx" in graph["sstkern.functional"]  # the package was read, and an import inside a function
    assert cycle(graph) == []


@pytest.mark.parametrize(
    "source",
    ["import p.b", "from p import b", "from p.b import f", "def g():\n    from p import b"],
    ids=["import", "from the package", "from the module", "inside a function"],
)
def test_a_cycle_would_be_found(source: str):
    known = {"p", "p.a", "p.b"}
    graph = {"p.a": imports(ast.parse(source), known), "p.b": imports(ast.parse("from p.a import f"), known)}
    assert sorted(set(cycle(graph))) == ["p.a", "p.b"]


def test_a_name_of_a_package_is_no_module():
    assert imports(ast.parse("from p import f"), {"p", "p.a"}) == {"p"}

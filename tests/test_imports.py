"""No file of the package imports itself by way of others, whenever the import runs: imports in functions count."""

import ast
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parents[1] / "src"


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree, modules):
    """Modules that a file imports: at its top, in functions, and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ({name if name in modules else node.module for name in inner} & modules)


def circles(graph):
    """Groups of modules each of which imports every other one of its group, directly or not."""
    names = sorted(graph)
    place = {name: i for i, name in enumerate(names)}
    edges = np.array([(place[a], place[b]) for a in names for b in graph[a]]).reshape(-1, 2)
    matrix = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(names), len(names)))
    n, group = connected_components(matrix, directed=True, connection="strong")
    groups = [{names[i] for i in np.flatnonzero(group == k)} for k in range(n)]
    return [found for found in groups if len(found) > 1 or any(name in graph[name] for name in found)]


def package_graph():
    trees = {module_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "poise").rglob("*.py")}
    return {name: set(imports_of(tree, trees.keys())) for name, tree in trees.items()}


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert circles({"a": {"a"}}) == [{"a"}]


def test_imports_are_found_wherever_they_stand():
    tree = ast.parse("import p.a\nif TYPE_CHECKING:\n    from p import b\ndef f():\n    from p.c import x\n")
    assert set(imports_of(tree, {"p.a", "p.b", "p.c", "p"})) == {"p.a", "p.b", "p.c"}


def test_no_import_circle():
    assert circles(package_graph()) == []

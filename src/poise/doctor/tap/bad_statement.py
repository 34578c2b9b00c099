"""Find the statement of a running function that gave a variable its first NaN or infinity."""

from __future__ import annotations

import ast
import linecache
import math
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

_LONGEST = 100


def first_bad_statement(frame: FrameType) -> dict[str, Any] | None:
    """Return the first assignment, up to the line that runs, of a number that is not finite from ones that are.

    The values are those that the function's variables hold right now; nothing is executed. NaN counts before infinity,
    which a mask may hold by right.

    Args:
        frame: of the running function.

    Returns:
        ``source`` (``"file:line"``), ``statement``, ``op`` (what is called last there, or "") and ``differentiable``
        (whether the number has a graph); ``None`` if there is no such assignment.
    """
    assignments = _assignments(frame)
    values = dict(frame.f_locals)
    for is_bad in (_has_nan, _has_infinity):
        for node in assignments:
            if (name := _made_bad(node, values, is_bad)) is not None:
                return {
                    "source": f"{frame.f_code.co_filename}:{node.lineno}",
                    "statement": ast.unparse(node)[:_LONGEST],
                    "op": _called(node.value),
                    "differentiable": bool(getattr(values[name], "requires_grad", False)),
                }
    return None


def _assignments(frame: FrameType) -> list[ast.Assign | ast.AnnAssign]:
    """Return the assignments of a running function, in order, up to the line that runs; none without its source."""
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename, frame.f_globals)))
    except SyntaxError:
        return []
    found: list[ast.Assign | ast.AnnAssign] = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                visit(child, not isinstance(child, ast.Lambda) and _begins(child) == frame.f_code.co_firstlineno)
                continue
            if inside and isinstance(child, ast.Assign | ast.AnnAssign) and child.lineno <= frame.f_lineno:
                found.append(child)
            visit(child, inside)

    visit(tree, frame.f_code.co_name == "<module>")
    return sorted((node for node in found if node.value is not None), key=lambda node: node.lineno)


def _begins(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _made_bad(node: ast.Assign | ast.AnnAssign, values: dict[str, Any], is_bad: Callable[[Any], bool]) -> str | None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    made = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    assert node.value is not None
    used = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)} - set(made)
    if any(is_bad(values.get(name)) for name in used):
        return None
    return next((name for name in made if is_bad(values.get(name))), None)


def _called(value: Any) -> str:
    if not isinstance(value, ast.Call):
        return ""
    return value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return _is_number(value) and bool(torch.isnan(value).any())


def _has_infinity(value: Any) -> bool:
    if isinstance(value, float):
        return value == math.inf
    return _is_number(value) and bool((value == math.inf).any())


def _is_number(value: Any) -> bool:
    return type(value) is Tensor and value.is_floating_point() and value.layout is torch.strided and not value.is_meta

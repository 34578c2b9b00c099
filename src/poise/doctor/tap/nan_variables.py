"""Find the variable of the user's code that was NaN first, and the statistic that it was made with."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor

from poise.doctor.tap.graph import saved
from poise.doctor.tap.user_line import user_frame

_STATISTICS = {"std", "var", "std_mean", "var_mean"}
_FRAMES = 4


def first_nan_variable() -> dict[str, Any] | None:
    """Return name, line, shape and statistic of the first NaN among the variables of the running functions.

    ``None`` if there is no NaN, or none of them was made by a standard deviation or variance.
    """
    frame = user_frame()
    for _ in range(_FRAMES):
        if frame is None:
            break
        found = _search(frame)
        if found is not None:
            return found
        frame = frame.f_back
    return None


def nan_constant(loss: Tensor) -> dict[str, Any] | None:
    """Return a NaN constant that the loss was multiplied with, and the only statistic in the user's file.

    The graph of ``loss`` may hold the NaN where the variables are gone.
    """
    frame, node = user_frame(), loss.grad_fn
    shape = next((list(t.shape) for t in _kept(node) if _all_nan(t)), None)
    if frame is None or shape is None:
        return None
    file = frame.f_code.co_filename
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return None
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _called(n) in _STATISTICS]
    if len({_called(call) for call in calls}) != 1:
        return None
    return {"statistic": _called(calls[0]), "shape": shape, "source": f"{file}:{calls[0].lineno}"}


def _kept(node: Any, most: int = 50) -> Iterator[Tensor]:
    """Return the factors and terms that the operations near the loss keep, those of constants only."""
    queue: list[Any] = [node]
    seen: set[Any] = set()
    while queue and len(seen) < most:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in ("self", "other"):
            kept = saved(node, name)
            if isinstance(kept, Tensor) and not kept.requires_grad:
                yield kept.detach()
        queue.extend(before for before, _ in node.next_functions)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _search(frame: FrameType) -> dict[str, Any] | None:
    broken = {name: value for name, value in frame.f_locals.items() if isinstance(value, Tensor) and _all_nan(value)}
    if not broken:
        return None
    tree = _source(frame.f_code)
    if tree is None:
        return None
    made = [
        (node.lineno, name, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for name in (target.id for target in node.targets if isinstance(target, ast.Name))
        if name in broken and node.lineno <= frame.f_lineno
    ]
    for line, name, value in sorted(made, key=lambda item: item[0]):
        statistic = _statistic(value, frame)
        if statistic:
            shape = list(broken[name].shape)
            source = f"{frame.f_code.co_filename}:{line}"
            return {"variable": name, "statistic": statistic, "shape": shape, "source": source}
    return None


def _all_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and 0 < tensor.numel() <= 1 << 20 and bool(torch.isnan(tensor).all())


def _source(code: CodeType) -> ast.AST | None:
    """Return the syntax tree of running code; ``None`` where its source is not at hand."""
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    except SyntaxError:
        return None
    if code.co_name == "<module>":
        return tree
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == code.co_name)
    # A function that is decorated begins at its first decorator.
    return next((n for n in functions if code.co_firstlineno <= n.lineno <= code.co_firstlineno + 20), None)


def _statistic(expression: ast.AST, frame: FrameType) -> str:
    """Name the statistic that an expression, or a function that it calls, uses; empty if there is none."""
    for node in ast.walk(expression):
        if not isinstance(node, ast.Call):
            continue
        name = _called(node)
        if name in _STATISTICS:
            return name
        function = frame.f_locals.get(name, frame.f_globals.get(name))
        if isinstance(function, FunctionType):
            tree = _source(function.__code__)
            inner = [
                n.func.attr
                for n in ast.walk(tree or expression)
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
            ]
            found = [name for name in inner if name in _STATISTICS]
            if found:
                return found[0]
    return ""

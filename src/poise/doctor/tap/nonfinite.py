"""Find the operation that made the first NaN or infinity, and the line of the user's code it stands in."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from poise.doctor.tap.bad_statement import first_bad_statement
from poise.doctor.tap.forward import ForwardHooks
from poise.doctor.tap.masked_rows import masked_rows
from poise.doctor.tap.nan_variables import first_nan_variable, nan_constant
from poise.doctor.tap.shadow import RootCall, can_shadow, shadow
from poise.doctor.tap.state import TapState
from poise.doctor.tap.timeline import Timeline
from poise.doctor.tap.user_line import is_user_frame, user_frame, user_line

# These write infinities on purpose, for a mask.
_MASKING = {
    "masked_fill",
    "masked_fill_",
    "full",
    "full_like",
    "new_full",
    "where",
    "triu",
    "tril",
    "fill_",
    "log_softmax",
}
NO_ORIGIN = {"module": "", "op": "", "source": ""}
_INPUT = "the input batch"


def explain_nonfinite_forward(state: TapState, forward: ForwardHooks, loss: Tensor) -> dict[str, Any]:
    """Return where the first non-finite value of a forward pass came from, while its graph still exists."""
    weights = _nonfinite_weights(state)
    if weights:  # the step before has written them: neither this batch nor this pass is to blame
        return {**NO_ORIGIN, "where": "weights", "parameters": weights[:20], "update": _gradients_were_finite(state)}
    try:
        found = _search_model(state, forward)
    except Exception as error:  # a forward pass that cannot be repeated
        return {**NO_ORIGIN, "where": "model", "error": str(error)}
    variable = first_nan_variable()
    if found is not None:
        made = variable if found["op"] == _INPUT and variable is not None else {}
        return {**found, **made, "where": "model"}
    found = _search_graph(loss)
    statement = next(filter(None, map(first_bad_statement, _user_frames())), None)
    if statement is not None and variable is not None and statement["source"] == variable["source"]:
        return {**NO_ORIGIN, **variable, "statement": statement["statement"], "where": "loss"}
    if statement is not None:
        op = (
            found["op"]
            if found is not None and (statement["differentiable"] or not statement["op"])
            else statement["op"]
        )
        return {"module": "", "where": "loss", **statement, "op": op}
    if found is not None:
        return {**found, "module": "", "where": "loss", "source": _line_calling(found["op"])}
    return {**NO_ORIGIN, "source": _line_calling("backward"), "where": "loss", **(variable or nan_constant(loss) or {})}


def _nonfinite_weights(state: TapState) -> list[str]:
    return [
        name
        for timeline in state.timelines.values()
        for name, p in zip(timeline.names, timeline.parameters, strict=True)
        if not bool(torch.isfinite(p).all())
    ]


def _gradients_were_finite(state: TapState) -> bool:
    """Return whether the moments of all gradients so far are finite, so that the update made what is not."""
    moments = [
        value
        for timeline in state.timelines.values()
        for facts in timeline.optimizer.state.values()
        for name, value in facts.items()
        if name in ("exp_avg", "momentum_buffer") and isinstance(value, Tensor)
    ]
    return bool(moments) and all(bool(torch.isfinite(moment).all()) for moment in moments)


def explain_nonfinite_backward(state: TapState, forward: ForwardHooks, timeline: Timeline) -> dict[str, Any]:
    """Return which parameters got non-finite gradients from a finite loss, and the operation that made the first."""
    bad = [
        timeline.names[i]
        for i in timeline.with_gradient
        if not bool(torch.isfinite(timeline.parameters[i].grad).all())  # type: ignore[arg-type]
    ]
    try:
        found = _search_backward(state, forward) or NO_ORIGIN
    except Exception as error:  # a forward pass that cannot be repeated
        found = {**NO_ORIGIN, "error": str(error)}
    return {"parameters": bad[:20], "parameters_total": len(bad), **found}


def _search_model(state: TapState, hooks: ForwardHooks) -> dict[str, Any] | None:
    for call in state.calls:
        if not can_shadow(call):
            return None
        if any(not bool(torch.isfinite(t).all()) for t in _floats((call.args, call.kwargs))):
            return {**NO_ORIGIN, "op": _INPUT}
        observer = _FirstNonFinite(state, hooks)
        with shadow(call) as forward, hooks.watching(), observer:
            output = forward()
        if not all(bool(torch.isfinite(t).all()) for t in _floats(output)):
            return observer.found()
    return None


class _FirstNonFinite(TorchFunctionMode):
    """Checks the inputs and outputs of every operation of a forward pass."""

    def __init__(self, state: TapState, hooks: ForwardHooks) -> None:
        self._state, self._hooks = state, hooks
        self._nan: dict[str, Any] | None = None
        self._infinity: dict[str, Any] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if self._nan is None and name not in _MASKING and not name.startswith("__get"):
            self._check(name, (args, kwargs), output)
        return output

    def _check(self, name: str, inputs: Any, output: Any) -> None:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            outputs = list(_floats(output))
            if any(bool(torch.isnan(t).any()) for t in outputs):
                self._nan = self._describe(name, inputs)
            elif self._infinity is None and any(bool(torch.isinf(t).any()) for t in outputs):
                self._infinity = self._describe(name, inputs)

    def _describe(self, name: str, inputs: Any) -> dict[str, Any]:
        given = [t for t in _floats(inputs) if t.numel()]
        module = self._hooks.module
        low, high = _finite_range(given)
        return {
            "module": _name_of(self._state, module),
            "op": name,
            "source": user_line(),
            "input_min": low,
            "input_max": high,
            "given_infinity": any(bool(torch.isinf(t).any()) for t in given),
            **masked_rows(name, *inputs),
        }

    def found(self) -> dict[str, Any] | None:
        """Return the origin: an infinity comes first if it was made before the first NaN and was an input of it."""
        nan, infinity = self._nan, self._infinity
        # A mask is made of infinities on purpose: the fault is that it leaves nothing.
        is_masked = nan is not None and "masked_rows" in nan
        is_later = nan is None or (nan["given_infinity"] and infinity is not None and not is_masked)
        origin = infinity if is_later else nan
        return None if origin is None else {k: v for k, v in origin.items() if k != "given_infinity"}


def _finite_range(tensors: list[Tensor]) -> tuple[float | None, float | None]:
    finite = [t[torch.isfinite(t)] for t in tensors]
    finite = [t for t in finite if t.numel()]
    if not finite:
        return None, None
    return min(float(t.min()) for t in finite), max(float(t.max()) for t in finite)


def _search_graph(loss: Tensor) -> dict[str, Any] | None:
    """Walk the autograd graph from the loss to the operation nearest the leaves that saved or made a bad number."""
    origin = None
    for node in _nodes(loss.grad_fn):
        if _makes_nonfinite(node):
            origin = node  # breadth first: the last one found is the farthest from the loss
    return None if origin is None else {"op": _op_name(origin)}


def _nodes(start: Any, most: int = 400) -> Iterator[Any]:
    queue: list[Any] = [start]
    seen: set[Any] = set()
    while queue and len(seen) < most:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        queue.extend(parent for parent, _ in node.next_functions)


def _op_name(node: Any) -> str:
    name = type(node).__name__
    return name.removesuffix("0").removesuffix("1").removesuffix("2").removesuffix("Backward").lower()


def _makes_nonfinite(node: Any) -> bool:
    """Recompute, from what their nodes saved, the operations that can make NaN or infinity."""
    op = _op_name(node)
    given = _saved(node, "_saved_self")
    if op in ("log", "log2", "log10") and given is not None:
        return bool((given <= 0).any())
    if op == "log1p" and given is not None:
        return bool((given <= -1).any())
    if op in ("sqrt", "exp", "div", "pow", "rsqrt", "acos", "asin", "atanh"):
        result = _saved(node, "_saved_result")
        if result is not None:
            return not bool(torch.isfinite(result).all())
    divisor = _saved(node, "_saved_other")
    return op == "div" and divisor is not None and bool((divisor == 0).any())


def _saved(node: Any, name: str) -> Tensor | None:
    try:
        value = getattr(node, name, None)
    except RuntimeError:  # freed by an earlier backward, or changed in place since
        return None
    return value.detach() if isinstance(value, Tensor) else None


def _search_backward(state: TapState, hooks: ForwardHooks) -> dict[str, Any] | None:
    """Repeat forward and backward of the model, watching every operation's gradient; the parameters keep theirs."""
    for call in state.calls:
        if not can_shadow(call):
            return None
        lines = _GradientLines(state, hooks)
        with torch.enable_grad(), shadow(call) as forward, hooks.watching(), lines:
            outputs = [t for t in _floats(forward()) if t.requires_grad]
        origins = _watch_gradients(call, outputs, lines.made)
        if origins:
            return origins[0]
    return None


def _watch_gradients(call: RootCall, outputs: list[Tensor], made: dict[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    leaves = [p for p in call.root.parameters() if p.requires_grad]
    origins: list[dict[str, Any]] = []
    if outputs and leaves:
        for node, facts in made.items():
            node.register_hook(_gradient_watcher(facts, origins))
        with torch.enable_grad():
            torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs], allow_unused=True)
    return origins


def _gradient_watcher(made: dict[str, Any], origins: list[Any]) -> Any:
    def check(given_back: Any, given: Any) -> None:
        if not origins and _all_finite(given) and not _all_finite(given_back):
            origins.append(made)

    return check


def _all_finite(tensors: Any) -> bool:
    return all(t is None or bool(torch.isfinite(t).all()) for t in tensors)


class _GradientLines(TorchFunctionMode):
    """Records, for every node of the graph, the module and the line of the user's code that made it."""

    def __init__(self, state: TapState, hooks: ForwardHooks) -> None:
        self._state, self._hooks = state, hooks
        self.made: dict[Any, dict[str, Any]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        module = self._hooks.module
        for tensor in _floats(output):
            node = tensor.grad_fn
            if node is not None and node not in self.made:
                self.made[node] = {
                    "module": _name_of(self._state, module),
                    "op": _op_name(node),
                    "source": user_line(),
                }
        return output


def _name_of(state: TapState, module: nn.Module | None) -> str:
    return "" if module is None else state.names.modules.get(id(module), type(module).__name__)


def _floats(tree: Any) -> Iterator[Tensor]:
    return (t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point())


def _user_frames(most: int = 5) -> Iterator[FrameType]:
    """Yield the frames of the user's code, innermost first."""
    frame = user_frame()
    while frame is not None and most:
        if is_user_frame(frame):
            most -= 1
            yield frame
        frame = frame.f_back


def _line_calling(function: str) -> str:
    """Return the last line up to the current one, in the user's running function, that calls ``function``."""
    frame = user_frame()
    if frame is None:
        return ""
    here = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    try:
        lines, first = inspect.getsourcelines(frame.f_code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):  # no source available (a notebook cell, exec): the line of backward() is known
        return here
    first = max(first, 1)
    calls = [n.lineno + first - 1 for n in ast.walk(tree) if isinstance(n, ast.Call) and _called(n) == function]
    before = [line for line in calls if line <= frame.f_lineno]
    return f"{frame.f_code.co_filename}:{max(before)}" if before else here


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")

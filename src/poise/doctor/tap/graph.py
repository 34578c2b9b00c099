"""Read what the autograd graph of a tensor says of how the tensor was made; nothing is computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Operations that pass the numbers on, in another shape or precision.
_SAME_NUMBERS = {
    "alias", "as_strided", "clone", "expand", "index", "permute", "reshapealias", "select", "slice", "split",
    "squeeze", "t", "tocopy", "transpose", "unbind", "unsafeview", "unsqueeze", "view",
}  # fmt: skip


def op_name(node: Any) -> str:
    """Return the name of the operation of a node: ``"softmax"`` for ``SoftmaxBackward0``."""
    return type(node).__name__.rstrip("0123456789").removesuffix("Backward").lower()


def origin(tensor: Tensor) -> Any:
    """Return the node of the operation that made the numbers of ``tensor``, views and casts left out."""
    return skip_views(tensor.grad_fn)


def skip_views(node: Any) -> Any:
    """Return the first node at or before ``node`` that changes numbers; ``None`` where there is none."""
    while node is not None and op_name(node) in _SAME_NUMBERS:
        node = parent(node)
    return node


def parent(node: Any) -> Any:
    """Return the node that made the first differentiable argument of ``node``; ``None`` where there is none."""
    return next((before for before, _ in node.next_functions if before is not None), None)


def parents(node: Any) -> list[Any]:
    """Return the nodes that made the differentiable arguments of ``node``."""
    return [before for before, _ in node.next_functions if before is not None]


def output_shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape of what ``node`` made; ``None`` where it is not known."""
    variable = getattr(node, "variable", None)  # a parameter
    if variable is not None:
        return tuple(variable.shape)
    made = getattr(node, "_input_metadata", None)  # of the gradient that it takes
    return tuple(made[0].shape) if made else None


def saved(node: Any, name: str) -> Any:
    """Return what ``node`` keeps for its backward pass under ``name``; ``None`` if it is not there (any more)."""
    try:
        return getattr(node, f"_saved_{name}", None)
    except RuntimeError:  # freed by an earlier backward, or changed in place since
        return None


def saved_dimension(node: Any) -> int | None:
    """Return the dimension of a softmax, counted from the front; ``None`` if it is not known."""
    dim, result = saved(node, "dim"), saved(node, "result")
    if not isinstance(dim, int) or not isinstance(result, Tensor):
        return None
    dim = dim - (1 << 64) if dim >= 1 << 63 else dim  # kept as an unsigned number
    return dim + result.dim() if dim < 0 else dim


def constant_factor(node: Any) -> tuple[float, Any]:
    """Return the number that a result was multiplied with (or divided by) last, and the node of what it was before."""
    factor = 1.0
    while node is not None and op_name(node) in ("mul", "div") and len(parents(node)) == 1:
        other = saved(node, "other")
        if not isinstance(other, Tensor) or other.numel() != 1 or not float(other):
            break
        factor *= float(other) if op_name(node) == "mul" else 1 / float(other)
        node = parent(node)
    return factor, node

"""What autograd recorded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def recorded_operations(tensors: Sequence[Tensor]) -> set[str]:
    """Return the names of the operations that led to some tensors."""
    waiting = [t.grad_fn for t in tensors]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


def check_twice_differentiable(gradient: Sequence[Tensor]) -> None:
    """See that a gradient can be differentiated once more.

    An operation marked ``once_differentiable`` leaves a node that raises when it is reached; but derivatives in chosen
    parameters do not reach it, and would silently come out wrong.

    Raises:
        RuntimeError: if it cannot.
    """
    if any("Error" in name for name in recorded_operations(gradient)):
        raise RuntimeError("an operation is marked once_differentiable")

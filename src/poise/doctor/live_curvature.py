"""The sharpness of a loss whose graph is still alive: the model is not run again, whatever the loss is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from poise.curvature.eigen.block_davidson import block_davidson
from poise.curvature.loss.autograd_graph import check_twice_differentiable
from poise.curvature.loss.flat import FlatParameters
from poise.curvature.operators.function_operator import FunctionOperator
from poise.curvature.operators.linear_operator import LinearOperator
from poise.curvature.operators.preconditioned import Preconditioned, l2_penalty, preconditioner, unwrapped
from poise.dynamics.edge_of_stability.edge import edge

PRODUCTS = 3
_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class LiveSharpness:
    """What was measured before a backward pass.

    Args:
        sharpness: largest eigenvalue found of the Hessian, as the optimizer sees it; the true one is no smaller.
        edge: largest sharpness at which the optimizer is stable.
        n_matvec: Hessian products that this took.
    """

    sharpness: float
    edge: float
    n_matvec: int


class LiveCurvature:
    """Follows the top of the Hessian with at most three products a measurement.

    Each starts from the eigenvector of the last (the first one from the gradient, which lies mostly among the sharpest
    directions), so that a few measurements find what one alone would not. A Ritz value is never above the largest
    eigenvalue: what is reported too high is never the sharpness.
    """

    def __init__(self) -> None:
        self._vector: Tensor | None = None
        self._examined = False

    def measure(self, loss: Float[Tensor, ""], parameters: Sequence[Tensor], optimizer: Optimizer) -> LiveSharpness:
        """Return the sharpness of ``loss`` in the optimizer's parameters; gradients are left alone.

        Args:
            loss: a scalar with its graph, which is kept.
            parameters: what varies, float32 or float64 and on one device.
            optimizer: decides what curvature is compared with (see :func:`poise.dynamics.edge`).

        Raises:
            TypeError: if the optimizer's edge is not known, or parameters are in half precision.
            ValueError: if numbers are not finite, an adaptive optimizer has not stepped yet, or none of the parameters
                has a part in the loss.
            RuntimeError: if an operation has no second derivative.
        """
        threshold = edge(optimizer)
        flat = FlatParameters(nn.ParameterList(parameters))
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss, flat.tensors, create_graph=True, allow_unused=True)
            if all(g is None for g in gradient):
                raise ValueError("loss does not depend on any of the parameters: it is that of another optimizer")
            hessian = FunctionOperator(
                self._product(flat, gradient), flat.numel, dtype=flat.dtype, device=flat.device, symmetric=True
            )
            scale = None if type(unwrapped(optimizer)) is SGD else preconditioner(optimizer, flat).rsqrt()
            start = flat.join([None if g is None else g.detach() for g in gradient])
            operator: LinearOperator = hessian
            if scale is not None:
                operator, start = Preconditioned(hessian, scale, l2_penalty(optimizer, flat)), scale * start
            top = block_davidson(operator, 1, "LA", _TOLERANCE, self._start(start), max_matvecs=PRODUCTS)
        self._vector = top.vectors[:, :1]
        return LiveSharpness(float(top.values[0]), threshold, top.n_matvec)

    def _start(self, gradient: Float[Tensor, " P"]) -> Float[Tensor, "P 1"]:
        last = self._vector
        known = last is not None and last.shape[0] == gradient.shape[0] and last.device == gradient.device
        return last if known and last is not None else gradient[:, None]

    def _product(self, flat: FlatParameters, gradient: Sequence[Tensor | None]) -> Callable[[Tensor], Tensor]:
        curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
        outputs = [g for g in gradient if g is not None and g.requires_grad]
        if not self._examined:
            if not curved:
                raise RuntimeError("the gradient is the same everywhere, or has no derivative")
            check_twice_differentiable(outputs)
            self._examined = True

        def product(v: Tensor) -> Tensor:
            parts = flat.split(v)
            along = [parts[i] for i in curved]
            return flat.join(torch.autograd.grad(outputs, flat.tensors, along, retain_graph=True, allow_unused=True))

        return product

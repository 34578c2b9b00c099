"""The Hessian of a model's mean loss."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.loss.evaluation import Evaluation, PlainAttentionFallback
from poise.curvature.operators.hessian.finite_difference import finite_difference
from poise.curvature.operators.hessian.forward_over_reverse import forward_over_reverse
from poise.curvature.operators.hessian.linearize import linearize
from poise.curvature.operators.hessian.mode import HessianMode, HessianProduct
from poise.curvature.operators.hessian.rebuild import rebuild
from poise.curvature.operators.hessian.retained import retained
from poise.curvature.operators.linear_operator import LinearOperator

BUILDERS: dict[str, Callable[[Evaluation], HessianProduct]] = {
    "retained": retained,
    "linearize": linearize,
    "rebuild": rebuild,
    "forward_over_reverse": forward_over_reverse,
    "finite_difference": finite_difference,
}
# A gradient with its graph holds about this many times what the graph of the loss holds.
GRADIENT_GRAPH = 3


class Hessian(LinearOperator):
    r"""The Hessian :math:`\nabla^2 L(\theta)` of the mean loss over all data, at the parameters as they are now.

    Nothing of the model changes: gradients, mode, buffers and random states are left alone. Parameters on which the
    loss does not depend have zero rows.

    Args:
        model: float32 or float64; under ``torch.autocast`` its forward pass runs in this context.
        loss_fn: a criterion for batches of inputs and targets, a :class:`poise.curvature.Supervised`, or any
            ``loss_fn(model, batch)`` that returns a mean. Of a criterion with ``reduction="sum"`` it is the Hessian of
            the batch's sum; of several batches, of the mean of their sums.
        data: a batch (tensor, tuple, mapping) or an iterable of batches, which are kept; a batch counts in
            proportion to its examples (terms, for the cross entropy and the squared error).
        params: names of parameters or of modules; by default all that require gradients.
        mode: how a product is computed. ``"retained"`` keeps the graph of the gradient and takes one backward pass a
            product; ``"linearize"`` traces it (expensive once, cheapest after about 300 products); ``"rebuild"`` keeps
            one batch in memory at a time; ``"forward_over_reverse"`` less still; ``"finite_difference"`` needs no
            second derivative and is right to about 1e-4 (float32) or 1e-9 (float64); ``"auto"`` retains where
            ``max_bytes`` allows, else rebuilds.
        max_bytes: most memory for what ``"auto"`` may retain.

    Attributes:
        mode: the mode in use.
        flat: the parameters and where they lie in the vectors.

    Raises:
        ValueError: if the loss is not a finite scalar (with the batch's index) or differs between two evaluations, if
            data is empty, or if parameters are on several devices.
        TypeError: if parameters are not float32 or float64.
        RuntimeError: in a product, if parameters changed since construction or the model has no second derivative.

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 1994.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Any,
        data: Any,
        params: Sequence[str] | None = None,
        mode: HessianMode = "auto",
        max_bytes: int = 2**30,
    ) -> None:
        if mode not in get_args(HessianMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(HessianMode))}; got {mode!r}")
        evaluation = Evaluation(model, loss_fn, data, params)
        n = evaluation.flat.numel
        super().__init__((n, n), dtype=evaluation.flat.dtype, device=evaluation.flat.device, symmetric=True)
        saved = evaluation.examine(evaluation.checked_loss)
        if mode == "auto":
            mode = "retained" if GRADIENT_GRAPH * saved <= max_bytes else "rebuild"
        self.mode: HessianMode = mode
        self.flat = evaluation.flat
        self._arguments = (model, loss_fn, data, mode, max_bytes)
        self._build(evaluation)

    def with_data(self, data: Any) -> Hessian:
        """Return the Hessian at the parameters as they are now, on other data, without examining the loss again.

        Args:
            data: a batch or an iterable of batches.
        """
        other = copy.copy(self)
        other.n_matvec = 0
        other._arguments = (*self._arguments[:2], data, *self._arguments[3:])
        other._build(self._evaluation.with_data(data))
        return other

    def submatrix(self, names: Sequence[str]) -> Hessian:
        """Return the rows and columns of the named parameters or modules, as an operator of its own."""
        model, loss_fn, data, mode, max_bytes = self._arguments
        return Hessian(model, loss_fn, data, names, mode, max_bytes)

    def _build(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        # The product must not refer to this operator: in a cycle, graphs would live until the next garbage collection.
        self._products = PlainAttentionFallback(functools.partial(BUILDERS[self.mode], evaluation), evaluation)

    def _matvec(self, v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        return self._products.use(lambda product: product(v))

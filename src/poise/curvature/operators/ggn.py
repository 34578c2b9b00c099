"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.loss.evaluation import Evaluation, PlainAttentionFallback
from poise.curvature.loss.linearization import JacobianMode, Linearization, chosen_mode, summed
from poise.curvature.loss.objective import as_supervised
from poise.curvature.operators.linear_operator import LinearOperator


class GGN(LinearOperator):
    r"""The generalised Gauss-Newton matrix :math:`J^\top \Lambda J` of the mean loss over all data.

    J is the Jacobian of the model's outputs in the parameters and Λ the Hessian of the mean loss in the outputs: in
    closed form for the squared error, 2 I / (number of outputs), and for the cross entropy, (diag(p) - p pᵀ) / n; by
    differentiating the criterion twice for any other. For those two it is the Fisher information matrix, up to the
    squared error's variance.

    Nothing of the model changes; see :class:`Hessian` for batches, parameters and errors.

    Args:
        model: float32 or float64.
        loss_fn: a criterion for batches of inputs and targets, or a :class:`Supervised`; ``reduction="sum"`` as in
            :class:`Hessian`.
        data: a batch or an iterable of batches.
        params: names of parameters or of modules; by default all that require gradients.
        mode: ``"retained"`` keeps the linearised model, ``"rebuild"`` has one batch in memory at a time, and ``"auto"``
            retains where ``max_bytes`` allows.
        max_bytes: most memory for what ``"auto"`` may retain.

    Attributes:
        mode: the mode in use.
        flat: the parameters and where they lie in the vectors.

    Raises:
        TypeError: if ``loss_fn`` does not separate outputs and loss.

    References:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural Computation
        2002; Martens, "New insights and perspectives on the natural gradient method", JMLR 2020, arXiv:1412.1193.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Any,
        data: Any,
        params: Sequence[str] | None = None,
        mode: JacobianMode = "auto",
        max_bytes: int = 2**30,
    ) -> None:
        objective = as_supervised(loss_fn, "GGN")
        evaluation = Evaluation(model, objective, data, params)
        n = evaluation.flat.numel
        super().__init__((n, n), dtype=evaluation.flat.dtype, device=evaluation.flat.device, symmetric=True)
        self.mode = mode = chosen_mode(mode, evaluation.examine(evaluation.checked_loss), max_bytes)
        self.flat = evaluation.flat
        self._arguments = (model, loss_fn, data, max_bytes)

        def part(batches: Iterable[int]) -> Callable[[Tensor], Tensor]:
            chosen = list(batches)
            outputs = [evaluation.outputs(i) for i in chosen]
            jacobian = Linearization(outputs, evaluation.flat)
            curvatures = [
                objective.criterion.hessian(o, objective.targets(evaluation.batch(i)))
                for i, o in zip(chosen, outputs, strict=True)
            ]
            weights = [evaluation.weights[i] for i in chosen]

            def product(v: Tensor) -> Tensor:
                along = jacobian.jvp(v)
                return jacobian.vjp([w * curved(u) for w, curved, u in zip(weights, curvatures, along, strict=True)])

            return product

        self._products = PlainAttentionFallback(
            lambda: summed(part, len(evaluation), retain=mode == "retained"), evaluation
        )

    def submatrix(self, names: Sequence[str]) -> GGN:
        """Return the rows and columns of the named parameters or modules, as an operator of its own."""
        model, loss_fn, data, max_bytes = self._arguments
        return GGN(model, loss_fn, data, names, self.mode, max_bytes)

    def _matvec(self, v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        return self._products.use(lambda product: product(v))

"""The empirical Fisher matrix: the second moment of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.loss.evaluation import Evaluation, PlainAttentionFallback
from poise.curvature.loss.linearization import JacobianMode, Linearization, chosen_mode, summed
from poise.curvature.loss.objective import Supervised
from poise.curvature.loss.per_example import check_examples_are_independent
from poise.curvature.operators.linear_operator import LinearOperator


class EmpiricalFisher(LinearOperator):
    r"""The second moment :math:`\frac1n \sum_i g_i g_i^\top` of the gradients of single examples.

    The gradients are scaled so that their mean is the gradient of the mean loss: where a criterion averages over terms
    of which examples have different numbers (tokens that count), an example with more of them has a longer gradient.

    With a ``loss_fn`` of model and batch, which does not give single examples, :math:`g_i` are the gradients of
    batches, weighted by their examples: the second moment of *batch* gradients, which is smaller.

    A product takes J v and J^T u with the Jacobian of the examples' losses; no gradient of a single example is formed.

    Args:
        model: float32 or float64.
        loss_fn: a criterion for batches of inputs and targets, a :class:`Supervised`, or any function of model and
            batch.
        data: a batch or an iterable of batches.
        params: names of parameters or of modules; by default all that require gradients.
        mode: as in :class:`GGN`.
        max_bytes: most memory for what ``"auto"`` may retain.

    Attributes:
        mode: the mode in use.
        flat: the parameters and where they lie in the vectors.
        per_example: whether single examples are available.

    Raises:
        ValueError: if examples depend on each other through BatchNorm in train mode; else as :class:`Hessian`.

    References:
        Kunstner, Balles and Hennig, "Limitations of the empirical Fisher approximation for natural gradient descent",
        NeurIPS 2019, arXiv:1905.12558.
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
        evaluation = Evaluation(model, loss_fn, data, params)
        n = evaluation.flat.numel
        super().__init__((n, n), dtype=evaluation.flat.dtype, device=evaluation.flat.device, symmetric=True)
        self.per_example = per_example = isinstance(evaluation.objective, Supervised)
        if per_example:
            check_examples_are_independent(evaluation.model)
        self.mode = mode = chosen_mode(mode, evaluation.examine(evaluation.checked_loss), max_bytes)
        self.flat = evaluation.flat
        self._arguments = (model, loss_fn, data, max_bytes)
        losses = _example_losses if per_example else _batch_loss
        n_examples = sum(evaluation.n_examples)

        def part(batches: Iterable[int]) -> Callable[[Tensor], Tensor]:
            chosen = list(batches)
            jacobian = Linearization([losses(evaluation, i) for i in chosen], evaluation.flat)
            weights = [1 / n_examples if per_example else evaluation.weights[i] for i in chosen]

            def product(v: Tensor) -> Tensor:
                return jacobian.vjp([w * u for w, u in zip(weights, jacobian.jvp(v), strict=True)])

            return product

        self._products = PlainAttentionFallback(
            lambda: summed(part, len(evaluation), retain=mode == "retained"), evaluation
        )

    def submatrix(self, names: Sequence[str]) -> EmpiricalFisher:
        """Return the rows and columns of the named parameters or modules, as an operator of its own."""
        model, loss_fn, data, max_bytes = self._arguments
        return EmpiricalFisher(model, loss_fn, data, names, self.mode, max_bytes)

    def _matvec(self, v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        return self._products.use(lambda product: product(v))


def _example_losses(evaluation: Evaluation, i: int) -> Float[Tensor, " n"]:
    """The losses of a batch's examples, scaled so that over all data their mean is the loss."""
    objective, batch, n = evaluation.supervised, evaluation.batch(i), evaluation.n_examples[i]
    sums = objective.criterion.example_sums(evaluation.outputs(i), objective.targets(batch), n)
    return sums * (sum(evaluation.n_examples) / evaluation.total_weight)


def _batch_loss(evaluation: Evaluation, i: int) -> Float[Tensor, " 1"]:
    """The mean loss of a batch."""
    return (evaluation.checked_loss(i) / evaluation.weights[i]).unsqueeze(0)

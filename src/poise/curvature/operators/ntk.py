"""The neural tangent kernel of a model on some data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.loss.evaluation import Evaluation, PlainAttentionFallback
from poise.curvature.loss.linearization import JacobianMode, Linearization, chosen_mode
from poise.curvature.loss.objective import as_supervised
from poise.curvature.loss.per_example import mixing_layers
from poise.curvature.operators.jacobian import jacobians_of
from poise.curvature.operators.linear_operator import LinearOperator


class NTK(LinearOperator):
    r"""The neural tangent kernel :math:`J J^\top` between all outputs on all examples, not divided by anything.

    J stacks the outputs of the examples in the order of the data. :math:`J J^\top` has the nonzero eigenvalues of
    :math:`J^\top J`, so that those of the :class:`GGN` of ``nn.MSELoss()`` are 2 / (number of outputs) of its own.

    Args:
        model: float32 or float64.
        data: a batch or an iterable of batches; a batch may be the inputs alone.
        objective: defines inputs and outputs where they are not obvious, see :class:`Supervised`; its criterion does
            not matter.
        params: names of parameters or of modules; by default all that require gradients.
        mode: as in :class:`GGN`.
        max_bytes: most memory for what ``"auto"`` may retain, and for the Jacobian in ``to_dense``.

    Attributes:
        mode: the mode in use.
        flat: the parameters.

    References:
        Jacot, Gabriel and Hongler, "Neural tangent kernel", NeurIPS 2018, arXiv:1806.07572.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        objective: Any = F.mse_loss,
        params: Sequence[str] | None = None,
        mode: JacobianMode = "auto",
        max_bytes: int = 2**30,
    ) -> None:
        evaluation = Evaluation(model, as_supervised(objective, "NTK"), data, params)
        self.mode = mode = chosen_mode(mode, evaluation.examine(evaluation.outputs), max_bytes)
        self.flat = evaluation.flat
        self._evaluation = evaluation
        self._max_bytes = max_bytes
        with evaluation.measuring():
            self._shapes = [evaluation.outputs(i).shape for i in range(len(evaluation))]
        n = sum(shape.numel() for shape in self._shapes)
        super().__init__((n, n), dtype=self.flat.dtype, device=self.flat.device, symmetric=True)
        build = _retained if mode == "retained" else _rebuild
        self._products = PlainAttentionFallback(functools.partial(build, evaluation, self._shapes), evaluation)

    def to_dense(self) -> Float[Tensor, "n n"]:
        """Return the kernel itself, from the Jacobians of single examples where these fit into ``max_bytes``.

        Raises:
            RuntimeError: if parameters changed since construction.
        """
        too_large = self.shape[0] * self.flat.numel * self.dtype.itemsize > self._max_bytes
        if too_large or mixing_layers(self._evaluation.model):
            return super().to_dense()
        self._evaluation.check_unchanged()
        jacobian = torch.cat([j.flatten(0, 1) for j in jacobians_of(self._evaluation)])
        return jacobian @ jacobian.T

    def _matvec(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self._products.use(lambda product: product(v))

    def split(self, u: Float[Tensor, " n"]) -> list[Tensor]:
        """Return a vector over all outputs as one tensor per batch, shaped like its outputs."""
        return _split(u, self._shapes)


def _retained(evaluation: Evaluation, shapes: list[torch.Size]) -> Callable[[Tensor], Tensor]:
    jacobian = Linearization([evaluation.outputs(i) for i in range(len(evaluation))], evaluation.flat)
    return lambda u: _joined(jacobian.jvp(jacobian.vjp(_split(u, shapes))))


def _rebuild(evaluation: Evaluation, shapes: list[torch.Size]) -> Callable[[Tensor], Tensor]:
    def linearization(i: int) -> Linearization:
        return Linearization([evaluation.outputs(i)], evaluation.flat)

    def product(u: Tensor) -> Tensor:
        pulled = torch.zeros(evaluation.flat.numel, dtype=u.dtype, device=u.device)
        for i, part in enumerate(_split(u, shapes)):
            pulled += linearization(i).vjp([part])
        return torch.cat([_joined(linearization(i).jvp(pulled)) for i in range(len(evaluation))])

    return product


def _split(u: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = u.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])

"""Second-order Taylor model of a network around its weights, without its tensor of second derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jvp

from poise.curvature.eigen.eigs import eigs
from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.loss.objective import Supervised
from poise.curvature.operators.function_operator import FunctionOperator
from poise.dynamics.models.trajectory import State, Trajectory, follow

Outputs = Float[Tensor, " outputs"]
Move = Float[Tensor, " parameters"]


class QuadraticSurrogate:
    """What a network would do if its outputs were exactly quadratic in its weights.

    The residuals of all examples are stacked: ``z(delta) = z_0 + J_0 delta + Q(delta, delta) / 2`` for a move ``delta``
    of the weights, and the loss is ``|z|^2 / 2``. For a mean over n numbers of ``|z|^2 / 2``, divide the learning rate
    by n. Products with ``Q`` are derivatives of derivatives in one direction: memory is that of a few gradients.

    Args:
        model: network, in the mode wanted; it is not changed. Weights that change later do not change the surrogate.
        data: a batch (pair of inputs and targets, or mapping) or an iterable of batches; targets have the shape of the
            model's outputs.
        params: names of parameters or modules that move; by default all that require gradients.

    Attributes:
        z0: residuals at the weights, shape (outputs,).

    Raises:
        ValueError: if targets do not have the shape of the outputs, and as :class:`poise.curvature.FlatParameters`.

    References:
        Agarwala, Pedregosa and Pennington (2023). Second-order regression models exhibit progressive sharpening to the
        edge of stability. arXiv:2210.04860
    """

    def __init__(self, model: nn.Module, data: Any, params: Sequence[str] | None = None) -> None:
        self._evaluation = Evaluation(model, nn.MSELoss(), data, params)
        self._weights: Move = self._evaluation.flat.vector()
        with torch.no_grad():
            self.z0: Outputs = self._network(self._weights).detach()

    def residuals(self, delta: Move) -> Outputs:
        """Return ``z_0 + J_0 delta + Q(delta, delta) / 2``."""
        linear, second = self._twice(delta, delta)
        return self.z0 + linear + 0.5 * second

    def jvp(self, delta: Move, v: Move) -> Outputs:
        """Return ``J(delta) v = J_0 v + Q(delta, v)``."""
        linear, second = self._twice(v, delta)
        return linear + second

    def vjp(self, delta: Move, u: Outputs) -> Move:
        """Return ``J(delta)^T u = J_0^T u + Q(delta, .)^T u``."""

        def weighted(w: Move) -> Float[Tensor, ""]:
            return self._network(w) @ u

        linear, second, *_ = jvp(grad(weighted), (self._weights,), (delta,))
        return linear + second

    def ntk_max(self, delta: Move, tol: float = 1e-3) -> float:
        """Return the largest eigenvalue of ``J(delta) J(delta)^T``, to relative accuracy ``tol``."""
        return float(self._kernel_top(delta, tol, None)[0])

    def run(self, n_steps: int, *, lr: float, tol: float = 1e-6, every: int = 5, ntk_tol: float = 1e-3) -> Trajectory:
        """Run gradient descent on the surrogate.

        Args:
            n_steps: most steps.
            lr: learning rate for the loss ``|z|^2 / 2``.
            tol: norm of the residual at which the run has converged.
            every: how many steps lie between two records.
            ntk_tol: relative accuracy of the kernel's largest eigenvalue in the records.

        Raises:
            ValueError: if ``n_steps`` is negative, ``every`` below 1, or ``lr`` or ``tol`` not positive.
        """
        guess: list[Outputs | None] = [None]  # the last record's eigenvector is nearly the next one's

        def descend(state: State) -> State:
            z, delta = state
            delta = delta - lr * self.vjp(delta, z)
            return self.residuals(delta), delta

        def ntk_max(state: State) -> Float[Tensor, ""]:
            value, guess[0] = self._kernel_top(state[1], ntk_tol, guess[0])
            return value

        start = (self.z0, torch.zeros_like(self._weights))
        return follow(start, descend, ntk_max, n_steps=n_steps, lr=lr, tol=tol, every=every)

    def _network(self, w: Move) -> Outputs:
        parts = self._evaluation.flat.split(w)
        objective = self._evaluation.objective
        assert isinstance(objective, Supervised)
        return torch.cat([self._of_batch(i, parts, objective) for i in range(len(self._evaluation))])

    def _of_batch(self, i: int, parts: list[Tensor], objective: Supervised) -> Outputs:
        batch = self._evaluation.batch(i)
        outputs = self._evaluation.run(lambda model: objective.outputs(model, batch), parts)
        targets = objective.targets(batch)
        if outputs.shape != targets.shape:
            raise ValueError(
                f"targets must have the shape of the model's outputs, {tuple(outputs.shape)}, got "
                f"{tuple(targets.shape)} in batch {i}; write classes as one-hot vectors"
            )
        return (outputs - targets).flatten()

    def _twice(self, v: Move, u: Move) -> tuple[Outputs, Outputs]:
        """Return ``J_0 v`` and ``Q(u, v)``."""

        def first(w: Move) -> Outputs:
            return jvp(self._network, (w,), (v,))[1]

        linear, second, *_ = jvp(first, (self._weights,), (u,))
        return linear, second

    def _kernel_top(self, delta: Move, tol: float, guess: Outputs | None) -> tuple[Float[Tensor, ""], Outputs]:
        kernel = FunctionOperator(
            lambda u: self.jvp(delta, self.vjp(delta, u)), len(self.z0), dtype=self.z0.dtype, device=self.z0.device
        )
        generator = torch.Generator(self.z0.device).manual_seed(0)
        top = eigs(kernel, k=1, which="LA", tol=tol, v0=guess, generator=generator)
        return top.values[0].to(self.z0), top.vectors[:, 0]

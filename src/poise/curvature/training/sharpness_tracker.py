"""Sharpness along a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from poise.curvature.eigen.block_davidson import block_davidson
from poise.curvature.eigen.eigen_result import EigenResult
from poise.curvature.eigen.eigs import DENSE, eigs
from poise.curvature.operators.hessian.hessian import Hessian
from poise.curvature.operators.linear_operator import LinearOperator
from poise.curvature.operators.preconditioned import Preconditioned, l2_penalty, preconditioner


@dataclass(frozen=True, slots=True)
class Sharpness:
    """The sharpness at one step of a run.

    Attributes:
        sharpness: largest eigenvalue of the (preconditioned) Hessian.
        error_bound: an eigenvalue lies within this distance of it.
        threshold: the sharpness at which the optimizer stops being stable, ``None`` if it was not requested.
        ratio: sharpness over threshold.
        n_matvec: Hessian products that this took.
        eigen: all k eigenvalues, with vectors and bounds.
    """

    sharpness: float
    error_bound: float
    threshold: float | None
    ratio: float | None
    n_matvec: int
    eigen: EigenResult


class SharpnessTracker:
    """Measures the top of the Hessian's spectrum again and again, each time from the eigenvectors of the last.

    A cold start (Lanczos) finds one eigenvalue more than wanted. Until the next one, a quarter of the gap to it,
    relative to the last wanted value, is taken to stay free of eigenvalues, and error bounds rest on that; it makes
    about three products an update enough (2.5 to 3.5 on average in ten runs of the study ``curvature-engine``). An
    eigenvalue that crosses three quarters of the gap between two cold starts is seen late, at the next one.

    Args:
        k: number of eigenvalues.
        tol: relative tolerance.
        precondition: ``"optimizer"`` measures the preconditioned curvature, see :func:`preconditioner`; in an adaptive
            optimizer that is what decides stability.
        threshold: the optimizer's edge, for example ``poise.dynamics.edge``.
        refresh: every so many updates start cold.
        generator: of the start vectors; by default one of its own, which leaves the random numbers of the run alone.

    Raises:
        ValueError: if a setting is out of range.

    References:
        Cohen, Kaur, Li, Kolter and Talwalkar, "Gradient descent on neural networks typically occurs at the edge of
        stability", ICLR 2021, arXiv:2103.00065; for adaptive optimizers Cohen et al. 2022, arXiv:2207.14484.

    Example:
        >>> tracker = SharpnessTracker(threshold=lambda optimizer: 2 / optimizer.param_groups[0]["lr"])
        >>> model = nn.Linear(3, 1)
        >>> batch = torch.randn(8, 3), torch.randn(8, 1)
        >>> now = tracker.update(model, nn.MSELoss(), batch, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> now.ratio < 2
        True
    """

    def __init__(
        self,
        k: int = 1,
        tol: float = 1e-3,
        precondition: Literal["optimizer"] | None = None,
        threshold: Callable[[Optimizer], float] | None = None,
        refresh: int = 40,
        generator: torch.Generator | None = None,
    ) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not 0 < tol < 1:
            raise ValueError(f"tol must lie in (0, 1), got {tol}")
        if refresh < 1:
            raise ValueError(f"refresh must be at least 1, got {refresh}")
        if precondition not in (None, "optimizer"):
            raise ValueError(f"precondition must be None or 'optimizer', got {precondition!r}")
        self.k = k
        self.tol = tol
        self.precondition = precondition
        self.threshold = threshold
        self.refresh = refresh
        self._generator = generator
        self._measured: tuple[nn.Module, Any] | None = None
        self._hessian: Hessian | None = None
        self._last: EigenResult | None = None
        self._age = 0
        self._edge_share: float | None = None

    def update(self, model: nn.Module, loss_fn: Any, batch: Any, optimizer: Optimizer | None = None) -> Sharpness:
        """Return the sharpness at the parameters as they are now.

        Args:
            model: float32 or float64; that it has no layers of chance is seen to at the first call.
            loss_fn: see :class:`Hessian`.
            batch: a batch or an iterable of batches; take the same ones all along for values that can be compared.
            optimizer: what trains the model; needed for ``precondition="optimizer"`` and for the threshold.

        Raises:
            ValueError: if the optimizer is needed and missing; else as :class:`Hessian` and :func:`preconditioner`.
        """
        if optimizer is None and (self.precondition or self.threshold):
            raise ValueError("optimizer is needed for precondition='optimizer' and for a threshold; got None")
        operator = self._operator(model, loss_fn, batch, optimizer)
        if self._generator is None:
            self._generator = torch.Generator(operator.device).manual_seed(0)
        cold = self._last is None or self._age >= self.refresh or operator.shape[0] <= DENSE
        eigen = self._cold(operator) if cold else self._warm(operator)
        self._last = eigen
        return self._sharpness(eigen, optimizer)

    def reset(self) -> None:
        """Start cold at the next update."""
        self._hessian = self._measured = self._last = None

    def _cold(self, operator: LinearOperator) -> EigenResult:
        """All eigenvalues again, and one more, to measure the gap between the wanted ones and the rest."""
        more = min(self.k + 1, operator.shape[0])
        eigen = eigs(operator, more, which="LA", tol=self.tol, generator=self._generator)
        self._age = 0
        self._edge_share = None
        last = float(eigen.values[self.k - 1])
        if more > self.k and last > 0:
            self._edge_share = (3 * last + float(eigen.values[self.k])) / (4 * last)
        return _first(eigen, self.k)

    def _warm(self, operator: LinearOperator) -> EigenResult:
        assert self._last is not None
        self._age += 1
        last = float(self._last.values[-1])
        edge = None if self._edge_share is None or last <= 0 else self._edge_share * last
        return block_davidson(operator, self.k, "LA", self.tol, self._last.vectors, self._generator, edge=edge)

    def _operator(self, model: nn.Module, loss_fn: Any, batch: Any, optimizer: Optimizer | None) -> LinearOperator:
        if self._hessian is not None and self._measured == (model, loss_fn):
            self._hessian = self._hessian.with_data(batch)
        else:
            if self._measured is not None and self._measured[0] is not model:
                self.reset()
            self._measured = (model, loss_fn)
            self._hessian = Hessian(model, loss_fn, batch)
        if self.precondition is None or optimizer is None:
            return self._hessian
        flat = self._hessian.flat
        return Preconditioned(self._hessian, preconditioner(optimizer, flat).rsqrt(), l2_penalty(optimizer, flat))

    def _sharpness(self, eigen: EigenResult, optimizer: Optimizer | None) -> Sharpness:
        top = int(eigen.values.argmax())
        value = float(eigen.values[top])
        threshold = self.threshold(optimizer) if self.threshold and optimizer is not None else None
        return Sharpness(
            sharpness=value,
            error_bound=float(eigen.error_bounds[top]),
            threshold=threshold,
            ratio=None if threshold is None else value / threshold,
            n_matvec=eigen.n_matvec,
            eigen=eigen,
        )


def _first(eigen: EigenResult, k: int) -> EigenResult:
    return replace(
        eigen,
        values=eigen.values[:k],
        vectors=eigen.vectors[:, :k],
        error_bounds=eigen.error_bounds[:k],
        residuals=eigen.residuals[:k],
        converged=eigen.converged[:k],
    )

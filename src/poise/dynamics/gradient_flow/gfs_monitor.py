"""The sharpness of the gradient-flow solution during training: one clean curve of whether a run still gets flatter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from poise.dynamics.gradient_flow.gradient_flow_solution import GradientFlowSolution, gradient_flow_solution
from poise.dynamics.models.scalar_network import STABLE_SET_LIMIT

Regime = Literal["stable", "edge of stability", "no guarantee"]


@dataclass(frozen=True, slots=True)
class GFSReading:
    """One measurement of a run.

    Args:
        step: calls of ``update`` before this one.
        sharpness: of the gradient-flow solution.
        ratio: learning rate times sharpness; the edge is at 2.
        regime: what to expect, see :func:`stability_regime`.
        monotone: whether no measurement so far, this one included, rose above the one before.
        solution: the solution itself; where its flow did not come to rest, the numbers are those of the last point.
    """

    step: int
    sharpness: float
    ratio: float
    regime: Regime
    monotone: bool
    solution: GradientFlowSolution


class GFSSharpness:
    """Measures the sharpness of the gradient-flow solution now and then during full-batch training.

    The live model is never touched, and the last eigenvector starts the next search. Under momentum or mini-batches the
    curve is a diagnostic: it need not fall.

    Args:
        every: number of updates between two measurements.
        budget_seconds: wall-clock time after which a flow is given up; its reading then rests on a point on the way.
        tolerance: relative rise that still counts as none, for the error of the integration.

    Raises:
        ValueError: if ``every`` is below 1, or ``budget_seconds`` or ``tolerance`` is not positive.

    References:
        Kreisler et al. (2023). arXiv:2305.13064
    """

    def __init__(self, every: int = 50, budget_seconds: float = 5.0, tolerance: float = 1e-4) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        for name, value in (("budget_seconds", budget_seconds), ("tolerance", tolerance)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.every, self.budget_seconds, self.tolerance = every, budget_seconds, tolerance
        self._step, self._monotone = 0, True
        self._last: GradientFlowSolution | None = None

    def update(self, model: nn.Module, data: Any, *, loss: Any, lr: float) -> GFSReading | None:
        """Measure if it is time to.

        Args:
            model: network as it is now.
            data: the full training data, a batch or an iterable of batches.
            loss: a criterion, or any ``loss(model, batch)`` that returns a mean.
            lr: learning rate of plain gradient descent.

        Returns:
            The reading, or None between two measurements.

        Raises:
            ValueError: if ``lr`` is not positive, and as :func:`gradient_flow_solution`.
        """
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        step, self._step = self._step, self._step + 1
        if step % self.every:
            return None
        last = self._last
        now = gradient_flow_solution(
            model, data, loss=loss, max_seconds=self.budget_seconds, v0=last.vector if last else None
        )
        if last is not None and now.sharpness > last.sharpness * (1 + self.tolerance):
            self._monotone = False
        self._last = now
        ratio = lr * now.sharpness
        return GFSReading(step, now.sharpness, ratio, stability_regime(ratio), self._monotone, now)


def stability_regime(ratio: float) -> Regime:
    """Say what the product of learning rate and sharpness of the gradient-flow solution announces.

    Below 2, descent to the solution (*stable*). Up to 2 sqrt(2), *edge of stability*: the sharpness of the solution
    falls until it is just below 2 / lr. Beyond, *no guarantee*. Where even the flattest reachable minimum is sharper
    than 2 / lr (in scalar networks: lr times depth of 2 or more), gradient descent cannot converge at this rate.

    Args:
        ratio: learning rate times sharpness of the gradient-flow solution.
    """
    if ratio < 2.0:
        return "stable"
    return "edge of stability" if ratio <= STABLE_SET_LIMIT else "no guarantee"

"""Everything that the audit of a closed loop measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poise.control.linear.margins import Margins
from poise.control.region.attracted_region import AttractedRegion
from poise.dynamics import RateFit, Stability


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """How well a learned model stands in for the plant.

    Attributes:
        r2: coefficient of determination of its predictions, over states in the box and inputs of the controller.
        derivative_error: norm of the difference of its derivatives, as a fraction of the norm of the plant's; the
            median over those states.
        growth: exponential rate, per unit of time, of the fastest direction at the goal with the model in the loop.
        attracted: fraction of starts that come to the goal with the model in the loop.
        misled: fraction of starts that do so with the model and not with the plant.
    """

    r2: float
    derivative_error: float
    growth: float
    attracted: float
    misled: float


@dataclass(frozen=True, slots=True)
class HullFacts:
    """When runs left the convex hull of the training states.

    Attributes:
        runs: how many runs were looked at.
        outside: fraction that started outside.
        left: fraction that started inside and left.
        first_exit: median time at which these left; ``nan`` if none did.
        left_failing: fraction of the runs that failed, among those that left or started outside; ``nan`` if none did.
    """

    runs: int
    outside: float
    left: float
    first_exit: float
    left_failing: float


@dataclass(frozen=True, slots=True, eq=False)
class ClosedLoopFacts:
    """All that an audit measured.

    Attributes:
        n: dimension of the state.
        m: dimension of the input.
        dt: sampling period.
        steps: periods for which starts were followed.
        offset: distance of the equilibrium from the goal in half widths of the box; ``nan`` if none was found.
        local: stability at the equilibrium, of the sampled loop in half widths of the box; ``None`` without one.
        measured_rate: rate per period at which a perturbation died out; ``None`` where it was not measured.
        margins: for each input, with the other loops closed; empty where there are none.
        period_factor: factor on the sampling period at which the linearised loop stops being stable; ``None`` where it
            is not known.
        region: starts in the box; ``None`` if the sampling was interrupted.
        saturated: fraction of input values at their limits, over all runs; ``None`` without limits.
        saturated_failing: the same over the runs that failed; ``nan`` if none did.
        model: of the learned model; ``None`` without one.
        hull: of the training states; ``None`` without them.
        paths: a few runs for the figure, of shape (runs, times, n).
        not_checked: what was not measured, and why, a sentence each.
        seed: of the starts.
    """

    n: int
    m: int
    dt: float
    steps: int
    offset: float
    local: Stability | None
    measured_rate: RateFit | None
    margins: tuple[Margins, ...]
    period_factor: float | None
    region: AttractedRegion | None
    saturated: float | None
    saturated_failing: float
    model: ModelFacts | None
    hull: HullFacts | None
    paths: np.ndarray
    not_checked: tuple[str, ...]
    seed: int

    @property
    def growth(self) -> float:
        """Exponential rate of the fastest direction at the equilibrium per unit of time; ``nan`` without one."""
        return float("nan") if self.local is None else self.local.abscissa / self.dt

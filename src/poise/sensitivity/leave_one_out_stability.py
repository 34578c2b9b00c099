"""How much an average over bags changes when one training row is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from poise.sensitivity.resampling import stability_constant
from poise.sensitivity.stable_bagging import StableBaggingClassifier, StableBaggingRegressor


@dataclass(frozen=True, slots=True, eq=False)
class LeaveOneOutStability:
    """Changes of outputs when one training row is left out, in units of their range.

    Attributes:
        change: absolute change of each output, shape (training rows, outputs).
        bound: what the sum of squared changes over the rows cannot exceed, for outputs in [0, 1].
        variance_bound: the same from the variance of the members' outputs, by output: sharper.
        noise_floor: part of the sum of squared changes that is due to finitely many bags, by output.
    """

    change: Float[np.ndarray, "train outputs"]
    bound: float
    variance_bound: Float[np.ndarray, " outputs"]
    noise_floor: Float[np.ndarray, " outputs"]

    def fraction_above(self, eps: float) -> Float[np.ndarray, " outputs"]:
        """Return the fraction of the rows whose absence changes an output by more than ``eps``, by output."""
        return np.asarray((self.change > eps).mean(0))

    @property
    def influence(self) -> Float[np.ndarray, " train"]:
        """Sum of squared changes of each row over the outputs."""
        return np.asarray((self.change**2).sum(1))

    def rows_that_carry(self, fraction: float = 0.5) -> Float[np.ndarray, " rows"]:
        """Return the fewest rows that carry a fraction of all squared change, the most influential first.

        Args:
            fraction: in (0, 1].
        """
        order = np.argsort(-self.influence, kind="stable")
        total = self.influence[order].cumsum()
        if total[-1] == 0:
            return order[:0]
        return order[: int(np.searchsorted(total, fraction * total[-1])) + 1]


def leave_one_out_stability(bag: StableBaggingRegressor | StableBaggingClassifier, X: Any) -> LeaveOneOutStability:
    """Measure how much each output changes when one training row is left out; nothing is fitted.

    Args:
        bag: fitted; for classifiers the output is the probability of the last class, for others see below.
        X: rows at which outputs are compared.

    Returns:
        Changes in units of the outputs' range: 1 for probabilities, the clipping interval or the range of the members'
        outputs for regressors. With more than two classes each class of each row is an output.

    References:
        Soloff, Barber, Willett, "Bagging provides assumption-free stability", JMLR 2024, arXiv:2301.12600.
    """
    X = np.asarray(X)
    outputs = bag._outputs(X)
    left = bag._leave_one_out(X)
    if isinstance(bag, StableBaggingClassifier):
        keep = slice(-1, None) if len(bag.classes_) == 2 else slice(None)
        outputs = outputs[..., keep].reshape(len(outputs), -1)
        left = left[..., keep].reshape(len(left), -1)
        unit = np.ones(outputs.shape[1])
    else:
        unit = np.where((width := bag.output_range(X)) > 0, width, 1.0)
    change = np.abs(outputs.mean(0) - left) / unit
    constant, p = stability_constant(bag.scheme_, bag.n_rows_), bag.scheme_.p(bag.n_rows_)
    variance = outputs.var(0) / unit**2
    floor = bag.n_rows_ * p * variance / (len(outputs) * (1 - p))
    return LeaveOneOutStability(change, constant / 4, variance * constant, floor)

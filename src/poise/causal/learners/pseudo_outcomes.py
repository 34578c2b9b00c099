r"""Pseudo-outcomes, whose weighted regression on covariates is an effect, and the weights that stabilise them.

With an arm $A \in \{0, 1\}$, propensity $\pi$, its complement $\kappa$ ($1 - \pi$, perhaps estimated apart), mean
outcomes $\mu_1, \mu_0$, $\eta = \pi \mu_1 + \kappa \mu_0$ and $\nu = \pi \kappa$:

- doubly robust: $A (Y - \mu_1) / \pi - (1 - A) (Y - \mu_0) / \kappa + \mu_1 - \mu_0$, of variance $\sigma^2 / \nu$;
- covariance: $(Y - \eta) (A - \pi) / \nu$, of variance $(\sigma^2 + \tau^2 (1 - 2 \pi)^2) / \nu$;
- U: $(Y - \eta) / (A - \pi)$, of variance $\sigma^2 (\pi^3 + \kappa^3) / \nu^2$.

References:
    Fisher (2024). The connection between R-learning and inverse-variance weighting for estimation of heterogeneous
    treatment effects. arXiv:2307.09700.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, "*draws rows"]


@dataclass(frozen=True, slots=True, eq=False)
class ArmNuisances:
    """What a pseudo-outcome of one arm against the control is made of, all of shape (rows,) or (draws, rows).

    Attributes:
        treated: 1 in rows of the arm.
        untreated: 1 in rows of the control; with two arms one minus ``treated``.
        y: outcome.
        pi: probability of the arm.
        kappa: probability of the control.
        mu1: mean outcome in the arm.
        mu0: mean outcome in the control.
    """

    treated: np.ndarray
    untreated: np.ndarray
    y: np.ndarray
    pi: Values
    kappa: Values
    mu1: Values
    mu0: Values

    @property
    def eta(self) -> Values:
        """Mean outcome of both arms."""
        return self.pi * self.mu1 + self.kappa * self.mu0

    @property
    def nu(self) -> Values:
        """Inverse of the variance of the doubly robust pseudo-outcome with noise of variance 1."""
        return self.pi * self.kappa / (self.pi + self.kappa)


def doubly_robust(n: ArmNuisances) -> Values:
    """Return the doubly robust pseudo-outcome."""
    return n.treated / n.pi * (n.y - n.mu1) - n.untreated / n.kappa * (n.y - n.mu0) + n.mu1 - n.mu0


def covariance(n: ArmNuisances) -> Values:
    """Return the covariance pseudo-outcome."""
    return (n.y - n.eta) * (n.treated - n.pi) / (n.pi * n.kappa)


def u(n: ArmNuisances) -> Values:
    """Return the U pseudo-outcome."""
    return (n.y - n.eta) / (n.treated - n.pi)


def inverse_variance(n: ArmNuisances) -> Values:
    """Return weights for the doubly robust and the covariance pseudo-outcome."""
    return n.nu


def hetero_inverse_variance(n: ArmNuisances) -> Values:
    """Return weights for the doubly robust pseudo-outcome where the noise of the two arms differs."""
    noise1 = _mean_square(n.y - n.mu1, n.treated)
    noise0 = _mean_square(n.y - n.mu0, n.untreated)
    if noise1 == noise0 == 0:  # an outcome without noise
        return n.nu
    return 1 / (noise1 / n.pi + noise0 / n.kappa)


def arm_probability(n: ArmNuisances) -> Values:
    """Return the probability of the arm that a row is in."""
    return np.where(n.treated == 1, n.pi, n.kappa)


def squared_arm_probability(n: ArmNuisances) -> Values:
    """Return inverse variances of the doubly robust pseudo-outcome, given the arm as well."""
    return arm_probability(n) ** 2


def squared_residual(n: ArmNuisances) -> Values:
    """Return weights for the U pseudo-outcome that make its regression the R-learner."""
    return (n.treated - n.pi) ** 2


def u_inverse_variance(n: ArmNuisances) -> Values:
    """Return inverse variances of the U pseudo-outcome, given covariates."""
    return (n.pi * n.kappa) ** 2 / (n.pi**3 + n.kappa**3)


def _mean_square(residual: Values, rows: np.ndarray) -> float:
    return float(np.mean(residual[..., rows == 1] ** 2))


PSEUDO_OUTCOMES: dict[str, Callable[[ArmNuisances], Values]] = {"dr": doubly_robust, "cov": covariance, "u": u}
"""By name."""

WEIGHTS: dict[str, dict[str, Callable[[ArmNuisances], Values]]] = {
    "dr": {
        "ivw": inverse_variance,
        "ivw-hetero": hetero_inverse_variance,
        "arm": arm_probability,
        "arm-squared": squared_arm_probability,
    },
    "cov": {"ivw": inverse_variance},
    "u": {"ivw": squared_residual, "ivw-covariates": u_inverse_variance},
}
"""By pseudo-outcome and name."""


def combined(pseudo: Float[np.ndarray, "draws rows"], weight: Float[np.ndarray, "draws rows"]) -> tuple[Values, Values]:
    """Return one pseudo-outcome and weight a row that stand for several draws of them.

    Squared errors of several draws with weights differ from the squared error of their weighted mean, with the sum of
    the weights, only by what no regression changes; so all draws of a row also stay in one fold when a learner tunes.
    """
    total = weight.sum(0)
    return (pseudo * weight).sum(0) / total, total / len(weight)

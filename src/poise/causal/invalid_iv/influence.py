r"""The influence function of the average effect with an invalid binary instrument.

$Z$ is the instrument, $A$ the treatment, both 0 or 1; $\pi(x) = P(Z = 1 \mid x)$, $\mu_z(x) = P(A = 1 \mid z, x)$,
$V_z = \mu_z (1 - \mu_z)$, $D = V_1 - V_0$, $\beta(x)$ the effect, $\theta_z(x) = E[Y - \beta A \mid z, x]$ and
$\omega(x) = \mathrm{Cov}(A, Y - \beta A \mid z, x)$, the confounding, which is the same for both $z$. Then
$\beta = (C_1 - C_0) / D$ with $C_z = \mathrm{Cov}(A, Y \mid z, x)$, and the average effect has the influence function

$\varphi = \beta + \frac{2 Z - 1}{f(Z \mid X) D} \{(A - \mu_Z) (Y - \beta A - \theta_Z) - \omega\}$.

References:
    Sun, Cui and Tchetgen Tchetgen (2022). Selective machine learning of the average treatment effect with an invalid
    instrumental variable. arXiv:1907.11882.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Rows = Float[np.ndarray, "*draws rows"]

SUFFICIENT_SETS = (
    frozenset({"pi", "mu"}),
    frozenset({"beta", "pi", "theta"}),
    frozenset({"beta", "mu", "omega"}),
    frozenset({"beta", "theta", "omega"}),
)
"""Nuisances that suffice: if those of one set are right, the mean is, whatever the others are."""


def relevance(mu1: Rows, mu0: Rows) -> Rows:
    """Return by how much the instrument changes the variance of the treatment: (mu1 - mu0) (1 - mu1 - mu0)."""
    return (mu1 - mu0) * (1 - mu1 - mu0)


def influence(y: Rows, a: Rows, z: Rows, pi: Rows, mu: Rows, d: Rows, beta: Rows, theta: Rows, omega: Rows) -> Rows:
    """Return the uncentred influence function.

    Args:
        y: outcome.
        a: treatment, 0 or 1.
        z: instrument, 0 or 1.
        pi: probability that the instrument is 1.
        mu: probability of treatment at the row's own instrument.
        d: relevance of the instrument.
        beta: effect.
        theta: mean of ``y - beta a`` at the row's own instrument.
        omega: confounding.
    """
    density = np.where(z == 1, pi, 1 - pi)
    return beta + (2 * z - 1) / (density * d) * ((a - mu) * (y - beta * a - theta) - omega)

"""When training on one's own samples contracts: the factor per generation and the largest safe ratio."""

from __future__ import annotations

import math


def contraction_factor(ratio: float, gamma: float = 0.0, *, alpha: float = 1.0, smoothness: float = 0.0) -> float:
    r"""Return the factor by which the distance to the optimum shrinks per generation; infinite where none is promised.

    .. math:: \frac{\rho(\lambda)}{1 + \gamma}, \quad
        \rho(\lambda) = \frac{\lambda (\alpha + \varepsilon L)}{\alpha - \lambda (\alpha + \varepsilon L)}.

    Args:
        ratio: synthetic rows for each real one, :math:`\lambda`.
        gamma: strength of the correction, 0 for none; infinity replaces every sample by one of the optimum.
        alpha: curvature of the log-likelihood at the optimum, above 0.
        smoothness: :math:`\varepsilon L`: distance of the best model to the data times the Lipschitz constant of the
            Hessian.

    Raises:
        ValueError: if a number is out of range.

    References:
        Gillman et al., "Self-correcting self-consuming loops for generative model training", ICML 2024,
        arXiv:2402.07087.

    Example:
        >>> round(contraction_factor(0.2), 6), round(contraction_factor(0.2, gamma=1), 6)
        (0.25, 0.125)
    """
    _check(ratio, gamma, alpha, smoothness)
    pull = ratio * (alpha + smoothness)
    rho = pull / (alpha - pull) if pull < alpha else math.inf
    return 0.0 if math.isinf(gamma) and math.isfinite(rho) else rho / (1 + gamma)


def allowed_ratio(gamma: float = 0.0, *, alpha: float = 1.0, smoothness: float = 0.0) -> float:
    r"""Return the largest ratio of synthetic to real rows below which the loop contracts.

    :math:`\lambda (1 + \varepsilon L / \alpha) < (1 + \gamma) / (2 + \gamma)`.

    Args:
        gamma: strength of the correction.
        alpha: curvature of the log-likelihood at the optimum.
        smoothness: as in :func:`contraction_factor`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> allowed_ratio(), round(allowed_ratio(gamma=1), 6)
        (0.5, 0.666667)
    """
    _check(0.0, gamma, alpha, smoothness)
    strength = 1.0 if math.isinf(gamma) else (1 + gamma) / (2 + gamma)
    return strength / (1 + smoothness / alpha)


def _check(ratio: float, gamma: float, alpha: float, smoothness: float) -> None:
    for name, value in {"ratio": ratio, "gamma": gamma, "smoothness": smoothness}.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value!r}")
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha!r}")

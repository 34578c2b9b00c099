"""What an average over bags promises when one training row is left out, without any assumption."""

from __future__ import annotations

import math

from poise.sensitivity.resampling import Resampling, stability_constant


def guaranteed_change(scheme: Resampling, n: int, delta: float, n_bags: int | None = None) -> float:
    r"""Return the change that at most a fraction ``delta`` of the rows can exceed when left out.

    For outputs in [0, 1] and infinitely many bags it is :math:`\varepsilon = \sqrt{C / (4 n \delta)}`. With B bags,
    half of ``delta`` is spent on their sampling error, which adds :math:`\sqrt{(2 / B) \log (8 / \delta)}`.

    Args:
        scheme: how bags are drawn.
        n: number of rows.
        delta: fraction of the rows, in (0, 1).
        n_bags: number of bags; None for infinitely many.

    Raises:
        ValueError: if ``delta`` is out of range, or every bag holds every row.

    References:
        Soloff, Barber, Willett, "Bagging provides assumption-free stability", JMLR 2024, arXiv:2301.12600, theorems for
        derandomised bags and for finitely many.

    Example:
        >>> from poise.sensitivity import Subsample
        >>> round(guaranteed_change(Subsample(250), 500, delta=0.1), 7)
        0.0707815
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta!r}")
    constant = stability_constant(scheme, n)
    if n_bags is None:
        return math.sqrt(constant / (4 * n * delta))
    return math.sqrt(constant / (2 * n * delta)) + math.sqrt(2 / n_bags * math.log(8 / delta))


def guaranteed_fraction(scheme: Resampling, n: int, eps: float, n_bags: int | None = None) -> float:
    r"""Return the fraction of the rows that can change an output by more than ``eps`` when left out; at most 1.

    Args:
        scheme: how bags are drawn.
        n: number of rows.
        eps: change of an output in [0, 1], above 0.
        n_bags: number of bags; None for infinitely many.

    Raises:
        ValueError: if ``eps`` is not above 0, or every bag holds every row.
    """
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps!r}")
    constant = stability_constant(scheme, n)
    if n_bags is None:
        return min(1.0, constant / (4 * n * eps**2))
    low, high = 1e-12, 1.0
    if guaranteed_change(scheme, n, 1 - 1e-12, n_bags) > eps:
        return 1.0
    for _ in range(60):  # the guaranteed change falls with the fraction
        middle = math.sqrt(low * high)
        low, high = (middle, high) if guaranteed_change(scheme, n, middle, n_bags) > eps else (low, middle)
    return high


def bags_needed(scheme: Resampling, n: int, eps: float, delta: float) -> int:
    """Return how many bags guarantee that at most a fraction ``delta`` of the rows changes an output by over ``eps``.

    Args:
        scheme: how bags are drawn.
        n: number of rows.
        eps: change of an output in [0, 1].
        delta: fraction of the rows.

    Raises:
        ValueError: if no number of bags does, or an argument is out of range.
    """
    left = eps - math.sqrt(stability_constant(scheme, n) / (2 * n * delta))
    if not left > 0:
        raise ValueError(
            f"eps must exceed {eps - left:.4g} with {n} rows and delta = {delta:g}, got {eps!r}: no number of "
            "bags suffices"
        )
    return math.ceil(2 * math.log(8 / delta) / left**2)

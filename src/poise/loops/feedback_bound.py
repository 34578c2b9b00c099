"""How far a bias can drift when a model's outputs are added to its training data."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def feedback_bound(rounds: int, n0: int, m: int, k: int, delta: float) -> Float[np.ndarray, " rounds"]:
    r"""Return the largest bias at rounds 0 to ``rounds`` of a loop that adds human and model-labelled rows.

    The pool grows from :math:`n_0` rows by m human and k model-labelled ones per round. If the outputs of a model
    trained on any of these pools deviate from its training distribution by at most :math:`\delta` (consistent
    calibration), then

    .. math:: |b_t| \le \delta (1 + a_t), \quad a_t = \frac{k}{n_t} + \frac{n_t - m}{n_t} a_{t-1}, \quad a_0 = 0,

    which for m > 0 stays below :math:`\delta (m + k) / m`.

    Args:
        rounds: number of rounds after round 0.
        n0: rows at the start, at least 1.
        m: human-labelled rows per round.
        k: model-labelled rows per round.
        delta: calibration error in the unit of the statistic, at least 0.

    Returns:
        Shape (rounds + 1,).

    Raises:
        ValueError: if a number is out of range.

    References:
        Taori, Hashimoto, "Data feedback loops: model-driven amplification of dataset biases", ICML 2023,
        arXiv:2209.03942.

    Example:
        >>> feedback_bound(2, 1000, 50, 450, delta=1.0).tolist()
        [1.0, 1.3, 1.5175]
    """
    _check(n0=n0, m=m, k=k)
    if rounds < 0 or not delta >= 0:
        raise ValueError(f"rounds and delta must be at least 0, got {rounds!r} and {delta!r}")
    a = np.zeros(rounds + 1)
    for t in range(1, rounds + 1):
        n = n0 + t * (m + k)
        a[t] = k / n + (n - m) / n * a[t - 1]
    return delta * (1 + a)


def bound_limit(m: int, k: int) -> float:
    """Return by how much a calibration error can be amplified in the long run: (m + k) / m.

    It is infinite without human rows.

    Args:
        m: human-labelled rows per round.
        k: model-labelled rows per round.

    Raises:
        ValueError: if a number is negative.
    """
    _check(m=m, k=k)
    return (m + k) / m if m else math.inf


def human_rows_needed(k: int, tolerance: float, delta: float) -> int:
    """Return the fewest human-labelled rows per round that keep the bias below a tolerance in the long run.

    Args:
        k: model-labelled rows per round.
        tolerance: largest bias allowed; must exceed ``delta``, which no number of human rows removes.
        delta: calibration error.

    Raises:
        ValueError: if ``tolerance`` does not exceed ``delta`` and model-labelled rows are added.
    """
    _check(k=k)
    if k == 0:
        return 0
    if not tolerance > delta >= 0:
        raise ValueError(f"tolerance must exceed delta, got {tolerance!r} and {delta!r}")
    # An integer ratio must not be rounded up by the last bit.
    return math.ceil(k * delta / (tolerance - delta) - 1e-9)


def _check(**counts: int) -> None:
    lowest = {"n0": 1}
    for name, value in counts.items():
        if value < lowest.get(name, 0):
            raise ValueError(f"{name} must be at least {lowest.get(name, 0)}, got {value!r}")

"""Ways to draw the rows of a bag, and what they promise for the stability of an average over bags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int


class Resampling(Protocol):
    """Draws bags of n rows, all rows alike."""

    def draw(self, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Return how often each row is in a bag."""

    def p(self, n: int) -> float:
        """Return the probability that a row is in a bag."""

    def q(self, n: int) -> float:
        """Return the negative covariance of two rows being in a bag."""


def stability_constant(scheme: Resampling, n: int) -> float:
    r"""Return :math:`C = p / (1 - p) + q / (1 - p)^2`, on which all guarantees of a bag depend.

    Args:
        scheme: how bags are drawn.
        n: number of rows.

    Raises:
        ValueError: if every bag holds every row, or none.

    References:
        Soloff, Barber, Willett, "Bagging provides assumption-free stability", JMLR 2024, arXiv:2301.12600.

    Example:
        >>> round(stability_constant(Subsample(250), 500), 6)
        1.002004
    """
    p, q = scheme.p(n), scheme.q(n)
    if not 0 < p < 1:
        raise ValueError(f"a row must be in some bags and not in others, got probability {p:g} with {n} rows")
    return p / (1 - p) + q / (1 - p) ** 2


@dataclass(frozen=True, slots=True)
class Subsample:
    """``m`` rows without replacement.

    Args:
        m: rows of a bag, as a number: it stays the same when one row is left out.
    """

    m: int

    def __post_init__(self) -> None:
        _check_size(self.m)

    def draw(self, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Return how often each row is in a bag: 0 or 1."""
        if self.m >= n:
            raise ValueError(f"m must be below the number of rows, {n}, got {self.m}: every bag would hold every row")
        counts = np.zeros(n, np.int64)
        counts[rng.choice(n, self.m, replace=False)] = 1
        return counts

    def p(self, n: int) -> float:
        """Return m / n."""
        return self.m / n

    def q(self, n: int) -> float:
        """Return p (1 - p) / (n - 1)."""
        return self.p(n) * (1 - self.p(n)) / (n - 1)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """``m`` rows with replacement.

    Args:
        m: draws of a bag.
    """

    m: int

    def __post_init__(self) -> None:
        _check_size(self.m)

    def draw(self, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Return how often each row is in a bag."""
        return np.bincount(rng.integers(n, size=self.m), minlength=n)

    def p(self, n: int) -> float:
        """Return 1 - (1 - 1/n)^m."""
        return -math.expm1(self.m * math.log1p(-1 / n))

    def q(self, n: int) -> float:
        """Return (1 - 1/n)^2m - (1 - 2/n)^m."""
        return (1 - 1 / n) ** (2 * self.m) - (1 - 2 / n) ** self.m


@dataclass(frozen=True, slots=True)
class PoissonBootstrap:
    """Each row a Poisson number of times, ``m / n`` on average.

    Args:
        m: mean size of a bag.
    """

    m: int

    def __post_init__(self) -> None:
        _check_size(self.m)

    def draw(self, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Return how often each row is in a bag."""
        return rng.poisson(self.m / n, n)

    def p(self, n: int) -> float:
        """Return 1 - exp(-m / n)."""
        return -math.expm1(-self.m / n)

    def q(self, n: int) -> float:
        """Return 0: rows are drawn independently."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Each row once with a fixed probability.

    Args:
        rate: the probability, in (0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be in (0, 1), got {self.rate!r}")

    def draw(self, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Return how often each row is in a bag: 0 or 1."""
        return (rng.random(n) < self.rate).astype(np.int64)

    def p(self, n: int) -> float:
        """Return the rate."""
        return self.rate

    def q(self, n: int) -> float:
        """Return 0: rows are drawn independently."""
        return 0.0


def _check_size(m: int) -> None:
    if m < 1:
        raise ValueError(f"m must be at least 1, got {m!r}")

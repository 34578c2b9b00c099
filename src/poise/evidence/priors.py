"""Priors as validated value objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

_TAIL = 1e-10
"""Prior mass left out on each side of :meth:`central`; the integrator widens the box where the data need it."""


@dataclass(frozen=True, slots=True)
class BetaPrior:
    """Beta(a, b) for a probability, truncated to [lower, upper] and renormalised.

    Args:
        a: first shape, above 0.
        b: second shape, above 0.
        lower: lower end of the support, in [0, 1).
        upper: upper end of the support, in (lower, 1].

    Raises:
        ValueError: if a shape is not positive, the support is no part of [0, 1], or the truncation leaves less than
            1e-12 of the mass (the prior would contradict itself).
    """

    a: float
    b: float
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            _positive(name, getattr(self, name))
        if not 0.0 <= self.lower < self.upper <= 1.0:
            raise ValueError(f"lower and upper must satisfy 0 <= lower < upper <= 1, got {self.lower} and {self.upper}")
        mass = beta_mass(self.a, self.b, self.lower, self.upper)
        if mass < 1e-12:
            raise ValueError(
                f"lower={self.lower} and upper={self.upper} leave {mass:.3g} of the mass of Beta({self.a}, {self.b}); "
                "at least 1e-12 is needed"
            )

    def truncated(self, lower: float, upper: float = 1.0) -> BetaPrior:
        """Return the same Beta on a smaller support."""
        return BetaPrior(self.a, self.b, max(self.lower, lower), min(self.upper, upper))

    def log_density_logit(self, logit: Floats) -> Floats:
        """Log density of the logit of the probability, which integrates to one over :meth:`support`."""
        log_p, log_q = special.log_expit(logit), special.log_expit(-logit)
        mass = beta_mass(self.a, self.b, self.lower, self.upper)
        return self.a * log_p + self.b * log_q - special.betaln(self.a, self.b) - math.log(mass)

    def support(self) -> tuple[float, float]:
        """Ends of the support on the logit scale, possibly infinite."""
        return float(special.logit(self.lower)), float(special.logit(self.upper))

    def central(self) -> tuple[float, float]:
        """Ends of nearly all of the mass on the logit scale."""
        low, high = _beta_central(self)
        return float(special.logit(low)), float(special.logit(high))

    def __str__(self) -> str:
        support = "" if (self.lower, self.upper) == (0.0, 1.0) else f" on [{self.lower:g}, {self.upper:g}]"
        return f"Beta({self.a:g}, {self.b:g}){support}"


class SdPrior(Protocol):
    """A prior for a standard deviation on the logit scale."""

    def log_density(self, sd: Floats) -> Floats:
        """Log density at ``sd`` > 0."""
        ...

    def central(self) -> tuple[float, float]:
        """Ends of nearly all of the mass."""
        ...


@dataclass(frozen=True, slots=True)
class GammaPrior:
    """Gamma(shape, rate) for a standard deviation; its mean is shape / rate.

    Args:
        shape: at least 1, so that the density is finite at 0.
        rate: above 0, per unit of the logit scale.

    Raises:
        ValueError: if ``shape`` is below 1 or ``rate`` is not positive.
    """

    shape: float
    rate: float

    def __post_init__(self) -> None:
        _positive("rate", self.rate)
        if not (self.shape >= 1.0 and math.isfinite(self.shape)):
            raise ValueError(f"shape must be finite and at least 1, got {self.shape}")

    def log_density(self, sd: Floats) -> Floats:
        """Log density at ``sd`` > 0."""
        return stats.gamma.logpdf(sd, self.shape, scale=1.0 / self.rate)

    def central(self) -> tuple[float, float]:
        """From 0 to a quantile beyond which there is almost no mass."""
        return 0.0, float(stats.gamma.isf(_TAIL, self.shape, scale=1.0 / self.rate))

    def __str__(self) -> str:
        return f"Gamma({self.shape:g}, rate {self.rate:g})"


@dataclass(frozen=True, slots=True)
class HalfNormalPrior:
    """Half-normal prior for a standard deviation.

    Args:
        scale: scale on the logit scale, above 0.

    Raises:
        ValueError: if ``scale`` is not positive.
    """

    scale: float

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    def log_density(self, sd: Floats) -> Floats:
        """Log density at ``sd`` > 0."""
        return stats.halfnorm.logpdf(sd, scale=self.scale)

    def central(self) -> tuple[float, float]:
        """From 0 to a quantile beyond which there is almost no mass."""
        return 0.0, float(stats.halfnorm.isf(_TAIL, scale=self.scale))

    def __str__(self) -> str:
        return f"half-normal({self.scale:g})"


def _positive(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def beta_mass(a: float, b: float, lower: float, upper: float) -> float:
    """Mass of Beta(a, b) between two probabilities."""
    # Each tail from its own side: a difference of two numbers near 1 would round a small mass away.
    below, above = special.betainc(a, b, lower), special.betaincc(a, b, upper)
    if below > 0.5:
        return float(special.betaincc(a, b, lower) - above)
    return float(special.betainc(a, b, upper) - below)


def _beta_central(prior: BetaPrior) -> tuple[float, float]:
    below = special.betainc(prior.a, prior.b, prior.lower)
    above = special.betaincc(prior.a, prior.b, prior.upper)
    mass = beta_mass(prior.a, prior.b, prior.lower, prior.upper)
    low = special.betaincinv(prior.a, prior.b, below + _TAIL * mass)
    high = special.betainccinv(prior.a, prior.b, above + _TAIL * mass)
    return float(max(low, prior.lower)), float(min(high, prior.upper))

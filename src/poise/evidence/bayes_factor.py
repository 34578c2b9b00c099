"""A Bayes factor that is always shown in both directions."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BayesFactor:
    """How many times better one hypothesis predicted the data than another.

    Args:
        log: natural logarithm of the Bayes factor; ``float`` range does not limit it.
    """

    log: float

    @property
    def log10(self) -> float:
        """Logarithm to base ten."""
        return self.log / math.log(10.0)

    @property
    def value(self) -> float:
        """The factor itself; infinite where a float cannot hold it (read ``log10`` there)."""
        return math.exp(self.log) if self.log < 709.0 else math.inf

    @property
    def inverse(self) -> BayesFactor:
        """The same evidence seen from the other hypothesis."""
        return BayesFactor(-self.log)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{_decimal(self.log10)} for, {_decimal(-self.log10)} against (log10 {self.log10:+.2f})"


def _decimal(log10: float) -> str:
    if math.isinf(log10):
        return "infinite" if log10 > 0 else "0"
    if -3.0 < log10 < 4.0:
        return f"{10.0**log10:.4g}"
    exponent = math.floor(log10)
    mantissa = f"{10.0 ** (log10 - exponent):.3g}"
    return f"1e{exponent + 1}" if mantissa == "10" else f"{mantissa}e{exponent}"

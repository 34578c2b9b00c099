"""An estimated trace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceEstimate:
    """A trace, or a mean of a function of eigenvalues, estimated from random vectors.

    Args:
        value: the estimate.
        se: its standard error; 0 where the value is exact, infinite from a single random vector.
        n_matvec: products that were taken.
    """

    value: float
    se: float
    n_matvec: int

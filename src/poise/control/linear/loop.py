"""A linear loop with one input and one output, cut open: what negative feedback is closed around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.signal
from jaxtyping import Complex128, Float64


@dataclass(frozen=True, slots=True, eq=False)
class LinearLoop:
    """The open loop L of a feedback u = -y: a system from one input u to one output y.

    Args:
        A: of shape (n, n); n may be 0.
        B: of shape (n, 1) or (n,).
        C: of shape (1, n) or (n,).
        D: direct part, a number.
        dt: sampling period of a map x+ = A x + B u; ``None`` for a flow x' = A x + B u.

    Raises:
        ValueError: if shapes do not fit, an entry is not finite, or ``dt`` is not positive.
    """

    A: Any
    B: Any
    C: Any
    D: Any = 0.0
    dt: float | None = None

    def __post_init__(self) -> None:
        A = _array("A", self.A)
        n = len(A)
        if A.shape != (n, n):
            raise ValueError(f"A must have shape (n, n), got {A.shape}")
        B, C, D = (_array(name, value) for name, value in (("B", self.B), ("C", self.C), ("D", self.D)))
        if B.size != n or C.size != n:
            raise ValueError(f"B and C must hold {n} numbers each, got shapes {B.shape} and {C.shape}")
        if D.size != 1:
            raise ValueError(f"D must be a number, got shape {D.shape}")
        if self.dt is not None and not 0 < self.dt < np.inf:
            raise ValueError(f"dt must be positive and finite, or None, got {self.dt!r}")
        for name, value in (("A", A), ("B", B.reshape(n, 1)), ("C", C.reshape(1, n)), ("D", float(D.reshape(())))):
            object.__setattr__(self, name, value)

    @classmethod
    def from_coefficients(
        cls, numerator: Sequence[float], denominator: Sequence[float], dt: float | None = None
    ) -> LinearLoop:
        """Return the loop of a rational transfer function.

        Args:
            numerator: coefficients, the highest power first.
            denominator: the same, of at least the degree of the numerator.
            dt: sampling period if they are polynomials in z; ``None`` if in s.

        Raises:
            ValueError: if the numerator has the higher degree or a coefficient is not finite.

        Example:
            >>> integrator = LinearLoop.from_coefficients([1.0], [1.0, 0.0])
            >>> complex(integrator.response(2.0))
            -0.5j
        """
        top, bottom = (np.trim_zeros(np.atleast_1d(np.asarray(c, float)), "f") for c in (numerator, denominator))
        if not len(bottom) or len(top) > len(bottom):
            raise ValueError(
                "denominator must have at least the degree of the numerator, "
                f"got {max(len(bottom) - 1, 0)} and {len(top) - 1}"
            )
        if not np.isfinite([*top, *bottom]).all():
            raise ValueError("numerator and denominator must be finite")
        if len(bottom) == 1:
            return cls(np.zeros((0, 0)), np.zeros(0), np.zeros(0), top.sum() / bottom[0], dt)
        A, B, C, D = scipy.signal.tf2ss(top if len(top) else [0.0], bottom)
        return cls(A, B, C, D, dt)

    def sampled(self, dt: float) -> LinearLoop:
        """Return the loop as a computer closes it: the input is held over each sampling period (zero-order hold).

        Args:
            dt: sampling period.

        Raises:
            ValueError: if this loop is sampled already, or ``dt`` is not positive.
        """
        if self.dt is not None:
            raise ValueError(f"dt: this loop is sampled already, with period {self.dt:g}")
        if not 0 < dt < np.inf:
            raise ValueError(f"dt must be positive and finite, got {dt!r}")
        Ad, Bd = held_input(self.A, self.B, dt)
        return LinearLoop(Ad, Bd, self.C, self.D, dt)

    def response(self, frequency: Any) -> Complex128[np.ndarray, "..."]:
        """Return L at frequencies in radians per unit of time; infinite where it has a pole.

        Args:
            frequency: a number or an array.
        """
        omega = np.asarray(frequency, float)
        points = 1j * omega if self.dt is None else np.exp(1j * omega * self.dt)
        identity = np.eye(len(self.A))
        values = np.full(omega.shape, complex(self.D))
        for index in np.ndindex(omega.shape):
            try:
                values[index] += (self.C @ np.linalg.solve(points[index] * identity - self.A, self.B)).item()
            except np.linalg.LinAlgError:
                values[index] = complex(np.inf)
        return values

    def closed(self) -> Float64[np.ndarray, "n n"]:
        """Return the matrix of the closed loop.

        Raises:
            ValueError: if 1 + D is zero, so that the loop has no solution.
        """
        if self.D == -1.0:
            raise ValueError("D must not be -1: the feedback u = -y then has no solution")
        return np.asarray(self.A - self.B @ self.C / (1 + self.D))


def held_input(
    A: Float64[np.ndarray, "n n"], B: Float64[np.ndarray, "n m"], dt: float
) -> tuple[Float64[np.ndarray, "n n"], Float64[np.ndarray, "n m"]]:
    """Return the map over one sampling period of a flow x' = A x + B u whose input is held.

    Args:
        A: of shape (n, n).
        B: of shape (n, m).
        dt: sampling period.

    References:
        Van Loan (1978). Computing integrals involving the matrix exponential.
    """
    n, m = B.shape
    whole = np.zeros((n + m, n + m))
    whole[:n, :n], whole[:n, n:] = A * dt, B * dt
    exponential = scipy.linalg.expm(whole)
    return exponential[:n, :n], exponential[:n, n:]


def _array(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return array

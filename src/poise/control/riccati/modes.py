"""Why a Riccati equation has no stabilising solution: the mode that no input reaches, or that no weight sees."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

_RELATIVE = 1e-12
_NEAR_BOUNDARY = 1e-7  # eigenvalues of a defective matrix on the boundary scatter by the root of the precision


class NotStabilizable(np.linalg.LinAlgError):
    """A linear system that no state feedback stabilises, or whose cost does not see a mode on the boundary."""


def unreachable_mode(
    A: Float64[np.ndarray, "n n"], B: Float64[np.ndarray, "n m"], sampled: bool
) -> tuple[complex, Float64[np.ndarray, " n"]] | None:
    """Return a mode that does not decay and that no input moves, or ``None``.

    The Popov-Belevitch-Hautus test: the pair is stabilisable exactly if [A - lambda, B] has full row rank at every
    eigenvalue that does not decay. Ranks are judged at 1e-12 of the largest singular value, with B scaled to the size
    of A.

    Args:
        A: of shape (n, n).
        B: of shape (n, m).
        sampled: whether the system is a map; a flow otherwise.

    Returns:
        The eigenvalue, and the direction of the state in which nothing can be done.

    References:
        Hautus (1969). Controllability and observability conditions of linear autonomous systems.
    """
    sizes = float(np.linalg.norm(A)), float(np.linalg.norm(B))
    scaled = B * (sizes[0] / sizes[1]) if sizes[0] > 0 and sizes[1] > 0 else B
    bound = _RELATIVE * max(float(np.linalg.norm(np.hstack([A, scaled]), 2)), np.finfo(float).tiny)
    for value in _lasting(np.linalg.eigvals(A), sampled):
        left, singular, _ = np.linalg.svd(np.hstack([A - value * np.eye(len(A)), scaled]))
        if singular[-1] <= bound:
            direction = left[:, -1].real if np.abs(left[:, -1].real).max() > 1e-8 else left[:, -1].imag
            return complex(value), direction / np.linalg.norm(direction)
    return None


def unseen_boundary_mode(
    A: Float64[np.ndarray, "n n"], Q: Float64[np.ndarray, "n n"], sampled: bool
) -> tuple[complex, Float64[np.ndarray, " n"]] | None:
    """Return a mode on the stability boundary that has no weight in the cost, or ``None``.

    Args:
        A: of shape (n, n), without the part that a weight of products adds.
        Q: weight of the state, of shape (n, n), of the same problem.
        sampled: whether the system is a map; a flow otherwise.
    """
    values, vectors = np.linalg.eig(A)
    scale = max(float(np.abs(values).max()), 1.0)
    for value, vector in zip(values, vectors.T, strict=True):
        distance = abs(abs(value) - 1.0) if sampled else abs(value.real)
        if distance <= _NEAR_BOUNDARY * scale and float(np.linalg.norm(Q @ vector)) <= 1e-8 * max(
            float(np.linalg.norm(Q)), 1e-300
        ):
            direction = vector.real if np.abs(vector.real).max() > 1e-8 else vector.imag
            return complex(value), direction / np.linalg.norm(direction)
    return None


def explain_failure(
    A: Float64[np.ndarray, "n n"],
    B: Float64[np.ndarray, "n m"],
    Q: Float64[np.ndarray, "n n"],
    R: Float64[np.ndarray, "m m"],
    M: Float64[np.ndarray, "n m"],
    sampled: bool,
) -> str:
    """Return why a Riccati equation has no stabilising solution, in a sentence; empty if no mode is to blame."""
    found = unreachable_mode(A, B, sampled)
    if found is not None:
        return (
            f"(A, B) is not stabilisable: no input moves the mode with eigenvalue {_written(found[0])}, which does not "
            f"decay (direction {_direction(found[1])})"
        )
    shifted = np.linalg.solve(R, M.T)
    found = unseen_boundary_mode(A - B @ shifted, Q - M @ shifted, sampled)
    if found is not None:
        return (
            f"the cost does not see the mode with eigenvalue {_written(found[0])} on the stability boundary "
            f"(direction {_direction(found[1])}): no optimal feedback stabilises it; give it a weight in Q"
        )
    return ""


def _lasting(values: np.ndarray, sampled: bool) -> np.ndarray:
    scale = max(float(np.abs(values).max()), 1.0)
    growth = np.abs(values) - 1.0 if sampled else values.real
    return values[growth >= -_NEAR_BOUNDARY * scale]


def _written(value: complex) -> str:
    return f"{value.real:.4g}" if abs(value.imag) < 1e-12 * max(abs(value), 1.0) else f"{value:.4g}"


def _direction(vector: np.ndarray) -> str:
    return "(" + ", ".join(f"{entry:.3g}" for entry in np.where(np.abs(vector) < 1e-12, 0.0, vector)) + ")"

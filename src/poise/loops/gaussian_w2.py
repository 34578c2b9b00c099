"""Distances between Gaussians and between samples."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def gaussian_w2(
    mean_a: Float[np.ndarray, " dim"],
    cov_a: Float[np.ndarray, "dim dim"],
    mean_b: Float[np.ndarray, " dim"],
    cov_b: Float[np.ndarray, "dim dim"],
) -> float:
    r"""Return the 2-Wasserstein distance of two Gaussians.

    .. math:: W_2^2 = \|m_a - m_b\|^2 + \mathrm{tr}(S_a + S_b - 2 (S_b^{1/2} S_a S_b^{1/2})^{1/2}).

    Args:
        mean_a: mean of the first.
        cov_a: its covariance, symmetric and positive semidefinite.
        mean_b: mean of the second.
        cov_b: its covariance.

    Raises:
        ValueError: if a covariance is not symmetric and positive semidefinite.

    References:
        Gelbrich, "On a formula for the L2 Wasserstein metric between measures on Euclidean and Hilbert spaces",
        Mathematische Nachrichten 147, 1990.
    """
    root = _root(np.asarray(cov_b, float), "cov_b")
    _root(np.asarray(cov_a, float), "cov_a")
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_a @ root), 0, None)).sum()
    difference = np.subtract(mean_a, mean_b)
    square = float(difference @ difference) + float(np.trace(cov_a) + np.trace(cov_b)) - 2 * float(cross)
    return float(np.sqrt(max(square, 0.0)))


def sample_w2(a: Float[np.ndarray, "rows dim"], b: Float[np.ndarray, "other dim"]) -> float:
    """Return the distance of the Gaussians with the means and covariances of two samples (a Frechet distance).

    Args:
        a: first sample, at least two rows.
        b: second sample.

    Raises:
        ValueError: if a sample has fewer than two rows.
    """
    for name, rows in (("a", a), ("b", b)):
        if len(rows) < 2:
            raise ValueError(f"{name} must have at least two rows, got {len(rows)}")
    return gaussian_w2(a.mean(0), np.atleast_2d(np.cov(a.T)), b.mean(0), np.atleast_2d(np.cov(b.T)))


def _root(cov: Float[np.ndarray, "dim dim"], name: str) -> Float[np.ndarray, "dim dim"]:
    if not np.allclose(cov, cov.T, atol=1e-8 * max(1.0, np.abs(cov).max())):
        raise ValueError(f"{name} must be symmetric")
    values, vectors = np.linalg.eigh(cov)
    if values[0] < -1e-8 * max(1.0, values[-1]):
        raise ValueError(f"{name} must be positive semidefinite, its smallest eigenvalue is {values[0]:.3g}")
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

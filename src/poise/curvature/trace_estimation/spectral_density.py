"""Density of all eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.eigen.orthogonal import ASYMMETRY, AsymmetryError, orthogonalize, random_unit_vector
from poise.curvature.operators.linear_operator import LinearOperator
from poise.curvature.trace_estimation.trace_estimate import TraceEstimate
from poise.report import Figure, line_chart

_SQRT_2PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True, slots=True, eq=False)
class SpectralDensity:
    """Quadrature rules, one per random vector, whose mean is the density of eigenvalues.

    Args:
        nodes: eigenvalues of the projected matrices, one row per random vector.
        weights: their weights; every row sums to 1.
        n_matvec: products that were taken.
    """

    nodes: Float[Tensor, "probes m"]
    weights: Float[Tensor, "probes m"]
    n_matvec: int

    @property
    def sigma(self) -> float:
        """Width of the Gaussian that stands for a node: 1 % of the spectrum's extent."""
        seen = self.nodes[self.weights > 0]
        extent = float(seen.max() - seen.min())
        return 0.01 * (extent or max(abs(float(seen[0])), 1.0))

    def density(self, grid: Float[Tensor, " g"], sigma: float | None = None) -> Float[Tensor, " g"]:
        """Return the fraction of eigenvalues per unit, smoothed by a Gaussian; it integrates to 1.

        Args:
            grid: where.
            sigma: standard deviation of the Gaussian, 1 % of the spectrum's extent by default.
        """
        return self._densities(grid, sigma).mean(0)

    def density_se(self, grid: Float[Tensor, " g"], sigma: float | None = None) -> Float[Tensor, " g"]:
        """Return the standard error of :meth:`density` over the random vectors; infinite from a single one."""
        each = self._densities(grid, sigma)
        return each.std(0) / math.sqrt(len(each)) if len(each) > 1 else torch.full_like(each[0], math.inf)

    def moment(self, k: int) -> TraceEstimate:
        """Return the mean of ``eigenvalue ** k``; times n it estimates the trace of the k-th power.

        Exact for each random vector if k is below twice the number of steps.
        """
        each = (self.weights * self.nodes**k).sum(1)
        se = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.inf
        return TraceEstimate(float(each.mean()), se, self.n_matvec)

    def figure(self, title: str = "Density of eigenvalues", points: int = 400) -> Figure:
        """Return a chart of the density with a band of two standard errors.

        Args:
            title: heading.
            points: of the curve.
        """
        seen, sigma = self.nodes[self.weights > 0], self.sigma
        grid = torch.linspace(float(seen.min()) - 4 * sigma, float(seen.max()) + 4 * sigma, points, dtype=torch.float64)
        mean = self.density(grid)
        floor = 1e-6 * float(mean.max())  # tails of the Gaussians are no part of the spectrum
        x, y = grid.numpy(), np.where(mean >= floor, mean, np.nan)
        bands = None
        if len(self.nodes) > 1:
            half = 2 * self.density_se(grid)
            low, high = (mean - half).clamp_min(floor), (mean + half).clamp_min(floor)
            bands = {"density": (x, low.numpy(), high.numpy())}
        return line_chart(title, {"density": (x, y)}, "eigenvalue", "fraction per unit", log_y=True, bands=bands)

    def _densities(self, grid: Tensor, sigma: float | None) -> Float[Tensor, "probes g"]:
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        width = self.sigma if sigma is None else sigma
        z = (grid.double()[None, :, None] - self.nodes[:, None, :]) / width
        return ((-0.5 * z**2).exp() * self.weights[:, None, :]).sum(-1) / (width * _SQRT_2PI)


def spectral_density(
    op: LinearOperator, n_probes: int = 8, m: int = 40, generator: torch.Generator | None = None
) -> SpectralDensity:
    r"""Return the density of the eigenvalues of a symmetric operator.

    From each random vector z, m Lanczos steps give nodes :math:`\theta_j` and weights :math:`s_{1j}^2`: the Gauss rule
    of the eigenvalues weighted by the squared components of z, whose mean over z is the density.

    Args:
        op: symmetric.
        n_probes: number of random vectors; two or more give standard errors.
        m: Lanczos steps from each; a run that exhausts the operator's spectrum ends earlier.
        generator: source of the random vectors.

    Raises:
        ValueError: if ``n_probes`` or ``m`` is below 1, or the operator is not symmetric.

    References:
        Golub and Welsch, "Calculation of Gauss quadrature rules", Mathematics of Computation 1969;
        Ghorbani, Krishnan and Xiao, "An investigation into neural net optimization via Hessian eigenvalue density",
        ICML 2019, arXiv:1901.10159.
    """
    if n_probes < 1 or m < 1:
        raise ValueError(f"n_probes and m must be at least 1, got {n_probes} and {m}")
    if not op.symmetric:
        raise ValueError(f"op must be symmetric, {op!r} is not")
    m = min(m, op.shape[0])
    nodes, weights = torch.zeros(2, n_probes, m, dtype=torch.float64)
    taken = 0
    basis = torch.empty(m, op.shape[0], dtype=op.dtype, device=op.device)
    for i in range(n_probes):
        basis[0] = random_unit_vector(op.shape[0], op, generator)
        theta, fraction = _quadrature(op, basis)
        nodes[i, : len(theta)], weights[i, : len(theta)] = theta, fraction
        taken += len(theta)
    return SpectralDensity(nodes, weights, taken)


def _quadrature(op: LinearOperator, basis: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
    m = len(basis)
    alpha, beta = np.zeros(m), np.zeros(m)
    for j in range(m):
        w, h, beta[j] = orthogonalize(op.matvec(basis[j]), basis[: j + 1])
        alpha[j] = h[j]
        size = max(float(np.abs(alpha).max()), float(beta.max()))
        before = np.r_[np.zeros(j - 1), beta[j - 1]] if j else np.zeros(0)
        if np.abs(h[:j] - before).max(initial=0.0) > ASYMMETRY * size:
            raise AsymmetryError(float(np.abs(h[:j] - before).max()) / size)
        if j + 1 == m or beta[j] <= 10 * torch.finfo(op.dtype).eps * size:
            break
        basis[j + 1] = w / beta[j]
    j += 1
    projected = np.diag(alpha[:j]) + np.diag(beta[: j - 1], 1) + np.diag(beta[: j - 1], -1)
    theta, s = np.linalg.eigh(projected)
    return torch.from_numpy(theta), torch.from_numpy(s[0] ** 2)

"""The exact mean-square stability of SGD at an interpolating minimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import eigsh
from torch import Tensor

from poise.dynamics.sgd_noise.sampling import Sampling, check_batch, noise_coefficients, smallest_batch_with

_RANK_TOL = 1e-10  # directions below this fraction of the top eigenvalue are rounding
_DENSE_RANK = 6


class SecondMomentOperator:
    r"""The effect of one step of linearised SGD on the second moment of its distance from a minimum.

    Near a minimum that fits every example, SGD with learning rate :math:`\eta` moves the distance :math:`\delta` by
    :math:`\delta' = (I - \eta H_B)\delta`, where :math:`H_B` is the mean of the batch's Hessians
    :math:`H_i = A_i^\top A_i`. Its second moment :math:`M = E[\delta\delta^\top]` then moves by the linear map

    .. math:: T(M) = M - \eta (G M + M G) + \eta^2 D(M),\quad
              D(M) = \alpha G M G + \beta \tfrac1n \sum_i H_i M H_i,\quad G = \tfrac1n \sum_i H_i,

    with :math:`\alpha, \beta` from :func:`~poise.dynamics.sgd_noise.sampling.noise_coefficients`. SGD is stable in mean
    square if and only if the spectral radius of T is at most 1. T keeps positive semidefinite matrices so, hence its
    spectral radius is its largest eigenvalue, and the largest stable learning rate is :math:`2/\lambda_{max}` of
    :math:`C^{-1/2} D C^{-1/2}`, :math:`C(M) = (GM + MG)/2`: one symmetric eigenproblem, no search.

    Everything happens in the range of G, of dimension ``rank`` (at most examples x outputs); outside of it nothing
    moves. Matrices are written in the eigenbasis of G, where C is a multiplication of entries. One product costs
    ``4 * n * outputs * rank**2`` operations; no matrix of size ``rank**2`` squared is formed. All in float64 on the
    CPU.

    Args:
        per_example_factors: one matrix :math:`A_i` an example. Scalar output and square loss
            :math:`\frac{1}{2n}\sum (f_i - y_i)^2`: the gradients of the outputs, with ``outputs = 1``. In general
            the Jacobian of the outputs times a square root of the loss's Hessian in the outputs.
        lr: learning rate, positive.
        batch_size: examples a step, from 1 to n.
        sampling: ``"without"``, ``"replacement"`` or ``"bernoulli"``, see
            :func:`~poise.dynamics.sgd_noise.sampling.noise_coefficients`.

    Raises:
        ValueError: if factors are not a finite tensor of three dimensions, are all zero, ``lr`` is not positive and
            finite, ``batch_size`` is outside 1..n or ``sampling`` is unknown.

    References:
        Wu and Su, "The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent", ICML 2023,
        arXiv:2305.17490. Mulayoff and Michaeli, "Exact Mean Square Linear Stability Analysis for SGD", COLT 2024,
        arXiv:2306.07850.

    Example:
        >>> gradients = torch.eye(3)[:, None]  # three examples with orthogonal gradients
        >>> SecondMomentOperator(gradients, lr=0.1, batch_size=1).critical_lr()  # full batch: 6
        2.0
    """

    def __init__(
        self,
        per_example_factors: Float[Tensor, "n outputs parameters"],
        lr: float,
        batch_size: int,
        sampling: Sampling = "without",
    ) -> None:
        self.coordinates, self.eigenvalues = principal_coordinates(per_example_factors)
        self._set(lr, batch_size, sampling)

    @classmethod
    def from_gram(
        cls, gram: Float[Tensor, "rows rows"], n: int, lr: float, batch_size: int, sampling: Sampling = "without"
    ) -> Self:
        """Return the operator of factors of which only the products of rows are known.

        Args:
            gram: products of all rows, those of one example side by side.
            n: number of examples.
            lr: learning rate.
            batch_size: examples a step.
            sampling: how batches are drawn.

        Raises:
            ValueError: if there is no curvature, or another argument is out of range.
        """
        operator = object.__new__(cls)
        operator.coordinates, operator.eigenvalues = coordinates_of_gram(gram, n)
        operator._set(lr, batch_size, sampling)
        return operator

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.coordinates.shape[0]

    @property
    def rank(self) -> int:
        """Rank of G."""
        return self.eigenvalues.shape[0]

    @property
    def lr_gd(self) -> float:
        """Largest stable learning rate of gradient descent, 2 / largest eigenvalue of G."""
        return 2.0 / self.eigenvalues[0].item()

    def at(self, lr: float | None = None, batch_size: int | None = None, sampling: Sampling | None = None) -> Self:
        """Return the operator of the same examples at another learning rate, batch size or sampling.

        Args:
            lr: learning rate; unchanged by default, as the rest.
            batch_size: examples a step.
            sampling: how batches are drawn.

        Raises:
            ValueError: if an argument is out of range.
        """
        other = object.__new__(type(self))
        other.coordinates, other.eigenvalues = self.coordinates, self.eigenvalues
        other._set(
            self.lr if lr is None else lr,
            self.batch_size if batch_size is None else batch_size,
            self.sampling if sampling is None else sampling,
        )
        return other

    def matvec(self, second_moment: Float[Tensor, "rank rank"]) -> Float[Tensor, "rank rank"]:
        """Return the second moment after one step.

        Args:
            second_moment: symmetric, in the eigenbasis of G (float64).
        """
        return second_moment * (1.0 - self.lr * self._pair_sums()) + self.lr**2 * self._squared_step(second_moment)

    def spectral_radius(self, tol: float = 1e-6) -> float:
        """Return the spectral radius on the range of G: growth of the mean square a step, stable up to 1.

        Below the critical learning rate it is that of the flattest directions, whose eigenvalues crowd below 1: slow
        to compute where G is ill-conditioned. To decide stability, compare with :meth:`critical_lr`.

        Args:
            tol: largest error; the usual one is far smaller.
        """
        return _top_eigenvalue(self.matvec, torch.eye(self.rank, dtype=torch.float64), tol, basis=40)

    def critical_lr(self, tol: float = 1e-10) -> float:
        """Return the largest learning rate that is stable in mean square; the operator's own does not enter.

        Args:
            tol: relative accuracy.
        """
        scale = (self._pair_sums() / 2).rsqrt()

        def scaled(m: Tensor) -> Tensor:
            return scale * self._squared_step(scale * m)

        return 2.0 / _top_eigenvalue(scaled, torch.diag(scale.diagonal().reciprocal()), tol)

    def smallest_batch(self, tol: float = 1e-10) -> int | None:
        r"""Return the smallest stable batch size at this learning rate; ``None`` if not even a full batch is stable.

        At fixed :math:`\eta < 2/\lambda_1` the condition is linear in :math:`\beta`, so the largest bearable
        :math:`\beta` is again one eigenvalue. The operator's own batch size does not enter.

        Args:
            tol: relative accuracy of that eigenvalue.
        """
        without_noise = self._pair_sums() - self.lr * torch.outer(self.eigenvalues, self.eigenvalues)
        if without_noise[0, 0] <= 1e-12 * self.eigenvalues[0]:
            at_edge = self.lr <= self.lr_gd * (1 + 1e-12)
            return smallest_batch_with(0.0, self.n, self.sampling) if at_edge else None
        scale = without_noise.rsqrt()
        # A noise coefficient of beta takes alpha = 1 - beta along, save where batches vary in size.
        replaced = 0.0 if self.sampling == "bernoulli" else 1.0

        def noise(m: Tensor) -> Tensor:
            m = scale * m
            return self.lr * scale * (self._mean_of_squares(m) - replaced * self._square_of_mean(m))

        top = _top_eigenvalue(noise, torch.diag(scale.diagonal().reciprocal()), tol)
        # No noise at all, up to rounding: the examples are copies of one.
        return 1 if top <= 1e-12 else smallest_batch_with(1.0 / top, self.n, self.sampling)

    def _set(self, lr: float, batch_size: int, sampling: Sampling) -> None:
        check_lr(lr)
        check_batch(self.n, batch_size, sampling)
        self.lr, self.batch_size, self.sampling = float(lr), int(batch_size), sampling
        self.alpha, self.beta = noise_coefficients(self.n, self.batch_size, sampling)

    def _pair_sums(self) -> Tensor:
        return self.eigenvalues[:, None] + self.eigenvalues

    def _squared_step(self, m: Tensor) -> Tensor:
        """Return D(M)."""
        if self.beta == 0.0:
            return self.alpha * self._square_of_mean(m)
        noise = self.beta * self._mean_of_squares(m)
        return noise if self.alpha == 0.0 else noise.add_(self._square_of_mean(m), alpha=self.alpha)

    def _square_of_mean(self, m: Tensor) -> Tensor:
        """Return G M G."""
        return self.eigenvalues[:, None] * m * self.eigenvalues

    def _mean_of_squares(self, m: Tensor) -> Tensor:
        """Return the mean of H_i M H_i."""
        z = self.coordinates
        n, outputs, rank = z.shape
        flat = z.view(n * outputs, rank)
        if outputs == 1:
            squares = torch.linalg.vecdot(flat @ m, flat)
            return flat.mT @ (flat * (squares / n)[:, None])
        weighted = torch.bmm(torch.bmm((flat @ m).view_as(z), z.mT), z)
        return flat.mT @ weighted.view(n * outputs, rank) / n


def principal_coordinates(
    factors: Float[Tensor, "n outputs parameters"],
) -> tuple[Float[Tensor, "n outputs rank"], Float[Tensor, " rank"]]:
    """Write the factors in the eigenbasis of their mean Hessian's range.

    Args:
        factors: one matrix an example.

    Returns:
        The factors in that basis, and the eigenvalues of the mean Hessian, largest first, float64. Eigenvalues below
        1e-10 of the largest count as zero.

    Raises:
        ValueError: if factors are not a finite tensor of three dimensions or are all zero.
    """
    if factors.ndim != 3:
        raise ValueError(f"per_example_factors must have shape (n, outputs, parameters), got {tuple(factors.shape)}")
    n, outputs, parameters = factors.shape
    rows = factors.detach().to("cpu", torch.float64).reshape(n * outputs, parameters)
    if not torch.isfinite(rows).all():
        raise ValueError("per_example_factors must be finite, got NaN or infinities")
    if parameters < n * outputs:
        values, basis = _eigh(rows.mT @ rows / n)
        return (rows @ basis).view(n, outputs, -1), values
    return coordinates_of_gram(rows @ rows.mT, n)


def coordinates_of_gram(
    gram: Float[Tensor, "rows rows"], n: int
) -> tuple[Float[Tensor, "n outputs rank"], Float[Tensor, " rank"]]:
    """Do the work of :func:`principal_coordinates` from the products of all rows of the factors.

    Args:
        gram: products of the rows, those of one example side by side.
        n: number of examples.

    Raises:
        ValueError: if there is no curvature.
    """
    values, basis = _eigh(gram.to("cpu", torch.float64) / n)
    return (basis * (n * values).sqrt()).view(n, gram.shape[0] // n, -1), values


def check_lr(lr: float) -> None:
    """See that a learning rate is one.

    Raises:
        ValueError: if it is not positive and finite.
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive and finite, got {lr!r}")


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    if values[0] <= 0:
        raise ValueError("no curvature: every per-example factor is zero, so no learning rate is unstable")
    keep = values > _RANK_TOL * values[0]
    return values[keep], vectors[:, keep].contiguous()


def _top_eigenvalue(
    apply: Callable[[Tensor], Tensor], start: Float[Tensor, "rank rank"], tol: float, basis: int = 10
) -> float:
    """Return the largest eigenvalue of a symmetric map of symmetric matrices.

    The map keeps positive semidefinite matrices so, and then its top eigenmatrix is one. A positive definite
    ``start`` cannot be orthogonal to it. Lanczos keeps ``basis`` matrices.
    """
    rank = start.shape[0]
    if rank <= _DENSE_RANK:
        return _dense_top_eigenvalue(apply, rank)

    def product(flat: np.ndarray) -> np.ndarray:
        # A symmetric start and symmetric products keep every vector symmetric, up to rounding that does not grow: the
        # map keeps antisymmetric matrices so, and the product drops them.
        out = apply(torch.from_numpy(np.ascontiguousarray(flat)).view(rank, rank))
        return ((out + out.mT) / 2).flatten().numpy()

    operator = ScipyOperator((rank**2, rank**2), matvec=product, dtype=np.float64)
    v0 = start.flatten().numpy()
    values = eigsh(operator, k=1, which="LA", v0=v0, ncv=basis, tol=tol, return_eigenvectors=False)
    return float(values[0])


def _dense_top_eigenvalue(apply: Callable[[Tensor], Tensor], rank: int) -> float:
    """Solve a problem that is too small for Krylov's method."""
    units = torch.eye(rank**2, dtype=torch.float64).view(-1, rank, rank)
    columns = [apply((unit + unit.mT) / 2) for unit in units]
    matrix = torch.stack([((column + column.mT) / 2).flatten() for column in columns])
    return torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[-1].item()

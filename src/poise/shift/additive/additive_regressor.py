"""Kernel ridge regression whose kernel is a sum over blocks of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from poise.shift.additive.block_variance import BlockVariance, kernel_variance
from poise.shift.additive.blocks import Blocks, block_matrices, checked_blocks

MOST_ROWS = 5_000
INTERCEPT = "intercept"


@dataclass(frozen=True, slots=True)
class LinearKernel:
    """``scale * <u, v>``: a linear function of the block."""

    scale: float = 1.0

    def __call__(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the kernel between rows."""
        return self.scale * (u @ v.T)


@dataclass(frozen=True, slots=True)
class GaussianKernel:
    """``scale * exp(-gamma |u - v|^2)``: a smooth function of the block."""

    gamma: float = 0.5
    scale: float = 1.0

    def __call__(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the kernel between rows."""
        return self.scale * np.exp(-self.gamma * cdist(u, v, "sqeuclidean"))


Kernel = LinearKernel | GaussianKernel


class AdditiveRegressor(RegressorMixin, BaseEstimator):
    """A sum of one function for each block of columns, fitted by ridge regression.

    The columns should have similar scales: standardise them before.

    Args:
        blocks: name of each block to its columns (names, or numbers for a matrix); all columns in one block by default.
        kernels: kernel of each block; :class:`GaussianKernel` where none is given.
        alpha: ridge penalty, positive.
        intercept: whether a constant is added, penalised like the rest.

    Attributes:
        blocks_: the blocks without columns that are constant.
        noise_var_: estimated variance of the noise: squared residuals by the remaining degrees of freedom.
        degrees_of_freedom_: of each block.

    References:
        M. Simchowitz, A. Ajay et al. (2023), Statistical learning under heterogeneous distribution shift,
        arXiv:2302.13934.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = AdditiveRegressor({"simple": [0], "smooth": [1]}, {"simple": LinearKernel()}, alpha=0.1)
        >>> bool(model.fit(x, x[:, 0] + np.sin(x[:, 1])).score(x, x[:, 0] + np.sin(x[:, 1])) > 0.99)
        True
    """

    def __init__(
        self,
        blocks: Blocks | None = None,
        kernels: Mapping[str, Kernel] | None = None,
        alpha: float = 1.0,
        intercept: bool = True,
    ) -> None:
        self.blocks = blocks
        self.kernels = kernels
        self.alpha = alpha
        self.intercept = intercept

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows and targets.

        Raises:
            ValueError: if blocks overlap or miss columns, a value is not finite, ``alpha`` is not positive, or there
                are more than 5,000 rows.
        """
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        matrix, target = validate_data(self, X, y, y_numeric=True, ensure_min_samples=2, dtype=np.float64)
        if len(target) > MOST_ROWS:
            raise ValueError(f"X must have at most {MOST_ROWS} rows, got {len(target)}: draw some at random")
        named = getattr(self, "feature_names_in_", None)
        self.columns_ = list(range(matrix.shape[1])) if named is None else [str(name) for name in named]
        blocks = {"all": self.columns_} if self.blocks is None else self.blocks
        unknown = set(self.kernels or {}) - set(blocks)
        if unknown:
            raise ValueError(f"kernels must be of blocks {sorted(blocks)}, got {sorted(unknown)}")
        self.blocks_ = checked_blocks(blocks, matrix, self.columns_)
        self.train_ = block_matrices(matrix, self.blocks_, "X", self.columns_)
        parts = self._kernels(self.train_)
        self.gram_ = np.sum(list(parts.values()), axis=0)
        factor = cho_factor(self.gram_ + self.alpha * np.eye(len(target)))
        self.dual_ = cho_solve(factor, target)
        inverse = cho_solve(factor, np.eye(len(target)))
        self.degrees_of_freedom_ = {name: float(np.vdot(inverse, part)) for name, part in parts.items()}
        residual = self.alpha * self.dual_
        left = len(target) - sum(self.degrees_of_freedom_.values())
        self.noise_var_ = float(residual @ residual / left)
        return self

    def predict(self, X: Any) -> Float[np.ndarray, " rows"]:
        """Return predictions."""
        return np.sum(list(self._kernels(self._test(X)).values()), axis=0) @ self.dual_

    def predict_block(self, X: Any, block: str) -> Float[np.ndarray, " rows"]:
        """Return the part of the predictions that comes from one block (or from ``"intercept"``).

        Raises:
            ValueError: if there is no such block.
        """
        parts = self._kernels(self._test(X))
        if block not in parts:
            raise ValueError(f"block must be one of {', '.join(parts)}, got {block!r}")
        return parts[block] @ self.dual_

    def block_variance(self, X: Any, noise_var: float | None = None) -> BlockVariance:
        """Return the variance of the predictions at rows, divided among the blocks.

        Args:
            X: rows.
            noise_var: variance of the noise; as estimated by default.
        """
        noise = self.noise_var_ if noise_var is None else noise_var
        return kernel_variance(self.gram_, self._kernels(self._test(X)), self.alpha, noise)

    def _test(self, X: Any) -> dict[str, np.ndarray]:
        check_is_fitted(self)
        matrix = validate_data(self, X, reset=False, dtype=np.float64)
        return block_matrices(matrix, self.blocks_, "X", self.columns_)

    def _kernels(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = self.kernels or {}
        parts = {name: given.get(name, GaussianKernel())(rows[name], self.train_[name]) for name in self.blocks_}
        if self.intercept:
            first = next(iter(parts.values()))
            parts[INTERCEPT] = np.ones_like(first)
        return parts

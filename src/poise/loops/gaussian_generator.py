"""Gaussian generators: one, or one for each class with a shared covariance."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator
from sklearn.covariance import ledoit_wolf
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

_JITTER = 1e-6


class GaussianGenerator(BaseEstimator):
    """The Gaussian with the mean and covariance of the rows.

    Args:
        random_state: of the samples.
    """

    def __init__(self, random_state: Any = None) -> None:
        self.random_state = random_state

    def fit(self, X: Float[np.ndarray, "rows dim"], y: Any = None) -> GaussianGenerator:
        """Fit mean and maximum-likelihood covariance, with 1e-6 on its diagonal."""
        self.mean_ = X.mean(0)
        centred = X - self.mean_
        self.covariance_ = centred.T @ centred / len(X) + _JITTER * np.eye(X.shape[1])
        self._random = check_random_state(self.random_state)
        return self

    def sample(self, n: int) -> Float[np.ndarray, "n dim"]:
        """Draw ``n`` rows."""
        check_is_fitted(self, "mean_")
        noise = self._random.standard_normal((n, len(self.mean_)))
        return np.asarray(self.mean_ + noise @ np.linalg.cholesky(self.covariance_).T)


class ClassConditionalGaussian(BaseEstimator):
    """A Gaussian for each class, with one covariance for all.

    Args:
        shrinkage: ``"ledoit_wolf"``; None for the pooled covariance; ``"diagonal"`` for one pooled variance per column.
        random_state: of the samples.
    """

    def __init__(self, shrinkage: str | None = "ledoit_wolf", random_state: Any = None) -> None:
        self.shrinkage = shrinkage
        self.random_state = random_state

    def fit(self, X: Float[np.ndarray, "rows dim"], y: Shaped[np.ndarray, " rows"]) -> ClassConditionalGaussian:
        """Fit class means, the shared covariance, and the fractions of the classes.

        Raises:
            ValueError: if a class has fewer than two rows, or ``shrinkage`` is unknown.
        """
        self.classes_, index, count = np.unique(y, return_inverse=True, return_counts=True)
        if count.min() < 2:
            raise ValueError(
                f"y must have two rows of each class, got {count.min()} of {self.classes_[count.argmin()]}"
            )
        self.means_ = np.stack([X[index == c].mean(0) for c in range(len(count))])
        self.priors_ = count / count.sum()
        residuals = X - self.means_[index]
        if self.shrinkage == "ledoit_wolf":
            self.covariance_ = ledoit_wolf(residuals, assume_centered=True)[0]
        elif self.shrinkage in (None, "diagonal"):
            # Class variances with n - 1 degrees of freedom, weighted by the fractions of the classes.
            weights = np.sqrt(self.priors_ / (count - 1))[index][:, None]
            self.covariance_ = (weights * residuals).T @ (weights * residuals)
            if self.shrinkage == "diagonal":
                self.covariance_ = np.diag(np.diag(self.covariance_))
        else:
            raise ValueError(f"shrinkage must be 'ledoit_wolf', 'diagonal' or None, got {self.shrinkage!r}")
        self.covariance_ = self.covariance_ + 1e-9 * np.eye(X.shape[1])
        self._random = check_random_state(self.random_state)
        return self

    def sample(self, n: int) -> tuple[Float[np.ndarray, "n dim"], Shaped[np.ndarray, " n"]]:
        """Draw ``n`` rows and their classes, classes in the proportions of the data (rounded)."""
        check_is_fitted(self, "means_")
        exact = self.priors_ * n
        count = np.floor(exact).astype(int)
        count[np.argsort(count - exact, kind="stable")[: n - count.sum()]] += 1
        index = np.repeat(np.arange(len(count)), count)
        noise = self._random.standard_normal((n, self.means_.shape[1])) @ np.linalg.cholesky(self.covariance_).T
        return self.means_[index] + noise, self.classes_[index]

r"""The variance of a ridge estimator's predictions, exactly, by blocks of features.

With features :math:`\Phi = [\Phi_1, \Phi_2, ...]`, :math:`A = \Phi^\top\Phi + \lambda I` and
:math:`B = A^{-1}\Phi^\top\Phi A^{-1}`, the variance of the prediction at :math:`t` is
:math:`\sigma^2\, t^\top B\, t`: a sum over pairs of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

_JITTER = 1e-10
Matrices = Mapping[str, Float[np.ndarray, "rows columns"]]


@dataclass(frozen=True, slots=True, eq=False)
class BlockVariance:
    """Mean variance of predictions over rows, divided among blocks.

    Args:
        names: of the blocks.
        parts: the entry of two blocks is what they contribute together; the sum of all is the total.
        rows: variance that each block alone contributes at each row.
        totals: variance at each row.
    """

    names: tuple[str, ...]
    parts: Float[np.ndarray, "blocks blocks"]
    rows: Float[np.ndarray, "rows blocks"]
    totals: Float[np.ndarray, " rows"]

    @property
    def total(self) -> float:
        """Mean variance over the rows."""
        return float(self.totals.mean())

    def of(self, block: str) -> float:
        """Return what a block contributes alone."""
        i = self.names.index(block)
        return float(self.parts[i, i])


def feature_variance(train: Matrices, test: Matrices, alpha: float, noise_var: float) -> BlockVariance:
    """Return the variance of ridge regression on given features at test rows.

    Args:
        train: features of each block at the training rows.
        test: features of each block at the test rows.
        alpha: ridge penalty, at least 0.
        noise_var: variance of the noise of the targets, positive.

    Raises:
        ValueError: if ``alpha`` is negative, ``noise_var`` not positive, or there are fewer rows than features without
            a penalty.
    """
    _check(alpha, noise_var)
    phi = np.concatenate(list(train.values()), 1)
    n, p = phi.shape
    if alpha == 0 and n < p:
        raise ValueError(f"alpha must be positive with fewer rows than features, got {n} rows and {p} features")
    gram = phi.T @ phi
    # B is C C' with C = A^-1 L, where L L' is the Gram matrix; a penalised A needs no help.
    factor = cho_factor(gram + (alpha if alpha > 0 else _JITTER * np.trace(gram) / p * (n <= p)) * np.eye(p))
    b = cho_solve(factor, cho_solve(factor, gram).T)
    edges = np.cumsum([0, *(matrix.shape[1] for matrix in train.values())])
    names, tests = tuple(train), [test[name] for name in train]
    k = len(names)
    pairs = np.empty((len(tests[0]), k, k))
    for i in range(k):
        for j in range(k):
            block = b[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
            pairs[:, i, j] = np.einsum("ri,ri->r", tests[i] @ block, tests[j])
    return _divided(names, noise_var * pairs)


def kernel_variance(
    gram: Float[np.ndarray, "train train"],
    test: Mapping[str, Float[np.ndarray, "test train"]],
    alpha: float,
    noise_var: float,
) -> BlockVariance:
    """Return the variance of kernel ridge regression at test rows.

    Args:
        gram: sum of the kernels of all blocks among training rows.
        test: kernel of each block between test and training rows.
        alpha: ridge penalty, positive.
        noise_var: variance of the noise of the targets, positive.
    """
    _check(alpha, noise_var)
    factor = cho_factor(gram + alpha * np.eye(len(gram)))
    smoothed = [cho_solve(factor, matrix.T).T for matrix in test.values()]
    pairs = np.array([[np.einsum("ri,ri->r", a, b) for b in smoothed] for a in smoothed])
    return _divided(tuple(test), noise_var * np.moveaxis(pairs, 2, 0))


def _divided(names: tuple[str, ...], pairs: np.ndarray) -> BlockVariance:
    own = np.einsum("rii->ri", pairs)
    return BlockVariance(names, pairs.mean(0), own, pairs.sum((1, 2)))


def _check(alpha: float, noise_var: float) -> None:
    if not alpha >= 0:
        raise ValueError(f"alpha must not be negative, got {alpha}")
    if not noise_var > 0:
        raise ValueError(f"noise_var must be positive, got {noise_var}")

"""Small data sets with known effects."""

import numpy as np


def confounded(n=1500, seed=0, slope=1.0, noise=1.0):
    """X, y, t and the effects: confounding by the first column, an effect of 1 + slope times the second."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    t = (rng.random(n) < 1 / (1 + np.exp(-X[:, 0]))).astype(int)
    tau = 1 + slope * X[:, 1]
    y = X[:, 0] + (t - 0.5) * tau + noise * rng.normal(size=n)
    return X, y, t, tau

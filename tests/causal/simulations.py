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


def instrumented(n=3000, seed=0, effect=1.0, direct=0.7, confounding=1.5):
    """X, y, treatment and an instrument that affects the outcome directly; an average effect of ``effect``."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (n, 3))
    z = (rng.random(n) < 1 / (1 + np.exp(-0.2 - 0.6 * x[:, 0]))).astype(int)
    u = rng.choice([-1, 1], n)
    p = np.where(z == 1, 0.5 + 0.1 * x[:, 1], 0.1 + 0.03 * x[:, 1]) + 0.07 * u
    a = (rng.random(n) < p).astype(int)
    y = 0.5 + x[:, 0] + direct * z * (1 + 0.3 * x[:, 0]) + (effect + x[:, 0]) * a + confounding * u
    return x, y + rng.normal(size=n), a, z

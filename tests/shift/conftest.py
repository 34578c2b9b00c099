"""Small tables of a classifier that is deployed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


def scored(n, seed, shift=0.0, labels=True):
    """Rows of a known world: the score is a distorted probability, and its distortion depends on an input."""
    random = np.random.default_rng(seed)
    x = random.normal(shift, 1, n)
    z = random.normal(0, 1, n)
    probability = 1 / (1 + np.exp(-(1.5 * x + 0.8 * z * x)))
    score = 1 / (1 + np.exp(-1.5 * x))
    table = pd.DataFrame({"x": x, "z": z, "p": score})
    table["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n) // 500, "D")
    if labels:
        table["y"] = (random.random(n) < probability).astype(int)
    return table


@pytest.fixture(scope="session")
def make_table():
    return scored


@pytest.fixture(scope="session")
def reference():
    return scored(6_000, 0)


@pytest.fixture(scope="session")
def production():
    return scored(4_000, 1)


@pytest.fixture(scope="session")
def shifted():
    return scored(4_000, 2, shift=1.0)

"""Pseudo-outcomes and weights against exact enumeration and closed forms."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.causal.learners.pseudo_outcomes import (
    PSEUDO_OUTCOMES,
    WEIGHTS,
    ArmNuisances,
    combined,
    covariance,
    doubly_robust,
    u,
)

probability = st.floats(0.02, 0.98)
mean = st.floats(-3, 3)
SIGMA = 0.7


def nuisances(a, y, pi, mu1, mu0, kappa=None):
    a = np.asarray(a, dtype=float)
    kappa = 1 - pi if kappa is None else kappa
    full = [np.broadcast_to(np.asarray(v, dtype=float), a.shape) for v in (pi, kappa, mu1, mu0)]
    return ArmNuisances(a, 1 - a, np.asarray(y, dtype=float), *full)


def cells(pi, mu1, mu0):
    """All outcomes of an arm and of noise of two points, with their probabilities."""
    rows = [(a, (mu1 if a else mu0) + e) for a, e in itertools.product((0, 1), (-SIGMA, SIGMA))]
    p = np.array([(pi if a else 1 - pi) / 2 for a, _ in rows])
    return np.array([a for a, _ in rows]), np.array([y for _, y in rows]), p


def moments(values, p):
    first = values @ p
    return first, ((values - first) ** 2) @ p


@given(probability, mean, mean)
def test_variances_are_those_of_the_formulas(pi, mu1, mu0):
    a, y, p = cells(pi, mu1, mu0)
    n, tau, nu = nuisances(a, y, pi, mu1, mu0), mu1 - mu0, pi * (1 - pi)
    expected = {
        "dr": SIGMA**2 / nu,
        "cov": (SIGMA**2 + tau**2 * (1 - 2 * pi) ** 2) / nu,
        "u": SIGMA**2 * (pi**3 + (1 - pi) ** 3) / nu**2,
    }
    for name, variance in expected.items():
        m, v = moments(PSEUDO_OUTCOMES[name](n), p)
        assert m == pytest.approx(tau, abs=1e-9)
        assert v == pytest.approx(variance, rel=1e-9)


@given(probability, mean, mean)
def test_weights_are_inverse_variances(pi, mu1, mu0):
    a, y, p = cells(pi, mu1, mu0)
    n = nuisances(a, y, pi, mu1, mu0)
    variance = moments(doubly_robust(n), p)[1]
    np.testing.assert_allclose(WEIGHTS["dr"]["ivw"](n) * variance, SIGMA**2)
    variance = moments(u(n), p)[1]
    np.testing.assert_allclose(WEIGHTS["u"]["ivw-covariates"](n) * variance, SIGMA**2)
    assert WEIGHTS["u"]["ivw"](n) @ p == pytest.approx(pi * (1 - pi), rel=1e-12)  # R-learning is implicit weighting
    for arm in (0, 1):  # given the arm too
        own = a == arm
        variance = moments(doubly_robust(n)[own], p[own] / p[own].sum())[1]
        np.testing.assert_allclose(WEIGHTS["dr"]["arm-squared"](n)[own] * variance, SIGMA**2)


def test_weights_of_u_at_two_propensities():
    weight = WEIGHTS["u"]["ivw-covariates"]
    assert weight(nuisances([1], [0], 0.1, 0, 0))[0] == pytest.approx(0.0110959, abs=5e-8)
    assert weight(nuisances([1], [0], 0.5, 0, 0))[0] == pytest.approx(0.25)


def test_weights_of_unequal_noise():
    rng = np.random.default_rng(0)
    a = rng.integers(2, size=20_000)
    y = np.where(a == 1, 3.0, 1.0) * rng.normal(size=len(a))
    n = nuisances(a, y, 0.2, 0.0, 0.0)
    np.testing.assert_allclose(1 / WEIGHTS["dr"]["ivw-hetero"](n), 9 / 0.2 + 1 / 0.8, rtol=0.03)


def test_weights_of_an_outcome_without_noise_are_finite():
    n = nuisances([0, 1], [1.0, 2.0], 0.3, 2.0, 1.0)
    np.testing.assert_allclose(WEIGHTS["dr"]["ivw-hetero"](n), 0.21)


@given(mean, mean)
def test_at_equal_propensities_weights_are_constant_and_cov_is_u(mu1, mu0):
    a, y, _ = cells(0.5, mu1, mu0)
    n = nuisances(a, y, 0.5, mu1, mu0)
    for weights in WEIGHTS.values():
        for weight in weights.values():
            assert np.ptp(weight(n)) < 1e-12
    np.testing.assert_allclose(covariance(n), u(n), atol=1e-9)


@given(probability, probability, mean, mean, mean, mean)
def test_doubly_robust_is_unbiased_if_either_nuisance_is_right(pi, wrong_pi, mu1, mu0, wrong1, wrong0):
    a, y, p = cells(pi, mu1, mu0)
    for n in (nuisances(a, y, pi, wrong1, wrong0), nuisances(a, y, wrong_pi, mu1, mu0)):
        assert doubly_robust(n) @ p == pytest.approx(mu1 - mu0, abs=1e-7)


@given(probability, mean, mean, st.floats(-4, 4).filter(lambda v: abs(v) > 0.1), st.floats(-5, 5))
def test_affine_outcomes_scale_pseudo_outcomes_and_leave_weights(pi, mu1, mu0, scale, shift):
    a, y, _ = cells(pi, mu1, mu0)
    n = nuisances(a, y, pi, mu1, mu0)
    moved = nuisances(a, scale * y + shift, pi, scale * mu1 + shift, scale * mu0 + shift)
    for name, pseudo in PSEUDO_OUTCOMES.items():
        np.testing.assert_allclose(pseudo(moved), scale * pseudo(n), atol=1e-8)
        for kind in set(WEIGHTS[name]) - {"ivw-hetero"}:  # which is in units of the outcome
            np.testing.assert_allclose(WEIGHTS[name][kind](moved), WEIGHTS[name][kind](n))


@given(probability, mean, mean)
def test_swapped_arms_flip_the_sign(pi, mu1, mu0):
    a, y, _ = cells(pi, mu1, mu0)
    n, swapped = nuisances(a, y, pi, mu1, mu0), nuisances(1 - a, y, 1 - pi, mu0, mu1)
    for pseudo in PSEUDO_OUTCOMES.values():
        np.testing.assert_allclose(pseudo(swapped), -pseudo(n), atol=1e-9)


def test_several_draws_are_one_weighted_row():
    """Sums of weighted squares over draws and over combined rows differ by what does not depend on the prediction."""
    rng = np.random.default_rng(0)
    pseudo, weight = rng.normal(size=(3, 5)), rng.random((3, 5))
    one, total = combined(pseudo, weight)
    losses = [
        (np.sum(weight * (pseudo - f) ** 2) - 3 * np.sum(total * (one - f) ** 2)) for f in rng.normal(size=(4, 5))
    ]
    np.testing.assert_allclose(losses, losses[0])

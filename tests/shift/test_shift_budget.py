"""Additive models, and what a shift of each block costs them: closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.utils.estimator_checks import parametrize_with_checks

from poise.shift import AdditiveRegressor, GaussianKernel, LinearKernel, feature_variance, shift_budget

BLOCKS = {"f": [0, 1], "g": [2, 3, 4]}


def design(n, seed=0, p=5):
    return np.random.default_rng(seed).normal(size=(n, p))


def blocks_of(x, edges=(0, 2, 5)):
    return {"f": x[:, edges[0] : edges[1]], "g": x[:, edges[1] : edges[2]]}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 100), st.floats(0, 10))
def test_the_parts_add_up_to_the_trace(seed, alpha):
    x, t = design(40, seed), design(20, seed + 1)
    found = feature_variance(blocks_of(x), blocks_of(t), alpha, 2.0)
    inverse = np.linalg.inv(x.T @ x + alpha * np.eye(5))
    exact = 2.0 / 20 * np.trace(t @ inverse @ x.T @ x @ inverse @ t.T)
    assert found.parts.sum() == pytest.approx(exact, rel=1e-10)
    assert found.total == pytest.approx(exact, rel=1e-10)


def test_on_training_rows_without_a_penalty_it_is_noise_times_features_by_rows():
    x = blocks_of(design(50))
    assert feature_variance(x, x, 0.0, 3.0).total == pytest.approx(3.0 * 5 / 50, rel=1e-10)


def test_scaling_the_test_rows_of_a_block_scales_its_variance_by_the_square():
    x, t = blocks_of(design(50)), blocks_of(design(30, 1))
    one = feature_variance(x, t, 1.0, 1.0)
    two = feature_variance(x, {**t, "f": 3 * t["f"]}, 1.0, 1.0)
    assert two.of("f") == pytest.approx(9 * one.of("f"))
    assert two.of("g") == pytest.approx(one.of("g"))


def test_orthogonal_blocks_have_no_common_part():
    q, _ = np.linalg.qr(design(50))
    found = feature_variance(blocks_of(q), blocks_of(q), 0.5, 1.0)
    assert found.parts[0, 1] == pytest.approx(0, abs=1e-14)


def test_a_large_penalty_leaves_no_variance():
    x = blocks_of(design(50))
    assert feature_variance(x, x, 1e9, 1.0).total < 1e-14


def test_a_noise_feature_adds_its_own_degree_of_freedom_only():
    x = design(4000, p=6)
    without, with_it = blocks_of(x), blocks_of(x, (0, 2, 6))
    before = feature_variance(without, without, 0.0, 1.0).total
    after = feature_variance(with_it, with_it, 0.0, 1.0).total
    assert after - before == pytest.approx(1 / 4000)


def test_gaussian_designs_follow_the_formula():
    # s2 (nu_x p_F + nu_y p_G) / (n - p - 1), with p_F = 2, p_G = 20 and n = 200
    random = np.random.default_rng(0)
    for nu_x, nu_y in ((1, 1), (9, 1), (1, 9)):
        values = []
        for _ in range(40):
            x, t = random.normal(size=(200, 22)), random.normal(size=(400, 22))
            t = {"f": np.sqrt(nu_x) * t[:, :2], "g": np.sqrt(nu_y) * t[:, 2:]}
            values.append(feature_variance({"f": x[:, :2], "g": x[:, 2:]}, t, 0.0, 1.0).total)
        assert np.mean(values) == pytest.approx((2 * nu_x + 20 * nu_y) / (200 - 22 - 1), rel=0.06)


def test_a_linear_kernel_is_ridge_regression_on_the_features():
    x, t = design(40), design(30, 1)
    y = x @ np.arange(5.0) + np.random.default_rng(2).normal(size=40)
    kernels = {"f": LinearKernel(), "g": LinearKernel()}
    model = AdditiveRegressor(BLOCKS, kernels, alpha=0.7, intercept=False).fit(x, y)
    coefficients = np.linalg.solve(x.T @ x + 0.7 * np.eye(5), x.T @ y)
    np.testing.assert_allclose(model.predict(t), t @ coefficients)
    np.testing.assert_allclose(model.predict_block(t, "f"), t[:, :2] @ coefficients[:2])
    exact = feature_variance(blocks_of(x), blocks_of(t), 0.7, model.noise_var_)
    np.testing.assert_allclose(model.block_variance(t).parts, exact.parts, rtol=1e-8)
    hat = x @ np.linalg.solve(x.T @ x + 0.7 * np.eye(5), x.T)
    residual = y - hat @ y
    assert model.noise_var_ == pytest.approx(residual @ residual / (40 - np.trace(hat)))
    assert sum(model.degrees_of_freedom_.values()) == pytest.approx(np.trace(hat))


def test_one_gaussian_block_is_kernel_ridge_of_scikit_learn():
    x, y = design(40), design(40, 3)[:, 0]
    model = AdditiveRegressor(kernels={"all": GaussianKernel(0.4)}, alpha=0.3, intercept=False).fit(x, y)
    peer = KernelRidge(alpha=0.3, kernel="rbf", gamma=0.4).fit(x, y)
    np.testing.assert_allclose(model.predict(design(9, 1)), peer.predict(design(9, 1)), rtol=1e-8)


def test_frames_and_matrices_give_the_same():
    x, y = design(40), design(40, 3)[:, 0]
    frame = pd.DataFrame(x, columns=list("abcde"))
    named = AdditiveRegressor({"f": ["a", "b"], "g": ["c", "d", "e"]}).fit(frame, y)
    np.testing.assert_array_equal(named.predict(frame), AdditiveRegressor(BLOCKS).fit(x, y).predict(x))
    assert clone(named).get_params()["alpha"] == 1.0


def test_the_same_rows_have_inflation_one_and_no_drift():
    x = design(300)
    found = shift_budget(None, x, x, BLOCKS)
    assert found.inflation == pytest.approx(1)
    assert found.verdict == "no drift"
    assert found.per_block[0].degrees_of_freedom == pytest.approx(2)
    assert found.report().verdict == "no drift"


def test_the_same_shift_costs_more_in_the_block_that_was_harder_to_learn():
    random = np.random.default_rng(0)
    x, t = random.normal(size=(300, 22)), random.normal(size=(2000, 22))
    blocks = {"simple": list(range(2)), "complex": list(range(2, 22))}
    in_simple, in_complex = t.copy(), t.copy()
    in_simple[:, :2] *= 2
    in_complex[:, 2:] *= 2
    simple, hard = shift_budget(None, x, in_simple, blocks), shift_budget(None, x, in_complex, blocks)
    assert simple.inflation == pytest.approx((4 * 2 + 20) / 22, rel=0.1)
    assert hard.inflation == pytest.approx((2 + 4 * 20) / 22, rel=0.1)
    assert hard.verdict == "harmful drift"
    assert simple.per_block[0].density_ratio > 1.2 * simple.per_block[1].density_ratio
    rows = simple.rank_rows()
    assert simple.rows[rows[0]] == simple.rows.max()


def test_a_budget_of_a_fitted_model_needs_no_labels():
    x = design(200)
    y = x[:, 0] + np.sin(x[:, 2]) + 0.1 * design(200, 5)[:, 0]
    model = AdditiveRegressor(BLOCKS, {"f": LinearKernel()}, alpha=0.25).fit(x, y)
    found = shift_budget(model, x, 2 * design(500, 7))
    assert found.noise_var == model.noise_var_
    assert [b.block for b in found.per_block] == ["f", "g"]
    assert found.inflation > 1.25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: AdditiveRegressor({"a": [0], "b": [0]}).fit(x, x[:, 0]), "column 0 in 'a' and 'b'"),
        (lambda x: AdditiveRegressor({"a": [9]}).fit(x, x[:, 0]), r"must have the columns \[9\] of block 'a'"),
        (lambda x: AdditiveRegressor({}).fit(x, x[:, 0]), "at least one block"),
        (lambda x: AdditiveRegressor(alpha=0.0).fit(x, x[:, 0]), "alpha must be positive"),
        (lambda x: AdditiveRegressor().fit(np.full_like(x, np.nan), x[:, 0]), "Input X contains NaN"),
        (lambda x: AdditiveRegressor().fit(x, x[:3, 0]), "inconsistent numbers of samples"),
        (lambda x: AdditiveRegressor(BLOCKS, {"h": LinearKernel()}).fit(x, x[:, 0]), "kernels must be of blocks"),
        (lambda x: AdditiveRegressor().fit(np.zeros((5001, 1)), np.zeros(5001)), "at most 5000 rows"),
        (lambda x: AdditiveRegressor().fit(x, x[:, 0]).predict_block(x, "h"), "block must be one of all, intercept"),
        (lambda x: shift_budget(None, x, x), "blocks must be given without a model"),
        (lambda x: shift_budget(None, x, x[:, :3], BLOCKS), "X_test must have the columns"),
        (lambda x: shift_budget(None, x, x, BLOCKS, noise_var=0.0), "noise_var must be positive"),
        (lambda x: feature_variance(blocks_of(x[:3]), blocks_of(x), 0.0, 1.0), "fewer rows than features, got 3 rows"),
        (lambda x: feature_variance(blocks_of(x), blocks_of(x), -1.0, 1.0), "alpha must not be negative"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(design(20))


def test_constant_columns_are_dropped_with_a_warning():
    x = design(30)
    x[:, 1] = 4.0
    with pytest.warns(UserWarning, match=r"block 'f': \[1\] are constant"):
        model = AdditiveRegressor(BLOCKS).fit(x, x[:, 0])
    assert model.blocks_["f"] == [0]


@parametrize_with_checks([AdditiveRegressor()])
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)

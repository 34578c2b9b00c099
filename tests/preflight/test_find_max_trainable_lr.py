import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.preflight import compare_max_trainable_lr, find_max_trainable_lr
from poise.preflight.sweeps.find_max_trainable_lr import fell_by_a_fifth

GRID = [1e-3, 1e-2, 1e-1, 1.0]


class Quadratic:
    """Gradient descent on lambda x^2 / 2 from x = 1, which trains below a learning rate of 2 / lambda."""

    def __init__(self, curvature, steps=400):
        self.curvature, self.steps, self.asked = curvature, steps, []

    def __call__(self, lr, seed):
        self.asked.append((lr, seed))
        factor = abs(1 - lr * self.curvature * (1 + 0.1 * seed))
        loss = math.nan if factor > 1 else factor ** (2 * self.steps)
        return {"loss": loss, "init_loss": 1.0}


@given(st.floats(2.5, 1900))
@settings(max_examples=12, deadline=None)
def test_finds_the_limit_of_descent_on_a_quadratic(curvature):
    found = find_max_trainable_lr(Quadratic(curvature), GRID, precision=1.02)
    assert found.lr <= 2 / curvature * 1.001
    assert found.first_failing >= 2 / curvature * 0.995
    assert found.first_failing / found.lr <= 1.02


def test_every_seed_has_to_train_and_bisection_takes_few_runs():
    train = Quadratic(20)
    found = find_max_trainable_lr(train, GRID, seeds=3, precision=1.3)
    assert found.lr < 2 / 24 < found.first_failing * 1.01
    assert len(train.asked) == 3 * (4 + 4)  # a factor of 10 is halved in the logarithm four times to be below 1.3
    assert {seed for _, seed in train.asked} == {0, 1, 2}


def test_grids_that_end_too_early():
    assert find_max_trainable_lr(Quadratic(1e5), GRID).lr is None
    assert find_max_trainable_lr(Quadratic(1e5), GRID).first_failing == 1e-3
    assert find_max_trainable_lr(Quadratic(0.5), GRID).lr == 1.0
    assert find_max_trainable_lr(Quadratic(0.5), GRID).first_failing is None


def test_success_is_the_callers():
    def train(lr, seed):
        return {"loss": 1 - lr, "init_loss": 1.0}

    assert find_max_trainable_lr(train, [0.1, 0.3]).lr == 0.3
    assert find_max_trainable_lr(train, [0.1, 0.3], success=lambda loss, init: loss > 0.8, precision=1.01).lr < 0.2
    assert [fell_by_a_fifth(loss, 1.0) for loss in (0.79, 0.8, math.nan, -math.inf)] == [True, False, False, False]


def test_report_names_the_strategy_that_raises_it_most():
    strategies = {"plain": Quadratic(100), "warm-up": Quadratic(30), "clip": Quadratic(200)}
    report = compare_max_trainable_lr(strategies, GRID, precision=1.1)
    assert "warm-up raises it most" in report.summary
    table = report.blocks[0]
    factors = {row[0]: row[3] for row in table.rows}
    assert factors["plain"] == 1
    assert factors["warm-up"] == pytest.approx(100 / 30, rel=0.1)
    assert factors["clip"] == pytest.approx(0.5, rel=0.1)
    worse = compare_max_trainable_lr({"plain": Quadratic(100), "clip": Quadratic(200)}, GRID)
    assert "Nothing raises that: clip comes closest" in worse.summary
    report = compare_max_trainable_lr({"plain": Quadratic(100), "clip": Quadratic(1e6)}, GRID)
    assert "Nothing else trains" in report.summary
    saved = compare_max_trainable_lr({"plain": Quadratic(1e6), "clip": Quadratic(0.1)}, GRID)
    assert "none of the grid" in saved.summary
    assert "to at least 1." in saved.summary


@pytest.mark.parametrize("precision", [1.0, 0.5, math.inf, math.nan])
def test_bad_precision(precision):
    with pytest.raises(ValueError, match="precision must be a ratio above 1"):
        find_max_trainable_lr(Quadratic(1.0), GRID, precision=precision)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2"):
        compare_max_trainable_lr({"plain": Quadratic(1.0)}, GRID)
    with pytest.raises(ValueError, match="positive and finite"):
        find_max_trainable_lr(Quadratic(1.0), [-0.1, 1.0])

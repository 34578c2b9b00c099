"""When a run is stopped as diverged: never while it may recover."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.preflight import DivergedRunError, LossWatch, has_diverged


def stopped_after(losses):
    """The number of losses after which a watch stops a run; None if it never does."""
    watch = LossWatch()
    for step, loss in enumerate(losses):
        try:
            watch(step, loss)
        except DivergedRunError as end:
            return end.step + 1
    return None


def noisy(level, steps, seed=0, spread=0.1):
    return level * np.exp(spread * np.random.default_rng(seed).normal(size=steps))


def test_three_losses_that_are_not_finite_end_a_run_and_fewer_do_not():
    assert stopped_after([2.0, math.nan, math.inf, math.nan, 1.0]) == 4
    assert stopped_after([2.0, math.nan, math.inf, 1.9, math.nan, 1.8]) is None


def test_an_explosion_that_stays_is_stopped_within_half_of_what_was_run():
    for calm in (20, 500):
        losses = np.concatenate([[4.0], np.full(calm, 3.0), noisy(4000.0, 2000)])
        ended = stopped_after(losses)
        assert calm + 50 < ended <= max(calm + 90, 2.2 * (calm + 60))


def test_a_leap_at_the_first_step_has_no_scale_and_is_not_stopped_while_it_is_finite():
    assert stopped_after(np.concatenate([[4.0], noisy(4000.0, 2000)])) is None


@pytest.mark.parametrize("factor", [5.0, 26.0, 90.0])
def test_a_hundredfold_after_a_fall_by_a_tenth_has_not_diverged_however_long_it_lasts(factor):
    fall = np.linspace(4.0, 3.6, 20)
    assert stopped_after(np.concatenate([fall, noisy(4.0 * factor, 3000, spread=0.02)])) is None
    assert stopped_after(np.concatenate([fall, noisy(4.0 * 200, 3000, spread=0.02)])) is not None


@pytest.mark.parametrize("factor", [5.0, 26.0, 90.0])
def test_less_than_a_hundredfold_has_not_diverged_however_long_it_lasts(factor):
    assert stopped_after(np.concatenate([[4.0], noisy(4.0 * factor, 3000, spread=0.02)])) is None


def test_a_catapult_is_not_stopped():
    up, down = np.geomspace(1.0, 1e6, 30), np.geomspace(1e6, 1e-3, 40)
    assert stopped_after(np.concatenate([up, down, np.full(100, 1e-3)])) is None


def test_a_first_loss_that_is_small_by_chance_does_not_count_against_a_run():
    # One example a step in a regression: squared errors spread over decades.
    errors = np.random.default_rng(0).normal(size=3000) ** 2
    assert stopped_after(np.concatenate([[1e-4], errors])) is None


@pytest.mark.parametrize("constant", [-1000.0, -4.0, 0.0, 0.5, 1000.0])
def test_a_constant_added_to_the_loss_changes_no_answer(constant):
    rng = np.random.default_rng(0)
    learns = 4.0 * np.exp(-np.arange(300) / 50) + 0.1 * rng.normal(size=300)
    diverges = np.concatenate([learns[:40], noisy(1e4, 400)])
    assert stopped_after(learns + constant) is None
    assert stopped_after(diverges + constant) == stopped_after(diverges) is not None
    # A loss that begins at zero by chance and stays in its noise.
    assert stopped_after(constant + rng.normal(size=500).cumsum() * 0.1) is None


def test_a_first_loss_that_is_not_finite_is_no_scale():
    assert not has_diverged([math.inf] + [1e9] * 200)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(1e-6, 1e6),
    constant=st.integers(-1000, 1000),
    losses=st.lists(st.floats(-5.0, 4000.0), min_size=61, max_size=120),
)
def test_units_of_the_loss_and_a_constant_do_not_matter(scale, constant, losses):
    values = np.array([1.0, 0.9, *[1.0] * 8, *losses])
    assert has_diverged(values) == has_diverged(scale * values)
    assert has_diverged(values) == has_diverged(values + constant)


def test_a_long_run_is_not_checked_at_every_step(monkeypatch):
    checks = []
    monkeypatch.setattr("poise.preflight.sweeps.divergence.has_diverged", lambda losses: checks.append(len(losses)))
    stopped_after(np.ones(20_000))
    assert len(checks) < 250
    assert max(np.diff(checks) / np.array(checks[1:])) <= 0.5

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
    for calm in (0, 20, 500):
        losses = np.concatenate([[4.0], np.full(calm, 3.0), noisy(4000.0, 2000)])
        ended = stopped_after(losses)
        assert calm + 50 < ended <= max(calm + 90, 2.2 * (calm + 60))


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


def test_losses_below_zero_have_a_scale_too():
    falling = -1.0 - np.linspace(0.0, 50.0, 500)
    assert stopped_after(falling) is None
    assert stopped_after(np.concatenate([[-1.0], np.full(100, 1000.0)])) is not None


def test_a_first_loss_that_is_not_finite_is_no_scale():
    assert not has_diverged([math.inf] + [1e9] * 200)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(1e-6, 1e6),
    losses=st.lists(st.floats(-5.0, 400.0), min_size=61, max_size=120),
)
def test_units_of_the_loss_do_not_matter(scale, losses):
    values = np.array([1.0, *losses])
    assert has_diverged(values) == has_diverged(scale * values)


def test_a_long_run_is_not_checked_at_every_step(monkeypatch):
    checks = []
    monkeypatch.setattr("poise.preflight.sweeps.divergence.has_diverged", lambda losses: checks.append(len(losses)))
    stopped_after(np.ones(20_000))
    assert len(checks) < 250
    assert max(np.diff(checks) / np.array(checks[1:])) <= 0.5

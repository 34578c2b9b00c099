from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.doctor.events import LossEvent, find_events, following, loss_curve, stayed_up, trailing_median
from poise.store import Record


def record(loss) -> Record:
    return Record.from_arrays({"loss": (np.arange(len(loss)), np.asarray(loss, dtype=float))})


def falling(n=200, seed=0, noise=0.05):
    t = np.arange(n)
    return (0.5 + 2 * np.exp(-t / 40)) * np.exp(noise * np.random.default_rng(seed).standard_normal(n))


def kinds(loss) -> list[str]:
    return [event.kind for event in find_events(record(loss))]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.sampled_from([3, 11, 25]))
def test_trailing_median_is_the_median_of_what_came_before(values, window):
    expected = [np.median(values[max(i - window + 1, 0) : i + 1]) for i in range(len(values))]
    np.testing.assert_allclose(trailing_median(np.array(values), window), expected)


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_falls_has_no_spike_and_no_divergence(seed):
    assert set(kinds(falling(seed=seed))) <= {"stall"}


def test_no_loss_no_event():
    assert find_events(Record.from_arrays({})) == []
    assert find_events(record([])) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_a_divergence_at_that_step(bad):
    loss = falling()
    loss[70] = bad
    (event,) = [e for e in find_events(record(loss)) if e.kind == "divergence"]
    assert (event.step, event.detected_step, event.level) == (70, 70, loss[69])
    assert "no longer finite at step 70" in event.phrase


def test_a_first_loss_that_is_not_finite_is_a_divergence_too():
    assert find_events(record([np.nan, np.nan]))[0].step == 0


@settings(max_examples=30, deadline=None)
@given(at=st.integers(30, 150), height=st.floats(1.5, 50), seed=st.integers(0, 1000))
def test_one_high_loss_is_one_spike_and_no_divergence(at, height, seed):
    loss = falling(seed=seed)
    loss[at] += height
    (spike,) = [e for e in find_events(record(loss)) if e.kind != "stall"]
    assert (spike.kind, spike.step, spike.detected_step) == ("spike", at, at)
    assert stayed_up(record(loss), spike) == (False, at + 3)


def test_a_hard_example_late_in_training_is_no_spike():
    t = np.arange(300)
    loss = 2.3 * np.exp(-t / 15) + 1e-4 * np.random.default_rng(0).random(300)
    loss[250] = 0.3  # three thousand noise levels up, but little of what was learned
    assert kinds(loss) == []


@settings(max_examples=30, deadline=None)
@given(at=st.integers(30, 150), rate=st.floats(0.05, 2.0), seed=st.integers(0, 1000))
def test_a_loss_that_runs_off_is_a_divergence(at, rate, seed):
    loss = falling(seed=seed)
    loss[at:] = loss[at - 1] * np.exp(rate * np.arange(1, len(loss) - at + 1))
    (first, *_) = [e for e in find_events(record(loss)) if e.kind == "divergence"]
    assert at - 1 <= first.step <= first.detected_step
    assert first.level < first.value


def test_a_run_that_blows_up_at_once_is_a_divergence_from_where_it_began():
    event = next(e for e in find_events(record([2.3, 500.0, 1e4, 1e6, 1e8, 1e8])) if e.kind == "divergence")
    assert event.step == 1
    assert event.detected_step <= 4
    assert event.level == pytest.approx(2.3)


def test_a_flat_loss_near_its_start_is_a_stall_but_a_converged_one_is_not():
    rng = np.random.default_rng(0)
    flat = 2.3 + 0.02 * rng.standard_normal(200)
    converged = 0.1 + 2.2 * np.exp(-np.arange(200) / 5) + 0.01 * rng.standard_normal(200)
    assert kinds(flat)[0] == "stall"
    assert kinds(converged) == []


@pytest.mark.parametrize("floor", [0.3, 0.5, 0.75])
def test_a_loss_that_rests_on_the_noise_of_its_data_has_not_stalled(floor):
    t = np.arange(400)
    loss = 4.6 * (floor + (1 - floor) * np.exp(-t / 20)) + 0.02 * np.random.default_rng(0).standard_normal(400)
    assert kinds(loss) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=120), st.data())
def test_events_depend_only_on_the_past(loss, data):
    whole = find_events(record(loss))
    t = data.draw(st.integers(0, len(loss) - 1))
    known = [e for e in whole if e.detected_step <= t]
    assert repr(find_events(record(loss).until(t))) == repr(known)


def test_stayed_up_waits_until_it_can_tell():
    loss = falling(100)
    loss[50:] += 3
    spike = find_events(record(loss))[0]
    assert spike.step == 50
    assert stayed_up(record(loss).until(52), spike) is None
    assert stayed_up(record(loss), spike) == (True, 53)


def test_following_takes_the_first_within_reach():
    events = [LossEvent("spike", step, step, 1.0, 0.0) for step in (5, 30)]
    assert following(events, 6) == events[1]
    assert following(events, 6, within=10) is None


def test_the_curve_keeps_where_the_loss_began():
    curve = loss_curve(record([2.3, 100.0, 200.0, 300.0]))
    np.testing.assert_array_equal(curve.start, 2.3)

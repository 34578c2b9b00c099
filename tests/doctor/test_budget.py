import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.doctor.budget import Budget


@pytest.mark.parametrize("overhead", [0.0, -0.1, 1.5])
def test_overhead_must_be_a_share(overhead):
    with pytest.raises(ValueError, match=r"overhead must be a share in \(0, 1\]"):
        Budget(overhead)


def test_what_is_allowed_grows_with_the_runs_own_time():
    budget = Budget(0.5, loan=0.0)
    budget.start()
    assert not budget.allows(0.02)
    time.sleep(0.06)
    assert budget.allows(0.02)
    budget.spent = 10.0
    assert not budget.allows(0.0)


def test_a_loan_is_there_from_the_start_and_can_be_enlarged():
    budget = Budget(0.01, loan=0.1)
    assert budget.allows(0.09)
    assert not budget.allows(0.5)
    budget.lend(0.5)
    assert budget.allows(0.5)


class Clock:
    """Stands in for the `time` module."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("poise.doctor.budget.time", clock)
    return clock


def spend_all(budget, clock, seconds, look=0.01):
    """Run for so long, and look whenever it is allowed."""
    end = clock.now + seconds
    while clock.now < end:
        since = clock.now
        if budget.allows(look):
            clock.now += look
            budget.charge(since)
            budget.looked += look
        clock.now += 0.002


def test_a_loan_is_paid_back(clock):
    budget = Budget(0.03, loan=0.25)
    spend_all(budget, clock, 1.0)
    assert budget.share > 0.2
    spend_all(budget, clock, 20.0)
    assert 0.03 < budget.share < 0.04
    spend_all(budget, clock, 300.0)
    assert 0.026 < budget.share < 0.028


@given(seconds=st.floats(0.0, 200.0), overhead=st.floats(0.001, 1.0), loan=st.floats(0.0, 10.0))
def test_paying_back_leaves_something_to_spend_at_any_time(seconds, overhead, loan):
    budget = Budget(overhead, loan)

    def allowance(own):
        budget._started = time.perf_counter() - own
        return 0.9 * overhead * own + budget.loan

    assert allowance(seconds + 10.0) >= allowance(seconds) + 0.5 * 0.9 * overhead * 10.0


def test_a_loan_after_a_trigger_is_there_whatever_was_spent_and_is_paid_back_too(clock):
    budget = Budget(0.03, loan=0.0)
    clock.now = 10.0
    budget.charge(5.0)
    budget.looked = 5.0
    assert not budget.allows(0.001)
    budget.lend(0.1)
    assert budget.allows(0.0999)
    assert not budget.allows(0.101)
    spend_all(budget, clock, 1500.0)
    assert budget.share < 0.03


def test_time_before_the_start_is_setup_and_not_spent():
    budget = Budget()
    since = time.perf_counter()
    time.sleep(0.01)
    budget.start()
    budget.charge(since)
    assert budget.setup >= 0.01
    assert budget.spent < 0.01


@given(cost=st.floats(1e-6, 1.0), step=st.floats(1e-4, 10.0), overhead=st.floats(0.001, 1.0))
def test_a_cadence_keeps_its_share(cost, step, overhead):
    every = Budget(overhead).every(cost, step, share=0.5)
    assert every >= 1
    assert cost / (every * step) <= 0.5 * overhead * (1 + 1e-9)
    assert every == 1 or cost / ((every - 1) * step) > 0.5 * overhead * (1 - 1e-9)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.doctor.budget import Budget
from poise.tools.clock import Seconds, now


@pytest.mark.parametrize("overhead", [0.0, -0.1, 1.5])
def test_overhead_must_be_a_fraction(overhead):
    with pytest.raises(ValueError, match=r"overhead must be a fraction in \(0, 1\]"):
        Budget(overhead)


class Clock:
    """Two clocks that stand until they are moved."""

    def __init__(self):
        self.wall = self.cpu = 100.0

    def run(self, seconds, threads=1):
        self.wall += seconds
        self.cpu += threads * seconds

    def wait(self, seconds):
        self.wall += seconds

    def perf_counter(self):
        return self.wall

    def process_time(self):
        return self.cpu


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("poise.doctor.budget.time", clock)
    monkeypatch.setattr("poise.doctor.budget.cpu_seconds", clock.process_time)
    monkeypatch.setattr("poise.doctor.budget.now", lambda: Seconds(clock.wall, clock.cpu))
    return clock


def test_what_is_allowed_grows_with_the_runs_own_time(clock):
    budget = Budget(0.5, credit=0.0)
    budget.start()
    assert not budget.allows(0.02)
    clock.run(0.06)
    assert budget.allows(0.02)
    budget.spent = 10.0
    assert not budget.allows(0.0)


def test_waiting_for_other_processes_earns_nothing_and_is_not_charged(clock):
    """Twice as slow a machine, all by waiting, changes nothing."""
    budgets = []
    for slow in (False, True):
        budget = Budget(0.03, credit=0.0)
        budget.start()
        for _ in range(100):
            since = clock.wall, clock.cpu
            clock.run(0.001)
            clock.wait(0.001 * slow)
            budget.charge(*since)
            clock.run(0.1)
            clock.wait(0.1 * slow)
        budgets.append(budget)
        assert budget.fraction == pytest.approx(0.01)
        assert budget.allows(0.16)
        assert not budget.allows(0.18)
    assert budgets[0].spent == pytest.approx(budgets[1].spent)


def test_short_stretches_count_as_much_as_the_process_has_run(clock):
    budget = Budget(0.1, credit=0.0)
    budget.start()
    clock.run(1.0)
    clock.wait(3.0)
    assert budget.elapsed == pytest.approx(1.0)
    clock.run(0.1)
    clock.wait(0.3)
    budget.charge(clock.wall - 0.4)
    assert budget.spent == pytest.approx(0.1)


def test_cpu_time_of_several_threads_is_as_long_as_they_take(clock):
    budget = Budget(0.1, credit=0.0)
    budget.start()
    since = clock.wall, clock.cpu
    clock.run(1.0, threads=4)
    budget.charge(*since)
    clock.run(9.0, threads=4)
    assert (budget.spent, budget.elapsed) == (pytest.approx(1.0), pytest.approx(10.0))


def test_what_a_run_costs_once_is_paid_from_half_of_what_it_earns(clock):
    budget, free = Budget(0.1, credit=0.0, fixed=0.5), Budget(0.1, credit=0.0)
    clock.run(0.4)
    budget.charge(clock.wall - 0.4)  # finding the model
    budget.start()
    free.start()
    assert budget.setup == pytest.approx(0.4)
    clock.run(10.0)  # earns 0.9, of which half goes to the 0.9 owed
    assert budget.allows(0.44)
    assert not budget.allows(0.46)
    assert free.allows(0.89)
    clock.run(90.0)  # all is paid
    assert budget.allows(8.09)
    assert not budget.allows(8.11)
    assert free.allows(8.99)
    assert budget.granted == pytest.approx(9.0)
    assert free.granted == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("seconds", "limit"), [(7.5, 0.05), (60.0, 0.03), (600.0, 0.03)], ids=["300 steps", "a minute", "ten minutes"]
)
def test_a_run_keeps_its_promise_from_the_first_run_on(clock, seconds, limit):
    """Start, steps and report together, where plain Python takes two seconds before the first step."""
    fixed, before = 0.3, 2.0
    budget = Budget(0.03, fixed=fixed)
    budget.start()
    spend_all(budget, clock, seconds, cost=0.006)
    assert budget.spent > 0.01 * seconds  # and the steps are sampled
    assert budget.spent + fixed <= limit * (before + budget._own)


def test_a_credit_is_granted_at_the_start_and_can_be_enlarged():
    budget = Budget(0.01, credit=0.1)
    assert budget.allows(0.09)
    assert not budget.allows(0.5)
    budget.grant(0.5)
    assert budget.allows(0.5)


def spend_all(budget, clock, seconds, cost=0.01):
    """Run for so long, and sample a step whenever it is allowed."""
    end = clock.wall + seconds
    while clock.wall < end:
        if budget.allows(cost):
            since = clock.wall
            clock.run(cost)
            budget.charge(since)
            budget.spent_sampling += cost
        clock.run(0.002)


def test_a_credit_is_repaid(clock):
    budget = Budget(0.03, credit=0.25)
    spend_all(budget, clock, 1.0)
    assert budget.fraction > 0.2
    spend_all(budget, clock, 20.0)
    assert 0.03 < budget.fraction < 0.04
    spend_all(budget, clock, 300.0)
    assert 0.026 < budget.fraction < 0.028


@given(seconds=st.floats(0.0, 200.0), overhead=st.floats(0.001, 1.0), credit=st.floats(0.0, 10.0))
def test_repayment_leaves_something_to_spend_at_any_time(seconds, overhead, credit):
    budget = Budget(overhead, credit)

    def allowance(own):
        budget._started = now() - Seconds(own, own)
        return 0.9 * overhead * own + budget.credit

    assert allowance(seconds + 10.0) >= allowance(seconds) + 0.5 * 0.9 * overhead * 10.0


def test_a_credit_after_a_trigger_does_not_depend_on_what_was_spent_and_is_repaid(clock):
    budget = Budget(0.03, credit=0.0)
    clock.run(5.0)
    budget.charge(clock.wall - 5.0)
    budget.spent_sampling = 5.0
    assert not budget.allows(0.001)
    budget.grant(0.1)
    assert budget.allows(0.0999)
    assert not budget.allows(0.101)
    spend_all(budget, clock, 1500.0)
    assert budget.fraction < 0.03


@pytest.mark.parametrize("both", [True, False])
def test_time_before_the_start_is_setup_and_not_spent(clock, both):
    budget = Budget()
    since = (clock.wall, clock.cpu) if both else (clock.wall,)
    clock.run(3.0)
    budget.start()
    clock.run(0.5)
    budget.charge(*since)
    assert budget.setup == pytest.approx(3.0)
    assert budget.spent == pytest.approx(0.5)


@given(cost=st.floats(1e-6, 1.0), step=st.floats(1e-4, 10.0), overhead=st.floats(0.001, 1.0))
def test_an_interval_keeps_the_cost_within_its_fraction(cost, step, overhead):
    steps = Budget(overhead).interval(cost, step, fraction=0.5)
    assert steps >= 1
    assert cost / (steps * step) <= 0.5 * overhead * (1 + 1e-9)
    assert steps == 1 or cost / ((steps - 1) * step) > 0.5 * overhead * (1 - 1e-9)

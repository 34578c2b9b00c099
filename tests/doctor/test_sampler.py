import itertools

import pytest

from poise.doctor.budget import Budget
from poise.doctor.tap.sampler import Sampler


def sampled_steps(sampler: Sampler, steps: int, first: int = 0) -> list[int]:
    """Return the steps of one optimizer that are sampled."""
    sampled = []
    for step in range(first, first + steps):
        if sampler.sampling:
            sampled.append(step)
        sampler.next(1, step + 1, [1])
    return sampled


def test_samples_are_dense_at_first_and_then_ever_wider():
    steps = sampled_steps(Sampler(Budget(1.0, credit=1e9)), 1000)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert steps[:5] == [0, 1, 2, 3, 4]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 50


def test_a_trigger_brings_a_burst():
    sampler = Sampler(Budget(1.0, credit=1e9))
    sampled_steps(sampler, 500)
    assert sampler.trigger()
    assert len(sampled_steps(sampler, 30, first=500)) >= 29


@pytest.mark.parametrize(("cost", "count"), [(0.001, 20), (0.09, 20), (1.0, 2)])
def test_without_budget_twenty_samples_are_taken_as_long_as_they_cost_two_seconds(cost, count):
    budget = Budget(1e-9, credit=0.0)
    sampler, taken = Sampler(budget), 0
    for step in range(200):
        if sampler.sampling:
            taken += 1
            budget.spent += cost
        sampler.next(1, step + 1, [1])
        budget.grant(-budget.credit)
    assert taken == count


def test_three_triggers_are_granted_a_credit():
    budget = Budget(1e-9, credit=0.0)
    sampler = Sampler(budget)
    sampled_steps(sampler, 200)
    granted = []
    for _ in range(5):
        granted.append(sampler.trigger())
        for step in range(40):  # the burst ends; the whole credit is spent
            sampler.next(1, 1000 + step, [1])
        budget.spent += 10.0
        budget.spent_sampling += 10.0
    assert granted == [True, True, True, False, False]


@pytest.mark.parametrize(("cost", "credit"), [(0.001, 0.1), (0.01, 0.2), (0.1, 0.5)])
def test_the_first_credit_pays_for_twenty_samples_within_bounds(cost, credit):
    budget = Budget(1e-9)
    sampler = Sampler(budget)
    for step, factor in enumerate((2.0, 1.0, 1.0)):  # in the first sample caches are cold
        sampler._start(step, [1])
        budget.spent += factor * cost
        sampler._stop()
    assert budget.credit == pytest.approx(credit, rel=1e-3)


def test_a_sample_lasts_until_every_optimizer_has_stepped():
    sampler = Sampler(Budget(1.0, credit=1e9))
    sampler.expect(1)
    assert sampler.next(1, 1, [1, 2])
    sampler._start(10, [1, 2])
    assert sampler.next(1, 11, [1, 2])
    assert sampler.sampling


class SlowBudget(Budget):
    """A budget whose sampled steps cost as much as is said, by a clock of its own."""

    def __init__(self, cost):
        super().__init__(0.03, credit=0.0)
        self.cost = cost
        self.steps = 0

    @property
    def elapsed(self):
        return 0.001 * self.steps + self.spent


@pytest.mark.parametrize("cost", [1e-5, 1e-3, 0.02, 0.09])
def test_slow_hooks_leave_samples_out_and_move_none(cost):
    every = sampled_steps(Sampler(Budget(1.0, credit=1e9)), 2000)
    budget = SlowBudget(cost)
    sampler, steps = Sampler(budget), []
    for step in range(2000):
        budget.steps = step
        if sampler.sampling:
            steps.append(step)
            budget.spent += cost
        sampler.next(1, step + 1, [1])
    assert set(steps) <= set(every)
    assert steps[:20] == every[:20]
    assert len(steps) + sampler.left_out == len(every)


def test_a_trigger_guarantees_eight_samples_however_slow_the_hooks_are():
    budget = SlowBudget(0.01)
    sampler = Sampler(budget)
    for step in range(300):
        budget.spent += 0.01 * sampler.sampling
        sampler.next(1, step + 1, [1])
    budget.spent += 100.0
    assert sampler.trigger()
    assert len(sampled_steps(sampler, 30, first=300)) >= 8

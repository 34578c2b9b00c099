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


@pytest.mark.parametrize(("cost", "count"), [(0.001, 20), (0.1, 5), (1.0, 1)])
def test_without_budget_twenty_samples_are_taken_as_long_as_they_cost_half_a_second(cost, count):
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

import numpy as np
import pytest
import torch
from torch.optim import SGD

from poise.studies import disciplined_hyperparameters as study


def rates(schedule, lr, steps):
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr, momentum=0.9)
    scheduler = study.SCHEDULES[schedule](optimizer, lr, steps)
    found = []
    for _ in range(steps):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    return np.array(found).T


def test_schedules_are_what_they_are_called():
    lr, momentum = rates("1cycle", 1.0, 100)
    assert lr.argmax() == 45
    assert (lr[0], lr[45]) == pytest.approx((0.1, 1.0))
    assert (momentum[0], momentum[45]) == pytest.approx((0.95, 0.85))
    assert rates("1cycle, constant momentum", 1.0, 100)[1].tolist() == [0.9] * 100
    torchs, _ = rates("1cycle of torch", 1.0, 100)
    np.testing.assert_allclose(torchs[:80], lr[:80], atol=0.05)  # its phases end a step early
    steps, _ = rates("multistep", 1.0, 400)
    assert steps[[0, 200, 300, 350, 362, 375]] == pytest.approx(0.316 ** np.arange(6))
    assert set(rates("constant", 0.3, 10)[0]) == {0.3}


def test_a_run_learns_or_is_unstable():
    steady = study.train(study.Setting("constant", 0.1, 150, normed=False), (0, 1))
    assert steady.stable.all()
    assert steady.test.min() > 30
    wild = study.train(study.Setting("constant", 30.0, 60, normed=False), (0, 1))
    assert not wild.stable.any()


def test_range_test_of_a_seed_repeats_and_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    first, second = (study.range_test(0, 40).curves[0] for _ in range(2))
    np.testing.assert_array_equal(first.train, second.train)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.val.shape == first.train.shape

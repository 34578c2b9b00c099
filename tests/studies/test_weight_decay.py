import numpy as np
import pytest
import torch

from poise.studies import weight_decay as study

SHORT = study.Plan({study.LARGE: 50, study.SMALL: 50}, last_steps=10)


def test_decay_of_a_scale_invariant_weight_is_exactly_a_growing_learning_rate():
    assert study.exact_equivalence(20, seed=0) < 1e-12
    lr, wd = 0.3, 0.1
    w, v = (np.array([3.0, 4.0]) for _ in range(2))
    for step in range(30):  # the gradient of the angle to (1, 0), written out
        for point, factor, rate in ((w, 1 - lr * wd, lr), (v, 1.0, study.equivalent_lr(lr, wd, step))):
            gradient = np.array([-point[1], point[0]]) / (point @ point)
            point[:] = factor * point - rate * gradient
    np.testing.assert_allclose(w, v * (1 - lr * wd) ** 30, rtol=1e-12)


def test_over_training_gives_the_same_numbers_for_a_seed_whatever_stands_beside_it():
    alone, pair = (study.over_train(study.LARGE, 0.0, SHORT, seeds) for seeds in ((1,), (0, 1)))
    for name in ("plateau", "accuracy", "jacobian", "norm", "loss"):
        assert getattr(alone, name)[0] == pytest.approx(getattr(pair, name)[1], rel=1e-3)


def test_schedule_of_the_characters_warms_up_stays_and_falls():
    shape = [study.constant_then_decayed(t, 1000) for t in range(1000)]
    assert shape[0] == pytest.approx(1 / 40)
    assert shape[39:750] == [1.0] * 711
    assert shape[-1] == pytest.approx(0.1 + 0.9 / 250)


def test_matched_run_follows_the_trace_of_the_run_with_decay():
    trace = []
    losses = study.train_characters("decay", 0, 6, trace)
    assert len(trace) == 6
    assert len(losses) == 6
    matched = study.train_characters("matched", 0, 6, trace)
    assert matched[0] == losses[0]
    assert np.abs(matched - losses).max() < 0.1
    with pytest.raises(IndexError):
        study.train_characters("matched", 0, 8, trace)


def test_distance_of_curves_is_the_largest_over_twentieths():
    a = np.zeros((2, 100))
    b = a.copy()
    b[:, 10:15] = 1.0
    b[0, 50:55], b[1, 50:55] = 3.0, -3.0  # seeds cancel
    assert study.curve_distance(a, b) == pytest.approx(1.0)


def test_bfloat16_loses_more_updates_the_larger_the_weights():
    assert torch.tensor(1.0, dtype=torch.bfloat16) + 2**-9 == 1
    plain, decayed = (study.lost_updates(wd, 400, 0) for wd in (0.0, 0.5))
    assert 0 <= decayed < plain <= 1

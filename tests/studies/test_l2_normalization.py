import math

import numpy as np
import pytest
import torch

from poise.studies import l2_normalization as study


def test_predicted_norms_are_fixed_points_of_the_mean_recursion():
    sgd = study.Setting("sgd", 0.5, 0.02)
    square = study.predicted_norm(sgd, 3.0) ** 2
    # w <- (1 - lr wd) w - lr g with g tangential and |g|^2 |w|^2 = 3
    assert (1 - 0.01) ** 2 * square + 0.25 * 3.0 / square == pytest.approx(square)
    adamw = study.Setting("adamw", 0.01, 0.5)
    square = study.predicted_norm(adamw, math.nan) ** 2
    assert (1 - 0.005) ** 2 * square + 1e-4 * 64 * 64 == pytest.approx(square)
    assert sgd.relaxation == pytest.approx(50)


def test_collapse_ratio_is_zero_on_the_axis_and_infinite_across_it():
    grid = [(lr, wd) for lr in (1.0, 2.0, 4.0) for wd in (1.0, 2.0, 4.0)]
    assert study.collapse_ratio({(lr, wd): math.log(lr * wd) for lr, wd in grid}) == pytest.approx(0, abs=1e-25)
    across = study.collapse_ratio({(lr, wd): math.log(lr / wd) for lr, wd in grid})
    assert across > 1e10
    noise = np.random.default_rng(0).standard_normal((2000, 9))
    ratios = [study.collapse_ratio(dict(zip(grid, row, strict=True))) for row in noise]
    assert np.median(ratios) == pytest.approx(1, abs=0.3)  # an F statistic


def test_weights_with_fixed_norms_go_the_same_way_with_and_without_decay():
    plain, decayed = (study.normalized_trajectory(wd, 5, 0)[0] for wd in (0.0, 0.05))
    torch.testing.assert_close(plain, decayed, rtol=0, atol=1e-12)
    assert not torch.allclose(plain[0], plain[-1])


def test_decay_pulls_the_norm_down():
    weak, strong = (study.train(study.Setting("sgd", 0.5, wd), 60, (0, 1)) for wd in (0.0, 0.08))
    assert (strong.norm < weak.norm).all()

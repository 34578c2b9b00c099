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


def test_decay_pulls_the_norm_down_and_the_same_seeds_give_the_same_numbers():
    weak, strong, again = (study.train(study.Setting("sgd", 0.5, wd), 60, (0, 1)) for wd in (0.0, 0.08, 0.08))
    assert (strong.norm < weak.norm).all()
    for name in ("norm", "grad_power", "accuracy", "plateau"):
        np.testing.assert_array_equal(getattr(strong, name), getattr(again, name))


CASES = [
    ("equilibrium", {"sgd_error": 0.04, "adamw_error": 0.09, "sgd_error_relaxed": 0.04}, "reproduced"),
    ("equilibrium", {"sgd_error": 0.06, "adamw_error": 0.09, "sgd_error_relaxed": 0.06}, "partly"),
    ("equilibrium", {"sgd_error": 0.04, "adamw_error": 0.2, "sgd_error_relaxed": 0.04}, "partly"),
    ("equilibrium", {"sgd_error": 0.2, "adamw_error": 0.05, "sgd_error_relaxed": 0.2}, "refuted"),
    ("no-regularization", {"difference": 1e-11, "accuracy_spread": 0.0}, "reproduced"),
    ("no-regularization", {"difference": 1e-6, "accuracy_spread": 0.0}, "refuted"),
    ("no-regularization", {"difference": 1e-11, "accuracy_spread": 0.01}, "refuted"),
    ("collapse", {"ratio": 0.4}, "reproduced"),
    ("collapse", {"ratio": 0.7}, "partly"),
    ("collapse", {"ratio": 1.2}, "refuted"),
    ("control", {"raised": 1.0}, "reproduced"),
    ("control", {"raised": 0.8}, "partly"),
    ("control", {"raised": 0.5}, "refuted"),
]


@pytest.mark.parametrize(("claim", "numbers", "verdict"), CASES)
def test_a_verdict_follows_from_the_numbers(claim, numbers, verdict):
    judge = {c.id: c.judge for c in study.CLAIMS}[claim]
    assert judge(numbers) == verdict


@pytest.mark.slow
def test_the_tiny_study_runs_and_reports(run_tiny):
    outcome = run_tiny("l2-normalization")
    assert not any(r.verdict == "not tested" for r in outcome.results)
    assert "Accuracy on one axis" in outcome.report().to_html()

from dataclasses import replace

import numpy as np
import pytest

from poise.preflight import LRCurve
from poise.studies import small_scale_proxies as study


def test_wide_and_deep_models_have_as_many_parameters():
    for plan in study.PLANS.values():
        wide, deep = plan.wide**2 * study.BLOCKS, plan.setting.width**2 * plan.deep
        assert wide == deep


def test_best_rate_is_the_lowest_point_of_a_parabola():
    lrs = (1e-3, 1e-2, 3e-2, 1e-1)
    losses = 2 + 0.3 * (np.log10(lrs) + 1.8) ** 2
    assert study.best_log_lr(lrs, losses) == pytest.approx(-1.8)
    assert study.best_log_lr(lrs, np.array([1.0, 2.0, 3.0, 4.0])) == -3  # at an end: the end
    assert study.best_log_lr(lrs, np.array([4.0, 3.0, 2.0, 1.0])) == -1
    assert study.best_log_lr(lrs, np.array([2.0, 2.0, 2.0, 2.0])) == -3


def test_no_effect_compares_the_extremes_whatever_their_order():
    tiny = study.PLANS["tiny"]
    usual, other = (_sweep(tiny.lrs, height) for height in (1.0, 2.0))
    runs = replace(_EMPTY, plan=tiny, curves={study.NORMED: usual})
    measured = study._measure_no_effect(runs, {4: other}, 8, "windows")
    assert measured.numbers["ratio"] == pytest.approx(2)
    turned = study._measure_no_effect(replace(runs, curves={study.NORMED: other}), {4: usual}, 8, "windows")
    assert turned.numbers == pytest.approx(measured.numbers)
    assert measured.numbers["p_apart"] > 0.975
    assert not study._measure_no_effect(runs, {}, 8, "windows").numbers


def test_muparam_is_measured_by_the_way_its_best_rate_goes():
    lrs = (1e-3, 1e-2, 3e-2, 1e-1)
    scaled = {name: _valley(lrs, at) for name, at in ((study.NARROW, -1.5), (study.STANDARD, -2.2), (study.MU, -1.6))}
    numbers = study._measure_mu_optimum(replace(_EMPTY, scaled=scaled)).numbers
    assert numbers["difference"] == pytest.approx(0.6)


def _sweep(lrs, height):
    """Three seeds whose loss rises with the learning rate by ``height`` in all, with a little noise."""
    values = [[2 + height * i / (len(lrs) - 1) * (1 + 0.01 * s) for s in range(3)] for i in range(len(lrs))]
    return _result(lrs, values)


def _valley(lrs, at):
    return _result(lrs, [[2 + (np.log10(lr) - at) ** 2] * 3 for lr in lrs])


def _result(lrs, values):
    points = [study.SweepPoint(lr, None, s, values[i][s], 10.0) for i, lr in enumerate(lrs) for s in range(3)]
    result = study.SweepResult(tuple(lrs), (None,), (0, 1, 2), tuple(points))
    assert isinstance(result.curve(), LRCurve)
    return result


_EMPTY = study.Runs(study.PLANS["tiny"], *({} for _ in range(10)))


CASES = [
    ("sensitivity", {"ratio": 2.0, "p_better": 0.99}, "reproduced"),
    ("sensitivity", {"ratio": 2.0, "p_better": 0.9}, "partly"),
    ("sensitivity", {"ratio": 1.3, "p_better": 0.99}, "partly"),
    ("sensitivity", {"ratio": 1.0, "p_better": 0.5}, "refuted"),
    ("high-lr", {"gap": 0.2, "p_better": 0.99}, "reproduced"),
    ("high-lr", {"gap": 0.1, "p_better": 0.99}, "partly"),
    ("high-lr", {"gap": -0.1, "p_better": 0.01}, "refuted"),
    ("logit-growth", {"logit_plain": 2e3, "entropy_plain": 0.01, "logit_normed": 9.0}, "reproduced"),
    ("logit-growth", {"logit_plain": 2e3, "entropy_plain": 0.5, "logit_normed": 9.0}, "partly"),
    ("logit-growth", {"logit_plain": 5.0, "entropy_plain": 0.5, "logit_normed": 5.0}, "refuted"),
    ("logit-limit", {"runs": 3, "diverged": 3}, "reproduced"),
    ("logit-limit", {"runs": 3, "diverged": 1}, "partly"),
    ("logit-limit", {"runs": 3, "diverged": 0}, "refuted"),
    ("forecast", {"decades": 0.3}, "reproduced"),
    ("forecast", {"decades": 0.5}, "partly"),
    ("forecast", {"decades": 1.5}, "refuted"),
    ("gradient-rms", {"over_lr": -0.1, "over_size": -0.2}, "reproduced"),
    ("gradient-rms", {"over_lr": 0.1, "over_size": -0.2}, "partly"),
    ("gradient-rms", {"over_lr": 0.1, "over_size": 0.2}, "refuted"),
    ("epsilon", {"shrink_usual": 1.0, "shrink": 0.3, "harm": 0.1, "p_worse": 0.99}, "reproduced"),
    ("epsilon", {"shrink_usual": 1.0, "shrink": 0.3, "harm": -0.1, "p_worse": 0.01}, "partly"),
    ("epsilon", {"shrink_usual": 1.0, "shrink": 0.9, "harm": 0.1, "p_worse": 0.6}, "refuted"),
    ("output-drift", {"mean_logit": -50.0, "log_z_without": 40.0, "log_z_with": 0.5}, "reproduced"),
    ("output-drift", {"mean_logit": -1.0, "log_z_without": 4.0, "log_z_with": 0.5}, "partly"),
    ("output-drift", {"mean_logit": -1.0, "log_z_without": 4.0, "log_z_with": 4.0}, "refuted"),
    ("kappa", {"harm": 0.2, "p_worse": 0.99, "over_bigram": 0.1, "usual_over_bigram": -0.1}, "reproduced"),
    ("kappa", {"harm": 0.2, "p_worse": 0.99, "over_bigram": -0.1, "usual_over_bigram": -0.3}, "partly"),
    ("kappa", {"harm": 0.2, "p_worse": 0.99, "over_bigram": 0.5, "usual_over_bigram": 0.1}, "partly"),
    ("kappa", {"harm": -0.2, "p_worse": 0.01, "over_bigram": -0.1, "usual_over_bigram": 0.1}, "refuted"),
    ("warm-up", {"difference": 0.1, "p_better": 0.99}, "reproduced"),
    ("decay", {"difference": 0.1, "p_better": 0.8}, "partly"),
    ("z-loss", {"difference": -0.1, "p_better": 0.2}, "refuted"),
    ("mu-optimum", {"difference": 0.3, "p_better": 0.98}, "reproduced"),
    ("mu-optimum", {"difference": -0.3, "p_better": 0.02}, "refuted"),
    ("mu-loss", {"gain": -0.05, "ratio": 1.0}, "reproduced"),
    ("mu-loss", {"gain": 0.05, "ratio": 1.0}, "partly"),
    ("mu-loss", {"gain": 0.05, "ratio": 1.6}, "refuted"),
    ("mu-logits", {"logit_standard": 4e3, "logit_mu": 2e3}, "reproduced"),
    ("mu-logits", {"logit_standard": 4e3, "logit_mu": 900.0}, "partly"),
    ("mu-logits", {"logit_standard": 4e4, "logit_mu": 2e3}, "refuted"),
    ("mu-full", {"over_unigram": -0.3, "gain": 0.0}, "reproduced"),
    ("mu-full", {"over_unigram": 0.3, "gain": 0.0}, "partly"),
    ("mu-full", {"over_unigram": 0.3, "gain": 0.1}, "refuted"),
    ("size", {"difference": 0.1, "p_better": 0.99}, "reproduced"),
    ("depth", {"difference": -0.1, "p_better": 0.01}, "refuted"),
    ("batch", {"ratio": 1.05, "p_apart": 0.999}, "reproduced"),
    ("batch", {"ratio": 2.0, "p_apart": 0.9}, "partly"),
    ("steps", {"ratio": 1.3, "p_apart": 0.999}, "partly"),
    ("steps", {"ratio": 2.0, "p_apart": 0.99}, "refuted"),
]


@pytest.mark.parametrize(("claim", "numbers", "verdict"), CASES)
def test_a_verdict_follows_from_the_numbers(claim, numbers, verdict):
    judge = {c.id: c.judge for c in study.CLAIMS}[claim]
    assert judge(numbers) == verdict


@pytest.mark.slow
def test_the_tiny_study_runs_and_reports(run_tiny):
    outcome = run_tiny("small-scale-proxies")
    assert {r.claim.id for r in outcome.results if r.verdict == "not tested"} <= {"logit-limit"}
    report = outcome.report()
    assert report.verdict == outcome.verdict
    html = report.to_html()
    assert "Validation loss over learning rate" in html

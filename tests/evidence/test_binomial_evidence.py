import json
import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.base import clone

from poise.data import load_coin_flips
from poise.evidence import (
    BetaPrior,
    BinomialEvidence,
    GammaPrior,
    HalfNormalPrior,
    Quadrature,
    QuadratureError,
    pooled_bf,
)

SMALL = ([14, 9, 12, 17], [20, 20, 18, 20])
WIDE = BetaPrior(5, 5)
SD = GammaPrior(4, 8)


def small(**options):
    return BinomialEvidence(**{"effect_prior": WIDE, "bias_prior": WIDE, "sd_prior": SD, **options})


# Computed independently for the coin flips, without the binomial coefficients.
PUBLISHED = {
    "effect+bias+spread": -243031.9657,
    "effect+spread": -243030.1951,
    "bias+spread": -243039.7345,
    "spread": -243037.9639,
    "effect+bias": -243088.3248,
    "effect": -243086.5453,
    "bias": -243128.0089,
    "null": -243126.2256,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_marginal_likelihoods_of_the_coin_flips(fitted, model):
    assert fitted.log_marginal_[model] == pytest.approx(PUBLISHED[model], abs=0.001)


def test_bayes_factors_of_the_coin_flips_are_near_those_of_sixteen_models_by_sampling(fitted):
    assert fitted.inclusion_bf_["effect"].value == pytest.approx(2359.0, rel=0.1)
    assert fitted.inclusion_bf_["spread"].log10 == pytest.approx(24.49, abs=0.1)
    assert fitted.inclusion_bf_["bias"].value == pytest.approx(0.1823, rel=0.1)


def test_inclusion_bayes_factor_is_a_ratio_of_sums_of_marginal_likelihoods(fitted):
    top = max(fitted.log_marginal_.values())
    likelihood = {m: math.exp(v - top) for m, v in fitted.log_marginal_.items()}
    for factor, bf in fitted.inclusion_bf_.items():
        with_it = math.fsum(v for m, v in likelihood.items() if factor in m.split("+"))
        without = math.fsum(v for m, v in likelihood.items() if factor not in m.split("+"))
        assert bf.value == pytest.approx(with_it / without, rel=1e-9)
    assert math.fsum(fitted.posterior_model_probs_.values()) == pytest.approx(1.0)


def test_same_data_same_bits():
    assert small().fit(*SMALL).log_marginal_ == small().fit(*SMALL).log_marginal_


def test_every_marginal_likelihood_against_a_dense_grid():
    x, n = (np.array(v) for v in SMALL)
    logit, sd, z = np.linspace(-4, 4, 121), np.linspace(1e-4, 4, 101), np.linspace(-8, 8, 161)
    p = 1 / (1 + np.exp(-(logit[:, None, None] + sd[None, :, None] * z)))
    log_p, log_q, normal = np.log(p), np.log1p(-p), stats.norm.pdf(z) * (z[1] - z[0])
    log_groups = sum(np.log(np.exp(k * log_p + (m - k) * log_q) @ normal) for k, m in zip(x, n, strict=True))
    terms = np.exp(log_groups) * stats.gamma.pdf(sd, 4, scale=1 / 8)
    rate = 1 / (1 + np.exp(-logit))
    density = stats.beta.pdf(rate, 5, 5) * rate * (1 - rate)
    by_logit = integrate.trapezoid(terms, sd)
    pooled = np.exp(x.sum() * np.log(rate) + (n - x).sum() * np.log1p(-rate))
    expected = {
        "null": 0.5 ** n.sum(),
        "effect": integrate.trapezoid(pooled * density, logit),
        "spread": by_logit[60],  # logit 0
        "effect+spread": integrate.trapezoid(by_logit * density, logit),
    }
    fit = small().fit(x, n)
    for model, value in expected.items():
        assert fit.log_marginal_[model] == pytest.approx(math.log(value), abs=1e-3)


def test_effect_without_spread_is_the_closed_form():
    x, n = SMALL
    fit = small().fit(x, n)
    bf = fit.log_marginal_["effect"] - fit.log_marginal_["null"]
    assert bf == pytest.approx(pooled_bf(sum(x), sum(n), WIDE).bf.log, abs=1e-4)


def test_a_spread_that_is_surely_zero_is_no_spread():
    fit = small(sd_prior=GammaPrior(4, 1e7)).fit(*SMALL)
    assert fit.log_marginal_["effect+spread"] == pytest.approx(fit.log_marginal_["effect"], abs=1e-3)
    assert fit.inclusion_bf_["spread"].value == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("data", [SMALL, ([1, 2, 20], [20] * 3), ([20] * 3, [20] * 3), ([0, 1, 1], [1, 1, 1])])
def test_doubling_the_nodes_changes_nothing(data):
    once, twice = small().fit(*data), small(quadrature=Quadrature(outer=28, inner=28, tolerance=1e-6)).fit(*data)
    for model, value in once.log_marginal_.items():
        assert value == pytest.approx(twice.log_marginal_[model], abs=1e-3)


def test_doubling_the_nodes_changes_nothing_with_conditions(coins):
    six = [values[::12] for values in coins]
    once = BinomialEvidence().fit(*six)
    twice = BinomialEvidence(quadrature=Quadrature(outer=28, inner=14)).fit(*six)
    for model, value in once.log_marginal_.items():
        assert value == pytest.approx(twice.log_marginal_[model], abs=1e-3)


def test_swapping_heads_and_tails_mirrors_the_bias(coins):
    heads, trials, person, start = (values[::16] for values in coins)
    priors = {"effect_prior": BetaPrior(312, 312), "bias_prior": BetaPrior(312, 312), "sd_prior": GammaPrior(4, 200)}
    fit = BinomialEvidence(**priors).fit(heads, trials, person, start)
    swapped = ["tails" if side == "heads" else "heads" for side in start]
    mirror = BinomialEvidence(**priors).fit(trials - heads, trials, person, swapped)
    assert fit.condition_levels_ == mirror.condition_levels_ == ("heads", "tails")
    for factor in ("effect", "spread", "bias"):
        assert mirror.inclusion_bf_[factor].log == pytest.approx(fit.inclusion_bf_[factor].log, abs=1e-3)
    assert mirror.estimate_["bias"].mean == pytest.approx(1 - fit.estimate_["bias"].mean, abs=1e-5)
    assert mirror.estimate_["effect"].mean == pytest.approx(fit.estimate_["effect"].mean, abs=1e-5)


def test_order_of_rows_does_not_turn_the_effect_round():
    rows = [(30, 40, "a", True), (12, 40, "a", False), (25, 40, "b", True), (15, 40, "b", False)]
    narrow = {"effect_prior": BetaPrior(50, 50), "bias_prior": BetaPrior(50, 50), "sd_prior": GammaPrior(4, 40)}
    fit = BinomialEvidence(**narrow).fit(*zip(*rows, strict=True))
    other = BinomialEvidence(**narrow).fit(*zip(*rows[::-1], strict=True))
    assert fit.condition_levels_ == other.condition_levels_ == (True, False)
    assert other.estimate_["effect"].mean == pytest.approx(fit.estimate_["effect"].mean, abs=1e-6)
    assert fit.estimate_["effect"].low > 0.5


def test_merging_groups_changes_nothing_without_a_spread():
    apart = small().fit([14, 9, 12], [20, 20, 18], ["a", "b", "c"])
    merged = small().fit([14, 9, 12], [20, 20, 18], ["a", "b", "b"])
    for model in ("null", "effect"):
        assert merged.log_marginal_[model] == pytest.approx(apart.log_marginal_[model], abs=1e-4)


@settings(max_examples=4, deadline=None)
@given(st.permutations([(14, 20), (9, 20), (12, 18), (17, 20)]))
def test_order_of_groups_does_not_matter(pairs):
    x, n = zip(*pairs, strict=True)
    fit, other = small().fit(x, n), small().fit(*SMALL)
    assert fit.inclusion_bf_["effect"].log == pytest.approx(other.inclusion_bf_["effect"].log, abs=1e-9)


def test_group_effects_are_pulled_towards_each_other_and_less_so_with_more_trials():
    fit = small().fit([5, 140, 14, 11], [20, 200, 20, 20])
    raw = np.array([g.raw for g in fit.group_effects_])
    estimate = np.array([g.estimate.mean for g in fit.group_effects_])
    assert np.ptp(estimate) < np.ptp(raw)
    centre = fit.estimate_["effect"].mean
    shrink = np.abs(estimate - centre) / np.abs(raw - centre)
    assert shrink[1] > shrink[2]  # equal shares, ten times the trials
    for g in fit.group_effects_:
        assert g.estimate.low < g.estimate.mean < g.estimate.high


@pytest.mark.slow
def test_estimate_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(25):
        truth, sd = rng.beta(5, 5), rng.gamma(4, 1 / 8)
        p = 1 / (1 + np.exp(-(math.log(truth / (1 - truth)) + sd * rng.standard_normal(6))))
        e = small().fit(rng.binomial(20, p), [20] * 6).estimate_["effect"]
        covered += e.low <= truth <= e.high
    assert covered >= 21  # fewer has probability 0.001 under 95 % coverage


def test_sensitivity_drops_what_it_says(fitted):
    flips = load_coin_flips()
    without = fitted.sensitivity("above:0.53")
    assert len(without.groups_) == 44
    assert without.table_[:, [1, 3]].sum() == 338_985
    assert without.inclusion_bf_["effect"].value == pytest.approx(786.8, rel=0.1)
    share = dict(zip(flips.people, flips.same / flips.flips, strict=True))
    assert max(share[g] for g in without.groups_) <= 0.53


def test_trimming_drops_the_farthest_groups():
    fit = small().fit([1, 10, 11, 10], [20] * 4, ["odd", "a", "b", "c"])
    assert fit.sensitivity("trim:1").groups_ == ["a", "b", "c"]
    assert fit.sensitivity("below:0.5").groups_ == ["a", "b", "c"]


@pytest.mark.parametrize("drop", ["above", "above:x", "above:2", "trim:-1", "trim:1.5", "around:0.5", ""])
def test_sensitivity_rejects_what_it_does_not_know(drop):
    with pytest.raises(ValueError, match="drop must be"):
        small().fit(*SMALL).sensitivity(drop)


def test_sensitivity_that_leaves_nothing_says_so():
    with pytest.raises(ValueError, match="leaves no group"):
        small().fit(*SMALL).sensitivity("trim:4")


def test_tables_of_any_kind():
    frames = [pd.DataFrame({"x": SMALL[0], "n": SMALL[1]}), pl.DataFrame({"x": SMALL[0], "n": SMALL[1]})]
    expected = small().fit(*SMALL).log_marginal_
    for frame in frames:
        assert small().fit(frame["x"], frame["n"]).log_marginal_ == expected


def test_is_a_scikit_learn_estimator():
    model = small(sd_prior=HalfNormalPrior(0.3))
    assert clone(model).get_params()["sd_prior"] == HalfNormalPrior(0.3)


def test_report_shows_both_directions_and_reads_back():
    report = small().fit(*SMALL).report()
    text = json.dumps(report.to_dict())
    assert "for, " in text
    assert "against (log10" in text
    assert type(report).from_dict(json.loads(text)).to_dict() == report.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([5], [4]), "successes must not exceed trials"),
        (([-1], [4]), "successes must be whole"),
        (([1.5], [4]), "successes must be whole"),
        (([1], [math.nan]), "trials must be whole"),
        (([1, 2], [4]), "one length"),
        (([], []), "one length"),
        (([1, 0], [4, 0]), "trials must not be 0 for a whole group"),
        (([1, 2], [4, 4], ["a"]), "group must have one label per row"),
        (([1, 2], [4, 4], ["a", None]), "group must not have missing"),
        (([1, 2], [4, 4], None, ["x", "x"]), "condition must have 2 levels"),
        (([1, 2, 3], [4, 4, 4], None, ["x", "y", "z"]), "condition must have 2 levels"),
    ],
)
def test_bad_counts_and_labels(arguments, message):
    with pytest.raises(ValueError, match=message):
        small().fit(*arguments)


def test_bad_options():
    with pytest.raises(ValueError, match="null must lie"):
        small(null=1.0).fit(*SMALL)
    with pytest.raises(ValueError, match=r"null must be 0\.5"):
        small(null=0.4).fit([1, 2], [4, 4], ["a", "a"], ["x", "y"])
    with pytest.raises(ValueError, match="quadrature must be"):
        small(quadrature="fast").fit(*SMALL)


def test_one_group_warns_that_a_spread_cannot_be_seen():
    with pytest.warns(UserWarning, match="not identified"):
        small().fit([14], [20])


def test_quadrature_that_does_not_settle_raises_with_the_last_change():
    with pytest.raises(QuadratureError, match="still moved by"):
        small(quadrature=Quadrature(outer=2, inner=2, refinements=1, tolerance=1e-12)).fit(*SMALL)


def test_data_far_from_the_prior_are_still_found():
    fit = small(effect_prior=BetaPrior(5000, 5000), sd_prior=HalfNormalPrior(0.01)).fit([900, 910], [1000, 1000])
    exact = pooled_bf(1810, 2000, BetaPrior(5000, 5000)).bf.log
    assert fit.log_marginal_["effect"] - fit.log_marginal_["null"] == pytest.approx(exact, abs=1e-3)

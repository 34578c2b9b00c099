import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from poise.data import load_coin_flips
from poise.evidence import (
    BayesFactor,
    BetaPrior,
    GammaPrior,
    HalfNormalPrior,
    bf_robustness,
    clopper_pearson,
    pooled_bf,
    random_effects,
    sequential_bf,
)

DHM = BetaPrior(5100, 4900, lower=0.5)


def test_published_pooled_bayes_factors():
    flips = load_coin_flips()
    same, heads, total = int(flips.same.sum()), int(flips.heads.sum()), int(flips.flips.sum())
    assert pooled_bf(same, total, DHM).bf.log == pytest.approx(39.68034, abs=1e-5)
    assert pooled_bf(same, total, BetaPrior(5100, 4900), "greater").bf.value == pytest.approx(1.7098e17, rel=1e-4)
    assert pooled_bf(heads, total, BetaPrior(5000, 5000)).bf.value == pytest.approx(0.168, abs=5e-4)


@given(st.integers(0, 30), st.integers(0, 30), st.floats(0.5, 9), st.floats(0.5, 9), st.floats(0.1, 0.9))
def test_pooled_is_the_integral_it_claims_to_be(x, failures, a, b, null):
    n = x + failures
    exact = (
        special.betaln(a + x, b + failures) - special.betaln(a, b) - x * math.log(null) - failures * math.log1p(-null)
    )
    assert pooled_bf(x, n, BetaPrior(a, b), null=null).bf.log == pytest.approx(exact if n else 0.0, abs=1e-9)


def test_truncated_prior_against_adaptive_integration():
    prior = BetaPrior(3, 2, lower=0.4, upper=0.8)
    mass = stats.beta.cdf(0.8, 3, 2) - stats.beta.cdf(0.4, 3, 2)
    integral = integrate.quad(lambda p: p**7 * (1 - p) ** 5 * stats.beta.pdf(p, 3, 2) / mass, 0.4, 0.8)[0]
    assert pooled_bf(7, 12, prior).bf.log == pytest.approx(math.log(integral) + 12 * math.log(2), abs=1e-9)


def test_data_that_contradict_the_truncation_do_not_underflow():
    bf = pooled_bf(100, 20_000, DHM).bf
    assert math.isfinite(bf.log)
    # Below 0.5 the likelihood falls with the rate, so the rate 0.5 itself is the best the alternative has to offer.
    assert bf.log < 0


def test_no_trials_no_evidence():
    assert pooled_bf(0, 0, DHM).bf.value == 1.0


def test_swapping_success_and_failure_mirrors_the_prior():
    one = pooled_bf(30, 70, BetaPrior(4, 7), null=0.3).bf.log
    assert pooled_bf(40, 70, BetaPrior(7, 4), null=0.7).bf.log == pytest.approx(one, abs=1e-9)


def test_sequence_ends_where_the_pooled_counts_do_and_rarely_misleads():
    batches = [(3, 5), (0, 0), (4, 5)]
    steps = [s.bf.log for s in sequential_bf(batches, BetaPrior(1, 1))]
    assert steps[-1] == pooled_bf(7, 10, BetaPrior(1, 1)).bf.log
    assert steps[0] == steps[1]
    rng = np.random.default_rng(0)
    flips = rng.integers(0, 2, (100, 60))
    ever = [any(s.bf.value > 10 for s in sequential_bf(((int(f), 1) for f in row), BetaPrior(1, 1))) for row in flips]
    assert np.mean(ever) <= 0.1  # however often one looks


def test_robustness_holds_one_result_per_prior():
    priors = [BetaPrior(k, k) for k in (1, 10, 100)]
    robust = bf_robustness(60, 100, priors)
    logs = [pooled_bf(60, 100, p).bf.log for p in priors]
    assert [r.bf.log for r in robust.results] == logs
    assert (robust.range[0].log, robust.range[1].log) == (min(logs), max(logs))
    assert len(robust.report().blocks[0].rows) == 3
    with pytest.raises(ValueError, match="priors must hold"):
        bf_robustness(60, 100, [])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BetaPrior(0, 1), "a must be finite and above 0"),
        (lambda: BetaPrior(1, math.inf), "b must be finite and above 0"),
        (lambda: BetaPrior(1, 1, lower=0.6, upper=0.5), "lower < upper"),
        (lambda: BetaPrior(1, 1, lower=-0.1), "lower < upper"),
        (lambda: BetaPrior(1, 1, upper=1.1), "lower < upper"),
        (lambda: BetaPrior(5000, 5000, lower=0.9), "leave .* of the mass"),
        (lambda: GammaPrior(0.5, 1), "shape must be finite and at least 1"),
        (lambda: GammaPrior(4, 0), "rate must be"),
        (lambda: HalfNormalPrior(-1), "scale must be"),
        (lambda: pooled_bf(1, 2, BetaPrior(1, 1), null=0), "null must lie"),
        (lambda: pooled_bf(1, 2, BetaPrior(1, 1), alternative="less"), "alternative must be"),
        (lambda: pooled_bf(3, 2, BetaPrior(1, 1)), "must not exceed"),
        (lambda: clopper_pearson(1, 2, level=1.0), "level must lie"),
        (lambda: random_effects([3], [5]), "at least 2 groups"),
        (lambda: random_effects([0, 2], [5, 5]), "neither 0 nor all"),
    ],
)
def test_bad_input_names_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(st.floats(0.6, 50), st.floats(0.6, 50), st.floats(0, 0.45), st.floats(0.55, 1))
def test_beta_prior_has_mass_one_on_its_support(a, b, lower, upper):
    try:
        prior = BetaPrior(a, b, lower, upper)
    except ValueError:
        return  # truncation left nothing
    low, high = (max(-40.0, prior.support()[0]), min(40.0, prior.support()[1]))
    middle = float(np.clip(special.logit(a / (a + b)), low, high))
    mass = sum(
        integrate.quad(lambda u: math.exp(prior.log_density_logit(u)), *e)[0] for e in ((low, middle), (middle, high))
    )
    assert mass == pytest.approx(1.0, abs=1e-5)


def test_bayes_factor_reads_in_both_directions():
    bf = BayesFactor(math.log(20.0))
    assert str(bf) == "20 for, 0.05 against (log10 +1.30)"
    assert float(bf.inverse) == pytest.approx(0.05)
    assert str(BayesFactor(5000.0)).startswith("2.97e2171 for, ")
    assert BayesFactor(5000.0).value == math.inf
    assert str(BayesFactor(math.log(9.9999e6))).startswith("1e7 for")


@given(st.integers(0, 40), st.integers(0, 40))
def test_clopper_pearson_inverts_the_binomial_tails(x, failures):
    n = x + failures
    low, high = clopper_pearson(x, n)
    assert 0 <= low <= high <= 1
    if x > 0:
        assert stats.binom.sf(x - 1, n, low) == pytest.approx(0.025, rel=1e-6)
    if failures > 0:
        assert stats.binom.cdf(x, n, high) == pytest.approx(0.025, rel=1e-6)


def test_published_random_effects():
    flips = load_coin_flips()
    fit = random_effects(flips.same, flips.flips)
    assert fit.mean == pytest.approx(0.50999, abs=1e-5)
    assert fit.se == pytest.approx(0.00252, abs=1e-5)
    assert fit.tau == pytest.approx(0.01593, abs=1e-5)
    assert fit.interval == pytest.approx((0.5051, 0.5149), abs=6e-5)
    assert (fit.df, fit.q) == (47, pytest.approx(270.0, abs=0.05))
    assert fit.tau2_dl == pytest.approx(1.637e-4, abs=1e-7)


def test_equal_shares_have_no_spread():
    fit = random_effects([50, 100, 25], [100, 200, 50])
    assert (fit.tau, fit.q, fit.tau2_dl) == (0.0, 0.0, 0.0)
    assert fit.mean == pytest.approx(0.5)
    assert "0.5000" in fit.report().summary

"""Do fair coins land on the side they started from, and what does the answer teach about seeds.

Part one analyses the 350,757 flips of 48 people: pooled tests, eight hierarchical models, estimation, sensitivity to
four unusual people. Part two uses the same tool on simulated comparisons of two training recipes over data sets and
seeds, where the truth is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import plotly.graph_objects as go
from scipy import stats

from poise.data import load_coin_flips
from poise.evidence import (
    BetaPrior,
    BinomialEvidence,
    GammaPrior,
    HalfNormalPrior,
    PooledEvidence,
    RandomEffects,
    clopper_pearson,
    pooled_bf,
    random_effects,
)
from poise.evidence.binomial_evidence import shrinkage_figure
from poise.report import Figure, Table, Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import above, at_least, at_most, below, between, within

REPETITIONS: Mapping[Budget, int] = {"tiny": 10, "default": 50, "full": 400}
"""Simulated comparisons per seed and scenario."""

DATA_SETS, PAIRS = 5, 20
STRONG = 10.0
"""Bayes factor that counts as strong evidence."""


def same_side_probability(angle: float) -> float:
    """Probability that a coin lands as it started, by the physics of Diaconis, Holmes and Montgomery.

    Args:
        angle: between the normal of the coin and its angular momentum, in degrees, in [0, 180]; 90 is a fair flip.

    Raises:
        ValueError: if ``angle`` is outside [0, 180].

    References:
        Diaconis, Holmes and Montgomery (2007). Dynamical bias in the coin toss.
    """
    if not 0.0 <= angle <= 180.0:
        raise ValueError(f"angle must lie in [0, 180] degrees, got {angle}")
    if not 45.0 < angle < 135.0:
        return 1.0
    return 0.5 + math.asin(1.0 / math.tan(math.radians(angle)) ** 2) / math.pi


# --- the coins ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Coins:
    """Part one."""

    pooled: PooledEvidence
    naive_p: float
    tests: BinomialEvidence
    estimates: BinomialEvidence
    without_four: BinomialEvidence
    random_effects: RandomEffects


def _coins(progress: Progress) -> _Coins:
    flips = load_coin_flips()
    heads = np.concatenate([flips.hsame, flips.hdiff])
    trials = np.concatenate([flips.started_heads, flips.flips - flips.started_heads])
    person, started = list(flips.people) * 2, ["heads"] * len(flips) + ["tails"] * len(flips)
    same, total = int(flips.same.sum()), int(flips.flips.sum())
    progress(0.0, "eight models of 48 people")
    tests = BinomialEvidence().fit(heads, trials, person, started)
    progress(0.1, "estimation")
    wide = BetaPrior(312, 312)
    estimates = BinomialEvidence(wide, wide, HalfNormalPrior(0.04)).fit(heads, trials, person, started)
    progress(0.2, "without four people")
    return _Coins(
        pooled=pooled_bf(same, total, BetaPrior(5100, 4900), alternative="greater"),
        naive_p=float(stats.binomtest(same, total).pvalue),
        tests=tests,
        estimates=estimates,
        without_four=tests.sensitivity(drop="above:0.53"),
        random_effects=random_effects(flips.same, flips.flips),
    )


# --- simulated comparisons ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scenario:
    """A known truth: the chance that B beats A on an average data set, and how much data sets differ (logit sd)."""

    name: str
    win: float
    spread: float


EQUAL = _Scenario("no effect, equal data sets", 0.5, 0.0)
VARIED = _Scenario("no effect, varied data sets", 0.5, 0.5)
SCENARIOS = (EQUAL, VARIED, _Scenario("B wins 60 %", 0.6, 0.2), _Scenario("B wins 75 %", 0.75, 0.2))


@dataclass(frozen=True, slots=True)
class _Alarms:
    """How often each method called for an effect, of ``total`` comparisons."""

    total: int
    hierarchical: int
    pooled: int
    binomial: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the fraction of calls of the hierarchical method."""
        return clopper_pearson(self.hierarchical, self.total)


def _simulate(scenario: _Scenario, seeds: Sequence[int], repetitions: int) -> _Alarms:
    """Count strong evidence for an effect over simulated comparisons of 5 data sets with 20 pairs each."""
    wins = np.concatenate([_draw(scenario, seed, repetitions) for seed in seeds])
    trials = DATA_SETS * PAIRS
    pooled = [pooled_bf(int(w.sum()), trials, BetaPrior(5, 5)).bf.log for w in wins]
    return _Alarms(
        len(wins),
        hierarchical=sum(_effect_log_bf(tuple(sorted(w.tolist()))) > math.log(STRONG) for w in wins),
        pooled=sum(log > math.log(STRONG) for log in pooled),
        binomial=sum(stats.binomtest(int(w.sum()), trials).pvalue < 0.05 for w in wins),
    )


def _draw(scenario: _Scenario, seed: int, repetitions: int) -> np.ndarray:
    rng = np.random.default_rng([seed, round(1000 * scenario.win), round(1000 * scenario.spread)])
    around = scenario.spread * rng.standard_normal((repetitions, DATA_SETS))
    logit = math.log(scenario.win / (1 - scenario.win)) + around
    return rng.binomial(PAIRS, 1.0 / (1.0 + np.exp(-logit)))


@cache
def _effect_log_bf(wins: tuple[int, ...]) -> float:
    # The order of the data sets does not matter, so comparisons repeat.
    evidence = BinomialEvidence(BetaPrior(5, 5), sd_prior=GammaPrior(4, 8)).fit(wins, [PAIRS] * DATA_SETS)
    return evidence.inclusion_bf_["effect"].log


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Both parts."""

    coins: _Coins
    alarms: Mapping[_Scenario, _Alarms]

    @property
    def gap(self) -> float:
        """Orders of magnitude by which pooling overstates the evidence."""
        return self.coins.pooled.bf.log10 - self.coins.tests.inclusion_bf_["effect"].log10


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run both parts."""
    coins = _coins(progress)
    alarms = run_each(
        lambda scenario: _simulate(scenario, seeds, REPETITIONS[budget]),
        SCENARIOS,
        part_of(progress, 0.3, 1.0),
        name=lambda scenario: f"simulated comparisons: {scenario.name}",
    )
    return Results(coins, alarms)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "pooled",
    "All flips pooled, a coin lands on the side it started from",
    paper="BF = 1.71e17",
    reproduced=within("log10_bf", 0.01, math.log10(1.71e17), "log10 BF"),
    refuted=below("log10_bf", 2, "log10 BF"),
    without_seeds="no seeds enter: the data are the paper's.",
)
def pooled(results: Results) -> Measured:
    factor = results.coins.pooled.bf
    return Measured(f"BF = {_short(factor.log10)}", {"log10_bf": factor.log10})


@claim(
    "same-side",
    "So it does when people may differ (averaged over hierarchical models)",
    paper="BF = 2359",
    reproduced=within("bf", 0.1, 2359, "BF", relative=True),
    refuted=below("bf", 100, "BF"),
    without_seeds="no seeds enter: the data are the paper's.",
)
def same_side(results: Results) -> Measured:
    factor = results.coins.tests.inclusion_bf_["effect"].value
    return Measured(f"BF = {factor:.1f}", {"bf": factor})


@claim(
    "heads",
    "Coins do not prefer heads or tails",
    paper="BF = 0.182 for a preference",
    reproduced=between("bf", 0.14, 0.22, "BF"),
    refuted=above("bf", 1, "BF"),
    without_seeds="no seeds enter: the data are the paper's.",
)
def heads(results: Results) -> Measured:
    factor = results.coins.tests.inclusion_bf_["bias"].value
    return Measured(f"BF = {factor:.4f}", {"bf": factor})


@claim(
    "people",
    "People differ in how often their coins land on the same side",
    paper="BF = 3.10e24",
    reproduced=within("log10_bf", 0.1, 24.49, "log10 BF"),
    refuted=below("log10_bf", 1, "log10 BF"),
    without_seeds="no seeds enter: the data are the paper's.",
)
def people(results: Results) -> Measured:
    factor = results.coins.tests.inclusion_bf_["spread"]
    return Measured(f"BF = {_short(factor.log10)}", {"log10_bf": factor.log10})


@claim(
    "estimate",
    "The probability of the same side is 0.51",
    paper="0.5098 [0.5050, 0.5147], between people 0.0156",
    reproduced=within("mean", 0.0003, 0.5098)
    & within("low", 0.0003, 0.5050)
    & within("high", 0.0003, 0.5147)
    & within("heterogeneity", 0.0005, 0.0156),
    refuted=at_most("low", 0.5) & at_least("high", 0.5),
    without_seeds="no seeds enter: the data are the paper's.",
)
def estimate(results: Results) -> Measured:
    theta, heterogeneity = (results.coins.estimates.estimate_[name] for name in ("effect", "heterogeneity"))
    numbers = {"mean": theta.mean, "low": theta.low, "high": theta.high, "heterogeneity": heterogeneity.mean}
    words = f"{theta.mean:.4f} [{theta.low:.4f}, {theta.high:.4f}], between people {heterogeneity.mean:.4f}"
    return Measured(words, numbers)


@claim(
    "outliers",
    "The result does not hang on the four people with the largest shares",
    paper="BF = 786.8 without them",
    reproduced=within("bf", 0.1, 786.8, "BF", relative=True),
    refuted=below("bf", 100, "BF"),
    without_seeds="no seeds enter: the data are the paper's.",
)
def outliers(results: Results) -> Measured:
    without = results.coins.without_four
    factor = without.inclusion_bf_["effect"].value
    return Measured(f"BF = {factor:.1f} with {len(without.groups_)} people", {"bf": factor})


@claim(
    "coins",
    "Coins do not differ from each other",
    paper="BF = 0.178 for a difference",
    protocol="needs the table of people by coins",
)
def coins_differ(results: Results) -> Measured:
    return Measured("not measured: the table of people by coins is in no package")


@claim(
    "seeds",
    "Our use of it: comparing two recipes over data sets and seeds, BF > 10 is rarely a false alarm",
    paper="at most 1 in 10 for any calibrated Bayes factor; the goal here is 2 %",
    protocol="Fraction of false alarms and its interval, the larger of those with equal and with varied data sets.",
    # A fraction of 0 in ten comparisons says little: the interval has to be short as well. Above 0.1 is beyond what any
    # calibrated Bayes factor allows.
    reproduced=at_most("worst_share", 0.02, "fraction") & at_most("upper_end", 0.05),
    refuted=above("lower_end", 0.1),
    without_seeds="the ends of the exact interval over comparisons are judged.",
)
def recipes(results: Results) -> Measured:
    alarms = {"equal": results.alarms[EQUAL], "varied": results.alarms[VARIED]}
    parts = [
        f"{a.hierarchical / a.total:.1%} [{a.interval[0]:.1%}, {a.interval[1]:.1%}] with {words} data sets"
        for words, a in alarms.items()
    ]
    numbers = {
        "worst_share": max(a.hierarchical / a.total for a in alarms.values()),
        "lower_end": max(a.interval[0] for a in alarms.values()),
        "upper_end": max(a.interval[1] for a in alarms.values()),
        "comparisons": alarms["equal"].total,
    }
    return Measured(f"false alarms {' and '.join(parts)}, {numbers['comparisons']} comparisons each", numbers)


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    coins = results.coins
    summary = (
        f"48 people, 350,757 flips: with people allowed to differ, the Bayes factor for a same-side bias is "
        f"{coins.tests.inclusion_bf_['effect'].value:,.0f} and the probability of the same side "
        f"{coins.estimates.estimate_['effect']}. Pooling all flips as if they came from one person overstates the "
        f"evidence by {results.gap:.0f} orders of magnitude: the trap of pooling seeds of different data sets."
    )
    figure = _factor_figure(coins)
    figures = [figure, shrinkage_figure(coins.estimates)]
    tables = [_model_table(coins), _companions(coins)]
    alarms = _alarm_figure(results.alarms), _alarm_table(results.alarms)
    return Presentation(summary, [_lesson_text(coins, results.gap), *figures, *tables, *alarms], figure.figure)


def _lesson_text(coins: _Coins, gap: float) -> Text:
    bf = coins.tests.inclusion_bf_
    return Text(
        f"A binomial test of all flips gives p = {coins.naive_p:.2g}, and the pooled Bayes factor is "
        f"{_short(coins.pooled.bf.log10)}. Both treat 350,757 flips as independent draws from one probability. But "
        f"people differ (Bayes factor {_short(bf['spread'].log10)}), so there are 48 draws of a person, not 350,757 "
        f"of a flip, and the evidence for an *average* effect is a Bayes factor of {bf['effect'].value:,.0f}, "
        f"{gap:.0f} orders of magnitude less. The same holds for runs: twenty seeds on five data sets are five draws "
        "of a data set.",
        title="Why pooling misleads",
    )


def _factor_figure(coins: _Coins) -> Figure:
    bf, without = coins.tests.inclusion_bf_, coins.without_four.inclusion_bf_
    factors = {
        "same side, pooled": coins.pooled.bf.log10,
        "same side": bf["effect"].log10,
        "same side, 44 people": without["effect"].log10,
        "heads": bf["bias"].log10,
        "people differ": bf["spread"].log10,
    }
    words, colours = [f"{value:.1f}" for value in factors.values()], ["#d55e00", *["#0072b2"] * 4]
    bar = go.Bar(x=list(factors.values()), y=list(factors), orientation="h", text=words, marker_color=colours)
    figure = go.Figure(bar).update_layout(xaxis_title="log10 Bayes factor", yaxis_autorange="reversed")
    alt = "Bars of log10 Bayes factors: " + ", ".join(f"{name} {value:.1f}" for name, value in factors.items())
    caption = "Above 0 speaks for the effect, below 0 against it. Pooled: all flips from one source."
    return Figure("Evidence, in powers of ten", figure, alt, caption)


def _model_table(coins: _Coins) -> Table:
    tests = coins.tests
    names = {"effect": "same side", "bias": "heads", "spread": "people differ", "null": "nothing"}
    rows = [
        [" + ".join(names[f] for f in model.split("+")), log, tests.posterior_model_probs_[model]]
        for model, log in sorted(tests.log_marginal_.items(), key=lambda item: -item[1])
    ]
    columns = ["model", "log marginal likelihood", "posterior probability"]
    caption = "Binomial coefficients are left out. Each model had probability 1/8 before."
    return Table("Eight models", columns, rows, caption)


def _companions(coins: _Coins) -> Table:
    effects, bf = coins.random_effects, coins.without_four.inclusion_bf_
    low, high = clopper_pearson(coins.pooled.successes, coins.pooled.trials)
    rows: list[list[object]] = [
        ["binomial test, pooled: p", coins.naive_p],
        ["Clopper-Pearson, pooled", f"[{low:.4f}, {high:.4f}]"],
        ["random effects: mean", effects.mean],
        ["random effects: interval", f"[{effects.interval[0]:.4f}, {effects.interval[1]:.4f}]"],
        ["random effects: sd between people", effects.tau],
        ["Cochran's Q on 47 degrees of freedom", effects.q],
        ["44 people: log10 BF that people differ", bf["spread"].log10],
        ["44 people: BF heads", bf["bias"].value],
        ["physics: same side at 88 degrees", same_side_probability(88.0)],
    ]
    return Table("Companions", ["quantity", "value"], rows, "Frequentist answers to the same questions.")


def _alarm_figure(alarms: Mapping[_Scenario, _Alarms]) -> Figure:
    names = [scenario.name for scenario in alarms]
    methods = {
        "binomial test, p < 0.05": ("#e69f00", [a.binomial / a.total for a in alarms.values()]),
        "pooled BF > 10": ("#d55e00", [a.pooled / a.total for a in alarms.values()]),
        "hierarchical BF > 10": ("#0072b2", [a.hierarchical / a.total for a in alarms.values()]),
    }
    bars = [go.Bar(name=m, x=names, y=shares, marker_color=colour) for m, (colour, shares) in methods.items()]
    figure = go.Figure(bars)
    figure.update_layout(barmode="group", yaxis_title="share that calls for an effect", yaxis_range=[0, 1])
    alt = "; ".join(
        f"{m}: " + ", ".join(f"{n} {v:.0%}" for n, v in zip(names, shares, strict=True))
        for m, (_, shares) in methods.items()
    )
    caption = "The first two scenarios have no effect on average: every call is a false alarm."
    return Figure("Two recipes, five data sets, twenty pairs each", figure, alt, caption)


def _alarm_table(alarms: Mapping[_Scenario, _Alarms]) -> Table:
    rows = [
        [scenario.name, a.total, a.hierarchical / a.total, *a.interval, a.pooled / a.total, a.binomial / a.total]
        for scenario, a in alarms.items()
    ]
    columns = ["truth", "comparisons", "hierarchical BF > 10", "low", "high", "pooled BF > 10", "binomial p < 0.05"]
    return Table("How often an effect is called", columns, rows, "Shares, with Clopper-Pearson intervals of the first.")


def _short(log10: float) -> str:
    exponent = math.floor(log10)
    return f"{10.0 ** (log10 - exponent):.2f}e{exponent}"


STUDY = Study(
    slug="fair-coins",
    title="Do fair coins land on the side they started from?",
    room="evidence",
    paper=Paper(
        "Fair coins tend to land on the same side they started: Evidence from 350,757 flips",
        "Bartoš et al.",
        2023,
        "2310.04153",
    ),
    seeds={"tiny": 1, "default": 5, "full": 10},
    experiment=experiment,
    claims=(pooled, same_side, heads, people, estimate, outliers, coins_differ, recipes),
    present=present,
)

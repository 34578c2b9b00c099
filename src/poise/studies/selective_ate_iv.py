"""Is an average effect found with an instrument that affects the outcome directly, and are good learners chosen for it.

Part one enumerates a small population: which nuisances have to be right. Part two simulates rows with unmeasured
confounding and a direct effect of the instrument, and compares with two-stage least squares. Part three chooses between
learners. Part four takes 9,275 households, with eligibility for a pension plan as the instrument of taking part in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from poise.causal import AverageEffect, Candidate, InvalidIVATE, InvalidIVAverage, SelectiveEstimator
from poise.causal.invalid_iv.influence import SUFFICIENT_SETS, influence, relevance
from poise.data import load_wooldridge
from poise.report import Table, Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to
from poise.studies.kit.tables import seed_table

EFFECT = 1.0
NUISANCES = ("pi", "mu", "beta", "theta", "omega")
TREES = {"max_iter": 40, "max_leaf_nodes": 5, "learning_rate": 0.1, "early_stopping": False}


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of an experiment.

    Args:
        rows: of a simulation.
        choices: seeds for which learners are chosen.
        choice_rows: rows of these simulations.
        households: whether the pension data are analysed.
    """

    rows: int
    choices: int
    choice_rows: int
    households: bool


PLANS: Mapping[Budget, Plan] = {
    "tiny": Plan(1500, 1, 1000, False),
    "default": Plan(5000, 10, 2000, True),
    "full": Plan(5000, 30, 5000, True),
}


def learners(name: str) -> tuple[Any, Any]:
    """Return a regressor and a classifier.

    Args:
        name: ``"linear"``, ``"quadratic"``, ``"boosted trees"``, ``"forest"`` or ``"broken"``, which learns a constant.
    """
    if name == "linear":
        return LinearRegression(), make_pipeline(StandardScaler(), LogisticRegression())
    if name == "quadratic":
        squares = make_pipeline(StandardScaler(), PolynomialFeatures(2, include_bias=False))
        return make_pipeline(squares, LinearRegression()), make_pipeline(squares, LogisticRegression(max_iter=500))
    if name == "boosted trees":
        return HistGradientBoostingRegressor(**TREES), HistGradientBoostingClassifier(**TREES)
    if name == "forest":
        size = {"n_estimators": 60, "min_samples_leaf": 20}
        return RandomForestRegressor(**size), RandomForestClassifier(**size)
    return DummyRegressor(), DummyClassifier(strategy="prior")


# --- simulated rows ----------------------------------------------------------------------------------------------


def simulated(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return covariates, outcome, treatment and instrument; the average effect is 1.

    The instrument has a direct effect of 0.7 on the outcome, and an unmeasured sign confounds treatment and outcome.
    """
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, (rows, 3))
    z = (generator.random(rows) < 1 / (1 + np.exp(-0.2 - 0.6 * x[:, 0]))).astype(int)
    sign = generator.choice([-1, 1], rows)
    p = np.where(z == 1, 0.5 + 0.1 * x[:, 1], 0.1 + 0.03 * x[:, 1]) + 0.07 * sign
    a = (generator.random(rows) < p).astype(int)
    mean = 0.5 + x[:, 0] + x[:, 2] ** 2 + 0.7 * z * (1 + 0.3 * x[:, 0]) + (EFFECT + x[:, 0]) * a + 1.5 * sign
    return x, mean + generator.standard_normal(rows), a, z


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Averages by estimator for one seed, and whether the intervals cover."""

    estimates: Mapping[str, float]
    covered: Mapping[str, bool]


def _simulate(rows: int, seed: int) -> _Run:
    x, y, a, z = simulated(rows, seed)
    estimates, covered = {}, {}
    for name in ("linear", "boosted trees"):
        regressor, classifier = learners(name)
        fitted = InvalidIVATE(regressor, classifier, classifier, random_state=seed).fit(x, y, treatment=a, instrument=z)
        low, high = fitted.conf_int()
        estimates[name], covered[name] = fitted.ate_, low <= EFFECT <= high
    simple = {row[0]: row[1] for row in _rows(fitted, "Estimates")}
    estimates |= {name: simple[name] for name in ("least squares", "two-stage least squares")}
    return _Run(estimates, covered)


def _rows(fitted: InvalidIVATE, title: str) -> list[list[Any]]:
    report = fitted.diagnostics()
    return next([list(row) for row in b.rows] for b in report.blocks if isinstance(b, Table) and b.title == title)


def _choice(rows: int, seed: int) -> tuple[float, np.ndarray]:
    """Return the error of the chosen combination, and the errors of all combinations in a fixed order."""
    x, y, a, z = simulated(rows, 50 + seed)
    candidates = [Candidate(n, *learners(n)) for n in ("linear", "quadratic", "boosted trees")]
    broken = Candidate("broken", *learners("broken"))
    given = {name: [*candidates, broken] if name == "pi" else candidates for name in NUISANCES}
    # Without screening, so that all seeds have the same combinations.
    chosen = SelectiveEstimator(InvalidIVAverage(), given, screen=False, random_state=seed)
    chosen.fit(x, y, treatment=a, instrument=z)
    names = list(zip(*(chosen.table_[name] for name in NUISANCES), strict=True))
    errors = dict(zip(names, np.abs(np.array(chosen.table_["estimate"]) - EFFECT), strict=True))
    return abs(chosen.ate_ - EFFECT), np.array([errors[key] for key in sorted(errors)])


# --- a small population ------------------------------------------------------------------------------------------


def right_sets() -> list[tuple[frozenset[str], float]]:
    """Return for every set of right nuisances (the others wrong) the error of the mean of the influence function."""
    effect, share, pi = np.array([1.0, -0.5]), np.array([0.4, 0.6]), np.array([0.3, 0.6])
    cells = []
    for i, j, u, k in itertools.product((0, 1), repeat=4):
        treated = (0.55 - 0.1 * i if j else 0.15 + 0.05 * i) + 0.08 * (2 * u - 1)
        mass = share[i] * (pi[i] if j else 1 - pi[i]) * 0.5 * (treated if k else 1 - treated)
        cells.append((i, j, k, 0.2 + i + 0.7 * j * (1 + i) + effect[i] * k + 1.5 * (2 * u - 1), mass))
    table = np.array(cells)
    x, z, a, y, p = table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2], table[:, 3], table[:, 4]

    def by_cell(values: np.ndarray) -> np.ndarray:
        rows = [[(x == i) & (z == j) for j in (0, 1)] for i in (0, 1)]
        return np.array([[values[r] @ p[r] / p[r].sum() for r in pair] for pair in rows])

    mu = by_cell(a)
    true = {
        "pi": pi,
        "mu": mu,
        "beta": effect,
        "theta": by_cell(y - effect[x] * a),
        "omega": by_cell((a - mu[x, z]) * (y - effect[x] * a))[:, 0],
    }
    wrong = {
        "pi": np.array([0.5, 0.4]),
        "mu": np.array([[0.3, 0.45], [0.25, 0.6]]),
        "beta": np.array([0.4, 0.9]),
        "theta": np.array([[0.1, 1.0], [-0.4, 0.3]]),
        "omega": np.array([0.3, -0.2]),
    }
    found = []
    for size in range(len(NUISANCES) + 1):
        for names in itertools.combinations(NUISANCES, size):
            v = {name: true[name] if name in names else wrong[name] for name in NUISANCES}
            d = relevance(v["mu"][x, 1], v["mu"][x, 0])
            phi = influence(y, a, z, v["pi"][x], v["mu"][x, z], d, v["beta"][x], v["theta"][x, z], v["omega"][x])
            found.append((frozenset(names), float(phi @ p - effect @ share)))
    return found


# --- the households ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Households:
    """Average effects of taking part on net financial wealth, in thousands of dollars."""

    estimates: Mapping[str, AverageEffect]
    clipped: Mapping[str, float]
    one_sided: bool


def households() -> Households:
    """Estimate the effect of taking part in a pension plan on wealth, with eligibility as the instrument."""
    table = load_wooldridge("401ksubs")
    x = table[["inc", "age", "marr", "fsize", "male"]].to_numpy(float)
    squares = np.column_stack([x, x[:, 0] ** 2, x[:, 1] ** 2])
    y, a, z = (table[name].to_numpy(float) for name in ("nettfa", "p401k", "e401k"))
    estimates, clipped, one_sided = {}, {}, False
    for name in ("linear", "boosted trees", "forest"):
        regressor, classifier = learners(name)
        fitted = InvalidIVATE(regressor, classifier, classifier, random_state=0).fit(x, y, treatment=a, instrument=z)
        estimates[name] = fitted._average(1)
        diagnostics = {row[0]: row[1] for row in _rows(fitted, "Diagnostics")}
        clipped[name] = max(float(v) for k, v in diagnostics.items() if k.startswith("part of rows clipped"))
        one_sided = "Nobody is treated without the instrument" in fitted.diagnostics().summary
    regressor, classifier = learners("linear")
    fitted = InvalidIVATE(regressor, classifier, classifier, random_state=0)
    fitted.fit(squares, y, treatment=a, instrument=z)
    for row in _rows(fitted, "Estimates")[1:]:
        estimates[row[0]] = AverageEffect(row[1], row[2])
    return Households(estimates, clipped, one_sided)


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """All four parts."""

    sets: Sequence[tuple[frozenset[str], float]]
    runs: Sequence[_Run]
    chosen: np.ndarray
    combinations: np.ndarray
    households: Households | None

    def estimates(self, name: str) -> np.ndarray:
        """Estimates of one estimator by seed."""
        return np.array([run.estimates[name] for run in self.runs])


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run all parts."""
    plan = PLANS[budget]
    runs = run_each(lambda seed: _simulate(plan.rows, seed), seeds, part_of(progress, 0, 0.7))
    choices = run_each(
        lambda seed: _choice(plan.choice_rows, seed), seeds[: plan.choices], part_of(progress, 0.7, 0.95)
    )
    progress(0.95, "households")
    return Results(
        right_sets(),
        list(runs.values()),
        np.array([choice[0] for choice in choices.values()]),
        np.stack([choice[1] for choice in choices.values()]),
        households() if plan.households else None,
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "multiply-robust",
    "The mean of the influence function is right if one of four sets of nuisances is, and for no other set",
    paper="a theorem; the four sets were derived here",
    protocol="All 32 sets of right nuisances in a small population, by enumeration: how many contradict this.",
    reproduced=equal_to("contradictions", 0),
    without_seeds="a theorem: one contradiction would refute it.",
)
def multiply_robust(results: Results) -> Measured:
    wrong = sum((abs(error) < 1e-10) != any(own <= right for own in SUFFICIENT_SETS) for right, error in results.sets)
    return Measured(f"{wrong} of {len(results.sets)} contradict it", {"contradictions": wrong})


@claim(
    "invalid-instrument",
    "The average effect is found although the instrument affects the outcome directly",
    paper="its simulation is not available",
    protocol="Mean error over seeds with linear learners and with boosted trees, fraction of 95 % intervals that cover "
    "the effect of 1 (the lower of the two), and mean error of two-stage least squares.",
    reproduced=at_most("linear", 0.12, "error, linear")
    & at_most("trees", 0.12, "error, boosted trees")
    & at_least("coverage", 25 / 30)
    & at_least("two_stage", 1, "error, two-stage"),
    refuted=above("linear", 0.2, "error, linear")
    | above("trees", 0.2, "error, boosted trees")
    | below("coverage", 22 / 30),
    without_seeds="the draws are the sample: errors are of their mean, coverage is their fraction.",
)
def invalid_instrument(results: Results) -> Measured:
    linear, trees, two_stage = (
        abs(float(results.estimates(name).mean()) - EFFECT)
        for name in ("linear", "boosted trees", "two-stage least squares")
    )
    coverage = min(float(np.mean([run.covered[name] for run in results.runs])) for name in ("linear", "boosted trees"))
    words = (
        f"error {linear:.3f} (linear) and {trees:.3f} (boosted trees), coverage {coverage:.0%} of {len(results.runs)}; "
        f"two-stage least squares is off by {two_stage:.2f}"
    )
    return Measured(words, {"linear": linear, "trees": trees, "coverage": coverage, "two_stage": two_stage})


@claim(
    "selection",
    "Choosing learners by perturbation is nearly as good as the best fixed choice",
    paper="an oracle property; no figure available",
    protocol="Four learners for the instrument (one of them broken), three for the others: mean absolute error of the "
    "chosen combination over that of the combination that is best over these seeds, and over the mean of all.",
    reproduced=at_most("over_best", 1.2),
    refuted=at_least("over_mean", 1),
    without_seeds="a ratio of errors over all draws is judged.",
)
def selection(results: Results) -> Measured:
    chosen, fixed = float(results.chosen.mean()), results.combinations.mean(0)
    numbers = {"over_best": chosen / float(fixed.min()), "over_mean": chosen / float(fixed.mean())}
    words = (
        f"error {chosen:.3f}; the best of {len(fixed)} fixed combinations {fixed.min():.3f}, their mean "
        f"{fixed.mean():.3f}, the worst {fixed.max():.3f}"
    )
    return Measured(words, numbers)


@claim(
    "pension-plans",
    "On taking part in pension plans all learners that pass screening agree with two-stage least squares",
    paper="an illustration; its figures are not available",
    protocol="Largest difference from two-stage least squares (with squares of income and age) in standard errors of "
    "the difference as if independent, over learners with at most 5 % of rows clipped, and whether one-sided "
    "non-compliance is reported (1 or 0).",
    reproduced=at_most("distance", 2) & equal_to("one_sided", 1),
    refuted=above("distance", 4),
    without_seeds="nothing is drawn: the data are real, distances are in standard errors.",
)
def pension_plans(results: Results) -> Measured:
    if results.households is None:
        return Measured("not measured at this budget")
    found = results.households
    two_stage = found.estimates["two-stage least squares"]
    passed = [name for name, part in found.clipped.items() if part <= 0.05]
    distances = [
        abs(found.estimates[name].estimate - two_stage.estimate)
        / float(np.hypot(found.estimates[name].stderr, two_stage.stderr))
        for name in passed
    ]
    words = ", ".join(f"{name} {found.estimates[name].estimate:.1f}" for name in passed)
    return Measured(
        f"in $1,000: {words}; two-stage least squares {two_stage.estimate:.1f}",
        {"distance": max(distances), "one_sided": float(found.one_sided)},
    )


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put tables, picture and summary together."""
    names = list(results.runs[0].estimates)
    summary = f"With an instrument that affects the outcome directly: {claims['invalid-instrument'].text}."
    simulated_table = seed_table(
        "Average effect in the simulation (1)", ["estimator"], {name: results.estimates(name) for name in names}
    )
    sets = Table(
        "Which nuisances have to be right",
        ["right", "error of the mean"],
        [[", ".join(name for name in NUISANCES if name in right) or "none", error] for right, error in results.sets],
    )
    lesson = Text(
        "Two-stage least squares takes the direct effect of the instrument for an effect of the treatment. What "
        "identifies the effect here is that the instrument changes the variance of the treatment, and that unmeasured "
        "confounding adds the same to both of its values. Where nobody is treated without the instrument, as with "
        "pension plans, that confounding has to be zero: the estimate compares those who take part with those who do "
        "not.",
        title="Where the information comes from",
    )
    blocks: list[Text | Table] = [lesson, simulated_table, sets]
    if results.households is not None:
        rows = [[name, a.estimate, a.stderr, *a.interval] for name, a in results.households.estimates.items()]
        columns = ["estimator", "effect, $1,000", "standard error", "low", "high"]
        blocks.append(Table("Taking part in a pension plan", columns, rows))
    boxes = [go.Box(y=results.estimates(name), name=name) for name in names]
    picture = go.Figure(boxes).update_layout(yaxis_title="average effect (truth 1)", showlegend=False)
    return Presentation(summary, blocks, picture)


STUDY = Study(
    slug="selective-ate-iv",
    title="Is an average effect found with an instrument that affects the outcome directly?",
    room="causal",
    paper=Paper(
        "Selective Machine Learning of the Average Treatment Effect with an Invalid Instrumental Variable",
        "Sun, Cui and Tchetgen Tchetgen",
        2022,
        "1907.11882",
    ),
    seeds={"tiny": 2, "default": 30, "full": 100},
    experiment=experiment,
    claims=(multiply_robust, invalid_instrument, selection, pension_plans),
    present=present,
)

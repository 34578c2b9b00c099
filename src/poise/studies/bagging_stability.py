"""Study of "Bagging Provides Assumption-free Stability".

Fully grown trees and averages of them over bags, on two data sets: how much a prediction changes when one training row
is left out, beside what is guaranteed for any data and any learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.metrics import r2_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from poise.report import Table, Text, line_chart
from poise.sensitivity import (
    StableBaggingClassifier,
    StableBaggingRegressor,
    guaranteed_change,
    guaranteed_fraction,
    leave_one_out_stability,
)
from poise.sensitivity.resampling import Bootstrap, Subsample
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid
from poise.studies.kit.rules import above, at_least, at_most, below
from poise.studies.kit.words import listed

ROWS, TEST = 300, 40
EPS = (0.02, 0.05, 0.1, 0.2, 0.3)
DIABETES, CANCER = "diabetes", "breast cancer"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    bags: int = 1000
    rows: int = ROWS
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {"tiny": Plan(60, 60, n_jobs=1), "default": Plan(), "full": Plan(10_000)}


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One data set and seed; changes are in units of the range of the bag's outputs.

    Args:
        base: fraction of the rows whose absence changes the tree by more than each eps, by test row.
        bag: the same of the average.
        base_squares: sum of squared changes of the tree, by test row.
        bag_squares: the same of the average.
        noise: part of it that finitely many bags add.
        variance_bound: bound of the sum from the variance of the members, by test row.
        base_score: R^2 or accuracy of the tree.
        bag_score: of the average.
    """

    base: Float[np.ndarray, "eps test"]
    bag: Float[np.ndarray, "eps test"]
    base_squares: Float[np.ndarray, " test"]
    bag_squares: Float[np.ndarray, " test"]
    noise: Float[np.ndarray, " test"]
    variance_bound: Float[np.ndarray, " test"]
    base_score: float
    bag_score: float


def one_run(name: str, plan: Plan, seed: int) -> Outcome:
    """Train a tree, the tree without each row in turn, and the average over bags of half of the rows."""
    X, y = (load_diabetes if name == DIABETES else load_breast_cancer)(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = order[: plan.rows], order[plan.rows : plan.rows + TEST]
    X_test, y_test, X, y = X[test], y[test], X[train], y[train]
    kind = StableBaggingRegressor if name == DIABETES else StableBaggingClassifier
    bag = kind(n_estimators=plan.bags, random_state=seed).fit(X, y)
    found = leave_one_out_stability(bag, X_test)
    unit = bag.output_range(X_test) if isinstance(bag, StableBaggingRegressor) else np.ones(TEST)

    def tree(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        kind = DecisionTreeRegressor if name == DIABETES else DecisionTreeClassifier
        return kind(random_state=seed).fit(X[rows], y[rows]).predict(X_test).astype(float)

    base = tree(np.arange(len(y)))
    change = np.abs(np.stack([tree(np.delete(np.arange(len(y)), i)) for i in range(len(y))]) - base) / unit
    score = r2_score if name == DIABETES else lambda truth, guess: float((truth == guess).mean())
    return Outcome(
        np.stack([(change > eps).mean(0) for eps in EPS]),
        np.stack([found.fraction_above(eps) for eps in EPS]),
        (change**2).sum(0),
        (found.change**2).sum(0),
        found.noise_floor,
        found.variance_bound,
        float(score(y_test, base)),
        float(score(y_test, bag.predict(X_test))),
    )


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Outcomes by data set, one a seed."""

    plan: Plan
    runs: Mapping[str, Sequence[Outcome]]

    @property
    def bound(self) -> Float[np.ndarray, " eps"]:
        """The fraction of the rows that can exceed each eps, for bags without end."""
        scheme = Subsample(self.plan.rows // 2)
        return np.array([guaranteed_fraction(scheme, self.plan.rows, eps) for eps in EPS])

    def worst(self, name: str, model: str) -> Float[np.ndarray, "seeds eps"]:
        """Return the largest fraction over the test rows, by seed and eps."""
        return np.stack([getattr(run, model).max(1) for run in self.runs[name]])


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run every data set with every seed."""
    plan = PLANS[budget]
    return Results(
        plan, run_grid(lambda name, seed: one_run(name, plan, seed), (DIABETES, CANCER), seeds, progress, plan.n_jobs)
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "tree-unstable",
    "A single tree is not stable to this degree.",
    paper="base learners cross the guarantee; figures",
    protocol="Largest fraction over test rows of training rows whose absence changes a tree by more than 0.1 and "
    "0.2, over the fraction that is guaranteed for the average; the smaller ratio of both, diabetes.",
    reproduced=above("ratio", 1),
    refuted=below("ratio", 0.5),
    over_seeds=["ratio"],
)
def tree_unstable(results: Results) -> Measured:
    ratio = (results.worst(DIABETES, "base") / results.bound)[:, [EPS.index(0.1), EPS.index(0.2)]].min(1)
    words = f"a tree exceeds the guarantee by a factor of {ratio.mean():.1f} (by seed {listed(ratio, '.1f')})"
    return Measured(words, {"ratio": ratio.mean()}, {"ratio": ratio})


@claim(
    "bag-stable",
    "The average over bags is within its guarantee.",
    paper="theorem; figures",
    protocol="Largest fraction over data sets, seeds, test rows and eps from 0.02 to 0.3 of training rows whose "
    "absence changes the average by more than eps, over the guaranteed fraction. Every seed counts: it is a theorem.",
    reproduced=at_most("ratio", 1),
    without_seeds="a theorem, which holds for every seed: one violation would refute it.",
)
def bag_stable(results: Results) -> Measured:
    ratios = {name: (results.worst(name, "bag") / results.bound).max() for name in results.runs}
    words = "; ".join(f"{name}: at most {ratio:.2f} of the guaranteed fraction" for name, ratio in ratios.items())
    return Measured(words, {"ratio": max(ratios.values())})


@claim(
    "squares",
    "The sum of squared changes of the average is within its bound, and that of the tree is not.",
    paper="theorem",
    protocol="Largest over all of: the average's sum less the noise of finitely many bags, over its variance bound. "
    "And the largest sum of a tree over the bound for any outputs, diabetes.",
    reproduced=at_most("bag", 1) & above("tree", 1),
    refuted=above("bag", 1.1),
    without_seeds="a theorem, which holds for every seed: the largest ratio of all is judged.",
)
def squares(results: Results) -> Measured:
    bag = max(
        float(((run.bag_squares - run.noise) / run.variance_bound)[run.variance_bound > 1e-12].max())
        for runs in results.runs.values()
        for run in runs
    )
    scheme, n = Subsample(results.plan.rows // 2), results.plan.rows
    bound = guaranteed_change(scheme, n, 0.5) ** 2 * n * 0.5  # C / 4
    tree = min(float(run.base_squares.max()) for run in results.runs[DIABETES]) / bound
    words = (
        f"the average's is at most {bag:.2f} of its bound, the tree's reaches {tree:.0f} times the bound in every seed"
    )
    return Measured(words, {"bag": bag, "tree": tree})


@claim(
    "accuracy",
    "Stability costs no accuracy.",
    paper="not reported",
    protocol="Score of the average less that of the tree: R^2 on diabetes, accuracy on breast cancer; the smaller "
    "mean over seeds of both.",
    reproduced=at_least("gain", 0),
    refuted=below("gain", -0.02),
    without_seeds="the smaller of two means over seeds is judged.",
)
def accuracy(results: Results) -> Measured:
    gains = {name: float(np.mean([r.bag_score - r.base_score for r in runs])) for name, runs in results.runs.items()}
    words = "; ".join(
        f"{name} {np.mean([r.base_score for r in runs]):.3f} to {np.mean([r.bag_score for r in runs]):.3f}"
        for name, runs in results.runs.items()
    )
    return Measured(words, {"gain": min(gains.values())})


@claim(
    "ten-bags",
    "Ten bootstrap bags, scikit-learn's default, guarantee something.",
    paper="not tested: an anchor of ours",
    protocol="Change that at most a tenth of the rows can exceed with ten bootstrap bags, in units of the range. No "
    "seeds enter.",
    reproduced=below("change", 0.5),
    refuted=at_least("change", 1),
    without_seeds="nothing is drawn.",
)
def ten_bags(results: Results) -> Measured:
    n = results.plan.rows
    change = guaranteed_change(Bootstrap(n), n, 0.1, 10)
    many = guaranteed_change(Subsample(n // 2), n, 0.1, results.plan.bags)
    words = (
        f"ten bags guarantee a change of at most {change:.2f} of the range, {results.plan.bags} half bags {many:.2f}"
    )
    return Measured(words, {"change": change})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, table and summary together."""
    eps = np.array(EPS)
    lines = {"guaranteed, any data": (eps, results.bound)}
    for name in results.runs:
        lines[f"tree, {name}"] = (eps, results.worst(name, "base").mean(0))
        lines[f"average, {name}"] = (eps, results.worst(name, "bag").mean(0))
    picture = line_chart("Rows that matter", lines, "change, in units of the range", "fraction of the training rows")
    rows = [
        [
            name,
            e,
            *(float(results.worst(name, model)[:, i].mean()) for model in ("base", "bag")),
            float(results.bound[i]),
        ]
        for name in results.runs
        for i, e in enumerate(EPS)
    ]
    caption = "Fraction of training rows whose absence changes the worst test row by more than eps, mean over seeds."
    return Presentation(
        f"Tree: {claims['tree-unstable'].text}. Average: {claims['bag-stable'].text}.",
        [
            picture,
            Table("Leave-one-out changes", ["data", "eps", "tree", "average", "guaranteed"], rows, caption),
            _notes(results),
        ],
        picture.figure,
    )


def _notes(results: Results) -> Text:
    return Text(
        f"{results.plan.rows} training rows, {TEST} test rows, {results.plan.bags} bags of half of the rows, fully "
        "grown trees. Changes are in units of the range of the members' outputs at a test row (1 for probabilities). "
        "The average without a row is that of the bags that do not hold it: nothing is trained again. The guaranteed "
        "fractions are those of bags without end.",
        title="How to read it",
    )


STUDY = Study(
    slug="bagging-stability",
    title="Does averaging over bags keep predictions stable when a row is left out?",
    room="sensitivity",
    paper=Paper("Bagging Provides Assumption-free Stability", "Soloff, Barber and Willett", 2024, "2301.12600"),
    seeds={"tiny": 2, "default": 5, "full": 10},
    experiment=experiment,
    claims=(tree_unstable, bag_stable, squares, accuracy, ten_bags),
    present=present,
)

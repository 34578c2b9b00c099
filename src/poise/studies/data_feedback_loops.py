"""Study of "Data Feedback Loops: Model-driven Amplification of Dataset Biases".

Classifiers of census rows label a part of their own next training data for 25 rounds: linear discriminants, shallow
trees and full trees, with the likeliest label or a drawn one. The statistic is the fraction of women among the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from poise.data import load_adult
from poise.loops import FeedbackLoop, LoopTrace, consistent_calibration, feedback_bound, label_share
from poise.report import Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import part_of, run_each, run_grid
from poise.studies.kit.rules import above, at_least, at_most
from poise.studies.kit.words import listed

START, M, K, TEST = 1000, 50, 450, 3000
LDA, TREE, FULL_TREE, INCOME = "LDA", "tree of depth 4", "full tree", "logistic, income"
LIKELIEST, DRAWN = "argmax", "sample"
ARMS = ((LDA, LIKELIEST), (TREE, LIKELIEST), (FULL_TREE, LIKELIEST), (LDA, DRAWN), (TREE, DRAWN), (INCOME, LIKELIEST))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    rounds: int = 25
    fits: int = 5
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {"tiny": Plan(3, 1, n_jobs=1), "default": Plan(), "full": Plan(60, 20)}


def learner(name: str) -> BaseEstimator:
    """Return an unfitted classifier."""
    if name == LDA:
        return LinearDiscriminantAnalysis()
    if name == INCOME:
        return LogisticRegression(max_iter=500)
    return DecisionTreeClassifier(max_depth=4 if name == TREE else None)


@cache
def census(target: str) -> tuple[Float[np.ndarray, "rows 8"], NDArray[np.int64]]:
    """Return eight principal components of the census rows, and the target: women, or a high income."""
    import pandas as pd

    table = load_adult()
    label = (table["gender"].str.strip() == "Female") if target == "gender" else (table["loan"].str.strip() == ">50K")
    rest = table.drop(columns=["gender", "loan", "relationship"] if target == "gender" else ["loan"])
    columns = pd.get_dummies(rest).astype(float)
    spread = columns.std()
    scaled = ((columns - columns.mean()) / spread.where(spread > 0, 1.0)).to_numpy()
    return PCA(8, svd_solver="randomized", random_state=0).fit_transform(scaled), label.to_numpy().astype(int)


def rows_of(name: str) -> tuple[Float[np.ndarray, "rows 8"], NDArray[np.int64]]:
    """Return the rows and labels that a classifier is trained on."""
    return census("income" if name == INCOME else "gender")


def run_loop(arm: tuple[str, str], rounds: int, seed: int) -> LoopTrace:
    """Run one loop; its bias is the predicted fraction less the true one."""
    X, y = rows_of(arm[0])
    order = np.random.default_rng(seed).permutation(len(y))
    start, reserve, test = np.split(order, [START, len(order) - TEST])
    loop = FeedbackLoop(learner(arm[0]), M, K, rounds, arm[1], seed=seed)
    return loop.run(X[start], y[start], X[reserve], y[reserve], X[test], y[test], {
        "bias": lambda rows, labels: float(labels.mean() - y[test].mean())
    }, delta=0.0)  # fmt: skip


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Biases and accuracies by arm, seed and round; calibration errors by arm."""

    plan: Plan
    bias: Mapping[tuple[str, str], Float[np.ndarray, "seeds rounds"]]
    accuracy: Mapping[tuple[str, str], Float[np.ndarray, "seeds rounds"]]
    delta: Mapping[tuple[str, str], float]
    delta_unshifted: Mapping[tuple[str, str], float]

    def growth(self, arm: tuple[str, str]) -> NDArray[np.float64]:
        """Return by how much the absolute bias grows, by seed."""
        return np.abs(self.bias[arm][:, -1]) - np.abs(self.bias[arm][:, 0])

    def bound(self, arm: tuple[str, str]) -> NDArray[np.float64]:
        """Return the largest bias at each round by the calibration error on shifted training sets."""
        return feedback_bound(self.plan.rounds, START, M, K, self.delta[arm])


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run every loop, and measure the calibration of every learner."""
    plan = PLANS[budget]
    traces = run_grid(
        lambda arm, seed: run_loop(arm, plan.rounds, seed), ARMS, seeds, part_of(progress, 0, 0.8), plan.n_jobs,
        "{0[0]}, {0[1]}".format,
    )  # fmt: skip

    def calibration(arm: tuple[str, str]) -> tuple[float, float]:
        X, y = rows_of(arm[0])
        few = np.random.default_rng(seeds[0]).permutation(len(y))[: START + TEST]
        found = consistent_calibration(
            learner(arm[0]), X[few], y[few], label_share(1), n_train=START, n_fits=plan.fits, rule=arm[1], seed=seeds[0]
        )
        return found.delta, found.unshifted

    errors = run_each(calibration, list(ARMS), part_of(progress, 0.8, 1), plan.n_jobs, "calibration, {0[0]}".format)
    series = {
        name: {arm: np.stack([trace.statistics[name] for trace in runs]) for arm, runs in traces.items()}
        for name in ("bias", "accuracy")
    }
    return Results(
        plan,
        series["bias"],
        series["accuracy"],
        {arm: delta for arm, (delta, _) in errors.items()},
        {arm: unshifted for arm, (_, unshifted) in errors.items()},
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "amplification",
    "A classifier that takes the likeliest label amplifies its bias.",
    paper="underfit networks amplify up to the bound; figures",
    protocol="Growth of the absolute bias over 25 rounds, linear discriminant and tree of depth 4; the smaller of "
    "the two for each seed.",
    reproduced=at_least("growth", 0.02),
    refuted=at_most("growth", 0),
    over_seeds=["growth"],
)
def amplification(results: Results) -> Measured:
    arms = ((LDA, LIKELIEST), (TREE, LIKELIEST))
    growth = np.minimum(*(results.growth(arm) for arm in arms))
    words = "; ".join(f"{arm[0]} {_path(results, arm)}" for arm in arms)
    return Measured(
        f"bias {words} (growth by seed {listed(growth, '+.3f')})", {"growth": growth.mean()}, {"growth": growth}
    )


@claim(
    "sampling",
    "A classifier that draws its labels does not drift.",
    paper="sampling stays stable; figures",
    protocol="Absolute bias after the last round with drawn labels, linear discriminant and tree of depth 4; the "
    "larger of the two for each seed.",
    reproduced=at_most("bias", 0.03),
    refuted=above("bias", 0.05),
    over_seeds=["bias"],
)
def sampling(results: Results) -> Measured:
    arms = ((LDA, DRAWN), (TREE, DRAWN))
    bias = np.maximum(*(np.abs(results.bias[arm][:, -1]) for arm in arms))
    words = "; ".join(f"{arm[0]} {_path(results, arm)}" for arm in arms)
    return Measured(f"bias {words}, labels drawn", {"bias": bias.mean()}, {"bias": bias})


@claim(
    "interpolation",
    "A classifier that interpolates its training data does not drift, though it takes the likeliest label.",
    paper="networks trained to zero error stay stable; figures",
    protocol="Absolute bias after the last round with a fully grown tree.",
    reproduced=at_most("bias", 0.03),
    refuted=above("bias", 0.05),
    over_seeds=["bias"],
)
def interpolation(results: Results) -> Measured:
    bias = np.abs(results.bias[FULL_TREE, LIKELIEST][:, -1])
    return Measured(f"bias {_path(results, (FULL_TREE, LIKELIEST))}", {"bias": bias.mean()}, {"bias": bias})


@claim(
    "bound",
    "The bias stays below the bound that follows from the calibration error.",
    paper="theorem",
    protocol="Largest excess of the mean absolute bias over the bound at any round and arm, in standard errors over "
    "seeds; calibration error: the largest with up to 20 % of the labels changed.",
    reproduced=at_most("excess", 0),
    refuted=above("excess", 3),
    without_seeds="the standard error over seeds is the unit.",
)
def bound(results: Results) -> Measured:
    excess, where = -np.inf, ARMS[0]
    for arm in ARMS:
        bias = np.abs(results.bias[arm])
        error = np.maximum(bias.std(0, ddof=1) / np.sqrt(len(bias)), 1e-9)
        here = float(((bias.mean(0) - results.bound(arm)) / error).max())
        if here > excess:
            excess, where = here, arm
    words = f"largest excess {excess:+.1f} standard errors ({where[0]}, {where[1]})"
    return Measured(words, {"excess": excess})


@claim(
    "miscalibration",
    "Calibration on today's data is enough to forecast the drift.",
    paper="assumed: consistent calibration is estimated by the bias at round 0",
    protocol="Largest ratio over arms of the calibration error on shifted training sets to that on unshifted ones, "
    "arms with an unshifted error above 0.005.",
    reproduced=at_most("ratio", 1.2),
    refuted=at_least("ratio", 2),
    without_seeds="the largest ratio of several classifiers, each of some fits, is judged.",
)
def miscalibration(results: Results) -> Measured:
    ratios = {
        arm: results.delta[arm] / results.delta_unshifted[arm] for arm in ARMS if results.delta_unshifted[arm] > 0.005
    }
    if not ratios:
        return Measured("no learner has a calibration error above 0.005")
    worst = max(ratios, key=lambda arm: ratios[arm])
    words = (
        f"{worst[0]}, {worst[1]}: {results.delta_unshifted[worst]:.3f} on the data as they are, "
        f"{results.delta[worst]:.3f} with labels changed (ratio {ratios[worst]:.2f})"
    )
    return Measured(words, {"ratio": ratios[worst]})


@claim(
    "large-bias",
    "A large bias at round 0 means amplification.",
    paper="not tested: a counter-example of ours",
    protocol="Logistic regression of a high income: growth of its absolute bias over the rounds.",
    reproduced=at_least("growth", 0.02),
    over_seeds=["growth"],
)
def large_bias(results: Results) -> Measured:
    growth = results.growth((INCOME, LIKELIEST))
    return Measured(f"bias {_path(results, (INCOME, LIKELIEST))}", {"growth": growth.mean()}, {"growth": growth})


def _path(results: Results, arm: tuple[str, str]) -> str:
    start, end = results.bias[arm].mean(0)[[0, -1]]
    return f"from {start:+.3f} to {end:+.3f}"


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    rounds = np.arange(results.plan.rounds + 1)
    lines = {f"{name}, {rule}": (rounds, results.bias[name, rule].mean(0)) for name, rule in ARMS}
    picture = line_chart("Bias by round", lines, "round", "predicted less true fraction, mean over seeds")
    rows = []
    for arm in ARMS:
        bias, accuracy = np.abs(results.bias[arm]).mean(0), results.accuracy[arm].mean(0)
        rows.append([*arm, bias[0], bias[-1], results.bound(arm)[-1], accuracy[0], accuracy[-1]])
    columns = ["classifier", "label", "bias, start", "bias, end", "bound, end", "accuracy, start", "accuracy, end"]
    return Presentation(
        f"Likeliest label: {claims['amplification'].text}. Drawn label: {claims['sampling'].text}.",
        [picture, Table("Absolute bias, mean over seeds", columns, rows), _notes(results)],
        picture.figure,
    )


def _notes(results: Results) -> Text:
    return Text(
        f"Adult census, eight principal components of its columns; {START} rows at the start, then {M} true and {K} "
        f"own labels in each of {results.plan.rounds} rounds, {TEST} test rows. The label is gender, which the "
        "columns tell badly, so that the likeliest label is biased; the income arm is a counter-example: a large "
        "bias that a loop does not amplify, since its own labels lie on one side of the same boundary.",
        title="How to read it",
    )


STUDY = Study(
    slug="data-feedback-loops",
    title="Does a classifier that is trained on its own labels amplify a bias?",
    room="loops",
    paper=Paper(
        "Data Feedback Loops: Model-driven Amplification of Dataset Biases", "Taori and Hashimoto", 2023, "2209.03942"
    ),
    seeds={"tiny": 2, "default": 12, "full": 24},
    experiment=experiment,
    claims=(amplification, sampling, interpolation, bound, miscalibration, large_bias),
    present=present,
)

"""Study of "Toward Understanding Generative Data Augmentation".

Gaussian mixtures, where the gap and the test loss are known in closed form; and digits, where trees and logistic
regression are trained on real rows and on rows of a Gaussian for each class, beside rows with noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from poise.data import load_digits
from poise.loops import ClassConditionalGaussian, gaussian_mixture_theory
from poise.report import Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import above, at_least, at_most, below
from poise.studies.kit.words import listed

SIGMA, GAMMAS = 0.6, (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
HIGH, LOW = (50, 10), (1, 40)  # dimension, real rows
SIZES, RATIOS = (50, 100, 300, 900), (0.0, 1.0, 5.0, 20.0)
TREE, LOGISTIC = "tree", "logistic"
GENERATED, NOISE = "generated", "noise"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    repetitions: int = 400
    sizes: tuple[int, ...] = SIZES
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {"tiny": Plan(20, (50, 100), n_jobs=1), "default": Plan(), "full": Plan(4000)}

# --- Gaussian mixtures -------------------------------------------------------------------------------------------


def mixture_losses(setting: tuple[int, int], gamma: float, repetitions: int, seed: int) -> NDArray[np.float64]:
    """Return training and test loss (nats) of the mean classifier for each repetition, shape (repetitions, 2).

    The test loss is exact: that of the truth plus the squared error of the mean over 2 sigma^2.
    """
    d, m = setting
    rng = np.random.default_rng([seed, d, m])  # the same real rows for every gamma
    noise = np.random.default_rng([seed, d, m, int(gamma)])
    mu = np.full(d, d**-0.5)
    y = np.repeat([1.0, -1.0], m // 2)
    found = []
    for _ in range(repetitions):
        signed = mu + SIGMA * rng.standard_normal((m, d))  # y x
        parts = [signed]
        if gamma:
            classes = [signed[y > 0], signed[y < 0]]
            variance = np.mean([rows.var(0, ddof=1) for rows in classes], axis=0) + 1e-9
            for rows in classes:
                draws = noise.standard_normal((int(gamma * m) // 2, d))
                parts.append(rows.mean(0) + np.sqrt(variance) * draws)
        both = np.concatenate(parts)
        theta = both.mean(0)
        train = ((both - theta) ** 2).sum(1).mean() / (2 * SIGMA**2)
        found.append((train, (d * SIGMA**2 + ((theta - mu) ** 2).sum()) / (2 * SIGMA**2)))
    return np.array(found)


# --- digits ------------------------------------------------------------------------------------------------------


def digit_accuracies(size: int, seed: int) -> dict[tuple[str, str, float], float]:
    """Return test accuracies by learner, source of further rows and ratio, on one balanced draw of real rows."""
    digits = load_digits()
    X, y = digits.inputs.numpy() / 16, digits.targets.numpy()
    rng = np.random.default_rng([seed, size])
    order = rng.permutation(len(y))
    chosen = np.concatenate([order[y[order] == digit][: size // 10] for digit in range(10)])
    test = np.setdiff1d(order, chosen)
    real, labels = X[chosen], y[chosen]
    most = int(RATIOS[-1] * size)
    rows, row_labels = ClassConditionalGaussian(random_state=seed).fit(real, labels).sample(most)
    shuffled, pick = rng.permutation(most), rng.integers(size, size=most)
    further = {
        GENERATED: (np.clip(rows, 0, 1)[shuffled], row_labels[shuffled]),
        NOISE: (np.clip(real[pick] + 0.1 * real.std(0) * rng.standard_normal((most, 64)), 0, 1), labels[pick]),
    }
    found = {}
    for learner in (TREE, LOGISTIC):
        for source, (more, more_labels) in further.items():
            for ratio in RATIOS:
                count = int(ratio * size)
                if count == 0 and source == NOISE:
                    continue
                model = _learner(learner, seed)
                model.fit(np.concatenate([real, more[:count]]), np.concatenate([labels, more_labels[:count]]))
                found[learner, source, ratio] = float((model.predict(X[test]) == y[test]).mean())
    return found


def _learner(name: str, seed: int) -> BaseEstimator:
    return DecisionTreeClassifier(random_state=seed) if name == TREE else LogisticRegression(C=1e4, max_iter=60)


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Losses of mixtures by setting and gamma; accuracies on digits by size, one dictionary a seed."""

    plan: Plan
    mixtures: Mapping[tuple[tuple[int, int], float], Float[np.ndarray, "repetitions 2"]]
    digits: Mapping[int, Sequence[Mapping[tuple[str, str, float], float]]]

    def gap(self, setting: tuple[int, int], gamma: float) -> NDArray[np.float64]:
        """Return test less training loss, by repetition."""
        return self.mixtures[setting, gamma][:, 1] - self.mixtures[setting, gamma][:, 0]

    def accuracy(self, size: int, learner: str, source: str, ratio: float) -> NDArray[np.float64]:
        """Return test accuracies by seed."""
        return np.array([run[learner, source if ratio else GENERATED, ratio] for run in self.digits[size]])

    def gain(self, size: int, learner: str, source: str = GENERATED, ratio: float = RATIOS[-1]) -> NDArray[np.float64]:
        """Return by how much further rows raise the accuracy, by seed."""
        return self.accuracy(size, learner, source, ratio) - self.accuracy(size, learner, source, 0.0)


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the mixtures, then the digits, the largest sizes first."""
    plan = PLANS[budget]
    cells = [(setting, gamma) for setting in (HIGH, LOW) for gamma in GAMMAS]
    mixtures = run_each(
        lambda cell: mixture_losses(*cell, plan.repetitions, seeds[0]), cells, part_of(progress, 0, 0.3), plan.n_jobs,
        "mixture, {0[0]}, {0[1]:g}".format,
    )  # fmt: skip
    runs = [(size, seed) for size in sorted(plan.sizes, reverse=True) for seed in seeds]
    digits = run_each(
        lambda run: digit_accuracies(*run),
        runs,
        part_of(progress, 0.3, 1),
        plan.n_jobs,
        "{0[0]} digits, seed {0[1]}".format,
    )
    return Results(plan, mixtures, {size: [digits[size, seed] for seed in seeds] for size in plan.sizes})


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "closed-form",
    "The gap of the mixture is the closed form.",
    paper="simulation; figures",
    protocol="Largest distance of the mean gap from the closed form over both settings and all gammas, in standard "
    "errors over repetitions. The repetitions are the sample; no other seeds enter.",
    reproduced=at_most("distance", 3.5),
    refuted=above("distance", 6),
    without_seeds="the standard error over repetitions is the unit.",
)
def closed_form(results: Results) -> Measured:
    distances = {}
    for setting, gamma in results.mixtures:
        gap = results.gap(setting, gamma)
        expected = gaussian_mixture_theory(*setting, gamma).gap
        distances[setting, gamma] = abs(gap.mean() - expected) / (gap.std(ddof=1) / np.sqrt(len(gap)))
    worst = max(distances, key=lambda cell: distances[cell])
    words = f"largest distance {distances[worst]:.1f} standard errors (d, m = {worst[0]}, gamma {worst[1]:g})"
    return Measured(words, {"distance": distances[worst]})


@claim(
    "gap-falls",
    "In high dimension with few rows the gap falls by a constant factor; in one dimension with 40 it does not.",
    paper="(50, 10) falls, (1, 40) stays; figures",
    protocol="Mean |gap| with gamma 50 over that with gamma 0, for (d, m) = (50, 10): high; for (1, 40): low.",
    reproduced=at_most("high", 0.35) & at_least("low", 0.8) & at_most("low", 1.25),
    refuted=above("high", 0.7),
    without_seeds="means of hundreds of repetitions are judged.",
)
def gap_falls(results: Results) -> Measured:
    sizes = {s: [np.abs(results.gap(s, g)).mean() for g in (GAMMAS[0], GAMMAS[-1])] for s in (HIGH, LOW)}
    high, low = (after / before for before, after in sizes.values())
    words = f"|gap| {sizes[HIGH][0]:.2f} to {sizes[HIGH][1]:.2f} nats in 50 dimensions, ratio {low:.2f} in one"
    return Measured(words, {"high": high, "low": low})


@claim(
    "better-model",
    "The smaller gap of the mixture is a better model.",
    paper="suggested by judging the gap",
    protocol="Test loss with gamma 20 less that with gamma 0, in standard errors of the paired difference, (50, 10).",
    reproduced=at_most("change", -2),
    refuted=above("change", -1),
    without_seeds="the standard error over repetitions is the unit.",
)
def better_model(results: Results) -> Measured:
    change = results.mixtures[HIGH, 20.0][:, 1] - results.mixtures[HIGH, 0.0][:, 1]
    error = change.std(ddof=1) / np.sqrt(len(change))
    words = f"the test loss changes by {change.mean():+.3f} nats (standard error {error:.3f}) while the gap falls"
    return Measured(words, {"change": change.mean() / error})


@claim(
    "few-rows",
    "On digits synthetic rows help where real ones are few.",
    paper="CIFAR-10 without standard augmentation: helps; tables",
    protocol="Gain in test accuracy from 20 generated rows for each of 100 real ones, the better of both learners by "
    "its mean.",
    reproduced=above("gain", 0),
    over_seeds=["gain"],
)
def few_rows(results: Results) -> Measured:
    gains = {learner: results.gain(100, learner) for learner in (TREE, LOGISTIC)}
    best = max(gains, key=lambda learner: gains[learner].mean())
    words = "; ".join(
        f"{learner} {results.accuracy(100, learner, GENERATED, 0.0).mean():.3f} to "
        f"{results.accuracy(100, learner, GENERATED, RATIOS[-1]).mean():.3f}"
        for learner in gains
    )
    return Measured(f"accuracy with 100 rows: {words}", {"gain": gains[best].mean()}, {"gain": gains[best]})


@claim(
    "many-rows",
    "The gain shrinks as real rows become many.",
    paper="constant factor at most; theory",
    protocol="Gain with 100 real rows less that with 900, 20 generated rows each, mean of both learners.",
    reproduced=above("shrink", 0),
    refuted=below("shrink", 0),
    over_seeds=["shrink"],
)
def many_rows(results: Results) -> Measured:
    large = results.plan.sizes[-1]
    shrink = np.mean([results.gain(100, name) - results.gain(large, name) for name in (TREE, LOGISTIC)], axis=0)
    words = "; ".join(
        f"{name} {results.gain(100, name).mean():+.3f} with 100 rows, "
        f"{results.gain(large, name).mean():+.3f} with {large}"
        for name in (TREE, LOGISTIC)
    )
    return Measured(f"gain of {words}", {"shrink": shrink.mean()}, {"shrink": shrink})


@claim(
    "more-than-noise",
    "The generator gains more than real rows with a little noise.",
    paper="not tested: a control of ours",
    protocol="Accuracy with generated rows less that with as many noisy real rows, 100 real rows, ratio 20, the "
    "learner for which generated rows gain more.",
    reproduced=above("lead", 0),
    over_seeds=["lead"],
)
def more_than_noise(results: Results) -> Measured:
    best = max((TREE, LOGISTIC), key=lambda name: results.gain(100, name).mean())
    lead = results.gain(100, best) - results.gain(100, best, NOISE)
    words = (
        f"{best}: gain {results.gain(100, best).mean():+.3f} with generated rows, "
        f"{results.gain(100, best, NOISE).mean():+.3f} with noisy ones (lead {listed(lead, '+.3f')})"
    )
    return Measured(words, {"lead": lead.mean()}, {"lead": lead})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    lines = {
        f"{learner}, {source}": (
            np.array(results.plan.sizes),
            np.array([results.gain(size, learner, source).mean() for size in results.plan.sizes]),
        )
        for learner in (TREE, LOGISTIC)
        for source in (GENERATED, NOISE)
    }
    picture = line_chart("Gain from 20 further rows for each real one", lines, "real rows", "gain in accuracy")
    mixture = [
        [*setting, gamma, results.gap(setting, gamma).mean(), theory.gap, results.mixtures[setting, gamma][:, 1].mean()]
        for setting, gamma in results.mixtures
        for theory in [gaussian_mixture_theory(*setting, gamma)]
    ]
    digits = [
        [size, learner, source, ratio, results.accuracy(size, learner, source, ratio).mean()]
        for size in results.plan.sizes
        for learner in (TREE, LOGISTIC)
        for source in (GENERATED, NOISE)
        for ratio in RATIOS
        if ratio or source == GENERATED
    ]
    return Presentation(
        f"Digits: {claims['few-rows'].text}. Mixture: {claims['better-model'].text}.",
        [
            picture,
            Table("Mixtures", ["d", "m", "gamma", "gap", "closed form", "test loss"], mixture, "Losses in nats."),
            Table(
                "Digits, accuracy, mean over seeds", ["rows", "learner", "further rows", "ratio", "accuracy"], digits
            ),
            NOTES,
        ],
        picture.figure,
    )


NOTES = Text(
    "Mixture: two classes N(±mu, 0.36 I), the classifier is the mean of y x, the generator has class means and one "
    "pooled variance. A smaller gap there is a harder training set, not a better model. Digits: balanced rows, a "
    "Gaussian for each class with one Ledoit-Wolf covariance; a full tree, and logistic regression with hardly any "
    "penalty; noise of a tenth of a standard deviation of each pixel.",
    title="How to read it",
)

STUDY = Study(
    slug="generative-augmentation",
    title="Do rows of a generator that was fitted to the same data help a classifier?",
    room="loops",
    paper=Paper("Toward Understanding Generative Data Augmentation", "Zheng, Wu and Li", 2023, "2305.17476"),
    seeds={"tiny": 2, "default": 8, "full": 20},
    experiment=experiment,
    claims=(closed_form, gap_falls, better_model, few_rows, many_rows, more_than_noise),
    present=present,
)

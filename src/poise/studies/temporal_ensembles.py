"""Study of "Improving online continual learning performance and stability with temporal ensembles".

Online replay on five tasks of two classes; the trained weights, their exponential moving average and their plain
average are evaluated side by side. Again with masked cross entropy, and with tasks too short for the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD

from poise.continual import AccuracyHistory, ClassBalancedBuffer, ContinualEvaluator, class_incremental, gap_figure
from poise.evidence import compare_paired
from poise.losses import MaskedCrossEntropyLoss
from poise.nn.mlp import seeded_mlp
from poise.optim import EMA
from poise.report import Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid
from poise.studies.kit.images import images, on_fashion
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.replay import Loss, Pair, joint_mean, one_pass, train_with_memory
from poise.studies.kit.rules import above, at_least, at_most, below
from poise.studies.kit.tables import seed_table
from poise.studies.kit.words import difference, listed

WIDTHS, LR, BATCH, REPEAT, MEMORY, DECAY = (200, 200, 10), 0.05, 10, 3, 200, 0.99
TRAINED, AVERAGE, UNIFORM = "trained weights", "moving average", "plain average"
REPLAY, MASKED, SHORT = "replay", "replay, masked", "replay, short tasks"
ACC, WORST, LOWEST = "average accuracy (mean over tasks)", "worst-case accuracy", "minimum accuracy"
FALL = "windowed forgetting, 10"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    train: int = 10_000
    test: int = 2_000
    samples: int = 1_000
    subset: int = 200
    every: int = 5
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(2_000, 500, 100, 40, 5, n_jobs=1),
    "default": Plan(),
    "full": replace(Plan(), every=1),
}

Histories = Mapping[str, AccuracyHistory]


def online(plan: Plan, setting: str, seed: int) -> Histories:
    """Train once through five tasks; return the histories of the three kinds of weights."""
    with one_thread():
        data, generator = images(plan.train, plan.test), torch.Generator().manual_seed(seed)
        tasks = class_incremental(data.train, data.test, 2, seed=seed)
        model = seeded_mlp((data.pixels, *WIDTHS), seed, nn.ReLU)
        average, uniform = EMA(model, DECAY), EMA(model, 1.0)

        def move() -> None:
            average.update()
            uniform.decay = uniform.steps / (uniform.steps + 1)  # a plain mean of all weights so far
            uniform.update()

        evaluator = ContinualEvaluator(tasks, every=plan.every, subset=plan.subset, seed=seed)
        most, repeat = (plan.samples, 1) if setting == SHORT else (plan.samples, REPEAT)
        train_with_memory(
            model,
            SGD(model.parameters(), LR),
            tasks,
            partial(one_pass, size=BATCH, generator=generator, most=most, repeat=repeat),
            evaluator,
            memory=ClassBalancedBuffer(MEMORY, seed=seed),
            online=True,
            loss=masked([t.classes for t in tasks]) if setting == MASKED else joint_mean,
            after_step=move,
            served=lambda: {TRAINED: model, AVERAGE: average.module, UNIFORM: uniform.module},
        )
        return evaluator.histories


def masked(classes: Sequence[Sequence[int]]) -> Loss:
    """Return a cross entropy in which new samples compete within their own task."""
    loss_fn = MaskedCrossEntropyLoss({c: task for task, group in enumerate(classes) for c in group}, "current")

    def loss(model: nn.Module, new: Pair, old: Pair | None, task: int) -> Tensor:
        x, y = new if old is None else (torch.cat([new[0], old[0]]), torch.cat([new[1], old[1]]))
        return loss_fn(model(x), y, is_memory=torch.arange(len(y)) >= len(new[1]), task=task)

    return loss


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Histories by setting, one a seed."""

    plan: Plan
    data: str
    runs: Mapping[str, Sequence[Histories]]

    def metric(self, setting: str, kind: str, name: str) -> NDArray[np.float64]:
        """Return a metric of every seed."""
        return np.array([run[kind].summary()[name] for run in self.runs[setting]])

    def gain(self, setting: str, name: str) -> NDArray[np.float64]:
        """Return by how much the moving average is better than the trained weights, for each seed."""
        return self.metric(setting, AVERAGE, name) - self.metric(setting, TRAINED, name)


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run every setting."""
    plan = PLANS[budget]
    name = images(plan.train, plan.test).name
    settings = [REPLAY, MASKED, SHORT]
    return Results(plan, name, run_grid(partial(online, plan), settings, seeds, progress, plan.n_jobs))


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "accuracy",
    "Averaged weights are more accurate at the end.",
    paper="gains on three benchmarks; table not seen",
    protocol="Gain: average accuracy of the moving average less that of the trained weights.",
    reproduced=above("gain", 0.0),
    refuted=below("gain", 0.0),
    over_seeds=["gain"],
)
def accuracy(results: Results) -> Measured:
    own, averaged = results.metric(REPLAY, TRAINED, ACC), results.metric(REPLAY, AVERAGE, ACC)
    words = f"{own.mean():.3f} trained, {averaged.mean():.3f} averaged: "
    paired, gain = compare_paired(own, averaged, lower_is_better=False), results.gain(REPLAY, ACC)
    return on_fashion(results.data, Measured(words + difference(paired), {"gain": gain.mean()}, {"gain": gain}))


@claim(
    "minimum",
    "They remove most of the stability gap.",
    paper="worst-case accuracy close to the final one; figure",
    protocol="Gain: of the minimum accuracy. Fall ratio: windowed forgetting over 10 evaluations, of averaged by that "
    "of trained weights.",
    reproduced=at_least("gain", 0.15) & at_most("fall_ratio", 1 / 3),
    refuted=below("gain", 0.05),
    over_seeds=["gain", "fall_ratio"],
)
def minimum(results: Results) -> Measured:
    gain = results.gain(REPLAY, LOWEST)
    ratio = results.metric(REPLAY, AVERAGE, FALL) / results.metric(REPLAY, TRAINED, FALL)
    lowest = [results.metric(REPLAY, kind, LOWEST).mean() for kind in (TRAINED, AVERAGE)]
    words = (
        f"minimum accuracy {lowest[0]:.3f} trained, {lowest[1]:.3f} averaged; falls {ratio.mean():.2f} times as deep"
    )
    numbers = {"gain": gain.mean(), "fall_ratio": ratio.mean()}
    return on_fashion(results.data, Measured(words, numbers, {"gain": gain, "fall_ratio": ratio}))


@claim(
    "methods",
    "The gain is there with another method, too.",
    paper="five methods",
    protocol="Masked cross entropy with replay. Gain: of the minimum accuracy; accuracy gain: of the final one.",
    reproduced=above("gain", 0.0) & above("accuracy_gain", -0.01),
    refuted=at_most("gain", 0.0),
    over_seeds=["gain", "accuracy_gain"],
)
def methods(results: Results) -> Measured:
    gain, final = results.gain(MASKED, LOWEST), results.gain(MASKED, ACC)
    words = f"minimum accuracy {gain.mean():+.3f}, final accuracy {final.mean():+.3f}"
    numbers = {"gain": gain.mean(), "accuracy_gain": final.mean()}
    return on_fashion(results.data, Measured(words, numbers, {"gain": gain, "accuracy_gain": final}))


@claim(
    "uniform",
    "Our control: a plain average of all weights does as well.",
    paper="-",
    protocol="Lead: worst-case accuracy of the moving average less that of the plain average.",
    reproduced=at_most("lead", 0.02),
    over_seeds=["lead"],
)
def uniform_average(results: Results) -> Measured:
    pair = [results.metric(REPLAY, kind, WORST) for kind in (AVERAGE, UNIFORM)]
    lead = pair[0] - pair[1]
    words = f"worst-case accuracy {pair[0].mean():.3f} moving, {pair[1].mean():.3f} plain (lead {listed(lead, '+.3f')})"
    return on_fashion(results.data, Measured(words, {"lead": lead.mean()}, {"lead": lead}))


@claim(
    "short-tasks",
    "Our limit: with tasks of one memory length, the average is behind on the current task.",
    paper="-",
    protocol="100 updates a task. Lag: accuracy of the moving average on a task less that of the trained weights, over "
    "the second half of its training, mean over all tasks but the first.",
    reproduced=below("lag", -0.1),
    refuted=above("lag", -0.02),
    over_seeds=["lag"],
)
def short_tasks(results: Results) -> Measured:
    lags = np.array([lag(run) for run in results.runs[SHORT]])
    long = np.array([lag(run) for run in results.runs[REPLAY]])
    words = f"behind by {-lags.mean():.3f} with 100 updates a task, by {-long.mean():.3f} with {REPEAT * 100}"
    return on_fashion(results.data, Measured(words, {"lag": lags.mean()}, {"lag": lags}))


def lag(run: Histories) -> float:
    """Return how far the moving average is ahead of the trained weights on the task that is trained."""
    served, own = run[AVERAGE], run[TRAINED]
    lags = []
    for i in range(1, len(own.names)):
        rows = np.flatnonzero(own.trained == i)
        late = rows[len(rows) // 2 :]
        lags.append(float(np.mean(served.accuracy[late, i] - own.accuracy[late, i])))
    return float(np.mean(lags))


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, table and summary together."""
    first = {k: h for k, h in results.runs[REPLAY][0].items() if k != UNIFORM}
    picture = gap_figure(first, "Accuracy of every task, trained and averaged weights, first seed")
    rows = {
        (setting, kind, name): results.metric(setting, kind, name)
        for setting in results.runs
        for kind in (TRAINED, AVERAGE, UNIFORM)
        for name in (ACC, LOWEST, WORST, FALL)
    }
    return Presentation(
        f"Online replay on {results.data}: {claims['minimum'].text}. At the end: {claims['accuracy'].text}.",
        [
            picture,
            seed_table("Metrics", ["setting", "weights", "metric"], rows),
            Text(
                f"One pass over {results.plan.samples} samples a task, batches of {BATCH} new and {BATCH} replayed "
                f"samples, {REPEAT} updates a batch (1 for short tasks), {MEMORY} samples in memory, SGD {LR:g}, decay "
                f"{DECAY:g}, evaluated every {results.plan.every} updates.",
                title="How to read it",
            ),
        ],
        picture.figure,
    )


STUDY = Study(
    slug="temporal-ensembles",
    title="Does serving averaged weights remove the drops of a model that keeps learning?",
    room="continual",
    paper=Paper(
        "Improving Online Continual Learning Performance and Stability with Temporal Ensembles",
        "Soutif-Cormerais et al.",
        2023,
        "2306.16817",
    ),
    seeds={"tiny": 2, "default": 5, "full": 10},
    experiment=experiment,
    claims=(accuracy, minimum, methods, uniform_average, short_tasks),
    present=present,
)

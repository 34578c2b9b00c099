"""Study of "Continual evaluation for lifelong learning: identifying the stability gap".

Replay on five tasks of two classes each, evaluated after every update; and two tasks whose images are rotated against
each other by three angles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD

from poise.continual import (
    AccuracyHistory,
    ClassBalancedBuffer,
    ContinualEvaluator,
    class_incremental,
    gap_figure,
    gradient_parts,
    rotated_images,
)
from poise.nn.mlp import seeded_mlp
from poise.report import Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid, stage
from poise.studies.kit.images import images, on_fashion
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.replay import Pair, random_batches, train_with_memory, weighted
from poise.studies.kit.rules import at_least, at_most, below
from poise.studies.kit.tables import seed_table
from poise.studies.kit.words import mean_and_span

WIDTHS, LR, MOMENTUM, BATCH, WEIGHT = (200, 200, 10), 0.01, 0.9, 128, 0.3
ANGLES = (20.0, 60.0, 120.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    train: int = 10_000
    test: int = 2_000
    updates: int = 100
    rotated_updates: int = 150
    subset: int = 200
    every: int = 1
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(2_000, 500, 12, 12, 40, 2, n_jobs=1),
    "default": Plan(),
    "full": replace(Plan(), train=20_000, test=5_000, updates=200),
}


@dataclass(frozen=True, slots=True)
class Replay:
    """One run on five tasks: its history, and by task the ratio of the gradients' norms at its first update."""

    history: AccuracyHistory
    ratios: tuple[float, ...]


def split(plan: Plan, seed: int) -> Replay:
    """Train with replay on five tasks of two classes."""
    with one_thread():
        data, generator = images(plan.train, plan.test), torch.Generator().manual_seed(seed)
        tasks = class_incremental(data.train, data.test, 2, seed=seed)
        model = seeded_mlp((data.pixels, *WIDTHS), seed, nn.ReLU)
        evaluator, ratios = ContinualEvaluator(tasks, every=plan.every, subset=plan.subset, seed=seed), []
        seen: set[int] = set()

        def first_gradients(task: int, new: Pair, old: Pair | None) -> None:
            if old is None or task in seen:
                return
            seen.add(task)
            losses = {name: F.cross_entropy(model(x), y) for name, (x, y) in (("new", new), ("old", old))}
            ratios.append(gradient_parts(model, losses).ratio("old", "new"))

        train_with_memory(
            model,
            SGD(model.parameters(), LR, momentum=MOMENTUM),
            tasks,
            partial(random_batches, updates=plan.updates, size=BATCH, generator=generator),
            evaluator,
            memory=ClassBalancedBuffer(2000, seed=seed),
            loss=weighted(lambda task: WEIGHT),
            before_step=first_gradients,
        )
        return Replay(evaluator.history, tuple(ratios))


def rotated(plan: Plan, angle: float, seed: int) -> float:
    """Train on upright and then on rotated images; return the minimum accuracy of the first task meanwhile."""
    with one_thread():
        data, generator = images(plan.train, plan.test), torch.Generator().manual_seed(seed)
        tasks = rotated_images(data.train, data.test, (0.0, angle))
        model = seeded_mlp((data.pixels, *WIDTHS), seed, nn.ReLU)
        evaluator = ContinualEvaluator(tasks, every=plan.every, subset=plan.subset, seed=seed)
        train_with_memory(
            model,
            SGD(model.parameters(), LR, momentum=MOMENTUM),
            tasks,
            partial(random_batches, updates=plan.rotated_updates, size=BATCH, generator=generator),
            evaluator,
            memory=ClassBalancedBuffer(2000, seed=seed),
            loss=weighted(lambda task: 0.5),
        )
        return evaluator.history.summary()["minimum accuracy"]


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Replay by seed, and minimum accuracies by angle, one a seed."""

    plan: Plan
    data: str
    replay: Sequence[Replay]
    minima: Mapping[float, NDArray[np.float64]]

    def metric(self, name: str, at_ends: bool = False) -> NDArray[np.float64]:
        """Return a metric of every seed, of every update or of the ends of the tasks."""
        histories = [run.history.at_task_ends() if at_ends else run.history for run in self.replay]
        return np.array([history.summary()[name] for history in histories])


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run both parts."""
    plan = PLANS[budget]
    name = images(plan.train, plan.test).name
    runs = run_grid(lambda _, seed: split(plan, seed), ["split"], seeds, stage(progress, "", 0, 0.5), plan.n_jobs)
    minima = run_grid(
        lambda angle, seed: rotated(plan, angle, seed), ANGLES, seeds, stage(progress, "angle", 0.5, 1), plan.n_jobs
    )
    return Results(plan, name, runs["split"], {angle: np.array(values) for angle, values in minima.items()})


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "hidden",
    "Evaluation at the end of each task hides how far old tasks fell.",
    paper="figures and tables for several methods; not seen",
    protocol="Hidden: minimum accuracy at the ends of tasks less that of all updates.",
    reproduced=at_least("hidden", 0.15),
    refuted=below("hidden", 0.05),
    over_seeds=["hidden"],
)
def hidden(results: Results) -> Measured:
    name = "minimum accuracy"
    ends, every = results.metric(name, at_ends=True), results.metric(name)
    words = f"minimum accuracy {ends.mean():.3f} at the ends of tasks, {every.mean():.3f} over all updates"
    return on_fashion(results.data, Measured(words, {"hidden": (ends - every).mean()}, {"hidden": ends - every}))


@claim(
    "worst-case",
    "The worst-case accuracy is far below the final one.",
    paper="figures and tables for several methods; not seen",
    protocol="Distance: average accuracy at the end less worst-case accuracy.",
    reproduced=at_least("distance", 0.15),
    refuted=below("distance", 0.05),
    over_seeds=["distance"],
)
def worst_case(results: Results) -> Measured:
    final, worst = results.metric("average accuracy (mean over tasks)"), results.metric("worst-case accuracy")
    words = f"accuracy at the end {mean_and_span(final)}, worst case {mean_and_span(worst)}"
    apart = final - worst
    return on_fashion(results.data, Measured(words, {"distance": apart.mean()}, {"distance": apart}))


@claim(
    "angle",
    "The gap grows with the distance between tasks.",
    paper="Rotated MNIST; figure",
    protocol="Two tasks, upright and rotated images. Drop: minimum accuracy of the first at 20 degrees less the mean "
    "of those at 60 and 120.",
    reproduced=at_least("drop", 0.03),
    refuted=at_most("drop", 0.0),
    over_seeds=["drop"],
)
def angle(results: Results) -> Measured:
    near, far = results.minima[20.0], (results.minima[60.0] + results.minima[120.0]) / 2
    words = ", ".join(f"{values.mean():.3f} at {a:g} degrees" for a, values in results.minima.items())
    drop = near - far
    return on_fashion(results.data, Measured(f"minimum {words}", {"drop": drop.mean()}, {"drop": drop}))


@claim(
    "gradients",
    "At the first update of a task the gradient of old data is small beside that of new data.",
    paper="the explanation of the gap; figure",
    protocol="Ratio: norm of the replayed data's gradient over that of the new data, mean over tasks.",
    reproduced=below("ratio", 0.5),
    refuted=at_least("ratio", 1.0),
    over_seeds=["ratio"],
)
def gradients(results: Results) -> Measured:
    ratios = np.array([np.mean(run.ratios) for run in results.replay])
    words = f"ratio of the norms {mean_and_span(ratios, '.2f')}"
    return on_fashion(results.data, Measured(words, {"ratio": ratios.mean()}, {"ratio": ratios}))


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    picture = gap_figure({"": results.replay[0].history}, "Accuracy of every task after every update, first seed")
    names = list(results.replay[0].history.summary())
    rows = {(name, where): results.metric(name, where == "ends of tasks") for name in names for where in _WHERE}
    return Presentation(
        f"Replay on five tasks of {results.data}: {claims['hidden'].text}; {claims['worst-case'].text}. "
        f"At the first update of a task: {claims['gradients'].text}.",
        [
            picture,
            seed_table("Metrics", ["metric", "evaluated"], rows),
            seed_table("Minimum accuracy of the first task by angle", ["degrees"], results.minima),
            Text(
                f"Perceptron of {WIDTHS[0]} and {WIDTHS[1]} ReLUs, SGD {LR:g} with momentum {MOMENTUM:g}, {BATCH} new "
                f"and {BATCH} replayed samples an update, {results.plan.updates} updates a task, weight {WEIGHT:g} of "
                f"the new samples, 2000 samples in memory, {results.plan.subset} held-out samples a task, fixed by "
                "the seed.",
                title="How to read it",
            ),
        ],
        picture.figure,
    )


_WHERE = ("every update", "ends of tasks")

STUDY = Study(
    slug="stability-gap-metrics",
    title="Does evaluation after every update show drops that evaluation after every task hides?",
    room="continual",
    paper=Paper(
        "Continual evaluation for lifelong learning: Identifying the stability gap",
        "De Lange et al.",
        2022,
        "2205.13452",
    ),
    seeds={"tiny": 2, "default": 4, "full": 8},
    experiment=experiment,
    claims=(hidden, worst_case, angle, gradients),
    present=present,
)

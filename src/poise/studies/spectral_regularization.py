"""Study of "Learning continually by spectral regularization".

A perceptron memorises the same images with new random labels, task after task, with its weights and Adam's state
carried over: without a penalty, with three known ones, and with the spectral penalty at three strengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam

from poise.continual import random_labels
from poise.losses import SpectralRegularizer
from poise.nn.mlp import seeded_mlp
from poise.report import Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid
from poise.studies.kit.images import images, on_fashion
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import at_least, at_most, below
from poise.studies.kit.tables import mean_table, seed_chart
from poise.studies.kit.words import mean_and_span

HIDDEN, LR, BATCH = (128, 128, 128, 10), 1e-3, 100
NONE, L2, L2_INIT, WASSERSTEIN, SPECTRAL = "none", "L2", "L2 to the start", "Wasserstein to the start", "spectral"
SPECTRAL_STRENGTHS = (3e-3, 1e-2, 3e-2)
ARMS: tuple[tuple[str, float], ...] = (
    (NONE, 0.0),
    (L2, 1e-3),
    (L2_INIT, 1e-3),
    (L2_INIT, 1e-2),
    (WASSERSTEIN, 1e-2),
    *((SPECTRAL, strength) for strength in SPECTRAL_STRENGTHS),
)
DEFAULT = (SPECTRAL, 1e-2)
EVERY = 10  # batches between two sorts of the Wasserstein penalty

Arm = tuple[str, float]
Penalty = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    samples: int = 800
    tasks: int = 20
    epochs: int = 15
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {"tiny": Plan(100, 10, 3, n_jobs=1), "default": Plan(), "full": replace(Plan(), tasks=30)}


class WassersteinToStart:
    """The squared 2-Wasserstein distance of each layer's weights to its initial ones, times their number.

    Sorted weights are compared with sorted initial ones; the order is computed anew every so many calls.
    """

    def __init__(self, params: Sequence[Tensor], every: int) -> None:
        self._params, self._every, self._calls = list(params), every, itertools.count()
        self._sorted = [p.detach().flatten().sort().values for p in self._params]
        self._targets: list[Tensor] = []

    def __call__(self) -> Tensor:
        """Return the penalty."""
        if next(self._calls) % self._every == 0:
            self._targets = []
            for p, start in zip(self._params, self._sorted, strict=True):
                target = torch.empty_like(start)
                target[p.detach().flatten().argsort()] = start
                self._targets.append(target.view_as(p))
        return torch.stack([(p - t).square().sum() for p, t in zip(self._params, self._targets, strict=True)]).sum()


def penalty_of(kind: str, model: nn.Module, seed: int) -> Penalty:
    """Return a penalty on the model's parameters."""
    params = list(model.parameters())
    start = [p.detach().clone() for p in params]
    if kind == SPECTRAL:
        return SpectralRegularizer(model, seed=seed)
    if kind == WASSERSTEIN:
        return WassersteinToStart(params, EVERY)
    if kind == L2_INIT:
        return lambda: torch.stack([(p - s).square().sum() for p, s in zip(params, start, strict=True)]).sum()
    return lambda: torch.stack([p.square().sum() for p in params]).sum()


@dataclass(frozen=True, slots=True)
class Run:
    """Training accuracy at the end of each task, and the largest singular value of the layers at the end."""

    accuracy: NDArray[np.float64]
    sigma: float


def memorise(plan: Plan, arm: Arm, seed: int) -> Run:
    """Train on every task in turn."""
    with one_thread():
        kind, strength = arm
        data, generator = images(4_000, 100), torch.Generator().manual_seed(seed)
        pick = torch.randperm(len(data.train[0]), generator=generator)[: plan.samples]
        tasks = random_labels(data.train[0][pick], 10, plan.tasks, seed=seed)
        model = seeded_mlp((data.pixels, *HIDDEN), seed, nn.ReLU)
        optimizer, penalty = Adam(model.parameters(), LR, foreach=True), penalty_of(kind, model, seed)
        ends = []
        for task in tasks:
            for _ in range(plan.epochs):
                for batch in torch.randperm(len(task), generator=generator).split(BATCH):
                    loss = F.cross_entropy(model(task.x[batch]), task.y[batch])
                    optimizer.zero_grad()
                    (loss + strength * penalty() if strength else loss).backward()
                    optimizer.step()
            with torch.no_grad():
                ends.append((model(task.x).argmax(1) == task.y).double().mean().item())
        weights = [p.detach() for p in model.parameters() if p.ndim == 2]
        return Run(np.array(ends), max(float(torch.linalg.matrix_norm(w, 2)) for w in weights))


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Runs by arm, one a seed."""

    plan: Plan
    data: str
    runs: Mapping[Arm, Sequence[Run]]

    def first(self, arm: Arm) -> NDArray[np.float64]:
        """Return the mean accuracy of the first three tasks, for each seed."""
        return np.array([run.accuracy[:3].mean() for run in self.runs[arm]])

    def last(self, arm: Arm) -> NDArray[np.float64]:
        """Return that of the last five."""
        return np.array([run.accuracy[-5:].mean() for run in self.runs[arm]])

    def best(self, *kinds: str) -> Arm:
        """Return the strength with the highest accuracy at the end."""
        return max((arm for arm in self.runs if arm[0] in kinds), key=lambda arm: float(self.last(arm).mean()))


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run every arm."""
    plan = PLANS[budget]
    name = images(4_000, 100).name
    runs = run_grid(partial(memorise, plan), ARMS, seeds, progress, plan.n_jobs, "{0[0]} {0[1]:g}".format)
    return Results(plan, name, runs)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "lost",
    "Without a penalty a network becomes hard to train.",
    paper="figures",
    protocol="Fall: accuracy on the first three tasks less that on the last five.",
    reproduced=at_least("fall", 0.3),
    refuted=below("fall", 0.1),
    over_seeds=["fall"],
)
def lost(results: Results) -> Measured:
    fall = results.first((NONE, 0.0)) - results.last((NONE, 0.0))
    first, last = results.first((NONE, 0.0)).mean(), results.last((NONE, 0.0)).mean()
    words = f"accuracy {first:.3f} on the first, {last:.3f} on the last"
    return on_fashion(results.data, Measured(words, {"fall": fall.mean()}, {"fall": fall}))


@claim(
    "kept",
    "With the spectral penalty it stays trainable.",
    paper="among the best on every setting",
    protocol="Strength 0.01. Change: accuracy on the last five tasks less that on the first three; lead: over the "
    "network without a penalty on the last five.",
    reproduced=at_least("change", -0.02) & at_least("lead", 0.5),
    refuted=below("change", -0.1),
    over_seeds=["change", "lead"],
)
def kept(results: Results) -> Measured:
    first, last = results.first(DEFAULT), results.last(DEFAULT)
    change, lead = last - first, last - results.last((NONE, 0.0))
    words = f"accuracy {first.mean():.3f} on the first, {mean_and_span(last)} on the last"
    numbers = {"change": change.mean(), "lead": lead.mean()}
    return on_fashion(results.data, Measured(words, numbers, {"change": change, "lead": lead}))


@claim(
    "others",
    "It is better than L2 and than L2 to the start.",
    paper="among the best on every setting",
    protocol="Last five tasks; spectral at 0.01. Over L2: lead over it; over start: over the better strength of L2 to "
    "the start.",
    reproduced=at_least("over_L2", 0.1) & at_least("over_start", 0.05),
    refuted=at_most("over_L2", 0.0) | at_most("over_start", 0.0),
    over_seeds=["over_L2", "over_start"],
)
def others(results: Results) -> Measured:
    own, l2, start = (results.last(arm) for arm in (DEFAULT, results.best(L2), results.best(L2_INIT)))
    words = f"{own.mean():.3f} spectral, {l2.mean():.3f} L2, {start.mean():.3f} L2 to the start"
    by_seed = {"over_L2": own - l2, "over_start": own - start}
    return on_fashion(results.data, Measured(words, {name: v.mean() for name, v in by_seed.items()}, by_seed))


@claim(
    "strength",
    "It depends little on its strength.",
    paper="less sensitive than the others; figure",
    protocol=f"Worst over best accuracy on the last five tasks for the strengths "
    f"{', '.join(map(str, SPECTRAL_STRENGTHS))}.",
    reproduced=at_least("worst_over_best", 0.7),
    refuted=below("worst_over_best", 0.5),
    without_seeds="the worst of several strengths, each a mean over seeds, is judged.",
)
def strength(results: Results) -> Measured:
    means = [results.last((SPECTRAL, s)).mean() for s in SPECTRAL_STRENGTHS]
    words = ", ".join(f"{mean:.3f} at {s:g}" for s, mean in zip(SPECTRAL_STRENGTHS, means, strict=True))
    return on_fashion(results.data, Measured(words, {"worst_over_best": min(means) / max(means)}))


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, table and summary together."""
    shown = [(NONE, 0.0), results.best(L2), results.best(L2_INIT), DEFAULT]
    x = np.arange(1, results.plan.tasks + 1)
    lines = {_name(arm): (x, np.stack([run.accuracy for run in results.runs[arm]])) for arm in shown}
    picture = seed_chart("Memorising random labels", lines, "task", "training accuracy at its end")
    rows = {
        arm: [results.first(arm), results.last(arm), np.array([run.sigma for run in runs])]
        for arm, runs in results.runs.items()
    }
    columns = ["first three tasks", "last five tasks", "largest singular value at the end"]
    return Presentation(
        f"{results.plan.tasks} tasks of random labels on {results.data}: without a penalty {claims['lost'].text}; "
        f"with the spectral penalty {claims['kept'].text}.",
        [
            picture,
            mean_table("Penalties", ["penalty", "strength"], columns, rows),
            Text(
                f"{results.plan.samples} images, {results.plan.epochs} epochs a task, batches of {BATCH}, Adam {LR:g}, "
                f"perceptron of three layers of {HIDDEN[0]} ReLUs. The Wasserstein penalty is sorted every {EVERY} "
                "batches.",
                title="How to read it",
            ),
        ],
        picture.figure,
    )


def _name(arm: Arm) -> str:
    return arm[0] if not arm[1] else f"{arm[0]} {arm[1]:g}"


STUDY = Study(
    slug="spectral-regularization",
    title="Does a penalty on singular values keep a network trainable over many tasks?",
    room="continual",
    paper=Paper("Learning Continually by Spectral Regularization", "Lewandowski et al.", 2024, "2406.06811"),
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(lost, kept, others, strength),
    present=present,
)

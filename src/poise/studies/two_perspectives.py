"""Study of "Two complementary perspectives to continual learning: ask not only what to optimize, but also how".

Three tasks of images rotated by 0, 80 and 160 degrees: replay, joint training on all old data, both kinds of
projection, and as a control replay in which new data have less weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD

from poise.continual import AccuracyHistory, ClassBalancedBuffer, ContinualEvaluator, gap_figure, rotated_images
from poise.evidence import compare_paired
from poise.nn.mlp import seeded_mlp
from poise.optim import AGEM, GEM
from poise.report import Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid
from poise.studies.kit.images import images, on_fashion
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.replay import Pair, random_batches
from poise.studies.kit.rules import at_least, below
from poise.studies.kit.tables import mean_table
from poise.studies.kit.words import difference, mean_and_span

WIDTHS, LR, MOMENTUM, BATCH, MEMORY = (200, 200, 10), 0.01, 0.9, 128, 1000
ANGLES = (0.0, 80.0, 160.0)
REPLAY, JOINT, WITH_AGEM, WITH_GEM, CONTROL = "replay", "joint", "replay + A-GEM", "replay + GEM", "replay, 0.6 weight"
ARMS = (REPLAY, JOINT, WITH_AGEM, WITH_GEM, CONTROL)
LESS = 0.6
ACC, LOWEST = "average accuracy (mean over tasks)", "minimum accuracy"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    train: int = 6_000
    test: int = 1_000
    updates: int = 120
    subset: int = 300
    every: int = 2
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(2_000, 500, 12, 40, 3, n_jobs=1),
    "default": Plan(),
    "full": replace(Plan(), train=10_000, updates=150, subset=500, every=1),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its history, and the fraction of steps that were projected."""

    history: AccuracyHistory
    fired: float


def train(plan: Plan, arm: str, seed: int) -> Run:
    """Train on the three tasks."""
    with one_thread():
        data, generator = images(plan.train, plan.test), torch.Generator().manual_seed(seed)
        tasks = rotated_images(data.train, data.test, ANGLES)
        model = seeded_mlp((data.pixels, *WIDTHS), seed, nn.ReLU)
        inner = SGD(model.parameters(), LR, momentum=MOMENTUM)
        optimizer = AGEM(inner) if arm == WITH_AGEM else GEM(inner, always=True) if arm == WITH_GEM else None
        memories = [ClassBalancedBuffer(MEMORY // 2, seed=seed) for _ in tasks]
        evaluator = ContinualEvaluator(tasks, every=plan.every, subset=plan.subset, seed=seed)
        for k, task in enumerate(tasks):
            weight = (LESS if arm == CONTROL and k else 1.0) / (k + 1)
            evaluator.begin_task(k, model)
            for new in random_batches(task, plan.updates, BATCH, generator):
                old = [_old(tasks[i] if arm == JOINT else memories[i], BATCH // k, generator) for i in range(k)]
                if optimizer is not None:
                    optimizer.reference(_references(model, old, arm))
                inner.zero_grad()
                _loss(model, new, old, weight).backward()
                (optimizer or inner).step()
                evaluator.after_step(model)
            evaluator.end_task(model)
            memories[k].add(task.x, task.y)
        fired = optimizer.fired / max(optimizer.steps, 1) if optimizer is not None else 0.0
        return Run(evaluator.history, fired)


def _old(source: object, size: int, generator: torch.Generator) -> Pair:
    if isinstance(source, ClassBalancedBuffer):
        x, y = source.sample(size)
        return x, y
    return next(random_batches(source, 1, size, generator))  # type: ignore[arg-type]


def _references(model: nn.Module, old: Sequence[Pair], arm: str) -> list[Tensor]:
    """Return the losses of old data: one for A-GEM, one for each old task for GEM."""
    if not old or arm == WITH_GEM:
        return [F.cross_entropy(model(x), y) for x, y in old]
    x, y = (torch.cat(column) for column in zip(*old, strict=True))
    return [F.cross_entropy(model(x), y)]


def _loss(model: nn.Module, new: Pair, old: Sequence[Pair], weight: float) -> Tensor:
    fresh = F.cross_entropy(model(new[0]), new[1])
    if not old:
        return fresh
    x, y = (torch.cat(column) for column in zip(*old, strict=True))
    return weight * fresh + (1 - weight) * F.cross_entropy(model(x), y)


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Runs by arm, one a seed."""

    plan: Plan
    data: str
    runs: Mapping[str, Sequence[Run]]

    def metric(self, arm: str, name: str) -> NDArray[np.float64]:
        """Return a metric of every seed."""
        return np.array([run.history.summary()[name] for run in self.runs[arm]])

    def gain(self, arm: str, name: str = LOWEST) -> NDArray[np.float64]:
        """Return how much better an arm is than replay, for each seed."""
        return self.metric(arm, name) - self.metric(REPLAY, name)

    def first_gap(self, arm: str) -> NDArray[np.float64]:
        """Return how far the first task falls while the second is trained."""
        gaps = []
        for run in self.runs[arm]:
            a, trained = run.history.accuracy[:, 0], run.history.trained
            gaps.append(a[trained == 0][-1] - a[trained == 1].min())
        return np.array(gaps)


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run every arm."""
    plan = PLANS[budget]
    name = images(plan.train, plan.test).name
    return Results(plan, name, run_grid(partial(train, plan), ARMS, seeds, progress, plan.n_jobs))


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "joint",
    "There is a gap even when all old data are trained on.",
    paper="the paper's starting point; figure",
    protocol="Joint training. Gap: accuracy of the first task when its training ended less its minimum while the "
    "second is trained.",
    reproduced=at_least("gap", 0.1),
    refuted=below("gap", 0.05),
    over_seeds=["gap"],
)
def joint(results: Results) -> Measured:
    gap = results.first_gap(JOINT)
    return on_fashion(results.data, Measured(f"gap {mean_and_span(gap)}", {"gap": gap.mean()}, {"gap": gap}))


@claim(
    "agem",
    "Our expectation: on top of replay, A-GEM almost never acts.",
    paper="proposed combination; outcome not seen",
    protocol="Fired: fraction of steps that were projected; change: of the minimum accuracy, absolute value of the "
    "mean.",
    reproduced=below("fired", 0.02) & below("change", 0.02),
    refuted=at_least("fired", 0.1),
    without_seeds="fractions over all updates are judged.",
)
def agem(results: Results) -> Measured:
    fired, gain = np.mean([run.fired for run in results.runs[WITH_AGEM]]), results.gain(WITH_AGEM)
    words = f"projected in {100 * fired:.2f} % of the steps; minimum accuracy {gain.mean():+.3f}"
    return on_fashion(results.data, Measured(words, {"fired": float(fired), "change": abs(gain.mean())}))


@claim(
    "gem",
    "Projection by GEM with memory strength makes the gap smaller.",
    paper="proposed combination; outcome not seen",
    protocol="GEM solved at every step, memory strength 0.5. Gain: of the minimum accuracy; final: change of the "
    "accuracy at the end.",
    reproduced=at_least("gain", 0.05) & at_least("final", -0.02),
    refuted=below("gain", 0.0),
    over_seeds=["gain", "final"],
)
def gem(results: Results) -> Measured:
    gain, final = results.gain(WITH_GEM), results.gain(WITH_GEM, ACC)
    paired = compare_paired(results.metric(REPLAY, LOWEST), results.metric(WITH_GEM, LOWEST), lower_is_better=False)
    words = f"minimum accuracy {difference(paired)}, final accuracy {final.mean():+.3f}"
    numbers = {"gain": gain.mean(), "final": final.mean()}
    return on_fashion(results.data, Measured(words, numbers, {"gain": gain, "final": final}))


@claim(
    "control",
    "Our control: less weight for new data does as much as the projection.",
    paper="-",
    protocol=f"Weight of new data times {LESS:g}. Fraction: its gain in minimum accuracy over that of GEM, of means.",
    reproduced=at_least("fraction", 0.9),
    refuted=below("fraction", 0.5),
    without_seeds="a ratio of means over seeds is judged.",
)
def control(results: Results) -> Measured:
    own, projected = results.gain(CONTROL).mean(), results.gain(WITH_GEM).mean()
    fraction = own / projected if projected > 0 else float("inf")
    words = f"minimum accuracy {own:+.3f} by weight, {projected:+.3f} by projection"
    return on_fashion(results.data, Measured(words, {"fraction": fraction}))


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, table and summary together."""
    picture = gap_figure({JOINT: results.runs[JOINT][0].history}, "Joint training on all data so far, first seed")
    rows = {
        arm: [
            results.metric(arm, ACC),
            results.metric(arm, LOWEST),
            results.first_gap(arm),
            np.mean([r.fired for r in runs]),
        ]
        for arm, runs in results.runs.items()
    }
    columns = ["accuracy at the end", "minimum accuracy", "gap of the first task", "fraction projected"]
    return Presentation(
        f"Joint training on all rotated images of {results.data} so far: {claims['joint'].text}. "
        f"GEM on top of replay: {claims['gem'].text}. Against it: {claims['control'].text}.",
        [
            picture,
            mean_table("Arms", ["arm"], columns, rows),
            Text(
                f"Perceptron of two layers of {WIDTHS[0]} ReLUs, SGD {LR:g} with momentum {MOMENTUM:g}, {BATCH} new "
                f"and {BATCH} old samples an update, {results.plan.updates} updates a task; the new data have weight "
                "1/k in task k. The reference gradients of GEM are those of the replayed samples of each old task.",
                title="How to read it",
            ),
        ],
        picture.figure,
    )


STUDY = Study(
    slug="two-perspectives",
    title="Does projecting gradients add to training on old and new data together?",
    room="continual",
    paper=Paper("Two Complementary Perspectives to Continual Learning", "Hess et al.", 2023, "2311.04898"),
    seeds={"tiny": 2, "default": 4, "full": 8},
    experiment=experiment,
    claims=(joint, agem, gem, control),
    present=present,
)

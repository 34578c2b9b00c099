"""Study of "Revisiting softmax masking for stability in continual learning".

One pass over five tasks of two classes, with no memory, 20 and 200 samples, by cross entropy and with new samples
masked to their own task; and a sweep of the mask value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD

from poise.continual import AccuracyHistory, ContinualEvaluator, ReservoirBuffer, Task, class_incremental
from poise.losses import MaskedCrossEntropyLoss
from poise.nn.mlp import seeded_mlp
from poise.report import Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid
from poise.studies.kit.images import images, on_fashion
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.replay import Loss, Pair, joint_mean, one_pass, train_with_memory
from poise.studies.kit.rules import at_least, at_most, below
from poise.studies.kit.tables import mean_table, seed_chart

WIDTHS, LR, BATCH = (200, 200, 10), 0.05, 10
MEMORIES = (0, 20, 200)
PLAIN = "cross entropy"
MASKED = "masked, -inf"
VALUES = (-5.0, -2.0, 0.0, 2.0)
SWEPT = 20
ACC, FORGOTTEN = "average accuracy (mean over tasks)", "forgetting (from the end of training)"

Setting = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    train: int = 10_000
    test: int = 2_000
    samples: int = 1_000
    subset: int = 200
    every: int = 20
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(2_000, 500, 60, 40, 6, n_jobs=1),
    "default": Plan(),
    "full": replace(Plan(), every=1),
}


def masked_loss(tasks: Sequence[Task], value: float) -> Loss:
    """Return the loss in which new samples compete within their own task and replayed ones with all seen classes."""
    loss_fn = MaskedCrossEntropyLoss({c: i for i, task in enumerate(tasks) for c in task.classes}, "current", value)

    def loss(model: nn.Module, new: Pair, old: Pair | None, task: int) -> Tensor:
        x, y = new if old is None else (torch.cat([new[0], old[0]]), torch.cat([new[1], old[1]]))
        return loss_fn(model(x), y, is_memory=torch.arange(len(y)) >= len(new[1]), task=task)

    return loss


def online(plan: Plan, setting: Setting, seed: int) -> AccuracyHistory:
    """Train once through the tasks."""
    with one_thread():
        name, size = setting
        data, generator = images(plan.train, plan.test), torch.Generator().manual_seed(seed)
        tasks = class_incremental(data.train, data.test, 2, seed=seed)
        model = seeded_mlp((data.pixels, *WIDTHS), seed, nn.ReLU)
        evaluator = ContinualEvaluator(tasks, every=plan.every, subset=plan.subset, seed=seed)
        train_with_memory(
            model,
            SGD(model.parameters(), LR),
            tasks,
            partial(one_pass, size=BATCH, generator=generator, most=plan.samples),
            evaluator,
            memory=ReservoirBuffer(size, seed=seed) if size else None,
            online=True,
            loss=joint_mean if name == PLAIN else masked_loss(tasks, mask_value(name)),
        )
        return evaluator.history


def mask_value(name: str) -> float:
    """Return the mask value of a setting."""
    return -math.inf if name == MASKED else float(name.rpartition(" ")[2])


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Histories by loss and size of the memory, one a seed."""

    plan: Plan
    data: str
    runs: Mapping[Setting, Sequence[AccuracyHistory]]

    def metric(self, setting: Setting, name: str) -> NDArray[np.float64]:
        """Return a metric of every seed."""
        return np.array([run.summary()[name] for run in self.runs[setting]])

    def just_learned(self, setting: Setting) -> NDArray[np.float64]:
        """Return the mean accuracy of each task when its training ended, for each seed."""
        ends = [run.at_task_ends() for run in self.runs[setting]]
        return np.array([np.mean([e.accuracy[i, t] for i, t in enumerate(e.trained)]) for e in ends])

    def gain(self, memory: int) -> NDArray[np.float64]:
        """Return by how much masking raises the final accuracy."""
        return self.metric((MASKED, memory), ACC) - self.metric((PLAIN, memory), ACC)

    def forgotten(self, memory: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the forgetting of cross entropy and of masking."""
        return self.metric((PLAIN, memory), FORGOTTEN), self.metric((MASKED, memory), FORGOTTEN)

    def words(self, memory: int) -> str:
        """Return accuracies and forgetting in words."""
        accuracy = [self.metric((loss, memory), ACC).mean() for loss in (PLAIN, MASKED)]
        lost = [values.mean() for values in self.forgotten(memory)]
        return f"accuracy {accuracy[0]:.3f} to {accuracy[1]:.3f}, forgetting {lost[0]:.3f} to {lost[1]:.3f}"


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run every setting."""
    plan = PLANS[budget]
    name = images(plan.train, plan.test).name
    settings = [*product((PLAIN, MASKED), MEMORIES), *((f"masked, {value:g}", SWEPT) for value in VALUES)]
    runs = run_grid(partial(online, plan), settings, seeds, progress, plan.n_jobs, "{0[0]}, memory {0[1]}".format)
    return Results(plan, name, runs)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "small-memory",
    "With a very small memory masking raises the accuracy and halves forgetting.",
    paper="largest gains with zero or extremely small memory; tables not seen",
    protocol="Memory of 20 samples. Gain: of the final accuracy; lost ratio: forgetting with masking over forgetting "
    "without.",
    reproduced=at_least("gain", 0.05) & at_most("lost_ratio", 0.5),
    refuted=at_most("gain", 0.0),
    over_seeds=["gain"],
)
def small_memory(results: Results) -> Measured:
    gain, (plain, masked) = results.gain(20), results.forgotten(20)
    numbers = {"gain": gain.mean(), "lost_ratio": masked.mean() / plain.mean()}
    return on_fashion(results.data, Measured(results.words(20), numbers, {"gain": gain}))


@claim(
    "no-memory",
    "It raises the accuracy without any memory.",
    paper="as above",
    protocol="No memory. Gain: of the final accuracy.",
    reproduced=at_least("gain", 0.05),
    refuted=at_most("gain", 0.0),
    over_seeds=["gain"],
)
def no_memory(results: Results) -> Measured:
    gain = results.gain(0)
    return on_fashion(results.data, Measured(results.words(0), {"gain": gain.mean()}, {"gain": gain}))


@claim(
    "large-memory",
    "With a larger memory it still lowers forgetting, and costs no accuracy.",
    paper="as above",
    protocol="Memory of 200 samples. Gain: of the final accuracy; saved: forgetting without masking less that with it.",
    reproduced=at_least("gain", -0.04) & at_least("saved", 0.0),
    refuted=below("gain", -0.04),
    over_seeds=["gain", "saved"],
)
def large_memory(results: Results) -> Measured:
    gain, (plain, masked) = results.gain(200), results.forgotten(200)
    saved = plain - masked
    numbers = {"gain": gain.mean(), "saved": saved.mean()}
    return on_fashion(results.data, Measured(results.words(200), numbers, {"gain": gain, "saved": saved}))


@claim(
    "mask-value",
    "The mask value trades stability for plasticity.",
    paper="the paper's generalisation; figure",
    protocol=f"Memory of {SWEPT}. Between the mask values -inf and 2: more forgetting, and a task is better just after "
    "it was learned (rises of both).",
    reproduced=at_least("forgetting_rises", 0.02) & at_least("learning_rises", 0.02),
    refuted=at_most("forgetting_rises", 0.0) | at_most("learning_rises", 0.0),
    over_seeds=["forgetting_rises", "learning_rises"],
)
def values(results: Results) -> Measured:
    low, high = (MASKED, SWEPT), (f"masked, {VALUES[-1]:g}", SWEPT)
    rises = results.metric(high, FORGOTTEN) - results.metric(low, FORGOTTEN)
    learned = results.just_learned(high) - results.just_learned(low)
    words = f"forgetting changes by {rises.mean():+.3f}, accuracy just after learning by {learned.mean():+.3f}"
    numbers = {"forgetting_rises": rises.mean(), "learning_rises": learned.mean()}
    return on_fashion(results.data, Measured(words, numbers, {"forgetting_rises": rises, "learning_rises": learned}))


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, table and summary together."""
    lines = {
        name: (np.arange(1, 6), np.stack([ends_of(run) for run in results.runs[name, SWEPT]]))
        for name in (PLAIN, MASKED)
    }
    picture = seed_chart(f"Memory of {SWEPT} samples", lines, "tasks learned", "mean accuracy of the tasks so far")
    rows = {
        setting: [results.metric(setting, ACC), results.metric(setting, FORGOTTEN), results.just_learned(setting)]
        for setting in results.runs
    }
    columns = ["accuracy at the end", "forgetting", "accuracy just after learning"]
    return Presentation(
        f"One pass over {results.data}, from cross entropy to masking: {claims['small-memory'].text} with 20 samples "
        f"in memory, {claims['no-memory'].text} without, {claims['large-memory'].text} with 200.",
        [
            picture,
            mean_table("Every setting", ["loss", "memory"], columns, rows),
            Text(
                f"{results.plan.samples} samples a task, batches of {BATCH} new and {BATCH} replayed samples, SGD "
                f"{LR:g}, reservoir memory. Masked: new samples compete within their own task, replayed ones with all "
                f"classes seen; at -inf this is the method ER-ACE. Price: a task is learned less well at first.",
                title="How to read it",
            ),
        ],
        picture.figure,
    )


def ends_of(run: AccuracyHistory) -> NDArray[np.float64]:
    """Return the mean accuracy of the tasks so far at the end of each task."""
    return np.array([np.nanmean(row) for row in run.at_task_ends().accuracy])


STUDY = Study(
    slug="softmax-masking",
    title="Does masking the classes of other tasks keep a classifier from forgetting them?",
    room="continual",
    paper=Paper("Revisiting Softmax Masking for Stability in Continual Learning", "Kim et al.", 2023, "2309.14808"),
    seeds={"tiny": 2, "default": 5, "full": 10},
    experiment=experiment,
    claims=(small_memory, no_memory, large_memory, values),
    present=present,
)

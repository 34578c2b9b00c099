"""Study of "L2 Regularization versus Batch and Weight Normalization": decay of normalised weights sets a learning rate.

A 64-64-64-10 network on digits, batch norm behind both hidden layers, whose weights have a learning rate and a decay of
their own; everything else trains at 0.05 without decay. Decay is torch's: it adds ``wd * w`` to the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from poise.optim import NormalizeWeights, equilibrium_norm
from poise.report import Figure, Table, Text, scatter_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import batch_indices, cross_entropies
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.networks import relu_net
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to
from poise.studies.kit.seed_interval import Interval
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.tables import log_x, mean_table

WIDTHS, BATCH, NORM_EPS, OTHER_LR, TRAIN = (64, 64, 64, 10), 50, 1e-12, 0.05, 1000
DECAYS = (0.0, 0.01, 0.05)


@dataclass(frozen=True, slots=True)
class Setting:
    """Rule, learning rate and weight decay of the hidden weights."""

    rule: str
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        return f"{'AdamW' if self.rule == 'adamw' else 'SGD'}, lr {self.lr:g}, wd {self.weight_decay:g}"

    @property
    def relaxation(self) -> float:
        """Steps in which the squared norm comes nearer to its equilibrium by a factor e."""
        return 1 / (2 * self.lr * self.weight_decay)


EQUILIBRIA = (
    *(Setting("sgd", lr, wd) for lr, wd in ((0.5, 0.02), (0.5, 0.08), (1.0, 0.02), (0.25, 0.02))),
    *(Setting("adamw", lr, wd) for lr, wd in ((0.01, 0.5), (0.01, 2.0), (0.04, 0.5))),
)
# Around the settings above. Both axes go by the factor 2, so that lines of equal lr * wd run through the grid.
GRID_LRS, GRID_DECAYS = (0.25, 0.5, 1.0), (0.02, 0.04, 0.08)
GRID = tuple(Setting("sgd", lr, wd) for lr, wd in product(GRID_LRS, GRID_DECAYS))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    steps: int = 900
    grid_steps: int = 900
    exact_steps: int = 100


PLANS: dict[Budget, Plan] = {"tiny": Plan(150, 30, 10), "default": Plan(), "full": Plan(3000, 3000, 300)}

# --- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Runs:
    """Networks of one setting, a value per seed; means are over the last fifth of the steps."""

    norm: Float[np.ndarray, "layers seeds"]  # mean norm of each hidden layer's weights
    grad_power: Float[np.ndarray, "layers seeds"]  # mean of |gradient|^2 |weight|^2 of each
    accuracy: Float[np.ndarray, " seeds"]  # on the test digits, at the end
    plateau: Float[np.ndarray, " seeds"]  # mean training loss


def train(setting: Setting, steps: int, seeds: Sequence[int], normed: bool = True) -> Runs:
    """Train networks of several seeds, with batch norm or, as a control, without."""
    x, y, x_test, y_test = digits(train=TRAIN, scale="unit")
    nets = SideBySide([relu_net(WIDTHS, seed, NORM_EPS if normed else None) for seed in seeds])
    hidden, optimizers = optimizers_of(setting, nets)
    measured, losses = [], []
    for step, pick in enumerate(batch_indices(seeds, TRAIN, steps, BATCH)):
        loss = cross_entropies(nets(x[pick]), y[pick])
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.sum().backward()
        if step >= 0.8 * steps:
            measured.append(_norms(hidden))
            losses.append(loss.detach())
        for optimizer in optimizers:
            optimizer.step()
    norm, power = torch.stack(measured).double().mean(0).unbind(0)
    accuracy = nets.accuracy(x_test.expand(nets.nets, -1, -1), y_test.expand(nets.nets, -1))
    return Runs(norm.numpy(), power.numpy(), accuracy.numpy(), torch.stack(losses).double().mean(0).numpy())


def optimizers_of(setting: Setting, nets: SideBySide) -> tuple[list[Tensor], list[Optimizer]]:
    """Return the hidden weights, their optimizer, and that of all other parameters."""
    hidden = [p for p in nets.parameters() if p.ndim == 3][:-1]
    rest = [p for p in nets.parameters() if all(p is not w for w in hidden)]
    make = AdamW if setting.rule == "adamw" else SGD
    return hidden, [make(hidden, lr=setting.lr, weight_decay=setting.weight_decay), SGD(rest, OTHER_LR)]


def _norms(hidden: Sequence[Tensor]) -> Float[Tensor, "2 layers seeds"]:
    """Return the norm of each layer, and |gradient|^2 |weight|^2."""
    squares = torch.stack([w.detach().square().sum((1, 2)) for w in hidden])
    gradients = torch.stack([w.grad.square().sum((1, 2)) for w in hidden if w.grad is not None])
    return torch.stack([squares.sqrt(), squares * gradients])


def predicted_norm(setting: Setting, grad_power: float) -> float:
    """Return the norm of a hidden layer's weights at equilibrium."""
    if setting.rule == "sgd":
        return equilibrium_norm("sgd", setting.lr, setting.weight_decay, grad_power=grad_power)
    return equilibrium_norm("adamw", setting.lr, setting.weight_decay, numel=WIDTHS[0] * WIDTHS[1])


def normalized_trajectory(weight_decay: float, steps: int, seed: int) -> tuple[Tensor, float]:
    """Train with hidden weights put back on their sphere after each step, in float64.

    The learning rate is that which decay does not change: ``lr' / (1 - lr' wd) = 0.5``.

    Returns:
        The hidden weights after every step, and the accuracy on the test digits.
    """
    x, y, x_test, y_test = digits(train=TRAIN, scale="unit")
    nets = SideBySide([relu_net(WIDTHS, seed, NORM_EPS, torch.float64)])
    hidden, (decayed, rest) = optimizers_of(Setting("sgd", 0.5 / (1 + 0.5 * weight_decay), weight_decay), nets)
    optimizers = NormalizeWeights(decayed, hidden, view="layer"), rest
    passed = []
    for pick in batch_indices([seed], TRAIN, steps, BATCH):
        loss = cross_entropies(nets(x[pick].double()), y[pick])
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        passed.append(torch.cat([w.detach().flatten() for w in hidden]))
    return torch.stack(passed), float(nets.accuracy(x_test[None].double(), y_test[None]))


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Networks by setting; of fixed norms, by seed, the largest difference between decays and the accuracy of each."""

    plan: Plan
    equilibrium: Mapping[Setting, Runs]
    grid: Mapping[Setting, Runs]
    control: Mapping[Setting, Runs]
    fixed: Mapping[int, tuple[float, Sequence[float]]]


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the four parts."""
    plan = PLANS[budget]

    def with_fixed_norms(seed: int) -> tuple[float, Sequence[float]]:
        paths, reached = zip(*(normalized_trajectory(wd, plan.exact_steps, seed) for wd in DECAYS), strict=True)
        return max(float((path - paths[0]).abs().max()) for path in paths[1:]), reached

    return Results(
        plan,
        run_each(lambda s: train(s, plan.steps, seeds), EQUILIBRIA, part_of(progress, 0, 0.3)),
        run_each(lambda s: train(s, plan.grid_steps, seeds), GRID, part_of(progress, 0.3, 0.6)),
        run_each(lambda s: train(s, plan.grid_steps, seeds, normed=False), GRID, part_of(progress, 0.6, 0.9)),
        run_each(with_fixed_norms, seeds, part_of(progress, 0.9, 1), name="fixed norms, seed {}".format),
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "equilibrium",
    "Decay sets the norm of normalised weights, and with it the effective learning rate, by a law of its own.",
    paper="derived: |w|^4 = lr G / (2 wd)",
    protocol="Mean norm of the first layer over the last fifth by the law: largest error over settings, means of "
    "seeds; relaxed are the settings of SGD with 5 or more relaxation times.",
    reproduced=at_most("sgd_error", 0.05) & at_most("adamw_error", 0.10),
    refuted=above("sgd_error_relaxed", 0.15),
    over_seeds=["sgd_error", "adamw_error", "sgd_error_relaxed"],
)
def equilibrium(results: Results) -> Measured:
    ratios = {setting: _ratios(setting, runs, 0) for setting, runs in results.equilibrium.items()}
    judged = {
        "sgd_error": [own for s, own in ratios.items() if s.rule == "sgd"],
        "adamw_error": [own for s, own in ratios.items() if s.rule == "adamw"],
        "sgd_error_relaxed": [
            own for s, own in ratios.items() if s.rule == "sgd" and results.plan.steps >= 5 * s.relaxation
        ],
    }
    found = {name: _largest_error(own) for name, own in judged.items()}
    numbers = {name: error for name, (error, _) in found.items()}
    words = (
        "norms at equilibrium are within {sgd_error:.1%} of the law under SGD (4 settings) and within "
        "{adamw_error:.1%} under AdamW (3)"
    ).format(**numbers)
    return Measured(words, numbers, intervals={name: interval for name, (_, interval) in found.items()})


def _ratios(setting: Setting, runs: Runs, layer: int) -> NDArray[np.float64]:
    """Return observed by predicted norm, one a seed."""
    return runs.norm[layer] / [predicted_norm(setting, power) for power in runs.grad_power[layer]]


def _largest_error(ratios: Sequence[NDArray[np.float64]]) -> tuple[float, Interval]:
    """Return the largest distance of mean ratios from 1, and its interval over seeds; 0 if there is no setting."""
    if not ratios:
        return 0.0, (0.0, 0.0)
    return bootstrap_over_seeds(lambda own: abs(own.mean(0) - 1).max(), np.stack(ratios, 1))


@claim(
    "no-regularization",
    "With the norm fixed, decay has no effect but lr / (1 - lr wd): it does not regularise.",
    paper="derived",
    protocol="Weights of three decays after every step in float64, learning rates corrected: their largest difference, "
    "and the spread of test accuracies.",
    reproduced=at_most("difference", 1e-10) & equal_to("accuracy_spread", 0),
    without_seeds="an identity, which holds for every seed up to rounding; the largest difference of all is judged.",
)
def no_regularization(results: Results) -> Measured:
    difference = max(0.0, *(apart for apart, _ in results.fixed.values()))
    accuracies = [reached for _, reached in results.fixed.values()]
    words = (
        f"with fixed norms the weights of decays {', '.join(f'{wd:g}' for wd in DECAYS)} differ by at most "
        f"{difference:.1e} over {results.plan.exact_steps} steps, at {np.mean([a[0] for a in accuracies]):.1%} test "
        "accuracy each"
    )
    return Measured(words, {"difference": difference, "accuracy_spread": max(max(a) - min(a) for a in accuracies)})


@claim(
    "collapse",
    "Accuracy depends on learning rate and decay through their product.",
    paper="CIFAR-10, figure",
    protocol="3 x 3 grid. Ratio: mean square of accuracies along lines of equal lr * wd over that between lines.",
    reproduced=below("ratio", 0.5),
    refuted=at_least("ratio", 1),
    over_seeds=["ratio"],
)
def collapse(results: Results) -> Measured:
    cells = [(s.lr, s.weight_decay) for s in results.grid]
    ratio, interval = bootstrap_over_seeds(
        lambda own: collapse_ratio(dict(zip(cells, own.mean(0), strict=True))),
        np.stack([runs.accuracy for runs in results.grid.values()], 1),
        positive=True,
    )
    accuracy = np.array([runs.accuracy.mean() for runs in results.grid.values()])
    lr_alone = _correlation([math.log(s.lr) for s in results.grid], accuracy)
    both = _correlation([math.log(s.lr * s.weight_decay) for s in results.grid], accuracy)
    words = (
        f"mean square along lines of equal lr * wd is {ratio:.2f} of that across (test accuracy {accuracy.min():.1%} "
        f"to {accuracy.max():.1%}; correlation with log(lr wd) {both:+.2f}, with log lr alone {lr_alone:+.2f})"
    )
    numbers = {"ratio": ratio, "correlation_product": both, "correlation_lr": lr_alone}
    return Measured(words, numbers, intervals={"ratio": interval})


def collapse_ratio(accuracy: Mapping[tuple[float, float], float]) -> float:
    """Return the mean square within lines of equal ``lr * wd`` over that between the lines' means.

    Args:
        accuracy: by learning rate and weight decay.
    """
    lines: dict[float, list[float]] = {}
    for (lr, wd), value in accuracy.items():
        lines.setdefault(round(math.log2(lr * wd), 6), []).append(value)
    groups = [np.array(line) for line in lines.values()]
    everything = np.concatenate(groups)
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (everything.size - len(groups))
    between = sum(g.size * (g.mean() - everything.mean()) ** 2 for g in groups) / (len(groups) - 1)
    return float(within / between) if between > 0 else math.inf


def _correlation(x: Sequence[float], y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if y.std() > 0 else 0.0


@claim(
    "control",
    "Without normalisation decay does change the function that is learnt.",
    paper="contrast to the above",
    protocol="Raised: fraction of learning rates and seeds at which the largest decay of the grid has a higher "
    "training loss at the end than the smallest; increase: of log10 of that loss, at the learning rate where it is "
    "smallest, mean over seeds.",
    reproduced=equal_to("raised", 1) & above("increase", 0),
    refuted=at_most("raised", 0.5) & at_most("increase", 0),
    over_seeds=["increase"],
)
def control(results: Results) -> Measured:
    small, large = (
        np.array([results.control[Setting("sgd", lr, wd)].plateau for lr in GRID_LRS])
        for wd in (GRID_DECAYS[0], GRID_DECAYS[-1])
    )
    # A run that diverged has a loss that is not a number: it does not count as raised by decay.
    raised = float(np.mean(large > small))
    increase = np.nan_to_num(np.log10(large / small), nan=-math.inf).min(0)
    words = (
        f"without batch norm a decay of {GRID_DECAYS[-1]:g} ends at a higher training loss than {GRID_DECAYS[0]:g} in "
        f"{raised:.0%} of learning rates and seeds"
    )
    return Measured(words, {"raised": raised, "increase": increase.mean()}, {"increase": increase})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    figure = _figure(results.grid)
    notes = (
        "The law holds where a run is several relaxation times, 1 / (2 lr wd) steps, long. Before that the norm still "
        "remembers where it started, and learning rate and decay do not act through their product alone."
    )
    return Presentation(
        f"On digits {claims['equilibrium'].text}; {claims['no-regularization'].text}.",
        [_equilibrium_table(results), figure, _grid_table(results), Text(notes, "How to read it")],
        figure.figure,
    )


def _equilibrium_table(results: Results) -> Table:
    rows = []
    for setting, runs in results.equilibrium.items():
        norm, ratios = runs.norm.mean(1), [float(_ratios(setting, runs, layer).mean()) for layer in (0, 1)]
        rows.append([str(setting), results.plan.steps / setting.relaxation, norm[0], norm[0] / ratios[0], *ratios])
    columns = ["setting", "relaxation times", "norm, layer 1", "predicted", "ratio, layer 1", "ratio, layer 2"]
    caption = "The law's G is measured over the same steps as the norm. Layer 2 is shown, not judged."
    return Table("Norms at equilibrium", columns, rows, caption)


def _grid_table(results: Results) -> Table:
    rows = {}
    for s, runs in results.grid.items():
        plain = results.control[s]
        percent = 100 * runs.accuracy.mean(), 100 * plain.accuracy.mean()
        rows[s.lr, s.weight_decay] = [percent[0], runs.plateau, percent[1], plain.plateau]
    columns = ["test, %", "training loss", "test without norm, %", "training loss without norm"]
    caption = "Means over seeds; losses over the last fifth of the steps."
    return mean_table("Learning rate and decay", ["lr", "wd"], columns, rows, caption)


def _figure(grid: Mapping[Setting, Runs]) -> Figure:
    points = {}
    for lr in GRID_LRS:
        own = [Setting("sgd", lr, wd) for wd in GRID_DECAYS]
        accuracies = [100 * float(grid[s].accuracy.mean()) for s in own]
        points[f"lr {lr:g}"] = ([math.sqrt(s.lr * s.weight_decay) for s in own], accuracies)
    return log_x(scatter_chart("Accuracy on one axis", points, "sqrt(lr * wd)", "test accuracy, %"))


STUDY = Study(
    slug="l2-normalization",
    title="Does weight decay of normalised weights do more than set a learning rate?",
    room="optim",
    paper=Paper("L2 Regularization versus Batch and Weight Normalization", "van Laarhoven", 2017, "1706.05350"),
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(equilibrium, no_regularization, collapse, control),
    present=present,
)

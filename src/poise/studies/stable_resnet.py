"""Study of "Stable ResNet": residual branches whose squared factors have a bounded sum train at any depth.

Residual ReLU networks of width 64 without normalisation on digits, He's weights, SGD with momentum; then with batch
norm behind every branch. Variances and correlations at initialisation stand beside those of the mean-field theory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD

from poise.evidence import compare_paired
from poise.nn import ScaledResidual, StableResNetMLP, fixup_, residual_scales
from poise.nn.meanfield import relu_resnet
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import batch_indices, cross_entropies
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits, digits_by_seed
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.words import difference, mean_and_span, span

WIDTH, BATCH, TRAIN, MOMENTUM = 64, 64, 1300, 0.9
LRS = (1e-3, 1e-2, 1e-1)
KINDS = ("standard", "uniform", "decreasing")
RIVALS = ("standard, clipped", "SkipInit", "Fixup")
NORMED = ("standard, batch norm", "uniform, batch norm")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    shallow: int = 16
    deep: int = 50
    steps: int = 150
    theory_depths: tuple[int, ...] = (16, 50, 200)
    theory_width: int = 256
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(shallow=4, deep=16, steps=5, theory_depths=(4, 8, 16), theory_width=32, n_jobs=1),
    "default": Plan(),
    "full": Plan(deep=100, steps=500, theory_depths=(16, 50, 200, 500)),
}

# --- networks ----------------------------------------------------------------------------------------------------


def network(arm: str, depth: int, seed: int, width: int = WIDTH) -> StableResNetMLP:
    """Return a fresh network.

    Args:
        arm: one of ``KINDS``, ``RIVALS`` or ``NORMED``. SkipInit has a learned factor on every branch that starts at 0;
            Fixup, with one layer of weights in a branch, sets that layer to zero and learns a factor that starts at 1.
        depth: number of branches.
        seed: of the weights.
        width: of the stream.
    """
    kind: Any = arm.split(",")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = StableResNetMLP(64, width, depth, 10, kind if kind in KINDS else "standard")
    branches: list[Any] = [block.branch for block in net.blocks]
    if arm in NORMED:  # the factor acts after the norm, which would cancel it
        for block, branch in zip(net.blocks, branches, strict=True):
            block.branch = nn.Sequential(branch, nn.BatchNorm1d(width))
    if arm in ("SkipInit", "Fixup"):
        start = 0.0 if arm == "SkipInit" else 1.0
        net.blocks = nn.Sequential(*(ScaledResidual(branch, start, learnable=True) for branch in branches))
    if arm == "Fixup":
        fixup_([[branch.linear] for branch in branches], net.last)
    return net


# --- at initialisation -------------------------------------------------------------------------------------------


def at_initialisation(arm: str, depth: int, seed: int) -> tuple[float, float]:
    """Return of a fresh network, on its training digits, last variance over first and the first gradient's norm."""
    net, (x, y, _, _) = network(arm, depth, seed).double(), digits(seed)
    x = x.double()
    start = net.first(x)
    with torch.no_grad():
        growth = (net.blocks(start).square().mean() / start.square().mean()).item()
    F.cross_entropy(net(x), y).backward()
    assert net.first.weight.grad is not None
    return growth, net.first.weight.grad.norm().item()


def theory_growth(arm: str, depth: int) -> float:
    """Return the mean-field ratio of the last to the first variance."""
    return float(relu_resnet(residual_scales(depth, arm)).q[-1])  # type: ignore[arg-type]


@torch.no_grad()
def distance_kept(kind: str, depth: int, width: int, seed: int) -> tuple[float, float]:
    """Return (1 - c_L) / (1 - c_0), c the mean correlation of pairs of digits: as measured, and by the theory."""
    net, x = network(kind, depth, seed, width).double(), digits(seed).x[:128].double()
    start = net.first(x)
    before, after = (float(F.cosine_similarity(h[:64], h[64:]).mean()) for h in (start, net.blocks(start)))
    predicted = float(relu_resnet(residual_scales(depth, kind), c0=before).c[-1])  # type: ignore[arg-type]
    return (1 - after) / (1 - before), (1 - predicted) / (1 - before)


# --- training ----------------------------------------------------------------------------------------------------

Accuracies = Float[np.ndarray, "lrs seeds"]


def train(arm: str, depth: int, steps: int, seeds: Sequence[int]) -> Accuracies:
    """Train one network for each learning rate and seed, all side by side; return test accuracies."""
    with one_thread():
        x, y, x_test, y_test = (torch.cat([part] * len(LRS)) for part in digits_by_seed(seeds, TRAIN))
        nets = SideBySide([network(arm, depth, seed) for _ in LRS for seed in seeds])
        rates = torch.tensor(LRS).repeat_interleave(len(seeds))
        # SGD with momentum is linear in the gradient: a factor on it is a learning rate.
        optimizer = SGD(nets.parameters(), lr=1.0, momentum=MOMENTUM)
        every = torch.arange(nets.nets)[:, None]
        for pick in batch_indices(seeds, TRAIN, steps, BATCH).repeat(1, len(LRS), 1):
            loss = cross_entropies(nets(x[every, pick]), y[every, pick])
            optimizer.zero_grad()
            loss.sum().backward()
            clip = (1 / nets.gradient_norms()).clamp(max=1.0) if arm == "standard, clipped" else 1.0
            nets.scale_gradients(rates * clip)
            optimizer.step()
        return nets.accuracy(x_test, y_test).view(len(LRS), -1).numpy()


# --- the experiment ----------------------------------------------------------------------------------------------

BySeed = Mapping[tuple[str, int], Float[np.ndarray, "seeds 2"]]


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured, by arm and depth."""

    plan: Plan
    initial: BySeed  # growth of the variance and norm of the gradient
    accuracy: Mapping[tuple[str, int], Accuracies]
    kept: BySeed  # distance kept, as measured and by the theory

    def best(self, arm: str, depth: int) -> NDArray[np.float64]:
        """Return the accuracies at the learning rate that is best in the mean, one per seed."""
        accuracy = self.accuracy[arm, depth]
        return accuracy[accuracy.mean(1).argmax()]


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Train all cells, the longest first, and measure fresh networks."""
    plan = PLANS[budget]
    accuracy = run_each(
        lambda cell: train(*cell, plan.steps, seeds),
        [*product((*NORMED, *KINDS, *RIVALS), [plan.deep]), *product(KINDS, [plan.shallow])],
        part_of(progress, 0, 0.9),
        plan.n_jobs,
        "trained {0[0]}, depth {0[1]}".format,
    )
    progress(0.9, "fresh networks beside the theory")
    initial = {cell: [at_initialisation(*cell, s) for s in seeds] for cell in product(KINDS, (plan.shallow, plan.deep))}
    kept = {
        cell: [distance_kept(*cell, plan.theory_width, s) for s in seeds] for cell in product(KINDS, plan.theory_depths)
    }
    return Results(
        plan, {c: np.array(i) for c, i in initial.items()}, accuracy, {c: np.array(k) for c, k in kept.items()}
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "growth",
    "The variance of an ordinary residual network grows exponentially with depth; factors with a bounded sum of "
    "squares bound it.",
    paper="2^L against at most exp(sum of squares); a theorem",
    protocol="log10 of the ratio of last to first variance, mean over seeds, for three kinds of factors at two depths. "
    "Agree: how many of these cells are within 15 % + 0.15 of the theory; worst: the largest distance in these units.",
    reproduced=equal_to("agree", "cells") & at_most("worst", 1),
    refuted=below("agree", "cells", times=0.5) & above("worst", 1),
    over_seeds=["worst"],
)
def growth(results: Results) -> Measured:
    theory = np.array([math.log10(theory_growth(*cell)) for cell in results.initial])
    measured = np.log10(np.stack([initial[:, 0] for initial in results.initial.values()], 1))
    distances = (measured - theory) / (0.15 * np.abs(theory) + 0.15)
    agree, cells, deep = int((abs(distances.mean(0)) <= 1).sum()), len(results.initial), results.plan.deep
    worst, interval = bootstrap_over_seeds(lambda own: abs(own.mean(0)).max(), distances)
    words = ", ".join(
        f"{arm} {10**own:.3g} (theory {10**known:.3g})"
        for (arm, depth), own, known in zip(results.initial, measured.mean(0), theory, strict=True)
        if depth == deep
    )
    text = f"{agree} of {cells} variance ratios agree with the theory; at depth {deep}: {words}"
    return Measured(text, {"agree": agree, "cells": cells, "worst": worst}, intervals={"worst": interval})


@claim(
    "distance",
    "As depth grows an ordinary network maps all inputs to one direction; a stable one keeps them apart.",
    paper="the kernel becomes constant, or stays universal; a theorem",
    protocol="(1 - c) of pairs of digits at the largest depth, over that before the first branch, with uniform and "
    "with standard factors.",
    reproduced=at_least("uniform", 0.5) & at_most("standard", 0.05),
    refuted=below("uniform", "standard", times=2),
    over_seeds=["uniform", "standard"],
)
def distance(results: Results) -> Measured:
    depth = results.plan.theory_depths[-1]
    kept = {kind: results.kept[kind, depth].mean(0) for kind in KINDS}
    words = ", ".join(f"{kind} {k[0]:.3g} (theory {k[1]:.3g})" for kind, k in kept.items())
    text = f"share of 1 - c that is left at depth {depth}: {words}"
    judged = ("standard", "uniform")
    by_seed = {kind: results.kept[kind, depth][:, 0] for kind in judged}
    return Measured(text, {kind: kept[kind][0] for kind in judged}, by_seed)


@claim(
    "standard-fails",
    "A deep residual network without normalisation does not train.",
    paper="CIFAR-10, up to about 100 layers; figures",
    protocol="Depth 50, learning rates 0.001 to 0.1: the best test accuracy, mean over seeds.",
    reproduced=below("accuracy", 0.3),
    over_seeds=["accuracy"],
)
def standard_fails(results: Results) -> Measured:
    means = results.accuracy["standard", results.plan.deep].mean(1)
    by_seed = {"accuracy": results.best("standard", results.plan.deep)}
    words = ", ".join(f"{a:.3f} at {lr:g}" for lr, a in zip(LRS, means, strict=True))
    return Measured(f"the standard network reaches accuracies of {words}", {"accuracy": means.max()}, by_seed)


@claim(
    "uniform-trains",
    "With factors 1/sqrt(L) it trains.",
    paper="CIFAR-10, up to about 100 layers; figures",
    protocol="Test accuracy at depth 50, best of the three learning rates.",
    reproduced=at_least("accuracy", 0.95),
    refuted=below("accuracy", 0.9),
    over_seeds=["accuracy"],
)
def uniform_trains(results: Results) -> Measured:
    means, best = results.accuracy["uniform", results.plan.deep].mean(1), results.best("uniform", results.plan.deep)
    words = f"{best.mean():.3f} (seeds {span(best)}) at learning rate {LRS[int(means.argmax())]:g}"
    return Measured(f"with uniform factors it reaches {words}", {"accuracy": best.mean()}, {"accuracy": best})


@claim(
    "depth",
    "With factors 1/sqrt(L) depth does not harm.",
    paper="accuracy rises with depth; figures",
    protocol="Difference: accuracy at depth 50 minus that at 16, each at its best learning rate.",
    reproduced=at_least("difference", -0.01),
    refuted=below("difference", -0.01) & below("p_better", 0.025, "P(higher)"),
    over_seeds=["difference"],
)
def depth_does_not_harm(results: Results) -> Measured:
    plan = results.plan
    deep, shallow = (results.best("uniform", depth) for depth in (plan.deep, plan.shallow))
    paired = compare_paired(shallow, deep, lower_is_better=False)
    means = f"{deep.mean():.3f} at depth {plan.deep}, {shallow.mean():.3f} at {plan.shallow}"
    numbers = {"difference": paired.difference, "p_better": paired.p_better}
    return Measured(f"{means}: {difference(paired)}", numbers, {"difference": deep - shallow})


@claim(
    "batch-norm",
    "Where batch norm lets the ordinary network train, the factors are no worse.",
    paper="better with batch norm too; figures",
    protocol="Depth 50, uniform minus standard, each at its best learning rate, batch norm in all branches: the "
    "paired difference.",
    reproduced=at_least("difference", -0.01),
    refuted=below("difference", 0),
    over_seeds=["difference"],
)
def batch_norm(results: Results) -> Measured:
    plain, scaled = (results.best(arm, results.plan.deep) for arm in NORMED)
    paired = compare_paired(plain, scaled, lower_is_better=False)
    text = f"with batch norm {plain.mean():.3f} without factors, {scaled.mean():.3f} with: {difference(paired)}"
    return Measured(text, {"difference": paired.difference}, {"difference": scaled - plain})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    picture, growth_words = _distance_figure(results), claims["growth"].text
    summary = (
        f"At depth {results.plan.deep} {claims['standard-fails'].text}; {claims['uniform-trains'].text}. "
        f"{growth_words[0].upper()}{growth_words[1:]}."
    )
    return Presentation(
        summary,
        [_accuracy_table(results), _initial_table(results), picture, _rivals(results), _notes(results.plan)],
        picture.figure,
    )


def _accuracy_table(results: Results) -> Table:
    by_depth = sorted(results.accuracy.items(), key=lambda item: item[0][1])
    rows = [[*cell, *map(mean_and_span, accuracy)] for cell, accuracy in by_depth]
    caption = (
        f"Test accuracy after {results.plan.steps} steps, mean and range of seeds; a network that has become NaN has 0."
    )
    return Table("Depth and learning rate", ["factors", "depth", *(f"lr {lr:g}" for lr in LRS)], rows, caption)


def _initial_table(results: Results) -> Table:
    rows = []
    for cell, initial in results.initial.items():
        ratio, gradient = (10 ** float(mean) for mean in np.log10(initial).mean(0))
        rows.append([*cell, ratio, theory_growth(*cell), initial[:, 0].min(), initial[:, 0].max(), gradient])
    columns = ["factors", "depth", "variance ratio", "theory", "lowest seed", "highest seed", "first-layer gradient"]
    caption = (
        "Fresh networks: variance after the last branch over that before the first, and the norm of the gradient of "
        f"the first layer's weights; geometric means. The theory is of infinite width, the networks are of {WIDTH}."
    )
    return Table("Before the first step", columns, rows, caption)


def _distance_figure(results: Results) -> Figure:
    depths = results.plan.theory_depths
    lines = {
        f"{kind}, {name}": (depths, [results.kept[kind, depth][:, column].mean() for depth in depths])
        for kind in KINDS
        for column, name in enumerate(("measured", "theory"))
    }
    figure = line_chart("How far apart two inputs stay", lines, "depth", "(1 - c) over its start", log_y=True)
    figure.figure.update_xaxes(type="log")
    return figure


def _rivals(results: Results) -> Text:
    means = {arm: float(results.best(arm, results.plan.deep).mean()) for arm in (*KINDS, *RIVALS)}
    order = sorted(means, key=lambda arm: -means[arm])
    words = ", ".join(f"{arm} {means[arm]:.3f}" for arm in order)
    return Text(
        f"Best accuracies at depth {results.plan.deep}: {words}. The best here is {order[0]}. SkipInit and Fixup learn "
        "their factors; a branch has one layer of weights, so Fixup's rule reduces to setting that layer to zero.",
        title="Beside other cures",
    )


def _notes(plan: Plan) -> Text:
    return Text(
        f"1300 digits train, 497 test, standardised. Width {WIDTH}, batch {BATCH}, SGD with momentum {MOMENTUM}, "
        f"{plan.steps} steps, every arm at the same three learning rates. Correlations are of {plan.theory_width} "
        "units. The paper trains convolutional networks for hundreds of epochs; this tests the mechanism, not its "
        "accuracies.",
        title="Set-up",
    )


STUDY = Study(
    slug="stable-resnet",
    title="Do factors on residual branches let networks train at any depth?",
    room="nn",
    paper=Paper("Stable ResNet", "Hayou et al.", 2020, "2010.12859"),
    seeds={"tiny": 2, "default": 8, "full": 16},
    experiment=experiment,
    claims=(growth, distance, standard_fails, uniform_trains, depth_does_not_harm, batch_norm),
    present=present,
)

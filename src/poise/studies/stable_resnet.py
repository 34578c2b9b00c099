"""Study of "Stable ResNet": residual branches whose squared factors have a bounded sum train at any depth.

Residual ReLU networks of width 64 without normalisation on digits, He's weights, SGD with momentum; then with batch
norm behind every branch. Variances and correlations at initialisation stand beside those of the mean-field theory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD

from poise.evidence import compare_paired
from poise.nn import ScaledResidual, StableResNetMLP, fixup_, residual_scales
from poise.nn.meanfield import relu_resnet
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.kit.digits import digits
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.stacked_mlp import batch_indices, stacked_cross_entropy
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

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


def network(arm: str, depth: int, seed: int) -> StableResNetMLP:
    """Return a fresh network.

    Args:
        arm: one of ``KINDS``, ``RIVALS`` or ``NORMED``. SkipInit has a learned factor on every branch that starts at 0;
            Fixup, with one layer of weights in a branch, sets that layer to zero and learns a factor that starts at 1.
        depth: number of branches.
        seed: of the weights.
    """
    kind: Any = arm.split(",")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = StableResNetMLP(64, WIDTH, depth, 10, kind if kind in KINDS else "standard")
    branches: list[Any] = [block.branch for block in net.blocks]
    if arm in NORMED:  # the factor acts after the norm, which would cancel it
        for block, branch in zip(net.blocks, branches, strict=True):
            block.branch = nn.Sequential(branch, nn.BatchNorm1d(WIDTH))
    if arm in ("SkipInit", "Fixup"):
        start = 0.0 if arm == "SkipInit" else 1.0
        net.blocks = nn.Sequential(*(ScaledResidual(branch, start, learnable=True) for branch in branches))
    if arm == "Fixup":
        fixup_([[branch.linear] for branch in branches], net.last)
    return net


# --- at initialisation -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Initial:
    """Fresh networks of one arm and depth, a value per seed: last variance over first, norm of the first gradient."""

    growth: NDArray[np.float64]
    gradient: NDArray[np.float64]


def at_initialisation(arm: str, depth: int, seeds: Sequence[int]) -> Initial:
    """Measure variance and gradient of fresh networks on their training digits."""
    growth, gradient = [], []
    for seed in seeds:
        net, (x, y, _, _) = network(arm, depth, seed).double(), digits(seed)
        x = x.double()
        start = net.first(x)
        with torch.no_grad():
            growth.append((net.blocks(start).square().mean() / start.square().mean()).item())
        F.cross_entropy(net(x), y).backward()
        assert net.first.weight.grad is not None
        gradient.append(net.first.weight.grad.norm().item())
    return Initial(np.array(growth), np.array(gradient))


def theory_growth(arm: str, depth: int) -> float:
    """Return the mean-field ratio of the last to the first variance."""
    return float(relu_resnet(residual_scales(depth, arm)).q[-1])  # type: ignore[arg-type]


@torch.no_grad()
def distance_kept(kind: str, depth: int, width: int, seed: int) -> tuple[float, float]:
    """Return (1 - c_L) / (1 - c_0), c the mean correlation of pairs of digits: as measured, and by the theory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = StableResNetMLP(64, width, depth, 10, kind).double()  # type: ignore[arg-type]
    x = digits(seed)[0][:128].double()
    start = net.first(x)
    before, after = (float(F.cosine_similarity(h[:64], h[64:]).mean()) for h in (start, net.blocks(start)))
    predicted = float(relu_resnet(residual_scales(depth, kind), c0=before).c[-1])  # type: ignore[arg-type]
    return (1 - after) / (1 - before), (1 - predicted) / (1 - before)


# --- training ----------------------------------------------------------------------------------------------------

Accuracies = Float[np.ndarray, "lrs seeds"]


def train(arm: str, depth: int, steps: int, seeds: Sequence[int]) -> Accuracies:
    """Train one network for each learning rate and seed, all side by side; return test accuracies."""
    with one_thread():
        parts = [torch.stack(part) for part in zip(*map(digits, seeds), strict=True)]
        x, y, x_test, y_test = (torch.cat([part] * len(LRS)) for part in parts)
        nets = SideBySide([network(arm, depth, seed) for _ in LRS for seed in seeds])
        rates = torch.tensor(LRS).repeat_interleave(len(seeds))
        # SGD with momentum is linear in the gradient: a factor on it is a learning rate.
        optimizer = SGD(nets.parameters(), lr=1.0, momentum=MOMENTUM)
        every = torch.arange(nets.nets)[:, None]
        for pick in batch_indices(seeds, TRAIN, steps, BATCH).repeat(1, len(LRS), 1):
            loss = stacked_cross_entropy(nets(x[every, pick]), y[every, pick])
            optimizer.zero_grad()
            loss.sum().backward()
            clip = (1 / nets.gradient_norms()).clamp(max=1.0) if arm == "standard, clipped" else 1.0
            nets.scale_gradients(rates * clip)
            optimizer.step()
        return nets.accuracy(x_test, y_test).view(len(LRS), -1).numpy()


# --- the experiment ----------------------------------------------------------------------------------------------

Cell = tuple[str, int]
Kept = Mapping[Cell, Float[np.ndarray, "seeds 2"]]


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that the claims need, by arm and depth."""

    plan: Plan
    initial: Mapping[Cell, Initial]
    accuracy: Mapping[Cell, Accuracies]
    kept: Kept

    def best(self, arm: str, depth: int) -> NDArray[np.float64]:
        """Return the accuracies at the learning rate that is best in the mean, one per seed."""
        accuracy = self.accuracy[arm, depth]
        return accuracy[accuracy.mean(1).argmax()]


def run(plan: Plan, seeds: Sequence[int], progress: Progress) -> Found:
    """Train all cells, the longest first, and measure fresh networks."""
    cells = [(arm, plan.deep) for arm in (*NORMED, *KINDS, *RIVALS)] + [(arm, plan.shallow) for arm in KINDS]
    jobs = [delayed(train)(arm, depth, plan.steps, seeds) for arm, depth in cells]
    accuracy = {}
    for cell, result in zip(cells, Parallel(plan.n_jobs, return_as="generator")(jobs), strict=True):
        accuracy[cell] = result
        progress(0.9 * len(accuracy) / len(cells), f"trained {cell[0]}, depth {cell[1]}")
    progress(0.9, "fresh networks beside the theory")
    depths = (plan.shallow, plan.deep)
    return Found(
        plan,
        initial={(arm, depth): at_initialisation(arm, depth, seeds) for arm in KINDS for depth in depths},
        accuracy=accuracy,
        kept={
            (kind, depth): np.array([distance_kept(kind, depth, plan.theory_width, seed) for seed in seeds])
            for kind in KINDS
            for depth in plan.theory_depths
        },
    )


# --- the claims --------------------------------------------------------------------------------------------------


def judge_growth(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by how many of the cells agree with the theory."""
    if n["agree"] == n["cells"]:
        return "reproduced"
    return "partly" if n["agree"] >= n["cells"] / 2 else "refuted"


def judge_distance(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the distances that are left at the largest depth."""
    if n["uniform"] < 2 * n["standard"]:
        return "refuted"
    return "reproduced" if n["uniform"] >= 0.5 and n["standard"] <= 0.05 else "partly"


def judge_standard_fails(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the best accuracy over learning rates, in the mean over seeds."""
    return "reproduced" if n["accuracy"] < 0.3 else "refuted"


def judge_uniform_trains(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the accuracy at the best learning rate."""
    if n["accuracy"] < 0.9:
        return "refuted"
    return "reproduced" if n["accuracy"] >= 0.95 else "partly"


def judge_depth(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by deep minus shallow."""
    if n["difference"] >= -0.01:
        return "reproduced"
    return "refuted" if n["p_better"] < 0.025 else "partly"


def judge_batch_norm(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the interval of the difference."""
    if n["high"] < 0:
        return "refuted"
    return "reproduced" if n["low"] >= -0.01 else "partly"


CLAIMS = (
    Claim(
        "growth",
        "The variance of an ordinary residual network grows exponentially with depth; factors with a bounded sum of "
        "squares bound it.",
        "2^L against at most exp(sum of squares); a theorem",
        "log10 of the ratio of last to first variance, mean over seeds, for three kinds of factors at two depths: "
        "reproduced if all six are within 15 % + 0.15 of the theory, refuted if fewer than three are.",
        judge_growth,
    ),
    Claim(
        "distance",
        "As depth grows an ordinary network maps all inputs to one direction; a stable one keeps them apart.",
        "the kernel becomes constant, or stays universal; a theorem",
        "(1 - c) of pairs of digits at the largest depth, over that before the first branch: reproduced if at least "
        "0.5 with uniform factors and at most 0.05 without, refuted if uniform keeps less than twice as much.",
        judge_distance,
    ),
    Claim(
        "standard-fails",
        "A deep residual network without normalisation does not train.",
        "CIFAR-10, up to about 100 layers; figures",
        "Depth 50, learning rates 0.001 to 0.1: reproduced if test accuracy is below 0.3 at all three, refuted if it "
        "trains at one.",
        judge_standard_fails,
    ),
    Claim(
        "uniform-trains",
        "With factors 1/sqrt(L) it trains.",
        "CIFAR-10, up to about 100 layers; figures",
        "Depth 50, best of the three learning rates: reproduced from 0.95 test accuracy, refuted below 0.9.",
        judge_uniform_trains,
    ),
    Claim(
        "depth",
        "With factors 1/sqrt(L) depth does not harm.",
        "accuracy rises with depth; figures",
        "Accuracy at depth 50 minus that at 16, each at its best learning rate: reproduced from -0.01; refuted if "
        "lower with P >= 0.975.",
        judge_depth,
    ),
    Claim(
        "batch-norm",
        "Where batch norm lets the ordinary network train, the factors are no worse.",
        "better with batch norm too; figures",
        "Depth 50, uniform minus standard, each at its best learning rate, batch norm in all branches: reproduced if "
        "the 95 % interval of the paired difference lies above -0.01, refuted if it lies below 0.",
        judge_batch_norm,
    ),
)


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the experiment and put what came out beside the claims."""
    found = run(PLANS[budget], seeds, progress)
    progress(1.0, "done")
    claims = {
        "growth": _measure_growth(found),
        "distance": _measure_distance(found),
        "standard-fails": _measure_standard(found),
        "uniform-trains": _measure_uniform(found),
        "depth": _measure_depth(found),
        "batch-norm": _measure_batch_norm(found),
    }
    picture = _distance_figure(found)
    blocks: list[Text | Table | Figure | Code] = [
        _accuracy_table(found),
        _initial_table(found),
        picture,
        _rivals_note(found),
        _notes(found.plan),
    ]
    summary = (
        f"At depth {found.plan.deep} {claims['standard-fails'].ours}; {claims['uniform-trains'].ours}. "
        f"{_capital(claims['growth'].ours)}."
    )
    return Measurement(claims, summary, blocks, picture.figure)


def _measure_growth(found: Found) -> Measured:
    agree, words = 0, []
    for (arm, depth), initial in found.initial.items():
        measured, theory = float(np.log10(initial.growth).mean()), math.log10(theory_growth(arm, depth))
        agree += abs(measured - theory) <= 0.15 * abs(theory) + 0.15
        if depth == found.plan.deep:
            words.append(f"{arm} {10**measured:.3g} (theory {10**theory:.3g})")
    cells = len(found.initial)
    ours = f"{agree} of {cells} variance ratios agree with the theory; at depth {found.plan.deep}: {', '.join(words)}"
    return Measured(ours, {"agree": agree, "cells": cells})


def _measure_distance(found: Found) -> Measured:
    depth = found.plan.theory_depths[-1]
    kept = {kind: found.kept[kind, depth].mean(0) for kind in KINDS}
    words = ", ".join(f"{kind} {k[0]:.3g} (theory {k[1]:.3g})" for kind, k in kept.items())
    ours = f"share of 1 - c that is left at depth {depth}: {words}"
    return Measured(ours, {kind: float(kept[kind][0]) for kind in ("standard", "uniform")})


def _measure_standard(found: Found) -> Measured:
    means = found.accuracy["standard", found.plan.deep].mean(1)
    words = ", ".join(f"{a:.3f} at {lr:g}" for lr, a in zip(LRS, means, strict=True))
    return Measured(f"the standard network reaches accuracies of {words}", {"accuracy": float(means.max())})


def _measure_uniform(found: Found) -> Measured:
    means = found.accuracy["uniform", found.plan.deep].mean(1)
    best = found.best("uniform", found.plan.deep)
    ours = (
        f"with uniform factors it reaches {best.mean():.3f} (seeds {best.min():.3f} to {best.max():.3f}) at learning "
        f"rate {LRS[int(means.argmax())]:g}"
    )
    return Measured(ours, {"accuracy": float(best.mean())})


def _measure_depth(found: Found) -> Measured:
    deep, shallow = (found.best("uniform", depth) for depth in (found.plan.deep, found.plan.shallow))
    paired = compare_paired(shallow, deep, lower_is_better=False)
    ours = (
        f"{deep.mean():.3f} at depth {found.plan.deep}, {shallow.mean():.3f} at {found.plan.shallow}: "
        f"{paired.difference:+.3f} (95 % interval {paired.interval[0]:+.3f} to {paired.interval[1]:+.3f})"
    )
    return Measured(ours, {"difference": paired.difference, "p_better": paired.p_better})


def _measure_batch_norm(found: Found) -> Measured:
    plain, scaled = (found.best(arm, found.plan.deep) for arm in NORMED)
    paired = compare_paired(plain, scaled, lower_is_better=False)
    low, high = paired.interval
    ours = (
        f"with batch norm {plain.mean():.3f} without factors, {scaled.mean():.3f} with: {paired.difference:+.3f} "
        f"(95 % interval {low:+.3f} to {high:+.3f})"
    )
    return Measured(ours, {"difference": paired.difference, "low": low, "high": high})


# --- tables and figures --------------------------------------------------------------------------------------------


def _accuracy_table(found: Found) -> Table:
    rows: list[list[object]] = []
    for (arm, depth), accuracy in sorted(found.accuracy.items(), key=lambda item: item[0][1]):
        rows.append([arm, depth, *(f"{a.mean():.3f} ({a.min():.3f} to {a.max():.3f})" for a in accuracy)])
    caption = (
        f"Test accuracy after {found.plan.steps} steps, mean and range of seeds; a network that has become NaN has 0."
    )
    return Table("Depth and learning rate", ["factors", "depth", *(f"lr {lr:g}" for lr in LRS)], rows, caption)


def _initial_table(found: Found) -> Table:
    rows: list[list[object]] = []
    for (arm, depth), initial in found.initial.items():
        growth, gradient = (10 ** float(np.log10(values).mean()) for values in (initial.growth, initial.gradient))
        extremes = [initial.growth.min(), initial.growth.max()]
        rows.append([arm, depth, growth, theory_growth(arm, depth), *extremes, gradient])
    columns = ["factors", "depth", "variance ratio", "theory", "lowest seed", "highest seed", "first-layer gradient"]
    caption = (
        "Fresh networks: variance after the last branch over that before the first, and the norm of the gradient of "
        f"the first layer's weights; geometric means. The theory is of infinite width, the networks are of {WIDTH}."
    )
    return Table("Before the first step", columns, rows, caption)


def _distance_figure(found: Found) -> Figure:
    depths = found.plan.theory_depths
    lines = {}
    for kind in KINDS:
        for column, name in enumerate(("measured", "theory")):
            lines[f"{kind}, {name}"] = (depths, [found.kept[kind, d][:, column].mean() for d in depths])
    title = "How far apart two inputs stay"
    figure = line_chart(title, lines, "depth", "(1 - c) over its start", log_y=True)
    figure.figure.update_xaxes(type="log")
    return figure


def _rivals_note(found: Found) -> Text:
    deep = found.plan.deep
    means = {arm: float(found.best(arm, deep).mean()) for arm in (*KINDS, *RIVALS)}
    order = sorted(means, key=lambda arm: -means[arm])
    words = ", ".join(f"{arm} {means[arm]:.3f}" for arm in order)
    return Text(
        f"Best accuracies at depth {deep}: {words}. The best here is {order[0]}. SkipInit and Fixup learn their "
        "factors; a branch has one layer of weights, so Fixup's rule reduces to setting that layer to zero.",
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


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


STUDY = Study(
    slug="stable-resnet",
    title="Do factors on residual branches let networks train at any depth?",
    room="nn",
    paper=Paper("Stable ResNet", "Hayou et al.", 2020, "2010.12859"),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 5},
    measure=measure,
)

"""Study of "AdamP": momentum inflates the norm of scale-invariant weights, and tangential steps cure it.

Three parts: the exact laws of the norm on random tangential gradients, the paper's kind of toy problem (a Rosenbrock
function of ratios of weights), and a network with batch norm on digits, at a constant rate and under cosine decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from poise.evidence import PairedComparison, compare_paired
from poise.optim import SGDP, AdamP
from poise.optim.geometry import tangential
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, Claim, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_grid
from poise.studies.kit.rules import Rule, above, at_least, at_most, below, beyond, equal_to, within
from poise.studies.kit.words import difference

MOMENTUM = 0.9
LIMIT = 1 + 2 * MOMENTUM / (1 - MOMENTUM)
TOY_LRS = (1e-3, 3e-3, 1e-2)
HIDDEN = ("0.weight", "3.weight")

# What makes an optimizer, the constant learning rate of the comparison of norms, and those tried under cosine decay.
Maker = Callable[[Sequence[Tensor], float], Optimizer]
ARMS: Mapping[str, tuple[Maker, float, tuple[float, ...]]] = {
    "SGD": (lambda p, lr: SGD(p, lr), 0.1, ()),
    "SGD, momentum": (lambda p, lr: SGD(p, lr, momentum=MOMENTUM), 0.1, (0.03, 0.1, 0.3)),
    "SGDP": (lambda p, lr: SGDP(p, lr, momentum=MOMENTUM), 0.1, (0.03, 0.1, 0.3)),
    "SGDP, Nesterov": (lambda p, lr: SGDP(p, lr, momentum=MOMENTUM, nesterov=True), 0.1, ()),
    "Adam": (lambda p, lr: Adam(p, lr), 0.01, (0.003, 0.01, 0.03)),
    "AdamW, decay 0.01": (lambda p, lr: AdamW(p, lr, weight_decay=0.01), 0.01, ()),
    "AdamP": (lambda p, lr: AdamP(p, lr), 0.01, (0.003, 0.01, 0.03)),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    law_steps: int = 400
    limit_steps: int = 1000
    steps: int = 600
    lrs: int = 3


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(law_steps=50, limit_steps=1000, steps=30, lrs=1),
    "default": Plan(),
    "full": Plan(steps=3000),
}


# --- A: laws of the norm -----------------------------------------------------------------------------------------


def law_error(optimizer_class: type[SGD] | type[SGDP], steps: int, seed: int) -> float:
    r"""Return the largest relative error of the law of the norm over a run on random tangential gradients.

    .. math:: \lVert w_{t+1}\rVert^2 = \lVert w_t\rVert^2 + \eta^2 \lVert p_t\rVert^2
        + 2\eta^2 \sum_{k<t} \beta^{t-k} \lVert p_k\rVert^2

    for momentum, and :math:`\lVert w_t\rVert^2 + \eta^2 \lVert q_t\rVert^2` with the tangential step :math:`q` of SGDP.
    """
    generator = torch.Generator().manual_seed(seed)
    w = nn.Parameter(torch.randn(1, 20, generator=generator, dtype=torch.float64))
    lr = 0.05
    optimizer = optimizer_class([w], lr, momentum=MOMENTUM)
    carried, worst = 0.0, 0.0
    for _ in range(steps):
        before = w.detach().clone()
        w.grad = tangential(before, torch.randn(w.shape, generator=generator, dtype=torch.float64))
        optimizer.step()
        step_square = float(((w.detach() - before) / lr).square().sum())
        grown = float(w.detach().square().sum() - before.square().sum())
        expected = lr**2 * step_square
        if optimizer_class is SGD:
            # sum over the past of beta^(t-k) |p_k|^2, carried along
            expected += 2 * lr**2 * carried
            carried = MOMENTUM * (carried + step_square)
        worst = max(worst, abs(grown - expected) / float(before.square().sum()))
    return worst


def growth_factor(steps: int, seed: int) -> float:
    """Return growth of the squared norm over ``lr^2 |p|^2``, of SGD whose momentum ``p`` keeps the length 1.

    The gradient cancels what is left of the momentum in its tangent plane but for a part that completes it to length 1;
    the growth is averaged over the last tenth of the run.
    """
    generator = torch.Generator().manual_seed(seed)
    w = nn.Parameter(torch.randn(1, 50, generator=generator, dtype=torch.float64) * 1e3)
    lr, p = 1.0, torch.zeros(1, 50, dtype=torch.float64)
    optimizer = SGD([w], lr, momentum=MOMENTUM)
    factors = []
    for _ in range(steps):
        before = w.detach().clone()
        w.grad = _gradient_for_unit_momentum(before, p, generator)
        p = MOMENTUM * p + w.grad
        optimizer.step()
        factors.append(float(w.detach().square().sum() - before.square().sum()) / float(p.square().sum()))
    return float(np.mean(factors[-max(1, steps // 10) :]))


def _gradient_for_unit_momentum(w: Tensor, p: Tensor, generator: torch.Generator) -> Tensor:
    kept = MOMENTUM * p
    across = tangential(w, kept)
    fresh = tangential(w, torch.randn(w.shape, generator=generator, dtype=w.dtype))
    fresh = fresh / fresh.norm()
    left = 1.0 - float((kept - across).square().sum())  # what the radial part of the momentum leaves for the rest
    return math.sqrt(max(left, 0.0)) * fresh - across


# --- B: the toy problem ------------------------------------------------------------------------------------------


def toy(make: Maker, lr: float, steps: int = 200) -> tuple[float, float]:
    """Return the last loss and the last norm on ``h(w1 / w3, w2 / w3)``, h a Rosenbrock function."""
    start = torch.tensor([[0.5, -0.4, 1.0]], dtype=torch.float64)
    w = nn.Parameter(start / start.norm())
    optimizer = make([w], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        toy_loss(w).backward()
        optimizer.step()
    return float(toy_loss(w.detach())), float(w.detach().norm())


def toy_loss(w: Float[Tensor, "1 3"]) -> Float[Tensor, ""]:
    """The loss, which does not change when ``w`` is scaled."""
    x, y = w[0, 0] / w[0, 2], w[0, 1] / w[0, 2]
    return (1 - x) ** 2 + 10 * (y - x**2) ** 2


# --- C: digits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One network: the squared norms of its hidden layers at 31 steps from first to last, and its accuracies."""

    norms: Float[np.ndarray, "points 2"]
    validation: float
    test: float

    @property
    def growth(self) -> Float[np.ndarray, " 2"]:
        """How much the squared norms grow."""
        return self.norms[-1] - self.norms[0]


def network(seed: int) -> nn.Sequential:
    """Return a network whose hidden layers are followed by batch norm, hence scale-invariant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = [(nn.Linear(inputs, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()) for inputs in (64, 128)]
        return nn.Sequential(*hidden[0], *hidden[1], nn.Linear(128, 10))


def train(make: Maker, lr: float, cosine: bool, steps: int, seed: int) -> Run:
    """Train a network without weight decay."""
    x, y, x_held, y_held = digits(train=1000, scale="unit")  # 1000 train, 297 choose a rate, 500 are the test
    model, generator = network(seed), torch.Generator().manual_seed(seed)
    optimizer = make(list(model.parameters()), lr)
    schedule = CosineAnnealingLR(optimizer, steps) if cosine else None
    hidden = [p for name, p in model.named_parameters() if name in HIDDEN]
    norms = [_squares(hidden)]
    for step in range(steps):
        chosen = torch.randint(1000, (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if (step + 1) % max(1, steps // 30) == 0:
            norms.append(_squares(hidden))
    model.eval()
    with torch.no_grad():
        right = (model(x_held).argmax(1) == y_held).double()
    return Run(np.array(norms), float(right[:297].mean()), float(right[297:].mean()))


def _squares(weights: Sequence[Tensor]) -> list[float]:
    return [float(w.detach().double().square().sum()) for w in weights]


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Results of all parts; networks by arm, one run a seed."""

    plan: Plan
    law: Mapping[str, float]  # largest error of the law of the norm, by optimizer
    factor: float  # growth of the squared norm with momentum over that without
    toys: Mapping[tuple[str, float], tuple[float, float]]  # last loss and norm, by arm and learning rate
    constant: Mapping[str, list[Run]]
    cosine: Mapping[tuple[str, float], list[Run]]

    def best_rate(self, arm: str) -> float:
        """The rate with the best held-out accuracy under cosine decay."""
        rates = [lr for name, lr in self.cosine if name == arm]
        return max(rates, key=lambda lr: mean_of(self.cosine[arm, lr], "validation"))

    def compare(self, control: str, treated: str) -> PairedComparison:
        """Test accuracy in points, each arm at its best rate."""
        return compare_paired(self.test(control), self.test(treated), lower_is_better=False)

    def test(self, arm: str) -> NDArray[np.float64]:
        """Return the test accuracies in points at the arm's best rate, one per seed."""
        return np.array([100 * run.test for run in self.cosine[arm, self.best_rate(arm)]])


def mean_of(runs: Sequence[Run], attribute: str) -> Any:
    """Return the mean of a number, or of an array of numbers, over runs."""
    return np.mean([getattr(run, attribute) for run in runs], axis=0)


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the three parts."""
    plan = PLANS[budget]
    laws = {"momentum": SGD, "SGDP": SGDP}
    cells = [(name, lr, False) for name, (_, lr, _) in ARMS.items()]
    cells += [(name, lr, True) for name, (_, _, lrs) in ARMS.items() for lr in lrs[: plan.lrs]]
    runs = run_grid(
        lambda cell, seed: train(ARMS[cell[0]][0], cell[1], cell[2], plan.steps, seed),
        cells,
        seeds,
        part_of(progress, 0.05, 1.0),
        name=lambda cell: f"digits, {cell[0]}, learning rate {cell[1]:g}{', cosine' if cell[2] else ''}",
    )
    return Results(
        plan,
        law={name: max(law_error(kind, plan.law_steps, seed) for seed in seeds) for name, kind in laws.items()},
        factor=float(np.mean([growth_factor(plan.limit_steps, seed) for seed in seeds])),
        toys={(name, lr): toy(ARMS[name][0], lr) for name, lr in product(("SGD, momentum", "SGDP"), TOY_LRS)},
        constant={name: found for (name, _, cosine), found in runs.items() if not cosine},
        cosine={(name, lr): found for (name, lr, cosine), found in runs.items() if cosine},
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "norm-law",
    "On scale-invariant weights momentum makes the norm grow by an exact law, and tangential steps by their own "
    "length alone.",
    paper="a lemma",
    protocol="Largest relative error over all steps.",
    reproduced=at_most("error", 1e-8),
    refuted=above("error", 1e-4),
    without_seeds="an identity, which holds for every draw up to rounding; the largest error of all is judged.",
)
def norm_law(results: Results) -> Measured:
    momentum, tangent = results.law.values()
    words = f"over {results.plan.law_steps} steps {momentum:.1e} with momentum, {tangent:.1e} with SGDP"
    return Measured(f"largest relative error {words}", {"error": max(momentum, tangent)})


@claim(
    "limit",
    "With momentum 0.9 the squared norm grows up to 19 times as fast as without.",
    paper="1 + 2 * 0.9 / (1 - 0.9) = 19",
    protocol="Steps of constant length.",
    reproduced=within("factor", 0.02, LIMIT, relative=True),
    refuted=beyond("factor", 0.1, LIMIT, relative=True),
    without_seeds="an identity; the directions that are drawn enter by rounding alone.",
)
def limit(results: Results) -> Measured:
    steps = results.plan.limit_steps
    return Measured(f"{results.factor:.2f} after {steps} steps (limit {LIMIT:g})", {"factor": results.factor})


@claim(
    "toy",
    "On a toy problem momentum ends far from the minimum because the norm has grown; SGDP does not.",
    paper="figure only",
    protocol="Loss after 200 steps; rates won: at how many of three learning rates SGDP ends ten times lower.",
    reproduced=at_least("rates_won", 2),
    refuted=equal_to("rates_won", 0),
    without_seeds="nothing is drawn.",
)
def toy_problem(results: Results) -> Measured:
    pairs = {lr: (results.toys["SGD, momentum", lr][0], results.toys["SGDP", lr][0]) for lr in TOY_LRS}
    won = sum(tangent <= 0.1 * momentum for momentum, tangent in pairs.values())
    words = "; ".join(f"lr {lr:g}: {a:.1e} with momentum, {b:.1e} with SGDP" for lr, (a, b) in pairs.items())
    return Measured(words, {"rates_won": won})


@claim(
    "norm-growth",
    "In a network with batch norm SGDP keeps the norm from growing as it does under momentum.",
    paper="figure only",
    protocol="Growth of the squared norm of both hidden layers, momentum by SGDP; the smaller of the two ratios.",
    reproduced=at_least("ratio", 5),
    refuted=below("ratio", 2),
    over_seeds=["ratio"],
)
def norm_growth(results: Results) -> Measured:
    growths = [np.stack([run.growth for run in results.constant[name]]) for name in ("SGD, momentum", "SGDP")]
    ratio, interval = bootstrap_over_seeds(lambda a, b: (a.mean(0) / b.mean(0)).min(), *growths, positive=True)
    momentum, tangent = (growth.mean(0) for growth in growths)
    ratios = momentum / tangent
    words = (
        f"the squared norms of the two hidden layers grow by {momentum[0]:.1f} and {momentum[1]:.1f} with momentum, "
        f"{tangent[0]:.2f} and {tangent[1]:.2f} with SGDP, ratios {ratios[0]:.1f} and {ratios[1]:.1f}"
    )
    return Measured(words, {"ratio": ratio}, intervals={"ratio": interval})


def accuracy_claim(id: str, text: str, paper: str, control: str, treated: str) -> Claim[Results]:
    """Return the claim that an optimizer is not less accurate than its control."""

    def measure(results: Results) -> Measured:
        paired = results.compare(control, treated)
        low, high = paired.interval
        words = (
            f"test accuracy is {paired.mean_treated:.2f} % with {treated} and {paired.mean_control:.2f} % with "
            f"{control.removeprefix('SGD, ')}, difference {difference(paired, '+.2f', 'points')}"
        )
        numbers = {"difference": paired.difference, "low": low, "high": high}
        return Measured(words, numbers, {"difference": results.test(treated) - results.test(control)})

    protocol = (
        "Cosine decay, each optimizer at the best of three learning rates by held-out accuracy. Difference of test "
        "accuracies in points."
    )
    refuted = below("high", -0.5, "upper end of its 95 % interval")
    rule = Rule(at_least("difference", -0.5, "mean difference"), refuted, over_seeds=("difference",))
    return Claim(id, text, paper, protocol, rule, measure)


sgdp_accuracy = accuracy_claim(
    "sgdp-accuracy",
    "SGDP generalises at least as well as SGD with momentum.",
    "ImageNet, ResNet-50: 76.7 by 76.6",
    "SGD, momentum",
    "SGDP",
)
adamp_accuracy = accuracy_claim(
    "adamp-accuracy",
    "AdamP generalises at least as well as Adam.",
    "ImageNet, ResNet-50: 76.9 by 76.5 (AdamW)",
    "Adam",
    "AdamP",
)


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    figure = _figure(results)
    summary = f"On digits {claims['norm-growth'].text}. Under cosine decay {claims['sgdp-accuracy'].text}."
    tables = [_constant_table(results), _cosine_table(results), _toy_table(results)]
    return Presentation(summary, [figure, *tables, NOTES], figure.figure)


def _figure(results: Results) -> Figure:
    every = max(1, results.plan.steps // 30)
    first = {arm: mean_of(runs, "norms")[:, 0] for arm, runs in results.constant.items()}
    lines = {arm: (np.arange(31) * every, first[arm]) for arm in ("SGD", "SGD, momentum", "SGDP", "Adam", "AdamP")}
    return line_chart("Norm of the first layer", lines, "step", "squared norm of the first layer's weights", log_y=True)


def _constant_table(results: Results) -> Table:
    rows = []
    for arm, runs in results.constant.items():
        lr = ARMS[arm][1]
        last = [float(run.norms[-1, 0]) for run in runs]
        effective = np.mean([lr / (square if arm.startswith("SGD") else math.sqrt(square)) for square in last])
        rows.append([arm, lr, *mean_of(runs, "growth"), effective, 100 * mean_of(runs, "test")])
    columns = ["optimizer", "learning rate", "growth, layer 1", "growth, layer 2", "last effective rate", "test, %"]
    caption = "Effective rate: lr / |w|^2 for SGD and its kin, lr / |w| for Adam and its kin, of layer 1."
    return Table("Constant learning rate", columns, rows, caption)


def _cosine_table(results: Results) -> Table:
    rows = []
    for (arm, lr), runs in results.cosine.items():
        accuracies = (100 * mean_of(runs, name) for name in ("validation", "test"))
        rows.append([arm, lr, *accuracies, "yes" if lr == results.best_rate(arm) else ""])
    columns = ["optimizer", "learning rate", "held out, %", "test, %", "chosen"]
    return Table("Cosine decay", columns, rows, "Chosen by 297 held-out digits; 500 others are the test.")


def _toy_table(results: Results) -> Table:
    rows = [[*setting, *last] for setting, last in results.toys.items()]
    rows += [[name, 0.1, *toy(ARMS[name][0], 0.1)] for name in ("Adam", "AdamP")]
    columns = ["optimizer", "learning rate", "last loss", "last norm"]
    return Table("Toy problem", columns, rows, "200 steps, norm 1 first.")


NOTES = Text(
    "Without the growing norm a step does not shrink by itself: at a constant learning rate a tangential optimizer "
    "keeps moving, and can end less accurate. The comparison of accuracies is therefore made under cosine decay. "
    "The paper's gains (0.1 to 0.8 points on ImageNet) are below what 500 digits resolve: the claim here is "
    "that nothing is lost.",
    title="How to read it",
)


STUDY = Study(
    slug="adamp",
    title="Do tangential steps stop momentum from growing the norm of scale-invariant weights?",
    room="optim",
    paper=Paper(
        "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        "Heo et al.",
        2021,
        "2006.08217",
    ),
    seeds={"tiny": 2, "default": 5, "full": 10},
    experiment=experiment,
    claims=(norm_law, limit, toy_problem, norm_growth, sgdp_accuracy, adamp_accuracy),
    present=present,
)

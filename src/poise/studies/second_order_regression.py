"""Study of "Second-order regression models exhibit progressive sharpening to the edge of stability".

Quadratic models of two parameters, random ones of 120 parameters and 60 outputs, and a tanh network on handwritten
digits, all under full-batch gradient descent on squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from poise.curvature import Hessian, eigs
from poise.dynamics import QuadraticModel, Trajectory, classify, expected_ntk_acceleration
from poise.evidence import clopper_pearson
from poise.nn.mlp import seeded_mlp
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import half_squared_error
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import run_each, run_grid, stage
from poise.studies.kit.rules import above, all_or_none, at_least, at_most, below, between, equal_to, holds_in
from poise.studies.kit.tables import record_table

F64 = torch.float64
START = 0.5
EDGE_LR, CALM_LR = 0.6, 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys; the number of seeds is that of the random models at the edge."""

    epsilons: tuple[float, ...] = (0.05, 0.02, 0.005)
    gaps: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0)
    outputs: int = 60
    parameters: int = 120
    residuals: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.012)
    edge_residual: float = 0.006  # at which random models of this size come to the edge: a narrow window
    steps: int = 6000
    few_seeds: int = 3
    draws: int = 3000
    network_steps: int = 1200
    network_every: int = 20


PLANS: dict[Budget, Plan] = {
    "tiny": Plan((0.05,), (0.5, 1.0), 15, 30, (0.005, 0.01, 0.4), 0.02, steps=500, draws=500, network_steps=60),
    "default": Plan(),
    "full": Plan(few_seeds=10, draws=30_000),
}


# --- A: two parameters -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TwoParameters:
    """Where the models of one epsilon came to rest; arrays are of shape (runs,)."""

    eps: float  # size of the negative eigenvalue
    gap: np.ndarray  # the constant k of ``T_min = 2 - k eps``
    end: np.ndarray  # kernel at the end
    formula: np.ndarray  # ``T_min + (1 + eps) a^2`` with the last ``a``
    highest: np.ndarray  # largest kernel of each run
    converged: np.ndarray  # whether each run came to rest


def run_two_parameters(eps: float, gaps: Sequence[float]) -> TwoParameters:
    """Run all starts of the grid whose invariant puts the lowest possible rest at ``2 - k eps``."""
    axes = (torch.tensor(values, dtype=F64) for values in (gaps, (0.15, 0.3), (0.01, -0.1)))
    k, a2, z = (x.flatten() for x in torch.meshgrid(*axes, indexing="ij"))
    floor = 2.0 - k * eps
    model = QuadraticModel.two_parameter(eps, a2.sqrt(), (floor + eps * a2 - 2 * eps * z).sqrt(), z)
    run = model.run(200_000, every=5)
    formula = floor + (1 + eps) * run.end[:, 0, 0].square()
    arrays = (k, run.ntk_max[-1], formula, run.ntk_max.amax(0), run.converged)
    return TwoParameters(eps, *(array.numpy() for array in arrays))


# --- B: random models --------------------------------------------------------------------------------------------


def run_random(plan: Plan, residuals: float | Tensor, seed: int) -> Trajectory:
    """Run the random model of a seed; several sizes of the residuals run side by side."""
    g = torch.Generator().manual_seed(seed)
    return QuadraticModel.random(plan.outputs, plan.parameters, START, residuals, g).run(plan.steps)


# --- C: a network on digits --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NetworkRun:
    """A network under gradient descent."""

    steps: np.ndarray  # at which the sharpness was measured
    ratio: np.ndarray  # learning rate times sharpness / 2 there; 1 is the edge
    loss: np.ndarray  # there
    products: float  # Hessian-vector products of one measurement, on average
    diverged: bool  # whether the loss was no longer finite at some step; nothing is recorded from there on

    @property
    def late(self) -> float:
        """Mean ratio over the last third of the run; infinite if it diverged."""
        return math.inf if self.diverged else float(self.ratio[2 * len(self.ratio) // 3 :].mean())


def digits_batch() -> tuple[Tensor, Tensor]:
    """Return the first 300 digits, a sixteenth of each pixel less its mean, and one-hot targets."""
    x, y, *_ = digits(train=300, scale="centred")
    return x, F.one_hot(y, 10).float()


def run_network(lr: float, steps: int, every: int, seed: int) -> NetworkRun:
    """Train a tanh network 64-32-32-10 by full-batch gradient descent and measure its sharpness as it goes."""
    batch, model, guess = digits_batch(), seeded_mlp((64, 32, 32, 10), seed), None
    parameters: list[Tensor] = list(model.parameters())
    generator, rows = torch.Generator().manual_seed(seed), []
    for step in range(steps + 1):
        loss = half_squared_error(model, batch)
        if not loss.isfinite():
            break
        if step % every == 0:
            top = eigs(Hessian(model, half_squared_error, batch), k=1, tol=1e-3, v0=guess, generator=generator)
            guess = top.vectors[:, 0]
            rows.append((step, float(top.values[0]), loss.item(), top.n_matvec))
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-lr)
    at, sharpness, losses, products = np.array(rows).T
    return NetworkRun(at, lr * sharpness / 2, losses, float(products.mean()), not bool(loss.isfinite()))


# --- D: the mean second derivative of the kernel ----------------------------------------------------------------


def derivative_error(draws: int, seed: int, outputs: int = 8, parameters: int = 16) -> tuple[float, float]:
    """Compare the derivatives of the kernel under gradient flow, averaged over random Q, with theory.

    Returns:
        Relative Frobenius error of the second derivative, and the size of the mean first derivative (0 in theory)
        relative to its spread.
    """
    g = torch.Generator().manual_seed(seed)
    J, z = torch.randn(outputs, parameters, generator=g, dtype=F64), torch.randn(outputs, generator=g, dtype=F64)
    first, second = torch.zeros(draws, outputs, outputs, dtype=F64), torch.zeros(draws, outputs, outputs, dtype=F64)
    for i in range(draws):
        A = torch.randn(outputs, parameters, parameters, generator=g, dtype=F64)
        first[i], second[i] = kernel_derivatives((A + A.mT) / math.sqrt(2), J, z)
    expected = expected_ntk_acceleration(J, z)
    error = (second.mean(0) - expected).norm() / expected.norm()
    drift = first.mean(0).norm() / first.square().mean(0).sum().sqrt()
    return float(error), float(drift)


def kernel_derivatives(Q: Tensor, J: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return both time derivatives of ``J J^T`` under gradient flow, ``z' = -J J^T z`` and ``J' = -Q(J^T z)``."""
    s = J.T @ z
    dJ = -Q @ s
    ddJ = -Q @ (dJ.T @ z - J.T @ (J @ s))
    return dJ @ J.T + J @ dJ.T, ddJ @ J.T + 2 * dJ @ dJ.T + J @ ddJ.T


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """What came out."""

    plan: Plan  # what was run
    two: Mapping[float, TwoParameters]  # models of two parameters, by epsilon
    edge: Mapping[int, Trajectory]  # the random model of each seed, with residuals that bring it to the edge
    scan: Mapping[int, Trajectory]  # of a few seeds, runs over all sizes of the residuals
    linear_drift: float  # largest change of the kernel of a random model without second derivatives
    network: Mapping[float, list[NetworkRun]]  # by learning rate, one run a seed
    derivatives: Mapping[int, tuple[float, float]]  # of a few seeds, both errors of :func:`derivative_error`


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the four parts."""
    plan = PLANS[budget]
    few, residuals = seeds[: plan.few_seeds], torch.tensor(plan.residuals, dtype=F64)
    at = partial(stage, progress)
    two = run_each(lambda eps: run_two_parameters(eps, plan.gaps), plan.epsilons, at("two parameters, eps", 0, 0.15))
    edge = run_each(lambda seed: run_random(plan, plan.edge_residual, seed), seeds, at("edge, seed", 0.15, 0.6))
    scan = run_each(lambda seed: run_random(plan, residuals, seed), few, at("all residuals, seed", 0.6, 0.75))
    network = run_grid(
        lambda lr, seed: run_network(lr, plan.network_steps, plan.network_every, seed),
        (EDGE_LR, CALM_LR),
        few,
        at("network, learning rate", 0.75, 0.95),
    )
    derivatives = run_each(lambda seed: derivative_error(plan.draws, seed), few, at("kernel, seed", 0.95, 1))
    return Results(plan, two, edge, scan, linear_drift(plan, seeds[0]), network, derivatives)


def linear_drift(plan: Plan, seed: int) -> float:
    """Largest change of the kernel of the same model without second derivatives: zero in theory."""
    g = torch.Generator().manual_seed(seed)
    model = QuadraticModel.random(plan.outputs, plan.parameters, START, plan.edge_residual, g)
    run = QuadraticModel(torch.zeros_like(model.Q), model.J, model.z).run(200)
    return float((run.ntk_max - run.ntk_max[0]).abs().max())


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "two-parameters",
    "With two parameters and one example the kernel comes to rest within O(eps) below 2 / lr.",
    paper="proved for open sets of starts",
    protocol="All starts of a grid. Gaps: how far below 2 they end, in eps; converged: fraction that comes to rest; "
    "formula error: largest distance of the end from T_min + (1 + eps) a^2.",
    rule=all_or_none(
        equal_to("converged", 1) & at_least("smallest_gap", 0) & at_most("largest_gap", 3),
        at_most("formula_error", 1e-8),
    ),
    without_seeds="nothing is drawn: the starts are a grid.",
)
def two_parameters(results: Results) -> Measured:
    runs = results.two.values()
    gaps = np.concatenate([(2.0 - run.end) / run.eps for run in runs])
    error = max(float(np.abs(run.end - run.formula).max()) for run in runs)
    numbers = {
        "smallest_gap": gaps.min(),
        "largest_gap": gaps.max(),
        "formula_error": error,
        "exceeded": np.mean(np.concatenate([run.highest > 2.0 for run in runs])),
        "converged": np.mean(np.concatenate([run.converged for run in runs])),
    }
    words = f"{len(gaps)} starts end {gaps.min():.2f} to {gaps.max():.2f} eps below 2"
    return Measured(f"{words}; distance to the formula {error:.0e}", numbers)


@claim(
    "random-edge",
    "Random quadratic models sharpen progressively and then come to rest at 2 / lr.",
    paper="shown in figures",
    protocol="Runs that do not diverge (finite): how many exceed 2 and end in [1.85, 2.05] (settled, each settles); "
    "came near: 1 if one comes within 10 % of 2 (each near).",
    reproduced=above("finite", 0) & at_least("settled", "finite", times=0.7) & holds_in(equal_to("settles", 1), 0.7),
    refuted=equal_to("came_near", 0) & holds_in(equal_to("near", 0), 0.7),
)
def random_edge(results: Results) -> Measured:
    finite = [run.ntk_max for run in results.edge.values() if not run.diverged]
    diverged, ends = len(results.edge) - len(finite), [float(kernel[-1]) for kernel in finite]
    settles = [float(k.max()) > 2.0 and 1.85 <= end <= 2.05 for k, end in zip(finite, ends, strict=True)]
    near, settled = [bool(((kernel - 2.0).abs() <= 0.2).any()) for kernel in finite], sum(settles)
    low, high = clopper_pearson(settled, len(finite)) if finite else (0.0, 1.0)
    rest = float(np.mean(ends)) if ends else math.inf
    words = f"{settled} of {len(finite)} runs that do not diverge [{low:.0%}, {high:.0%}], mean end {rest:.3f}"
    counts = {"settled": settled, "finite": len(finite), "runs": len(results.edge), "came_near": any(near)}
    by_seed = {"settles": settles or [False], "near": near or [False]}  # nothing where all diverge
    return Measured(f"{words}; {diverged} diverge", {**counts, "rest": rest}, by_seed)


@claim(
    "random-sharpening",
    "Sharpening grows with the residuals, and without second-order outputs there is none.",
    paper="shown in figures",
    protocol="Residuals below those of the edge. Gain: kernel at the end over the start, the lowest of all runs; "
    "increment: by how much more it grows with the next larger residuals, the smallest; both also as means over seeds; "
    "linear drift: by how much it moves without second derivatives.",
    rule=all_or_none(
        above("lowest_gain", 1) & above("smallest_increment", 0) & above("gain", 1) & above("increment", 0),
        at_most("linear_drift", 1e-12),
        over_seeds=["gain", "increment"],
    ),
)
def random_sharpening(results: Results) -> Measured:
    sizes, drift = np.array(results.plan.residuals), results.linear_drift
    gains = np.stack([(r.ntk_max[-1] / START).where(~r.diverged, math.inf).numpy() for r in results.scan.values()])
    calm = gains[:, sizes < results.plan.edge_residual]
    means = ", ".join(f"{gain:.2f}" for gain in calm.mean(0))
    by_seed = {"gain": calm.min(1), "increment": np.diff(calm, axis=1).min(1)}
    numbers = {
        "lowest_gain": calm.min(),
        "smallest_increment": by_seed["increment"].min(),
        "linear_drift": drift,
        **{name: own.mean() for name, own in by_seed.items()},
    }
    words = f"end over start, mean of seeds: {means}; without second derivatives it moves by {drift:.0e}"
    return Measured(words, numbers, by_seed)


@claim(
    "second-derivative",
    "On average the kernel's first time derivative is zero and its second is positive and known.",
    paper="derived",
    protocol="Relative distance of the mean over random models from the formula, in the Frobenius norm: the largest "
    "and the mean of the seeds.",
    reproduced=below("error", 0.04, "largest error") & below("mean_error", 0.04),
    refuted=at_least("mean_error", 0.1),
    over_seeds=["mean_error"],
)
def second_derivative(results: Results) -> Measured:
    errors, drifts = zip(*results.derivatives.values(), strict=True)
    words = f"second derivative off by {max(errors):.1%}, mean first derivative {max(drifts):.1%} of its spread"
    numbers = {"error": max(errors), "drift": max(drifts), "mean_error": np.mean(errors)}
    return Measured(words, numbers, {"mean_error": errors})


@claim(
    "network",
    "A network on real data sharpens to the edge of stability and hovers there.",
    paper="shown for CIFAR-10",
    protocol="Learning rate x sharpness / 2, mean over the last third: lowest, highest and mean of the seeds.",
    reproduced=at_least("lowest", 0.95) & at_most("highest", 1.12) & between("mean", 0.95, 1.12),
    refuted=below("mean", 0.8),
    over_seeds=["mean"],
)
def network_on_digits(results: Results) -> Measured:
    edge, calm = results.network[EDGE_LR], [run.late for run in results.network[CALM_LR]]
    late, start = [run.late for run in edge], float(np.mean([run.ratio[0] for run in edge]))
    mean = float(np.mean(late))
    words = (
        f"{mean:.3f} of the edge over the last third [{min(late):.3f}, {max(late):.3f}] from {start:.2f} at the "
        f"start; {float(np.mean(calm)):.2f} at half the rate"
    )
    numbers = {"lowest": min(late), "highest": max(late), "mean": mean, "calm": max(calm), "start": start}
    return Measured(words, numbers, {"mean": late})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    edge, curves = claims["random-edge"].numbers, _random_figure(results)
    summary = (
        f"{edge['settled']:.0f} of {edge['finite']:.0f} random quadratic models that do not diverge sharpen past the "
        f"edge of stability and come to rest at it; a network on digits hovers at "
        f"{claims['network'].numbers['mean']:.3f} of it."
    )
    return Presentation(
        summary,
        [
            curves,
            _network_figure(results.network),
            _two_figure(results.two.values()),
            _random_table(results),
            _network_table(results.network),
            _notes(results.plan),
        ],
        curves.figure,
    )


def _random_figure(results: Results) -> Figure:
    scan, edge = next(iter(results.scan.values())), next(iter(results.edge.values()))
    series = {
        f"residuals {rz:g}": (scan.steps.numpy(), scan.ntk_max[:, i].numpy())
        for i, rz in enumerate(results.plan.residuals)
        if not scan.diverged[i]
    }
    series[f"residuals {results.plan.edge_residual:g}"] = (edge.steps.numpy(), edge.ntk_max.numpy())
    figure = line_chart("Random quadratic models", series, "step", "learning rate x largest kernel eigenvalue")
    figure.figure.add_hline(y=2.0, line_dash="dot", line_width=1, annotation_text="edge of stability")
    return figure


def _network_figure(network: Mapping[float, Sequence[NetworkRun]]) -> Figure:
    series = {f"learning rate {lr}": (runs[0].steps, runs[0].ratio) for lr, runs in network.items()}
    figure = line_chart("A network on digits", series, "step", "learning rate x sharpness / 2")
    figure.figure.add_hline(y=1.0, line_dash="dot", line_width=1, annotation_text="edge of stability")
    return figure


def _two_figure(runs: Iterable[TwoParameters]) -> Figure:
    series = {}
    for run in runs:
        gaps = np.unique(run.gap)
        series[f"eps {run.eps}"] = (gaps, [(2 - run.end[run.gap == k].mean()) / run.eps for k in gaps])
    x_title, y_title = "k, where the lowest possible rest is 2 - k eps", "(2 - rest) / eps, mean of starts"
    return line_chart("Two parameters: distance of the rest from 2", series, x_title, y_title)


def _random_table(results: Results) -> Table:
    by_size = {rz: [scan[i] for scan in results.scan.values()] for i, rz in enumerate(results.plan.residuals)}
    by_size[results.plan.edge_residual] = list(results.edge.values())
    rows = [
        [rz, i, float(run.ntk_max.max()), float(run.ntk_max[-1]), classify(run)]
        for rz in sorted(by_size)
        for i, run in enumerate(by_size[rz])
    ]
    columns = ["Size of the residuals", "Run", "Highest", "End", "Phase"]
    caption = f"Largest kernel eigenvalue times learning rate; {START} at the start."
    return Table("Random quadratic models, run by run", columns, rows, caption)


def _network_table(network: Mapping[float, Sequence[NetworkRun]]) -> Table:
    rows = [
        {
            "Learning rate": lr,
            "Run": i,
            "Start": run.ratio[0],
            "Highest": run.ratio.max(),
            "Last third": run.late,
            "Loss at start": run.loss[0],
            "Loss at end": run.loss[-1],
            "Products": run.products,
        }
        for lr, runs in network.items()
        for i, run in enumerate(runs)
    ]
    caption = (
        "Learning rate times sharpness / 2: 1 is the edge. Products: Hessian-vector products that one measurement of "
        "the sharpness takes, on average."
    )
    return record_table("Network on digits", rows, caption)


def _notes(plan: Plan) -> Text:
    return Text(
        f"Random models: {plan.outputs} outputs, {plan.parameters} parameters, largest kernel eigenvalue {START} at "
        f"the start, at most {plan.steps} steps, the eigenvalue every 5. The window in the size of the residuals "
        "between sharpening that stops short of the edge and divergence is narrow, and lies elsewhere for other sizes. "
        f"Network: 64-32-32-10, tanh, 300 digits, one-hot targets, half the squared error, {plan.network_steps} steps. "
        "Where the model of two parameters comes to rest is judged by the exact invariant of its quadratic form, which "
        "shows how the rest depends on the start.",
        title="Set-up",
    )


STUDY = Study(
    slug="second-order-regression",
    title="Do quadratic models sharpen to the edge of stability?",
    room="dynamics",
    paper=Paper(
        "Second-order regression models exhibit progressive sharpening to the edge of stability",
        "Agarwala et al.",
        2023,
        "2210.04860",
    ),
    seeds={"tiny": 3, "default": 12, "full": 20},
    experiment=experiment,
    claims=(two_parameters, random_edge, random_sharpening, second_derivative, network_on_digits),
    present=present,
)

"""Study of "Second-order regression models exhibit progressive sharpening to the edge of stability".

Quadratic models of two parameters, random ones of 120 parameters and 60 outputs, and a tanh network on handwritten
digits, all under full-batch gradient descent on squared error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.curvature.eigen.eigs import eigs
from poise.curvature.operators.hessian.hessian import Hessian
from poise.data import load_digits
from poise.dynamics import QuadraticModel, Trajectory, classify, expected_ntk_acceleration
from poise.evidence import clopper_pearson
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.kit.networks import mlp
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

F64 = torch.float64
OUTPUTS, PARAMETERS, START = 60, 120, 0.5
EDGE_RZ = 0.006
"""Size of the residuals at which random models of this size come to the edge: a narrow window."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys; the number of seeds is that of the random models at the edge."""

    epsilons: tuple[float, ...] = (0.05, 0.02, 0.005)
    gaps: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0)
    outputs: int = OUTPUTS
    parameters: int = PARAMETERS
    residuals: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.012)
    edge_residual: float = EDGE_RZ
    steps: int = 6000
    few_seeds: int = 3
    draws: int = 3000
    network_steps: int = 1200
    network_every: int = 20


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(
        epsilons=(0.05,),
        gaps=(0.5, 1.0),
        outputs=15,
        parameters=30,
        edge_residual=0.02,
        residuals=(0.005, 0.01, 0.4),
        steps=500,
        draws=500,
        network_steps=60,
    ),
    "default": Plan(),
    "full": Plan(few_seeds=10, draws=30_000),
}


# --- A: two parameters -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TwoParameters:
    """Where the models of one epsilon came to rest.

    Args:
        eps: size of the negative eigenvalue.
        gap: the constant k of ``T_min = 2 - k eps``, shape (runs,).
        end: kernel at the end, shape (runs,).
        formula: ``T_min + (1 + eps) a^2`` with the last ``a``, shape (runs,).
        highest: largest kernel of each run, shape (runs,).
        converged: whether each run came to rest.
        steps: of the longest run.
    """

    eps: float
    gap: np.ndarray
    end: np.ndarray
    formula: np.ndarray
    highest: np.ndarray
    converged: np.ndarray
    steps: int


def run_two_parameters(eps: float, gaps: Sequence[float]) -> TwoParameters:
    """Run all starts of the grid whose invariant puts the lowest possible rest at ``2 - k eps``."""
    k, a2, z = (
        x.flatten()
        for x in torch.meshgrid(
            torch.tensor(gaps, dtype=F64),
            torch.tensor([0.15, 0.3], dtype=F64),
            torch.tensor([0.01, -0.1], dtype=F64),
            indexing="ij",
        )
    )
    floor = 2.0 - k * eps
    model = QuadraticModel.two_parameter(eps, a2.sqrt(), (floor + eps * a2 - 2 * eps * z).sqrt(), z)
    run = model.run(200_000, every=5)
    end = run.ntk_max[-1]
    a = run.end[:, 0, 0]
    return TwoParameters(
        eps,
        k.numpy(),
        end.numpy(),
        (floor + (1 + eps) * a.square()).numpy(),
        run.ntk_max.amax(0).numpy(),
        run.converged.numpy(),
        int(run.steps[-1]),
    )


# --- B: random models --------------------------------------------------------------------------------------------


def run_random(plan: Plan, residuals: float | Tensor, seed: int) -> Trajectory:
    """Run the random model of a seed; several sizes of the residuals run side by side."""
    g = torch.Generator().manual_seed(seed)
    return QuadraticModel.random(plan.outputs, plan.parameters, START, residuals, g).run(plan.steps)


# --- C: a network on digits --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NetworkRun:
    """A network under gradient descent.

    Args:
        lr: learning rate.
        steps: at which the sharpness was measured.
        ratio: learning rate times sharpness / 2 there; 1 is the edge.
        loss: there.
        products: Hessian-vector products of one measurement, on average.
        diverged: whether the loss was no longer finite at some step; nothing is recorded from there on.
    """

    lr: float
    steps: np.ndarray
    ratio: np.ndarray
    loss: np.ndarray
    products: float
    diverged: bool

    @property
    def late(self) -> float:
        """Mean ratio over the last third of the run; infinite if it diverged."""
        return math.inf if self.diverged else float(self.ratio[2 * len(self.ratio) // 3 :].mean())


def half_squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return half the squared distance to the one-hot target, mean over examples."""
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(1).mean()


def digits_batch() -> tuple[Tensor, Tensor]:
    """Return the first 300 digits, a sixteenth of each pixel less its mean, and one-hot targets."""
    digits = load_digits()
    images = digits.inputs[:300] / 16.0
    return images - images.mean(0), F.one_hot(digits.targets[:300], 10).float()


def run_network(lr: float, steps: int, every: int, seed: int) -> NetworkRun:
    """Train a tanh network 64-32-32-10 by full-batch gradient descent and measure its sharpness as it goes."""
    batch = digits_batch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp((64, 32, 32, 10))
    parameters: list[Tensor] = list(model.parameters())
    marks, sharpness, losses, products, guess = [], [], [], [], None
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps + 1):
        loss = half_squared_error(model, batch)
        if not loss.isfinite():
            break
        if step % every == 0:
            top = eigs(Hessian(model, half_squared_error, batch), k=1, tol=1e-3, v0=guess, generator=generator)
            guess = top.vectors[:, 0]
            marks.append(step)
            sharpness.append(float(top.values[0]))
            losses.append(loss.item())
            products.append(top.n_matvec)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-lr)
    ratio = lr * np.array(sharpness) / 2
    diverged = not bool(loss.isfinite())
    return NetworkRun(lr, np.array(marks), ratio, np.array(losses), float(np.mean(products)), diverged)


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
class Runs:
    """All runs."""

    plan: Plan
    two: Sequence[TwoParameters]
    edge: Sequence[Trajectory]
    scan: Sequence[Trajectory]
    linear_drift: float
    network: Mapping[float, Sequence[NetworkRun]]
    derivatives: Sequence[tuple[float, float]]


EDGE_LR, CALM_LR = 0.6, 0.3


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the four parts and put what came out beside the claims."""
    runs = _run_all(PLANS[budget], seeds, progress)
    claims = {
        "two-parameters": _measure_two(runs.two),
        "random-edge": _measure_edge(runs.edge),
        "random-sharpening": _measure_sharpening(runs),
        "second-derivative": _measure_derivatives(runs.derivatives),
        "network": _measure_network(runs.network),
    }
    curves = _random_figure(runs)
    blocks: list[Text | Table | Figure | Code] = [
        curves,
        _network_figure(runs.network),
        _two_figure(runs.two),
        _random_table(runs),
        _network_table(runs.network),
        _notes(runs),
    ]
    edge, network = claims["random-edge"].numbers, claims["network"].numbers
    summary = (
        f"{edge['settled']:.0f} of {edge['finite']:.0f} random quadratic models that do not diverge sharpen past the "
        f"edge of stability and come to rest at it; a network on digits hovers at {network['mean']:.3f} of it."
    )
    return Measurement(claims, summary, blocks, curves.figure)


def _run_all(plan: Plan, seeds: Sequence[int], progress: Progress) -> Runs:
    few = seeds[: plan.few_seeds]
    two = []
    for i, eps in enumerate(plan.epsilons):
        progress(0.15 * i / len(plan.epsilons), f"two parameters, eps {eps}")
        two.append(run_two_parameters(eps, plan.gaps))
    edge = []
    for i, seed in enumerate(seeds):
        progress(0.15 + 0.45 * i / len(seeds), f"random models at the edge, seed {seed}")
        edge.append(run_random(plan, plan.edge_residual, seed))
    scan, residuals = [], torch.tensor(plan.residuals, dtype=F64)
    for i, seed in enumerate(few):
        progress(0.6 + 0.15 * i / len(few), f"random models, sizes of the residuals, seed {seed}")
        scan.append(run_random(plan, residuals, seed))
    network: dict[float, list[NetworkRun]] = {EDGE_LR: [], CALM_LR: []}
    for i, seed in enumerate(few):
        for lr in network:
            progress(0.75 + 0.2 * i / len(few), f"network, learning rate {lr}, seed {seed}")
            network[lr].append(run_network(lr, plan.network_steps, plan.network_every, seed))
    progress(0.95, "second derivative of the kernel")
    derivatives = [derivative_error(plan.draws, seed) for seed in few]
    progress(1.0, "done")
    return Runs(plan, two, edge, scan, _linear_drift(plan, seeds[0]), network, derivatives)


def _linear_drift(plan: Plan, seed: int) -> float:
    """Largest change of the kernel of the same model without second derivatives: zero in theory."""
    g = torch.Generator().manual_seed(seed)
    model = QuadraticModel.random(plan.outputs, plan.parameters, START, plan.edge_residual, g)
    run = QuadraticModel(torch.zeros_like(model.Q), model.J, model.z).run(200)
    return float((run.ntk_max - run.ntk_max[0]).abs().max())


def _measure_two(runs: Sequence[TwoParameters]) -> Measured:
    gaps = np.concatenate([(2.0 - run.end) / run.eps for run in runs])
    numbers = {
        "smallest_gap": float(gaps.min()),
        "largest_gap": float(gaps.max()),
        "formula_error": max(float(np.abs(run.end - run.formula).max()) for run in runs),
        "exceeded": float(np.mean(np.concatenate([run.highest > 2.0 for run in runs]))),
        "converged": float(np.mean(np.concatenate([run.converged for run in runs]))),
    }
    words = (
        f"{len(gaps)} starts end {gaps.min():.2f} to {gaps.max():.2f} eps below 2; distance to the formula "
        f"{numbers['formula_error']:.0e}"
    )
    return Measured(words, numbers)


def _measure_edge(runs: Sequence[Trajectory]) -> Measured:
    finite = [run for run in runs if not run.diverged]
    ends = [float(run.ntk_max[-1]) for run in finite]
    settled = [float(run.ntk_max.max()) > 2.0 and 1.85 <= end <= 2.05 for run, end in zip(finite, ends, strict=True)]
    near = [abs(float(value) - 2.0) <= 0.2 for run in finite for value in run.ntk_max]
    low, high = clopper_pearson(sum(settled), len(finite)) if finite else (0.0, 1.0)
    numbers = {
        "settled": sum(settled),
        "finite": len(finite),
        "runs": len(runs),
        "came_near": any(near),
        "rest": float(np.mean(ends)) if ends else math.inf,
    }
    words = (
        f"{sum(settled)} of {len(finite)} runs that do not diverge [{low:.0%}, {high:.0%}], mean end "
        f"{numbers['rest']:.3f}; {len(runs) - len(finite)} diverge"
    )
    return Measured(words, numbers)


def _measure_sharpening(runs: Runs) -> Measured:
    gains = _gains(runs)
    gentle = [i for i, rz in enumerate(runs.plan.residuals) if rz < runs.plan.edge_residual]
    calm = gains[:, gentle]
    numbers = {
        "lowest_gain": float(calm.min()),
        "smallest_increment": float(np.diff(calm, axis=1).min()),
        "linear_drift": runs.linear_drift,
    }
    means = ", ".join(f"{gains[:, i].mean():.2f}" for i in gentle)
    words = f"end over start, mean of seeds: {means}; without second derivatives it moves by {runs.linear_drift:.0e}"
    return Measured(words, numbers)


def _gains(runs: Runs) -> np.ndarray:
    """Kernel at the end over the start, shape (seeds, sizes of the residuals); infinite where diverged."""
    return np.stack([(r.ntk_max[-1] / START).where(~r.diverged, math.inf).numpy() for r in runs.scan])


def _measure_derivatives(errors: Sequence[tuple[float, float]]) -> Measured:
    error, drift = (max(values) for values in zip(*errors, strict=True))
    words = f"second derivative off by {error:.1%}, mean first derivative {drift:.1%} of its spread"
    return Measured(words, {"error": error, "drift": drift})


def _measure_network(network: Mapping[float, Sequence[NetworkRun]]) -> Measured:
    late, calm = [run.late for run in network[EDGE_LR]], [run.late for run in network[CALM_LR]]
    numbers = {
        "lowest": min(late),
        "highest": max(late),
        "mean": float(np.mean(late)),
        "calm": max(calm),
        "start": float(np.mean([run.ratio[0] for run in network[EDGE_LR]])),
    }
    words = (
        f"{numbers['mean']:.3f} of the edge over the last third [{min(late):.3f}, {max(late):.3f}] from "
        f"{numbers['start']:.2f} at the start; {float(np.mean(calm)):.2f} at half the rate"
    )
    return Measured(words, numbers)


# --- figures and tables ------------------------------------------------------------------------------------------


def _random_figure(runs: Runs) -> Figure:
    scan = runs.scan[0]
    series = {
        f"residuals {rz:g}": (scan.steps.numpy(), scan.ntk_max[:, i].numpy())
        for i, rz in enumerate(runs.plan.residuals)
        if not scan.diverged[i]
    }
    edge = runs.edge[0]
    series[f"residuals {runs.plan.edge_residual:g}"] = (edge.steps.numpy(), edge.ntk_max.numpy())
    figure = line_chart("Random quadratic models", series, "step", "learning rate x largest kernel eigenvalue")
    figure.figure.add_hline(y=2.0, line_dash="dot", line_width=1, annotation_text="edge of stability")
    return figure


def _network_figure(network: Mapping[float, Sequence[NetworkRun]]) -> Figure:
    series = {f"learning rate {lr}": (runs[0].steps, runs[0].ratio) for lr, runs in network.items()}
    figure = line_chart("A network on digits", series, "step", "learning rate x sharpness / 2")
    figure.figure.add_hline(y=1.0, line_dash="dot", line_width=1, annotation_text="edge of stability")
    return figure


def _two_figure(runs: Sequence[TwoParameters]) -> Figure:
    series = {}
    for run in runs:
        gaps = np.unique(run.gap)
        series[f"eps {run.eps}"] = (gaps, [(2 - run.end[run.gap == k].mean()) / run.eps for k in gaps])
    x_title, y_title = "k, where the lowest possible rest is 2 - k eps", "(2 - rest) / eps, mean of starts"
    return line_chart("Two parameters: distance of the rest from 2", series, x_title, y_title)


def _random_table(runs: Runs) -> Table:
    by_size = {rz: [scan[i] for scan in runs.scan] for i, rz in enumerate(runs.plan.residuals)}
    by_size[runs.plan.edge_residual] = list(runs.edge)
    rows = [[rz, i, *_row(run)] for rz in sorted(by_size) for i, run in enumerate(by_size[rz])]
    columns = ["Size of the residuals", "Run", "Highest", "End", "Phase"]
    caption = f"Largest kernel eigenvalue times learning rate; {START} at the start."
    return Table("Random quadratic models, run by run", columns, rows, caption)


def _row(run: Trajectory) -> list[object]:
    return [float(run.ntk_max.max()), float(run.ntk_max[-1]), classify(run)]


def _network_table(network: Mapping[float, Sequence[NetworkRun]]) -> Table:
    columns = ["Learning rate", "Run", "Start", "Highest", "Last third", "Loss at start", "Loss at end", "Products"]
    rows: list[list[object]] = [
        [lr, i, run.ratio[0], run.ratio.max(), run.late, run.loss[0], run.loss[-1], run.products]
        for lr, runs in network.items()
        for i, run in enumerate(runs)
    ]
    caption = (
        "Learning rate times sharpness / 2: 1 is the edge. Products: Hessian-vector products that one measurement of "
        "the sharpness takes, on average."
    )
    return Table("Network on digits", columns, rows, caption)


def _notes(runs: Runs) -> Text:
    plan, steps = runs.plan, runs.plan.network_steps
    return Text(
        f"Random models: {plan.outputs} outputs, {plan.parameters} parameters, largest kernel eigenvalue {START} at "
        f"the start, at most {plan.steps} steps, the eigenvalue every 5. The window in the size of the residuals "
        "between sharpening that stops short of the edge and divergence is narrow, and lies elsewhere for other sizes. "
        f"Network: 64-32-32-10, tanh, 300 digits, one-hot targets, half the squared error, {steps} steps. Where the "
        "model of two parameters comes to rest is judged by the exact invariant of its quadratic form, which shows "
        "how the rest depends on the start.",
        title="Set-up",
    )


# --- the claims --------------------------------------------------------------------------------------------------


def judge_two(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by where the kernel comes to rest, and by the formula."""
    at_edge = n["converged"] == 1.0 and n["smallest_gap"] >= 0.0 and n["largest_gap"] <= 3.0
    return _count([at_edge, n["formula_error"] <= 1e-8])


def judge_edge(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the share of runs that come to rest at the edge."""
    if not n["came_near"]:
        return "refuted"
    return "reproduced" if n["finite"] > 0 and n["settled"] >= 0.7 * n["finite"] else "partly"


def judge_sharpening(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the growth of the kernel, its increase with residuals, and its rest without second derivatives."""
    return _count([n["lowest_gain"] > 1.0 and n["smallest_increment"] > 0.0, n["linear_drift"] <= 1e-12])


def judge_derivatives(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the error of the formula."""
    return "reproduced" if n["error"] < 0.04 else "partly" if n["error"] < 0.1 else "refuted"


def judge_network(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the distance from the edge over the last third."""
    if n["highest"] < 0.8:
        return "refuted"
    return "reproduced" if n["lowest"] >= 0.95 and n["highest"] <= 1.12 else "partly"


def _count(held: Sequence[bool]) -> ClaimVerdict:
    return "reproduced" if all(held) else "partly" if any(held) else "refuted"


CLAIMS = (
    Claim(
        "two-parameters",
        "With two parameters and one example the kernel comes to rest within O(eps) below 2 / lr.",
        "proved for open sets of starts",
        "Reproduced if every start of the grid ends in [2 - 3 eps, 2], and T_min + (1 + eps) a^2 holds to 1e-8; "
        "refuted if neither does.",
        judge_two,
    ),
    Claim(
        "random-edge",
        "Random quadratic models sharpen progressively and then come to rest at 2 / lr.",
        "shown in figures",
        "Reproduced if 7 of 10 runs that do not diverge exceed 2 and end in [1.85, 2.05]; refuted if none comes within "
        "10 % of 2.",
        judge_edge,
    ),
    Claim(
        "random-sharpening",
        "Sharpening grows with the residuals, and without second-order outputs there is none.",
        "shown in figures",
        "Below the edge: reproduced if the kernel grows in every run, and more with larger residuals, and moves by at "
        "most 1e-12 without second derivatives; refuted if neither holds.",
        judge_sharpening,
    ),
    Claim(
        "second-derivative",
        "On average the kernel's first time derivative is zero and its second is positive and known.",
        "derived",
        "Reproduced if the mean over random models is within 4 % of the formula (Frobenius norm), refuted beyond 10 %.",
        judge_derivatives,
    ),
    Claim(
        "network",
        "A network on real data sharpens to the edge of stability and hovers there.",
        "shown for CIFAR-10",
        "Learning rate x sharpness / 2, mean over the last third. Reproduced if in [0.95, 1.12] for every seed, "
        "refuted below 0.8.",
        judge_network,
    ),
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
    claims=CLAIMS,
    seeds={"tiny": 3, "default": 10, "full": 20},
    measure=measure,
)

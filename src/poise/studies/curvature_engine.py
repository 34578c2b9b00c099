"""Study of the curvature engine on which the edge-of-stability literature is tested.

Part one asks the engine for eigenvalues whose truth is known: do its error bounds hold, does a cold start miss any, how
many products does it take. Part two uses it: gradient descent and Adam on handwritten digits, whose (preconditioned)
sharpness should settle at the threshold of their stability.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from poise.curvature import DenseOperator, Hessian, SharpnessTracker, eigs
from poise.dynamics import edge
from poise.evidence import clopper_pearson
from poise.nn.mlp import seeded_mlp
from poise.report import Table, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import half_squared_error
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import run_each, run_grid, stage
from poise.studies.kit.rules import above, at_least, at_most, below, between, equal_to
from poise.studies.kit.tables import record_table
from poise.studies.kit.words import listed

TOL = 1e-3
CRITERION = nn.CrossEntropyLoss()
GD, ADAM = "gradient descent", "Adam"
OPTIMIZERS: Mapping[str, Callable[[Any], Optimizer]] = {
    GD: lambda params: SGD(params, lr=0.6),
    ADAM: lambda params: Adam(params, lr=0.01, eps=1e-7),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    starts: int = 400  # eigenvalue problems of each kind, over all seeds: 368 are the fewest that can show 0.99
    gd_steps: int = 1200  # of gradient descent
    adam_steps: int = 1500  # of Adam
    measure_every: int = 20  # steps between two measurements of the sharpness


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(starts=12, gd_steps=60, adam_steps=40, measure_every=10),
    "default": Plan(),
    "full": Plan(starts=2000, measure_every=5),
}


# --- eigenvalues of which the truth is known ---------------------------------------------------------------------

Kind = Literal["Gaussian", "clusters", "multiple", "digits, top 1", "digits, top 10"]
KINDS: tuple[Kind, ...] = ("Gaussian", "clusters", "multiple", "digits, top 1", "digits, top 10")


class Case(NamedTuple):
    """One eigenvalue problem: whether all bounds held, whether a value was off by more than asked for, products."""

    held: bool
    wrong: bool
    products: int


def random_matrix(kind: Kind, seed: int, n: int = 120) -> Float[Tensor, "n n"]:
    """Return a symmetric matrix with spread, clustered or multiple eigenvalues in random directions.

    Args:
        kind: ``"Gaussian"``; ``"clusters"``, three of width 1e-4 above a Gaussian bulk; ``"multiple"``, three double
            ones.
        seed: of the matrix.
        n: size.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, dtype=torch.float64, generator=generator)
    if kind == "clusters":
        values[:9] = torch.tensor([8.0, 7.0, 6.0]).repeat_interleave(3) + 1e-4 * values[:9]
    if kind == "multiple":
        values[:6] = torch.tensor([8.0, 8.0, 7.0, 7.0, 6.0, 6.0])
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    matrix = q * values @ q.T
    return (matrix + matrix.T) / 2


def random_case(kind: Kind, seed: int) -> Case:
    """Ask for the first eigenvalues of a random matrix, 1 to 5 of them; multiple ones with the block method."""
    matrix, k = random_matrix(kind, seed), 1 + seed % 5
    method: Literal["block", "lanczos"] = "lanczos" if kind == "Gaussian" else "block"
    found = eigs(DenseOperator(matrix), k, tol=TOL, method=method, generator=torch.Generator().manual_seed(seed + 1))
    return _case(found.values, found.error_bounds, torch.linalg.eigvalsh(matrix).flip(0)[:k], found.n_matvec)


def digits_case(problem: TrainedNet, k: int, seed: int) -> Case:
    """Ask for eigenvalues of a trained network's Hessian from a cold start."""
    found = eigs(problem.hessian(), k, tol=TOL, generator=torch.Generator().manual_seed(seed))
    return _case(found.values, found.error_bounds, problem.truth[:k], found.n_matvec)


def _case(values: Tensor, bounds: Tensor, truth: Tensor, products: int) -> Case:
    errors = (values - truth).abs()
    return Case(bool((errors <= bounds).all()), bool((errors > TOL * truth.abs()).any()), products)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedNet:
    """A network after 150 steps of gradient descent on 500 digits, and the top of its Hessian's spectrum."""

    model: nn.Module  # float32
    data: tuple[Tensor, Tensor]  # inputs and targets
    truth: Float[Tensor, " 10"]  # the ten largest eigenvalues, by ARPACK in float64

    def hessian(self) -> Hessian:
        """Return a fresh operator."""
        return Hessian(self.model, CRITERION, self.data)


@cache
def trained_net(seed: int) -> TrainedNet:
    """Train the network of one seed."""
    x, y, *_ = digits(train=500, scale="unit")
    model = seeded_mlp((64, 32, 10), seed)
    optimizer = SGD(model.parameters(), 0.5)
    for _ in range(150):
        optimizer.zero_grad()
        CRITERION(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    operator = Hessian(copy.deepcopy(model).double(), CRITERION, (x.double(), y)).to_scipy()
    v0 = np.random.default_rng(seed).standard_normal(operator.shape[0])
    truth = np.sort(eigsh(operator, 10, which="LA", tol=1e-12, v0=v0)[0])[::-1]
    return TrainedNet(model, (x, y), torch.from_numpy(truth.copy()))


def solve_cases(kind: Kind, starts: int, seeds: Sequence[int]) -> list[Case]:
    """Solve the eigenvalue problems of one kind."""
    numbers = [1000 * seeds[i % len(seeds)] + i for i in range(starts)]
    if kind not in ("digits, top 1", "digits, top 10"):
        return [random_case(kind, number) for number in numbers]
    k = 1 if kind == "digits, top 1" else 10
    return [digits_case(trained_net(number // 1000), k, number) for number in numbers]


# --- the edge of stability ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    steps: np.ndarray  # at which the sharpness was measured
    ratio: np.ndarray  # sharpness over threshold there
    bound: np.ndarray  # error bound of the ratio
    loss: np.ndarray  # at the same steps
    products: float  # Hessian products per measurement, on average

    @property
    def late(self) -> float:
        """Mean ratio over the last half."""
        return float(self.ratio[len(self.ratio) // 2 :].mean())


def train(name: str, steps: int, measure_every: int, seed: int) -> Run:
    """Train on 300 digits with all of them in every step, and measure the sharpness on the way."""
    x, y, *_ = digits(train=300)
    batch, model = (x, F.one_hot(y, 10).float()), seeded_mlp((64, 32, 32, 10), seed)
    optimizer = OPTIMIZERS[name](model.parameters())
    tracker = SharpnessTracker(precondition="optimizer" if name == ADAM else None, threshold=edge)
    rows = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = half_squared_error(model, batch)
        loss.backward()
        optimizer.step()
        if step % measure_every == 0:
            now = tracker.update(model, half_squared_error, batch, optimizer)
            assert now.ratio is not None
            assert now.threshold is not None
            rows.append((step, now.ratio, now.error_bound / now.threshold, loss.item(), now.n_matvec))
    at, ratio, bound, losses, products = np.asarray(rows).T
    return Run(at, ratio, bound, losses, float(products.mean()))


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """What came out."""

    cases: Mapping[Kind, list[Case]]  # eigenvalue problems by kind
    runs: Mapping[str, list[Run]]  # by optimizer, one a seed
    products: list[float]  # of each seed, Hessian products per step where every step of gradient descent is measured


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run both parts."""
    plan = PLANS[budget]
    part = stage(progress, "eigenvalues:", 0, 0.3)
    cases = run_each(lambda kind: solve_cases(kind, plan.starts, seeds), KINDS, part)
    steps = {GD: plan.gd_steps, ADAM: plan.adam_steps}
    part = stage(progress, "edge of stability:", 0.3, 0.9)
    runs = run_grid(lambda name, seed: train(name, steps[name], plan.measure_every, seed), list(steps), seeds, part)
    return Results(cases, runs, [train(GD, max(plan.gd_steps // 10, 10), 1, seed).products for seed in seeds])


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "edge-gd",
    "The sharpness of full-batch gradient descent rises to 2 / lr and stays there",
    paper="hovers just above 2 / lr",
    protocol="lr * sharpness / 2, mean of the last half: the least, the most and the mean of the seeds.",
    reproduced=at_least("least", 0.97) & at_most("most", 1.12) & between("mean", 0.97, 1.12),
    refuted=below("mean", 0.97) | above("mean", 1.12),
    over_seeds=["mean"],
)
def edge_of_gradient_descent(results: Results) -> Measured:
    return _late(results.runs[GD])


@claim(
    "edge-adam",
    "The sharpness that Adam sees, of its preconditioned Hessian, settles at 38 / lr (arXiv:2207.14484)",
    paper="38 / lr at beta1 = 0.9",
    protocol="Ratio to the threshold, mean of the last half: the least, the most and the mean of the seeds.",
    reproduced=at_least("least", 0.93) & at_most("most", 1.07) & between("mean", 0.93, 1.07),
    refuted=below("mean", 0.93) | above("mean", 1.07),
    over_seeds=["mean"],
)
def edge_of_adam(results: Results) -> Measured:
    return _late(results.runs[ADAM])


def _late(runs: Sequence[Run]) -> Measured:
    late = [run.late for run in runs]
    return Measured(f"{listed(late)} of the threshold", {"least": min(late), "most": max(late)}, {"mean": late})


@claim(
    "bounds",
    "The engine: its error bounds hold, also of clustered and multiple eigenvalues",
    paper="no peer gives a bound",
    protocol="Fraction of problems all of whose bounds hold, the worst kind (clusters and copies by the block method).",
    reproduced=at_least("least_share", 0.99, "fraction"),
    refuted=below("least_share", 0.95, "fraction"),
    over_seeds=["least_share"],
    unit="problems",
)
def bounds(results: Results) -> Measured:
    shares = {kind: statistics.mean(case.held for case in group) for kind, group in results.cases.items()}
    worst = min(shares, key=lambda kind: shares[kind])
    words = f"bounds hold in {shares[worst]:.1%} of {len(results.cases[worst])} problems ({worst}, the worst kind)"
    held = [case.held for case in results.cases[worst]]
    return Measured(words, {"least_share": shares[worst]}, {"least_share": held})


@claim(
    "cold-starts",
    "The engine: a cold start misses no eigenvalue",
    paper="plain Lanczos: 12 % error among 60 starts",
    protocol="Wrong: problems with a value off by more than the tolerance of 1e-3, of all problems; right: those "
    "without.",
    reproduced=equal_to("wrong", 0) & at_least("right", 0.99),
    refuted=below("right", 0.99),
    over_seeds=["right"],
    unit="problems",
)
def cold_starts(results: Results) -> Measured:
    cases = [case for group in results.cases.values() for case in group]
    right = [not case.wrong for case in cases]
    wrong = right.count(False)
    numbers = {"wrong": wrong, "starts": len(cases), "right": statistics.mean(right)}
    return Measured(f"{wrong} of {len(cases)} cold starts are wrong", numbers, {"right": right})


@claim(
    "tracking",
    "The engine: following the sharpness takes a few products a step",
    paper="1.9 to 2.7 products",
    protocol="A measurement after every step of gradient descent.",
    reproduced=at_most("products", 3),
    refuted=above("products", 5),
    over_seeds=["products"],
)
def tracking(results: Results) -> Measured:
    products = statistics.mean(results.products)
    return Measured(f"{products:.2f} products a step", {"products": products}, {"products": results.products})


@claim(
    "speed",
    "The engine: at equal error it takes less CPU time than its peers",
    paper="5x less than PyHessian, 2x than curvlinops, 1.5x than hessian-eigenthings",
    protocol="Not tested here: benchmarks/curvature.py installs the peers and compares all at equal error.",
)
def speed(results: Results) -> Measured:
    return Measured("compared in benchmarks/curvature.py, which installs the peers")


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    late = {name: statistics.mean(run.late for run in runs) for name, runs in results.runs.items()}
    summary = (
        f"Late in training the sharpness is {late[GD]:.3f} of the threshold for gradient descent and {late[ADAM]:.3f} "
        f"for Adam. {claims['bounds'].text}; {claims['cold-starts'].text}."
    )
    each = [(name, i, run) for name, runs in results.runs.items() for i, run in enumerate(runs)]
    curves = {f"{name}, seed {i}": (run.steps, run.ratio) for name, i, run in each}
    figure = line_chart("Sharpness over the threshold of stability", curves, "step", "sharpness / threshold")
    return Presentation(summary, [figure, _run_table(each), _case_table(results.cases)], figure.figure)


def _run_table(each: Sequence[tuple[str, int, Run]]) -> Table:
    rows = [
        {
            "optimizer": name,
            "seed": i,
            "late ratio": run.late,
            "largest error bound of a ratio": float(run.bound.max()),
            "products": run.products,
            "last loss": float(run.loss[-1]),
        }
        for name, i, run in each
    ]
    return record_table("Runs", rows, "Ratio: sharpness over threshold, mean of the last half of the measurements.")


def _case_table(cases: Mapping[Kind, Sequence[Case]]) -> Table:
    rows = []
    for kind, group in cases.items():
        held = sum(case.held for case in group)
        low, high = clopper_pearson(held, len(group))
        products = statistics.mean(case.products for case in group)
        rows.append([kind, len(group), held / len(group), low, high, sum(case.wrong for case in group), products])
    columns = ["eigenvalues", "problems", "bounds hold", "low", "high", "wrong", "products"]
    return Table(
        "Eigenvalue problems", columns, rows, "Shares with Clopper-Pearson intervals; wrong: off by more than 1e-3."
    )


STUDY = Study(
    slug="curvature-engine",
    title="Do gradient descent and Adam train at the edge of stability, and is the ruler right?",
    room="curvature",
    paper=Paper(
        "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
        "Cohen et al.",
        2021,
        "2103.00065",
    ),
    seeds={"tiny": 1, "default": 5, "full": 10},
    experiment=experiment,
    claims=(edge_of_gradient_descent, edge_of_adam, bounds, cold_starts, tracking, speed),
    present=present,
)

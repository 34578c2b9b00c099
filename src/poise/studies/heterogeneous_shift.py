"""Whether a shift of a block of inputs costs as much as the block was hard to learn.

Part one checks the exact risk of least squares under a shift of one block. Part two takes real covariates of the
American Community Survey with a known additive truth, and tilts them towards rare values of a simple or of a complex
block, for an additive and for a joint kernel regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from poise.data import load_employment
from poise.evidence import tilt_sample
from poise.report import Figure
from poise.shift import AdditiveRegressor, GaussianKernel, LinearKernel, feature_variance
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import above, at_least, at_most, below, beyond, within
from poise.studies.kit.tables import seed_table

SIMPLE, COMPLEX = ("SCHL",), ("AGEP", "RELP", "MAR", "MIL", "DIS", "ANC", "SEX", "RAC1P")
SHIFTS = ("none", "simple", "complex")
MODELS = ("additive", "joint")
GAUSSIAN = {"none": (1, 1), "simple": (9, 1), "complex": (1, 9)}
P_SIMPLE, P_COMPLEX, N = 2, 20, 200
ESS, BUMPS, NOISE, LARGE = 0.1, 60, 0.5, 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Draws of part one for each seed, rows of training and of test in part two."""

    draws: int
    train: int
    test: int


PLANS: Mapping[Budget, Plan] = {
    "tiny": Plan(60, 200, 500),
    "default": Plan(100, 800, 4_000),
    "full": Plan(1_000, 800, 4_000),
}


# --- part one: least squares on Gaussian blocks ---------------------------------------------------------------------


def formula(shift: str) -> float:
    """Return the exact excess risk of least squares with unit noise when a block's variance is multiplied."""
    nu_simple, nu_complex = GAUSSIAN[shift]
    return (nu_simple * P_SIMPLE + nu_complex * P_COMPLEX) / (N - P_SIMPLE - P_COMPLEX - 1)


def simulated(draws: int, seed: int) -> dict[str, float]:
    """Return the mean squared error of fitted coefficients, as excess risk under each shift."""
    random = np.random.default_rng(seed)
    p = P_SIMPLE + P_COMPLEX
    errors = np.array([
        np.linalg.lstsq(x, random.normal(size=N), rcond=None)[0]  # the truth is 0: what is fitted is the error
        for x in (random.normal(size=(N, p)) for _ in range(draws))
    ])  # fmt: skip
    squares = (errors**2).mean(0)
    return {shift: float(squares @ np.repeat(nu, [P_SIMPLE, P_COMPLEX])) for shift, nu in GAUSSIAN.items()}


# --- part two: real covariates --------------------------------------------------------------------------------------


@cache
def _covariates() -> tuple[np.ndarray, np.ndarray]:
    """Return covariates of 2015 and of later years, both standardised by 2015; the simple one first."""
    data = load_employment()
    old, new = (_numbers(table) for table in (data.reference, data.production.iloc[::4]))
    return (old - old.mean(0)) / old.std(0), (new - old.mean(0)) / old.std(0)


def _numbers(table: pd.DataFrame) -> np.ndarray:
    columns = [pd.to_numeric(table[name].astype(str), errors="coerce").fillna(-1.0) for name in (*SIMPLE, *COMPLEX)]
    return np.stack(columns, 1)


@dataclass(frozen=True, slots=True)
class Cells:
    """Excess risk and its label-free prediction, by model, then by shift."""

    risk: Mapping[str, Mapping[str, float]]
    budget: Mapping[str, Mapping[str, float]]

    def ratio(self, model: str, shift: str) -> float:
        """Return the risk under a shift by that without one."""
        return self.risk[model][shift] / self.risk[model]["none"]


def tilted_covariates(plan: Plan, seed: int) -> Cells:
    """Fit both models to rows of 2015 and test them on later rows under each shift."""
    random, (old, new) = np.random.default_rng(seed), _covariates()
    centres, weights = old[random.choice(len(old), BUMPS), 1:], random.normal(size=BUMPS)

    def bumps(x: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * cdist(x[:, 1:], centres, "sqeuclidean")) @ weights

    sample = old[random.choice(len(old), 5_000)]
    mean, scale = bumps(sample).mean(), bumps(sample).std()

    def truth(x: np.ndarray) -> np.ndarray:
        return 0.5 * x[:, 0] + (bumps(x) - mean) / scale

    x = old[random.choice(len(old), plan.train, replace=False)]
    z = truth(x) + NOISE * random.normal(size=plan.train)
    scores = {"simple": np.abs(new[:, 0]), "complex": np.minimum((new[:, 1:] ** 2).sum(1), LARGE)}
    tests = {name: new[tilt_sample(score, ESS, plan.test, seed).indices] for name, score in scores.items()}
    tests = {"none": new[random.choice(len(new), plan.test)], **tests}
    blocks = {"simple": [0], "complex": list(range(1, x.shape[1]))}
    models = {
        "additive": AdditiveRegressor(blocks, {"simple": LinearKernel(), "complex": GaussianKernel()}, alpha=0.25),
        "joint": AdditiveRegressor(kernels={"all": GaussianKernel(0.4, 4.0)}, alpha=0.25, intercept=False),
    }
    fitted = {name: model.fit(x, z) for name, model in models.items()}
    return Cells(
        {m: {s: float(np.mean((f.predict(t) - truth(t)) ** 2)) for s, t in tests.items()} for m, f in fitted.items()},
        {m: {s: f.block_variance(t).total for s, t in tests.items()} for m, f in fitted.items()},
    )


@dataclass(frozen=True, slots=True)
class Results:
    """Both parts, one entry a seed; and the largest error of the decomposition into blocks."""

    gaussian: Sequence[Mapping[str, float]]
    cells: Sequence[Cells]
    decomposition: float


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run both parts with all seeds."""
    plan = PLANS[budget]
    gaussian = run_each(lambda seed: simulated(plan.draws, seed), seeds, part_of(progress, 0.0, 0.2), name=str)
    cells = run_each(lambda seed: tilted_covariates(plan, seed), seeds, part_of(progress, 0.2, 1.0), name=str)
    return Results([gaussian[s] for s in seeds], [cells[s] for s in seeds], max(map(_decomposition_error, seeds)))


def _decomposition_error(seed: int) -> float:
    """Return how far the sum over blocks is from the undivided trace, relatively."""
    x, t = np.random.default_rng(seed).normal(size=(2, 60, 8))
    found = feature_variance({"f": x[:, :3], "g": x[:, 3:]}, {"f": t[:, :3], "g": t[:, 3:]}, 0.1, 1.0)
    inverse = np.linalg.inv(x.T @ x + 0.1 * np.eye(8))
    exact = np.trace(t @ inverse @ x.T @ x @ inverse @ t.T) / 60
    return abs(found.total / exact - 1)


# --- the claims -----------------------------------------------------------------------------------------------------


@claim(
    "formula",
    "A shift of a block costs its size times the number of coefficients of the block",
    paper="excess risk at most nu_x * rate of F + nu_y * rate of G",
    protocol="Simulated excess risk of least squares by the exact formula, for no shift and nine times the variance of "
    "a block of 2 or of 20 inputs.",
    reproduced=within("none", 0.06, 1) & within("simple", 0.06, 1) & within("complex", 0.06, 1),
    refuted=beyond("simple", 0.2, 1) & beyond("complex", 0.2, 1),
    over_seeds=SHIFTS,
)
def gaussian_blocks(results: Results) -> Measured:
    ratios = {shift: np.array([one[shift] / formula(shift) for one in results.gaussian]) for shift in SHIFTS}
    words = ", ".join(f"{shift} {values.mean():.3f}" for shift, values in ratios.items())
    return Measured(f"simulated by formula: {words}", {s: v.mean() for s, v in ratios.items()}, ratios)


def _ratio(results: Results, model: str, shift: str) -> Measured:
    values = np.array([cell.ratio(model, shift) for cell in results.cells])
    words = f"risk grows by {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"
    return Measured(words, {"ratio": values.mean()}, {"ratio": values})


@claim(
    "simple-shift",
    "An additive model hardly suffers from a large shift of its simple block",
    paper="resilient to shifts of the simple feature",
    protocol="Excess risk under a tilt of the simple block (effective sample size a tenth) by that without.",
    reproduced=at_most("ratio", 1.15),
    refuted=above("ratio", 1.4),
    over_seeds=("ratio",),
)
def simple_shift(results: Results) -> Measured:
    return _ratio(results, "additive", "simple")


@claim(
    "complex-shift",
    "The same shift of its complex block costs more",
    paper="nu_y * rate of G dominates",
    protocol="Excess risk of the additive model under a tilt of the complex block by that without, and how much larger "
    "it is than under the tilt of the simple block.",
    reproduced=at_least("ratio", 1.25) & above("difference", 0),
    refuted=at_most("difference", 0),
    over_seeds=("ratio", "difference"),
)
def complex_shift(results: Results) -> Measured:
    ratio = np.array([cell.ratio("additive", "complex") for cell in results.cells])
    difference = ratio - [cell.ratio("additive", "simple") for cell in results.cells]
    words = f"risk grows by {ratio.mean():.2f}, {difference.mean():.2f} more than under the shift of the simple block"
    return Measured(
        words, {"ratio": ratio.mean(), "difference": difference.mean()}, {"ratio": ratio, "difference": difference}
    )


@claim(
    "joint-model",
    "A joint model that does not know the blocks suffers from the shift of the simple one",
    paper="classical bound: nu_xy * (rate of F + rate of G)",
    protocol="Excess risk of the joint model under a tilt of the simple block by that without.",
    reproduced=at_least("ratio", 1.5),
    refuted=below("ratio", 1.15),
    over_seeds=("ratio",),
)
def joint_model(results: Results) -> Measured:
    return _ratio(results, "joint", "simple")


@claim(
    "budget",
    "Our use of it: the exact variance ranks models and shifts by their risk without labels",
    paper="not in the paper",
    protocol="Rank correlation of predicted and realised excess risk over two models and two shifts.",
    reproduced=at_least("correlation", 0.8),
    refuted=below("correlation", 0.3),
    over_seeds=("correlation",),
)
def label_free_budget(results: Results) -> Measured:
    pairs = [(model, shift) for model in MODELS for shift in SHIFTS[1:]]
    values = np.array([
        spearmanr([c.budget[m][s] for m, s in pairs], [c.risk[m][s] for m, s in pairs]).statistic for c in results.cells
    ])  # fmt: skip
    words = f"rank correlation {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"
    return Measured(words, {"correlation": values.mean()}, {"correlation": values})


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, table and summary together."""
    summary = (
        f"Under a tilt of the simple block the additive model's {claims['simple-shift'].text}; of the complex block "
        f"the {claims['complex-shift'].text}. The joint model's {claims['joint-model'].text} under the first. "
        f"Without labels: {claims['budget'].text}."
    )
    means = {(m, s): np.mean([cell.risk[m][s] for cell in results.cells]) for m in MODELS for s in SHIFTS}
    bars = [go.Bar(name=m, x=list(SHIFTS), y=[means[m, s] for s in SHIFTS]) for m in MODELS]
    picture = go.Figure(bars).update_layout(barmode="group", xaxis_title="shifted block", yaxis_title="excess risk")
    alt = "; ".join(f"{m}, {s}: {value:.3f}" for (m, s), value in means.items())
    table = seed_table(
        "Excess risk",
        ["model", "shifted block"],
        {(m, s): [cell.risk[m][s] for cell in results.cells] for m in MODELS for s in SHIFTS},
        "excess risk",
        f"The sum over blocks differs from the undivided variance by {results.decomposition:.1g}, relatively.",
        {"predicted": [np.mean([c.budget[m][s] for c in results.cells]) for m in MODELS for s in SHIFTS]},
    )
    return Presentation(summary, [Figure("Excess risk under shift", picture, alt), table], picture)


STUDY = Study(
    slug="heterogeneous-shift",
    title="Does a shift of inputs cost as much as these inputs were hard to learn?",
    room="shift",
    paper=Paper("Statistical learning under heterogeneous distribution shift", "Simchowitz et al.", 2023, "2302.13934"),
    seeds={"tiny": 3, "default": 8, "full": 30},
    experiment=experiment,
    claims=(gaussian_blocks, simple_shift, complex_shift, joint_model, label_free_budget),
    present=present,
)

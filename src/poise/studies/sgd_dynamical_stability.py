"""Study of "The Implicit Regularization of Dynamical Stability in SGD": which minima a learning rate can hold.

Three problems with more parameters than examples: a diagonal linear network with a sparse teacher, a two-layer ReLU
network with a small teacher, and the same network on digits. SGD of single examples and gradient descent start from the
same large weights, warm up linearly and then keep their learning rate until they fit every example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray

from poise.data import load_digits
from poise.dynamics import SecondMomentOperator
from poise.evidence import PairedComparison, compare_paired
from poise.report import Figure, Table, Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.grid import run_each
from poise.studies.kit.rules import above, at_least, at_most, below
from poise.studies.kit.tables import record_table, seed_chart

CHECK_EVERY = 500
SGD, GD = "SGD", "gradient descent"


# --- the problems ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Diagonal:
    """Many copies of the network ``<a * b, x>``, each with data and weights of its own."""

    x: Float[ndarray, "runs n d"]
    y: Float[ndarray, "runs n"]
    a: Float[ndarray, "runs d"]
    b: Float[ndarray, "runs d"]

    def sgd_step(self, i: Int64[ndarray, " runs"], lr: Float[ndarray, "runs 1"]) -> None:
        """Move each copy by the gradient on one example of its own."""
        runs = np.arange(len(self.x))
        x = self.x[runs, i]
        error = (self.a * self.b * x).sum(1) - self.y[runs, i]
        self._move(x * (lr * error[:, None]))

    def gd_step(self, lr: Float[ndarray, "runs 1"]) -> None:
        """Move each copy by the gradient on all examples."""
        error = self.outputs(self.x) - self.y
        self._move(lr / self.x.shape[1] * (error[:, None] @ self.x)[:, 0])

    def outputs(self, x: Float[ndarray, "runs m d"]) -> Float[ndarray, "runs m"]:
        """Return the values on some inputs."""
        return (x @ (self.a * self.b)[..., None])[..., 0]

    def gradients(self) -> Float[ndarray, "runs n P"]:
        """Return the gradients of the outputs at the training inputs."""
        return np.concatenate([self.x * self.b[:, None], self.x * self.a[:, None]], axis=2)

    def norm(self) -> Float[ndarray, " runs"]:
        """Return the norm that stability bounds: the 1-norm of the coefficients."""
        return np.abs(self.a * self.b).sum(1)

    def _move(self, step: ndarray) -> None:
        self.a, self.b = self.a - step * self.b, self.b - step * self.a


@dataclass(slots=True)
class TwoLayer:
    """Many copies of the network ``sum_j a_j relu(w_j . x)``, each with data and weights of its own."""

    x: Float[ndarray, "runs n d"]
    y: Float[ndarray, "runs n"]
    a: Float[ndarray, "runs width"]
    w: Float[ndarray, "runs width d"]

    def sgd_step(self, i: Int64[ndarray, " runs"], lr: Float[ndarray, "runs 1"]) -> None:
        """Move each copy by the gradient on one example of its own."""
        runs = np.arange(len(self.x))
        x = self.x[runs, i]
        hidden = np.maximum((self.w @ x[..., None])[..., 0], 0)
        error = lr * ((self.a * hidden).sum(1) - self.y[runs, i])[:, None]
        back = error * self.a * (hidden > 0)
        self.a = self.a - error * hidden
        self.w -= back[..., None] * x[:, None]

    def gd_step(self, lr: Float[ndarray, "runs 1"]) -> None:
        """Move each copy by the gradient on all examples."""
        hidden = np.maximum(self.x @ self.w.swapaxes(1, 2), 0)
        error = lr / self.x.shape[1] * ((hidden @ self.a[..., None])[..., 0] - self.y)
        back = (error[..., None] * self.a[:, None]) * (hidden > 0)
        self.a = self.a - (error[:, None] @ hidden)[:, 0]
        self.w -= back.swapaxes(1, 2) @ self.x

    def outputs(self, x: Float[ndarray, "runs m d"]) -> Float[ndarray, "runs m"]:
        """Return the values on some inputs."""
        return (np.maximum(x @ self.w.swapaxes(1, 2), 0) @ self.a[..., None])[..., 0]

    def gradients(self) -> Float[ndarray, "runs n P"]:
        """Return the gradients of the outputs at the training inputs."""
        before = self.x @ self.w.swapaxes(1, 2)
        back = (before > 0) * self.a[:, None]
        by_weight = (back[..., None] * self.x[:, :, None]).reshape(*self.x.shape[:2], -1)
        return np.concatenate([np.maximum(before, 0), by_weight], axis=2)

    def norm(self) -> Float[ndarray, " runs"]:
        """Return the norm that stability bounds: the path norm."""
        return (np.abs(self.a) * np.linalg.norm(self.w, axis=2)).sum(1)


Problem = Diagonal | TwoLayer


@dataclass(frozen=True, slots=True)
class Task:
    """One problem with one seed: data, start, held-out data."""

    x: Float[ndarray, "n d"]
    y: Float[ndarray, " n"]
    x_test: Float[ndarray, "m d"]
    y_test: Float[ndarray, " m"]
    start: tuple[ndarray, ndarray]
    make: Callable[[ndarray, ndarray, ndarray, ndarray], Problem]


def diagonal_task(seed: int, d: int = 200, n: int = 60, held_out: int = 2000) -> Task:
    """Sparse teacher (1, 1, 1, 0, ...), inputs uniform on [-1, 1]."""
    rng = np.random.default_rng([seed, 1])
    x, x_test = rng.uniform(-1, 1, (n, d)), rng.uniform(-1, 1, (held_out, d))
    start = rng.standard_normal(d), rng.standard_normal(d)
    return Task(x, x[:, :3].sum(1), x_test, x_test[:, :3].sum(1), start, Diagonal)


def teacher_task(seed: int, d: int = 30, n: int = 120, width: int = 60, units: int = 5, held_out: int = 2000) -> Task:
    """Teacher of a few units, inputs uniform on the sphere of radius sqrt(d)."""
    rng = np.random.default_rng([seed, 2])
    x = rng.standard_normal((n + held_out, d))
    x *= d**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
    a, w = rng.standard_normal(units), d**-0.25 * rng.standard_normal((units, d))
    y = np.maximum(x @ w.T, 0) @ a
    return Task(x[:n], y[:n], x[n:], y[n:], _two_layer_start(rng, d, width), TwoLayer)


def digits_task(seed: int, n: int = 100, width: int = 60) -> Task:
    """Digits 3 and 5 (+1) against 8 and 9 (-1), less the mean digit, of length sqrt(64)."""
    rng = np.random.default_rng([seed, 3])
    data = load_digits()
    label = data.targets.numpy()
    chosen = rng.permutation(np.flatnonzero(np.isin(label, [3, 5, 8, 9])))
    x, y = data.inputs.double().numpy()[chosen], np.where(label[chosen] < 6, 1.0, -1.0)
    x -= x[:n].mean(0)
    x *= 8.0 / np.linalg.norm(x, axis=1, keepdims=True)
    return Task(x[:n], y[:n], x[n:], y[n:], _two_layer_start(rng, 64, width), TwoLayer)


def _two_layer_start(rng: np.random.Generator, d: int, width: int) -> tuple[ndarray, ndarray]:
    return rng.standard_normal(width), d**-0.25 * rng.standard_normal((width, d))


# --- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """How a problem of the study is made and trained."""

    name: str
    task: Callable[[int], Task]  # makes it from a seed
    lrs: Mapping[str, tuple[float, ...]]  # by method; the last is the same
    warm_up: int  # steps over which the learning rate rises
    steps: int  # at most
    fits_below: float  # loss below which a run fits every example, and stops


def _same(*lrs: float) -> dict[str, tuple[float, ...]]:
    return {SGD: lrs, GD: lrs}


_DIGITS_LRS = {SGD: (0.0002, 0.0005, 0.001, 0.002, 0.004), GD: (0.001, 0.002, 0.004)}
_LARGE = (
    Setting("diagonal network", diagonal_task, _same(0.01, 0.02, 0.04, 0.08, 0.16), 3000, 60_000, 1e-10),
    Setting("ReLU network, teacher", teacher_task, _same(0.0005, 0.001, 0.002, 0.004, 0.008), 8000, 60_000, 1e-8),
    Setting("ReLU network, digits", digits_task, _DIGITS_LRS, 8000, 60_000, 1e-8),
)
_SMALL_TASK = partial(diagonal_task, d=40, n=15, held_out=500)
_TINY = Setting("small diagonal network", _SMALL_TASK, _same(0.1, 0.2, 0.4), 1000, 6000, 1e-8)
SETTINGS: dict[Budget, tuple[Setting, ...]] = {"tiny": (_TINY,), "default": _LARGE, "full": _LARGE}


@dataclass(frozen=True, slots=True)
class Run:
    """A run after training."""

    lr: float
    fits: bool
    trace: float
    fourth: float
    sharpness: float
    norm: float
    test_mse: float
    lr_exact: float

    @property
    def trace_share(self) -> float:
        """Trace over the largest at which SGD of single examples is stable, 2 / lr."""
        return self.trace / (2.0 / self.lr)

    @property
    def moment_share(self) -> float:
        """Mean fourth power of gradient lengths over what the moment bound allows."""
        return self.fourth / (2.0 / self.lr * self.trace)


def train(setting: Setting, method: str, seeds: Sequence[int]) -> list[Run]:
    """Train one run per seed and learning rate, all at once."""
    tasks = [setting.task(seed) for seed in seeds]
    of = list(product(tasks, setting.lrs[method]))
    problem = tasks[0].make(*(np.stack(part) for part in zip(*((t.x, t.y, *t.start) for t, _ in of), strict=True)))
    peak = np.array([lr for _, lr in of])[:, None]
    rng = np.random.default_rng([*seeds, 4])
    going = np.ones((len(of), 1))
    n = problem.x.shape[1]
    for block in range(0, setting.steps, CHECK_EVERY):
        drawn = rng.integers(n, size=(CHECK_EVERY, len(of)))
        for k in range(CHECK_EVERY):
            lr = peak * going * min(1.0, (block + k + 1) / setting.warm_up)
            if method == SGD:
                problem.sgd_step(drawn[k], lr)
            else:
                problem.gd_step(lr)
        # Training stops where every example fits, not before the learning rate has arrived.
        if block + CHECK_EVERY >= setting.warm_up:
            going[_losses(problem) < setting.fits_below] = 0.0
        if not going.any():
            break
    return _summaries(setting, problem, of)


def _losses(problem: Problem) -> Float[ndarray, " runs"]:
    """Half the mean squared error on the training data."""
    return 0.5 * np.square(problem.outputs(problem.x) - problem.y).mean(1)


def _summaries(setting: Setting, problem: Problem, of: Sequence[tuple[Task, float]]) -> list[Run]:
    losses, norms, gradients = _losses(problem), problem.norm(), problem.gradients()
    predicted = problem.outputs(np.stack([task.x_test for task, _ in of]))
    runs = []
    for i, (task, lr) in enumerate(of):
        squares = np.square(gradients[i]).sum(1)
        operator = SecondMomentOperator(torch.from_numpy(gradients[i][:, None]), lr, 1)
        run = Run(
            lr,
            fits=bool(losses[i] < setting.fits_below),
            trace=float(squares.mean()),
            fourth=float(np.square(squares).mean()),
            sharpness=operator.eigenvalues[0].item(),
            norm=float(norms[i]),
            test_mse=float(np.square(predicted[i] - task.y_test).mean()),
            lr_exact=operator.critical_lr(tol=1e-6),
        )
        runs.append(run)
    return runs


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """The problems, and the runs of each with SGD and with gradient descent."""

    settings: tuple[Setting, ...]
    runs: Mapping[tuple[Setting, str], list[Run]]

    def fitted(self) -> list[Run]:
        """Return the runs of SGD that fit every example."""
        return [run for setting in self.settings for run in self.runs[setting, SGD] if run.fits]

    def values(self, setting: Setting, method: str, name: str) -> Float[ndarray, "seeds lrs"]:
        """Return a number of all runs of one problem and method."""
        numbers = [float(getattr(run, name)) for run in self.runs[setting, method]]
        return np.array(numbers).reshape(-1, len(setting.lrs[method]))

    def of_fitted(self, value: Callable[[Run], float]) -> Float[ndarray, "seeds runs"]:
        """Return a number of all runs of SGD, a row for each seed; NaN where a run does not fit."""
        columns = []
        for setting in self.settings:
            numbers = [value(run) if run.fits else math.nan for run in self.runs[setting, SGD]]
            columns.append(np.array(numbers).reshape(-1, len(setting.lrs[SGD])))
        return np.concatenate(columns, 1)

    def errors(self, setting: Setting) -> list[Float[ndarray, " seeds"]]:
        """Return the held-out errors at the largest learning rate, of SGD and of gradient descent."""
        return [self.values(setting, method, "test_mse")[:, -1] for method in (SGD, GD)]

    def compare(self, setting: Setting) -> PairedComparison:
        """Compare the held-out errors of SGD with those of gradient descent at the largest learning rate."""
        sgd, gd = self.errors(setting)
        return compare_paired(gd, sgd, diverged_as=1e6)


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Train everything."""
    settings = SETTINGS[budget]
    cells = list(product(settings, (SGD, GD)))
    runs = run_each(lambda cell: train(*cell, seeds), cells, progress, name="{0[0].name}: {0[1]}".format)
    return Results(settings, runs)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "bound",
    "A minimum that fits every example and at which SGD of single examples stays has trace at most 2 / lr.",
    paper="Tr(H) <= 2 / lr",
    protocol="Trace and fourth moment over their bounds, the largest of all runs of SGD that fit, and (trace, moment) "
    "of those of a seed, means over seeds.",
    reproduced=at_most("trace_share", 1.001)
    & at_most("moment_share", 1.001)
    & at_most("trace", 1.001)
    & at_most("moment", 1.001),
    over_seeds=["trace", "moment"],
)
def bound(results: Results) -> Measured:
    fitted = results.fitted()
    if not fitted:
        return Measured("no run of SGD fitted every example")
    names = {"trace": attrgetter("trace_share"), "moment": attrgetter("moment_share")}
    by_seed = {name: _row_maxima(results.of_fitted(value)) for name, value in names.items()}
    trace, moment = (own.max() for own in by_seed.values())
    words = (
        f"trace at most {trace:.3f} of 2/lr and fourth moment at most {moment:.3f} of its bound in {len(fitted)} runs"
    )
    means = {name: own.mean() for name, own in by_seed.items()}
    return Measured(words, {"trace_share": trace, "moment_share": moment, **means}, by_seed)


def _row_maxima(values: Float[ndarray, "seeds runs"]) -> Float[ndarray, " rows"]:
    """Return the largest of each row that is not all NaN."""
    return np.nanmax(values[~np.isnan(values).all(1)], axis=1)


@claim(
    "edge",
    "At large learning rates the trace hugs its bound.",
    paper="figures for diagonal and ReLU networks",
    protocol="Trace over 2 / lr, the least of all runs of SGD at the two largest learning rates, and (share) of those "
    "of a seed, mean over seeds.",
    reproduced=at_least("least_share", 0.6) & at_least("share", 0.6),
    refuted=below("share", 0.3),
    over_seeds=["share"],
)
def edge(results: Results) -> Measured:
    shares = np.concatenate([results.values(s, SGD, "trace_share")[:, -2:] for s in results.settings], 1)
    least, words = shares.min(1), f"from {shares.min():.2f} to {shares.max():.2f} of 2/lr"
    return Measured(words, {"least_share": least.min(), "share": least.mean()}, {"share": least})


@claim(
    "test-error",
    "SGD at a large learning rate generalises where gradient descent at the same does not.",
    paper="held-out error falls with the learning rate for SGD only",
    protocol="Held-out error over gradient descent's at the largest learning rate, the worst of all problems and "
    "seeds, and (ratio) the worst problem of a seed, mean over seeds; failed seeds: with a ratio above 0.35, in the "
    "worst problem.",
    reproduced=at_most("worst_ratio", 0.35) & at_most("ratio", 0.35),
    refuted=at_least("failed_seeds", 2) & above("ratio", 0.35),
    over_seeds=["ratio"],
)
def held_out_error(results: Results) -> Measured:
    ratios = np.array([sgd / gd for sgd, gd in map(results.errors, results.settings)])
    p_better = min(results.compare(setting).p_better for setting in results.settings)
    words = [f"{own.mean():.2f} ({setting.name})" for own, setting in zip(ratios, results.settings, strict=True)]
    failed, worst = (ratios > 0.35).sum(1).max(), ratios.max(0)
    numbers = {"worst_ratio": worst.max(), "failed_seeds": failed, "p_better": p_better, "ratio": worst.mean()}
    return Measured(", ".join(words), numbers, {"ratio": worst})


@claim(
    "gd",
    "The minimum of gradient descent hardly depends on the learning rate.",
    paper="trace, norms and held-out error flat",
    protocol="Spread: largest over smallest trace over the learning rates less 1, the worst of all problems and seeds, "
    "and (mean spread) the worst problem of a seed, mean over seeds.",
    reproduced=below("spread", 0.05) & below("mean_spread", 0.05),
    refuted=at_least("mean_spread", 0.2),
    over_seeds=["mean_spread"],
)
def gradient_descent(results: Results) -> Measured:
    traces = [results.values(setting, GD, "trace") for setting in results.settings]
    by_seed = np.max([own.max(1) / own.min(1) - 1 for own in traces], axis=0)
    words = f"varies by {by_seed.max():.1%} over learning rates at most"
    return Measured(words, {"spread": by_seed.max(), "mean_spread": by_seed.mean()}, {"mean_spread": by_seed})


@claim(
    "rule",
    "2 / sharpness, the rule of gradient descent, does not tell which minima SGD can reach.",
    paper="stability of SGD bounds the trace, of gradient descent only the sharpness",
    protocol="At the minima that fit: 2 / sharpness (gd) and 2 / trace (trace) over the exact limit, medians; reached: "
    "the largest learning rate of a run over the exact limit at its minimum, of all runs and (reached by seed) of "
    "those of a seed, mean over seeds.",
    reproduced=above("gd", "trace") & at_least("gd", 2) & at_most("reached", 1.001) & at_most("reached_by_seed", 1.001),
    refuted=at_most("gd", "trace"),
    over_seeds=["gd", "trace", "reached_by_seed"],
)
def rule(results: Results) -> Measured:
    fitted = results.fitted()
    if not fitted:
        return Measured("no run of SGD fitted every example")
    limits = {
        "gd": results.of_fitted(lambda run: 2 / run.sharpness / run.lr_exact),
        "trace": results.of_fitted(lambda run: 2 / run.trace / run.lr_exact),
    }
    medians = {name: bootstrap_over_seeds(np.nanmedian, own, positive=True) for name, own in limits.items()}
    gd, trace = (value for value, _ in medians.values())
    by_seed = _row_maxima(results.of_fitted(lambda run: run.lr / run.lr_exact))
    reached = by_seed.max()
    words = (
        f"2/sharpness {gd:.1f} times and 2/trace {trace:.2f} times the exact limit (medians); the largest learning "
        f"rate of a run is {reached:.2f} of the exact limit at the minimum it found"
    )
    numbers = {"gd": gd, "trace": trace, "reached": reached, "reached_by_seed": by_seed.mean()}
    intervals = {name: interval for name, (_, interval) in medians.items()}
    return Measured(words, numbers, {"reached_by_seed": by_seed}, intervals)


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put a figure and a table for each problem, notes and summary together."""
    summary = (
        f"SGD of single examples: {claims['bound'].text}. Held-out error at the largest learning rate, over that of "
        f"gradient descent: {claims['test-error'].text}. Gradient descent's trace: {claims['gd'].text}."
    )
    shown = [block(results, setting) for setting in results.settings for block in (_figure, _table)]
    return Presentation(summary, [*shown, _notes()], _figure(results, results.settings[0]).figure)


def _figure(results: Results, setting: Setting) -> Figure:
    curves = {method: (lrs, results.values(setting, method, "trace")) for method, lrs in setting.lrs.items()}
    curves["2 / learning rate"] = (setting.lrs[SGD], 2 / np.array([setting.lrs[SGD]]))
    title = f"Trace of the minimum found: {setting.name}"
    figure = seed_chart(title, curves, "learning rate", "trace", log_y=True)
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def _table(results: Results, setting: Setting) -> Table:
    names = {"Trace": "trace", "Sharpness": "sharpness", "Norm": "norm", "Held-out MSE": "test_mse"}
    names["Limit at batch size 1, exact"] = "lr_exact"
    rows = []
    for method, lrs in setting.lrs.items():
        fits = results.values(setting, method, "fits")
        means = {title: results.values(setting, method, name).mean(0) for title, name in names.items()}
        for i, lr in enumerate(lrs):
            own = {title: float(values[i]) for title, values in means.items()}
            fit = f"{fits[:, i].sum():.0f} of {len(fits)}"
            rows.append({"Method": method, "Learning rate": lr, "2 / lr": 2 / lr, **own, "Fit every example": fit})
    found = results.compare(setting)
    low, high = found.interval
    caption = (
        "Means over seeds. Norm: 1-norm of the coefficients, or path norm. Held-out error at the largest learning "
        f"rate, SGD less gradient descent: {found.difference:.3g} [{low:.3g}, {high:.3g}], {found.verdict}."
    )
    return record_table(f"Minima found: {setting.name}", rows, caption)


def _notes() -> Text:
    return Text(
        "Weights start large: standard normal in the diagonal network and in the output layer, of variance 1/sqrt(d) "
        "in the first layer. There the trace is far above 2/lr, so that a constant learning rate would diverge: "
        "it warms up linearly (3000 or 8000 steps) and then stays. Gradient descent starts from the same weights. The "
        "trace bound is of mean-square stability and SGD of single examples; gradient descent has 2 / sharpness.",
        "Set-up",
    )


STUDY = Study(
    slug="sgd-dynamical-stability",
    title="Does a large learning rate keep SGD at flat minima that generalise?",
    room="dynamics",
    paper=Paper(
        "The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent",
        "Wu and Su",
        2023,
        "2305.17490",
    ),
    seeds={"tiny": 2, "default": 8, "full": 16},
    experiment=experiment,
    claims=(bound, edge, held_out_error, gradient_descent, rule),
    present=present,
)

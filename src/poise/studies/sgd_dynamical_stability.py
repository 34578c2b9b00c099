"""Study of "The Implicit Regularization of Dynamical Stability in SGD": which minima a learning rate can hold.

Three problems with more parameters than examples: a diagonal linear network with a sparse teacher, a two-layer ReLU
network with a small teacher, and the same network on digits. SGD of single examples and gradient descent start from the
same large weights, warm up linearly and then keep their learning rate until they fit every example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray

from poise.data import load_digits
from poise.dynamics import SecondMomentOperator
from poise.evidence import PairedComparison, compare_paired
from poise.report import Figure, Table, Text, line_chart
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

CHECK_EVERY = 500
SGD, GD = "SGD", "gradient descent"


# --- the problems ------------------------------------------------------------------------------------------------


class Problem(ABC):
    """Many copies of a small network, each with data and weights of its own.

    Attributes:
        x: training inputs.
        y: training targets.
    """

    x: Float[ndarray, "runs n d"]
    y: Float[ndarray, "runs n"]

    @abstractmethod
    def sgd_step(self, i: Int64[ndarray, " runs"], lr: Float[ndarray, "runs 1"]) -> None:
        """Move each copy by the gradient on one example of its own."""

    @abstractmethod
    def gd_step(self, lr: Float[ndarray, "runs 1"]) -> None:
        """Move each copy by the gradient on all examples."""

    @abstractmethod
    def outputs(self, x: Float[ndarray, "runs m d"]) -> Float[ndarray, "runs m"]:
        """Return the values on some inputs."""

    @abstractmethod
    def gradients(self) -> Float[ndarray, "runs n P"]:
        """Return the gradients of the outputs at the training inputs."""

    @abstractmethod
    def norm(self) -> Float[ndarray, " runs"]:
        """Return the norm that stability bounds: 1-norm of the coefficients, or path norm."""

    def loss(self) -> Float[ndarray, " runs"]:
        """Return half the mean squared error on the training data."""
        return 0.5 * np.square(self.outputs(self.x) - self.y).mean(1)


class Diagonal(Problem):
    """``<a * b, x>``."""

    def __init__(self, x: ndarray, y: ndarray, a: ndarray, b: ndarray) -> None:
        self.x, self.y, self.a, self.b = x, y, a, b
        self._runs = np.arange(len(x))

    def sgd_step(self, i: ndarray, lr: ndarray) -> None:
        """Move each copy by the gradient on one example of its own."""
        x = self.x[self._runs, i]
        error = (self.a * self.b * x).sum(1) - self.y[self._runs, i]
        self._move(x * (lr * error[:, None]))

    def gd_step(self, lr: ndarray) -> None:
        """Move each copy by the gradient on all examples."""
        error = (self.x @ (self.a * self.b)[..., None])[..., 0] - self.y
        self._move(lr / self.x.shape[1] * (error[:, None] @ self.x)[:, 0])

    def outputs(self, x: ndarray) -> ndarray:
        """Return the values on some inputs."""
        return (x @ (self.a * self.b)[..., None])[..., 0]

    def gradients(self) -> ndarray:
        """Return the gradients of the outputs at the training inputs."""
        return np.concatenate([self.x * self.b[:, None], self.x * self.a[:, None]], axis=2)

    def norm(self) -> ndarray:
        """Return the 1-norm of the coefficients."""
        return np.abs(self.a * self.b).sum(1)

    def _move(self, step: ndarray) -> None:
        self.a, self.b = self.a - step * self.b, self.b - step * self.a


class TwoLayer(Problem):
    """``sum_j a_j relu(w_j . x)``."""

    def __init__(self, x: ndarray, y: ndarray, a: ndarray, w: ndarray) -> None:
        self.x, self.y, self.a, self.w = x, y, a, w
        self._runs = np.arange(len(x))

    def sgd_step(self, i: ndarray, lr: ndarray) -> None:
        """Move each copy by the gradient on one example of its own."""
        x = self.x[self._runs, i]
        hidden = np.maximum((self.w @ x[..., None])[..., 0], 0)
        error = lr * ((self.a * hidden).sum(1) - self.y[self._runs, i])[:, None]
        back = error * self.a * (hidden > 0)
        self.a = self.a - error * hidden
        self.w -= back[..., None] * x[:, None]

    def gd_step(self, lr: ndarray) -> None:
        """Move each copy by the gradient on all examples."""
        hidden = np.maximum(self.x @ self.w.swapaxes(1, 2), 0)
        error = lr / self.x.shape[1] * ((hidden @ self.a[..., None])[..., 0] - self.y)
        back = (error[..., None] * self.a[:, None]) * (hidden > 0)
        self.a = self.a - (error[:, None] @ hidden)[:, 0]
        self.w -= back.swapaxes(1, 2) @ self.x

    def outputs(self, x: ndarray) -> ndarray:
        """Return the values on some inputs."""
        return (np.maximum(x @ self.w.swapaxes(1, 2), 0) @ self.a[..., None])[..., 0]

    def gradients(self) -> ndarray:
        """Return the gradients of the outputs at the training inputs."""
        before = self.x @ self.w.swapaxes(1, 2)
        back = (before > 0) * self.a[:, None]
        by_weight = (back[..., None] * self.x[:, :, None]).reshape(*self.x.shape[:2], -1)
        return np.concatenate([np.maximum(before, 0), by_weight], axis=2)

    def norm(self) -> ndarray:
        """Return the path norm."""
        return (np.abs(self.a) * np.linalg.norm(self.w, axis=2)).sum(1)


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


@dataclass(frozen=True, slots=True)
class Setting:
    """One problem of the study: how it is made and trained."""

    name: str
    task: Callable[[int], Task]
    lrs: tuple[float, ...]
    gd_lrs: tuple[float, ...]
    warm_up: int
    steps: int
    fits_below: float


@dataclass(frozen=True, slots=True)
class Run:
    """A run after training."""

    seed: int
    method: str
    lr: float
    loss: float
    fits: bool
    trace: float
    fourth: float
    sharpness: float
    norm: float
    test_mse: float
    lr_exact: float

    @property
    def trace_bound(self) -> float:
        """Largest trace at which SGD of single examples is stable, 2 / lr."""
        return 2.0 / self.lr

    @property
    def moment_share(self) -> float:
        """Mean fourth power of gradient lengths over what the moment bound allows."""
        return self.fourth / (self.trace_bound * self.trace)


def train(setting: Setting, method: str, seeds: Sequence[int]) -> list[Run]:
    """Train one run per seed and learning rate, all at once."""
    lrs = setting.lrs if method == SGD else setting.gd_lrs
    tasks = [setting.task(seed) for seed in seeds]
    of = [(task, seed, lr) for task, seed in zip(tasks, seeds, strict=True) for lr in lrs]
    problem = tasks[0].make(
        np.stack([task.x for task, _, _ in of]),
        np.stack([task.y for task, _, _ in of]),
        *(np.stack([task.start[k] for task, _, _ in of]) for k in range(2)),
    )
    peak = np.array([lr for _, _, lr in of])[:, None]
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
            going[problem.loss() < setting.fits_below] = 0.0
        if not going.any():
            break
    return _summaries(setting, method, problem, of)


def _summaries(setting: Setting, method: str, problem: Problem, of: Sequence[tuple[Task, int, float]]) -> list[Run]:
    losses, norms, gradients = problem.loss(), problem.norm(), problem.gradients()
    predicted = problem.outputs(np.stack([task.x_test for task, _, _ in of]))
    runs = []
    for i, (task, seed, lr) in enumerate(of):
        squares = np.square(gradients[i]).sum(1)
        operator = SecondMomentOperator(torch.from_numpy(gradients[i][:, None]), lr, 1)
        runs.append(
            Run(
                seed,
                method,
                lr,
                float(losses[i]),
                bool(losses[i] < setting.fits_below),
                float(squares.mean()),
                float(np.square(squares).mean()),
                operator.eigenvalues[0].item(),
                float(norms[i]),
                float(np.square(predicted[i] - task.y_test).mean()),
                operator.critical_lr(tol=1e-6),
            )
        )
    return runs


# --- the experiment ----------------------------------------------------------------------------------------------

_DIAGONAL = Setting(
    "diagonal network",
    diagonal_task,
    lrs=(0.01, 0.02, 0.04, 0.08, 0.16),
    gd_lrs=(0.01, 0.02, 0.04, 0.08, 0.16),
    warm_up=3000,
    steps=60_000,
    fits_below=1e-10,
)
_TEACHER = Setting(
    "ReLU network, teacher",
    teacher_task,
    lrs=(0.0005, 0.001, 0.002, 0.004, 0.008),
    gd_lrs=(0.0005, 0.001, 0.002, 0.004, 0.008),
    warm_up=8000,
    steps=60_000,
    fits_below=1e-8,
)
_DIGITS = Setting(
    "ReLU network, digits",
    digits_task,
    lrs=(0.0002, 0.0005, 0.001, 0.002, 0.004),
    gd_lrs=(0.001, 0.002, 0.004),
    warm_up=8000,
    steps=60_000,
    fits_below=1e-8,
)


def settings_of(budget: Budget) -> tuple[Setting, ...]:
    """Return the problems that a budget buys."""
    if budget == "tiny":
        small = Setting(
            "small diagonal network",
            lambda seed: diagonal_task(seed, d=40, n=15, held_out=500),
            lrs=(0.1, 0.2, 0.4),
            gd_lrs=(0.1, 0.2, 0.4),
            warm_up=1000,
            steps=6000,
            fits_below=1e-8,
        )
        return (small,)
    return (_DIAGONAL, _TEACHER, _DIGITS)


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Train everything and compare with the bounds."""
    settings = settings_of(budget)
    runs: dict[str, list[Run]] = {}
    for k, setting in enumerate(settings):
        progress(k / len(settings), f"{setting.name}: {SGD}")
        runs[setting.name] = train(setting, SGD, seeds)
        progress((k + 0.5) / len(settings), f"{setting.name}: {GD}")
        runs[setting.name] += train(setting, GD, seeds)
    progress(1.0, "done")
    every = [run for found in runs.values() for run in found]
    claims = {
        "bound": _bound_claim(every),
        "edge": _edge_claim(settings, runs),
        "test-error": _test_claim(settings, runs),
        "gd": _gd_claim(settings, runs),
        "rule": _rule_claim(every),
    }
    summary = (
        f"SGD of single examples: {claims['bound'].ours}. Held-out error at the largest learning rate, over that of "
        f"gradient descent: {claims['test-error'].ours}. Gradient descent's trace: {claims['gd'].ours}."
    )
    blocks: list[Text | Table | Figure] = []
    for setting in settings:
        blocks += [_figure(setting, runs[setting.name]), _table(setting, runs[setting.name])]
    blocks.append(_notes())
    return Measurement(claims, summary, blocks, _figure(settings[0], runs[settings[0].name]).figure)


def _of(runs: Sequence[Run], method: str, lrs: Sequence[float] | None = None) -> list[Run]:
    return [run for run in runs if run.method == method and (lrs is None or run.lr in lrs)]


def _bound_claim(runs: Sequence[Run]) -> Measured:
    fitted = [run for run in _of(runs, SGD) if run.fits]
    if not fitted:
        return Measured("no run of SGD fitted every example")
    trace = max(run.trace / run.trace_bound for run in fitted)
    moment = max(run.moment_share for run in fitted)
    ours = (
        f"trace at most {trace:.3f} of 2/lr and fourth moment at most {moment:.3f} of its bound in {len(fitted)} runs"
    )
    return Measured(ours, {"trace_share": trace, "moment_share": moment})


def _edge_claim(settings: Sequence[Setting], runs: Mapping[str, Sequence[Run]]) -> Measured:
    shares = [
        run.trace / run.trace_bound for setting in settings for run in _of(runs[setting.name], SGD, setting.lrs[-2:])
    ]
    return Measured(f"from {min(shares):.2f} to {max(shares):.2f} of 2/lr", {"least_share": min(shares)})


def _test_claim(settings: Sequence[Setting], runs: Mapping[str, Sequence[Run]]) -> Measured:
    words, worst, failed, sure = [], 0.0, 0, 1.0
    for setting in settings:
        found = _compared(setting, runs[setting.name])
        ratios = [s.test_mse / g.test_mse for s, g in _pairs(setting, runs[setting.name])]
        words.append(f"{np.mean(ratios):.2f} ({setting.name})")
        worst, sure = max(worst, max(ratios)), min(sure, found.p_better)
        failed = max(failed, sum(ratio > 0.35 for ratio in ratios))
    numbers = {"worst_ratio": worst, "failed_seeds": failed, "p_better": sure}
    return Measured(", ".join(words), numbers)


def _pairs(setting: Setting, runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    lr = setting.lrs[-1:]
    return list(zip(_of(runs, SGD, lr), _of(runs, GD, lr), strict=True))


def _compared(setting: Setting, runs: Sequence[Run]) -> PairedComparison:
    pairs = _pairs(setting, runs)
    return compare_paired([gd.test_mse for _, gd in pairs], [sgd.test_mse for sgd, _ in pairs], diverged_as=1e6)


def _gd_claim(settings: Sequence[Setting], runs: Mapping[str, Sequence[Run]]) -> Measured:
    spreads = []
    for setting in settings:
        found = _of(runs[setting.name], GD)
        for seed in {run.seed for run in found}:
            traces = [run.trace for run in found if run.seed == seed]
            spreads.append(max(traces) / min(traces) - 1)
    return Measured(f"varies by {max(spreads):.1%} over learning rates at most", {"spread": max(spreads)})


def _rule_claim(runs: Sequence[Run]) -> Measured:
    fitted = [run for run in _of(runs, SGD) if run.fits]
    if not fitted:
        return Measured("no run of SGD fitted every example")
    gd = float(np.median([2 / run.sharpness / run.lr_exact for run in fitted]))
    trace = float(np.median([2 / run.trace / run.lr_exact for run in fitted]))
    reached = max(run.lr / run.lr_exact for run in fitted)
    ours = (
        f"2/sharpness {gd:.1f} times and 2/trace {trace:.2f} times the exact limit (medians); the largest learning "
        f"rate of a run is {reached:.2f} of the exact limit at the minimum it found"
    )
    return Measured(ours, {"gd": gd, "trace": trace, "reached": reached})


def _mean(runs: Sequence[Run], name: str) -> float:
    return float(np.mean([getattr(run, name) for run in runs]))


def _figure(setting: Setting, runs: Sequence[Run]) -> Figure:
    curves, bands = {}, {}
    for method, lrs in ((SGD, setting.lrs), (GD, setting.gd_lrs)):
        traces = np.array([[run.trace for run in _of(runs, method, [lr])] for lr in lrs])
        curves[method] = (np.array(lrs), traces.mean(1))
        bands[method] = (lrs, traces.min(1), traces.max(1))
    curves["2 / learning rate"] = (np.array(setting.lrs), 2 / np.array(setting.lrs))
    title = f"Trace of the minimum found: {setting.name}"
    figure = line_chart(title, curves, "learning rate", "trace", log_y=True, bands=bands)
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def _table(setting: Setting, runs: Sequence[Run]) -> Table:
    columns = [
        "Method",
        "Learning rate",
        "2 / lr",
        "Trace",
        "Sharpness",
        "Norm",
        "Held-out MSE",
        "Limit at batch size 1, exact",
        "Fit every example",
    ]
    rows: list[list[object]] = []
    for method, lrs in ((SGD, setting.lrs), (GD, setting.gd_lrs)):
        for lr in lrs:
            of = _of(runs, method, [lr])
            numbers = [_mean(of, name) for name in ("trace", "sharpness", "norm", "test_mse", "lr_exact")]
            rows.append([method, lr, 2 / lr, *numbers, f"{sum(run.fits for run in of)} of {len(of)}"])
    found = _compared(setting, runs)
    low, high = found.interval
    caption = (
        "Means over seeds. Norm: 1-norm of the coefficients, or path norm. Held-out error at the largest learning "
        f"rate, SGD less gradient descent: {found.difference:.3g} [{low:.3g}, {high:.3g}], {found.verdict}."
    )
    return Table(f"Minima found: {setting.name}", columns, rows, caption)


def _notes() -> Text:
    return Text(
        "Weights start large: standard normal in the diagonal network and in the output layer, of variance 1/sqrt(d) "
        "in the first layer. There the trace is far above 2/lr, so that a constant learning rate would diverge: "
        "it warms up linearly (3000 or 8000 steps) and then stays. Gradient descent starts from the same weights. The "
        "trace bound is of mean-square stability and SGD of single examples; gradient descent has 2 / sharpness.",
        "Set-up",
    )


# --- the claims --------------------------------------------------------------------------------------------------


def judge_bound(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the run nearest to its bound: one beyond it refutes."""
    return "reproduced" if n["trace_share"] <= 1.001 and n["moment_share"] <= 1.001 else "refuted"


def judge_edge(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the run furthest below its bound."""
    return "reproduced" if n["least_share"] >= 0.6 else "partly" if n["least_share"] >= 0.3 else "refuted"


def judge_test_error(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the ratio of held-out errors."""
    if n["failed_seeds"] >= 2:
        return "refuted"
    return "reproduced" if n["worst_ratio"] <= 0.35 else "partly"


def judge_gd(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by how much the trace varies."""
    return "reproduced" if n["spread"] < 0.05 else "partly" if n["spread"] < 0.2 else "refuted"


def judge_rule(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by which rule is nearer to the exact limit, and whether runs keep to that."""
    if n["gd"] <= n["trace"]:
        return "refuted"
    return "reproduced" if n["gd"] >= 2 and n["reached"] <= 1.001 else "partly"


CLAIMS = (
    Claim(
        "bound",
        "A minimum that fits every example and at which SGD of single examples stays has trace at most 2 / lr.",
        "Tr(H) <= 2 / lr",
        "Reproduced if all runs of SGD that fit keep trace and fourth moment within 1.001 of their bounds, refuted by "
        "one that does not.",
        judge_bound,
    ),
    Claim(
        "edge",
        "At large learning rates the trace hugs its bound.",
        "figures for diagonal and ReLU networks",
        "Reproduced if at the two largest learning rates all runs have at least 0.6 of 2 / lr, refuted below 0.3.",
        judge_edge,
    ),
    Claim(
        "test-error",
        "SGD at a large learning rate generalises where gradient descent at the same does not.",
        "held-out error falls with the learning rate for SGD only",
        "Reproduced if the held-out error is at most 0.35 of gradient descent's in all problems and seeds; refuted if "
        "that fails for two seeds of a problem.",
        judge_test_error,
    ),
    Claim(
        "gd",
        "The minimum of gradient descent hardly depends on the learning rate.",
        "trace, norms and held-out error flat",
        "Reproduced if its trace varies by less than 5 % over the learning rates, refuted from 20 %.",
        judge_gd,
    ),
    Claim(
        "rule",
        "2 / sharpness, the rule of gradient descent, does not tell which minima SGD can reach.",
        "stability of SGD bounds the trace, of gradient descent only the sharpness",
        "Against the exact limit at the minima found. Reproduced if 2 / sharpness is at least 2 times too large, 2 / "
        "trace is nearer, and no run is above the exact limit; refuted if 2 / sharpness is nearer.",
        judge_rule,
    ),
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
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 10},
    measure=measure,
)

"""Study of "L2 Regularization versus Batch and Weight Normalization": decay of normalised weights sets a learning rate.

A 64-64-64-10 network on digits, batch norm behind both hidden layers, whose weights have a learning rate and a decay of
their own; everything else trains at 0.05 without decay. Decay is torch's: it adds ``wd * w`` to the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, AdamW

from poise.data import load_digits
from poise.optim import NormalizeWeights, equilibrium_norm
from poise.report import Code, Figure, Table, Text, scatter_chart
from poise.studies.stacked_mlp import StackedMLP, batch_indices, stacked_accuracy, stacked_cross_entropy
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

WIDTHS, BATCH, NORM_EPS, OTHER_LR = (64, 64, 64, 10), 50, 1e-12, 0.05
TRAIN = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """Rule, learning rate and weight decay of the hidden weights."""

    rule: str
    lr: float
    weight_decay: float

    @property
    def relaxation(self) -> float:
        """Steps in which the squared norm comes nearer to its equilibrium by a factor e."""
        return 1 / (2 * self.lr * self.weight_decay)


EQUILIBRIA = (
    *(Setting("sgd", lr, wd) for lr, wd in ((0.5, 0.02), (0.5, 0.08), (1.0, 0.02), (0.25, 0.02))),
    *(Setting("adamw", lr, wd) for lr, wd in ((0.01, 0.5), (0.01, 2.0), (0.04, 0.5))),
)
# Around the settings above. Both axes go by the factor 2, so that lines of equal lr * wd run through the grid.
GRID = tuple(Setting("sgd", lr, wd) for lr, wd in product((0.25, 0.5, 1.0), (0.02, 0.04, 0.08)))
DECAYS = (0.0, 0.01, 0.05)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    steps: int = 900
    grid_steps: int = 900
    exact_steps: int = 100


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(steps=150, grid_steps=30, exact_steps=10),
    "default": Plan(),
    "full": Plan(steps=3000, grid_steps=3000, exact_steps=300),
}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return pixels in [0, 1] and classes; the first 1000 train."""
    data = load_digits()
    return data.inputs / 16, data.targets


# --- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Runs:
    """Networks of one setting, a value per seed.

    Args:
        norm: norm of each hidden layer's weights, averaged over the last fifth of the steps.
        grad_power: mean of |gradient|^2 |weight|^2 of each over the same steps.
        accuracy: on the test digits, at the end.
        plateau: mean training loss over the last fifth.
    """

    norm: Float[np.ndarray, "layers seeds"]
    grad_power: Float[np.ndarray, "layers seeds"]
    accuracy: Float[np.ndarray, " seeds"]
    plateau: Float[np.ndarray, " seeds"]


def train(setting: Setting, steps: int, seeds: Sequence[int], normed: bool = True) -> Runs:
    """Train networks of several seeds, with batch norm or, as a control, without."""
    x, y = digits()
    x, y, x_test, y_test = x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]
    model = StackedMLP(seeds, WIDTHS, NORM_EPS if normed else None)
    hidden = [*model.weights[:-1]]
    optimizers = _optimizers(setting, model, hidden)
    measured, losses = [], []
    for step, pick in enumerate(batch_indices(seeds, TRAIN, steps, BATCH)):
        loss = stacked_cross_entropy(model(x[pick]), y[pick])
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.sum().backward()
        if step >= 0.8 * steps:
            measured.append(_norms(hidden))
            losses.append(loss.detach())
        for optimizer in optimizers:
            optimizer.step()
    norm, power = torch.stack(measured).double().mean(0).unbind(0)
    plateau = torch.stack(losses).double().mean(0)
    return Runs(norm.numpy(), power.numpy(), stacked_accuracy(model, x_test, y_test).numpy(), plateau.numpy())


def _optimizers(setting: Setting, model: StackedMLP, hidden: Sequence[Tensor]) -> list[torch.optim.Optimizer]:
    chosen = {id(w) for w in hidden}
    rest = SGD([p for p in model.parameters() if id(p) not in chosen], OTHER_LR)
    make = AdamW if setting.rule == "adamw" else SGD
    return [make(hidden, lr=setting.lr, weight_decay=setting.weight_decay), rest]


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
    x, y = digits()
    x = x.double()
    model = StackedMLP([seed], WIDTHS, NORM_EPS, torch.float64)
    hidden = [*model.weights[:-1]]
    lr = 0.5 / (1 + 0.5 * weight_decay)
    decayed, rest = _optimizers(Setting("sgd", lr, weight_decay), model, hidden)
    wrapped = NormalizeWeights(decayed, hidden, view="layer")
    passed = []
    for pick in batch_indices([seed], TRAIN, steps, BATCH):
        loss = stacked_cross_entropy(model(x[pick]), y[pick])
        for optimizer in (wrapped, rest):
            optimizer.zero_grad()
        loss.sum().backward()
        for optimizer in (wrapped, rest):
            optimizer.step()
        passed.append(torch.cat([w.detach().flatten() for w in hidden]))
    return torch.stack(passed), float(stacked_accuracy(model, x[TRAIN:], y[TRAIN:]))


# --- claims ------------------------------------------------------------------------------------------------------


def judge_equilibrium(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the largest relative errors of the predicted norms."""
    if n["sgd_error_relaxed"] > 0.15:
        return "refuted"
    return "reproduced" if n["sgd_error"] <= 0.05 and n["adamw_error"] <= 0.10 else "partly"


def judge_no_regularization(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the largest difference between trajectories."""
    return "reproduced" if n["difference"] <= 1e-10 and n["accuracy_spread"] == 0 else "refuted"


def judge_collapse(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the mean square along lines of equal lr * wd over that across."""
    if n["ratio"] >= 1:
        return "refuted"
    return "reproduced" if n["ratio"] < 0.5 else "partly"


def judge_control(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by how much decay raises the loss without normalisation."""
    if n["raised"] <= 0.5:
        return "refuted"
    return "reproduced" if n["raised"] == 1 else "partly"


CLAIMS = (
    Claim(
        "equilibrium",
        "Decay sets the norm of normalised weights, and with it the effective learning rate, by a law of its own.",
        "derived: |w|^4 = lr G / (2 wd)",
        "Mean norm of the first layer over the last fifth by the law, largest error over settings, means of seeds: "
        "reproduced if SGD is within 5 % and AdamW within 10 %; refuted if SGD is off by more than 15 % after 5 or "
        "more relaxation times.",
        judge_equilibrium,
    ),
    Claim(
        "no-regularization",
        "With the norm fixed, decay has no effect but lr / (1 - lr wd): it does not regularise.",
        "derived",
        "Weights of three decays after every step in float64, learning rates corrected: reproduced if they differ by "
        "at most 1e-10 and test accuracies are equal, else refuted.",
        judge_no_regularization,
    ),
    Claim(
        "collapse",
        "Accuracy depends on learning rate and decay through their product.",
        "CIFAR-10, figure",
        "Mean square of accuracies along lines of equal lr * wd over that between lines, 3 x 3 grid: reproduced below "
        "0.5, refuted from 1.",
        judge_collapse,
    ),
    Claim(
        "control",
        "Without normalisation decay does change the function that is learnt.",
        "contrast to the above",
        "Share of learning rates and seeds at which the largest decay of the grid has a higher training loss at the "
        "end than the smallest: reproduced at 1, refuted up to a half.",
        judge_control,
    ),
)


# --- the experiment ----------------------------------------------------------------------------------------------


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the four parts and put what came out beside the claims."""
    plan = PLANS[budget]
    jobs = [("equilibrium", s, plan.steps, True) for s in EQUILIBRIA]
    jobs += [("grid", s, plan.grid_steps, True) for s in GRID] + [("control", s, plan.grid_steps, False) for s in GRID]
    found: dict[str, dict[Setting, Runs]] = {"equilibrium": {}, "grid": {}, "control": {}}
    for i, (part, setting, steps, normed) in enumerate(jobs):
        progress(i / (len(jobs) + 1), f"{part}: {_name(setting)}")
        found[part][setting] = train(setting, steps, seeds, normed)
    progress(len(jobs) / (len(jobs) + 1), "fixed norms")
    claims = {
        "equilibrium": _measure_equilibrium(found["equilibrium"], plan),
        "no-regularization": _measure_no_regularization(plan, seeds),
        "collapse": _measure_collapse(found["grid"]),
        "control": _measure_control(found["control"]),
    }
    progress(1.0, "done")
    figure = _figure(found["grid"])
    blocks: list[Text | Table | Figure | Code] = [
        _equilibrium_table(found["equilibrium"], plan),
        figure,
        _grid_table(found["grid"], found["control"]),
        _notes(),
    ]
    summary = f"On digits {claims['equilibrium'].ours}; {claims['no-regularization'].ours}."
    return Measurement(claims, summary, blocks, figure.figure)


def _measure_equilibrium(found: Mapping[Setting, Runs], plan: Plan) -> Measured:
    errors = {setting: abs(_ratio(setting, runs, 0) - 1) for setting, runs in found.items()}
    by_rule = {rule: max(e for s, e in errors.items() if s.rule == rule) for rule in ("sgd", "adamw")}
    relaxed = [e for s, e in errors.items() if s.rule == "sgd" and plan.steps >= 5 * s.relaxation]
    words = (
        f"norms at equilibrium are within {by_rule['sgd']:.1%} of the law under SGD (4 settings) and within "
        f"{by_rule['adamw']:.1%} under AdamW (3)"
    )
    numbers = {"sgd_error": by_rule["sgd"], "adamw_error": by_rule["adamw"]}
    return Measured(words, {**numbers, "sgd_error_relaxed": max(relaxed, default=0.0)})


def _ratio(setting: Setting, runs: Runs, layer: int) -> float:
    """Observed by predicted norm, mean over seeds."""
    predicted = [predicted_norm(setting, power) for power in runs.grad_power[layer]]
    return float(np.mean(runs.norm[layer] / predicted))


def _measure_no_regularization(plan: Plan, seeds: Sequence[int]) -> Measured:
    difference, spread, accuracies = 0.0, 0.0, []
    for seed in seeds:
        paths, reached = zip(*(normalized_trajectory(wd, plan.exact_steps, seed) for wd in DECAYS), strict=True)
        difference = max(difference, *(float((path - paths[0]).abs().max()) for path in paths[1:]))
        spread = max(spread, max(reached) - min(reached))
        accuracies.append(reached[0])
    words = (
        f"with fixed norms the weights of decays {', '.join(f'{wd:g}' for wd in DECAYS)} differ by at most "
        f"{difference:.1e} over {plan.exact_steps} steps, at {np.mean(accuracies):.1%} test accuracy each"
    )
    return Measured(words, {"difference": difference, "accuracy_spread": spread})


def _measure_collapse(grid: Mapping[Setting, Runs]) -> Measured:
    ratio = collapse_ratio({(s.lr, s.weight_decay): float(runs.accuracy.mean()) for s, runs in grid.items()})
    accuracy = np.array([runs.accuracy.mean() for runs in grid.values()])
    lr_alone = _correlation([math.log(s.lr) for s in grid], accuracy)
    both = _correlation([math.log(s.lr * s.weight_decay) for s in grid], accuracy)
    words = (
        f"mean square along lines of equal lr * wd is {ratio:.2f} of that across (test accuracy {accuracy.min():.1%} "
        f"to {accuracy.max():.1%}; correlation with log(lr wd) {both:+.2f}, with log lr alone {lr_alone:+.2f})"
    )
    return Measured(words, {"ratio": ratio, "correlation_product": both, "correlation_lr": lr_alone})


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


def _measure_control(control: Mapping[Setting, Runs]) -> Measured:
    decays = sorted({s.weight_decay for s in control})
    pairs = [
        (control[Setting("sgd", lr, decays[0])].plateau, control[Setting("sgd", lr, decays[-1])].plateau)
        for lr in sorted({s.lr for s in control})
    ]
    # A run that diverged has a loss that is not a number: it does not count as raised by decay.
    raised = float(np.mean([large > small for small, large in pairs]))
    words = (
        f"without batch norm a decay of {decays[-1]:g} ends at a higher training loss than {decays[0]:g} in "
        f"{raised:.0%} of learning rates and seeds"
    )
    return Measured(words, {"raised": raised})


def _name(setting: Setting) -> str:
    return f"{'AdamW' if setting.rule == 'adamw' else 'SGD'}, lr {setting.lr:g}, wd {setting.weight_decay:g}"


def _equilibrium_table(found: Mapping[Setting, Runs], plan: Plan) -> Table:
    rows = []
    for setting, runs in found.items():
        norm = runs.norm.mean(1)
        ratios = [_ratio(setting, runs, layer) for layer in (0, 1)]
        rows.append([_name(setting), plan.steps / setting.relaxation, norm[0], norm[0] / ratios[0], *ratios])
    columns = ["setting", "relaxation times", "norm, layer 1", "predicted", "ratio, layer 1", "ratio, layer 2"]
    caption = "The law's G is measured over the same steps as the norm. Layer 2 is shown, not judged."
    return Table("Norms at equilibrium", columns, rows, caption)


def _grid_table(grid: Mapping[Setting, Runs], control: Mapping[Setting, Runs]) -> Table:
    rows = []
    for setting, runs in grid.items():
        plain = control[setting]
        values = (100 * runs.accuracy.mean(), runs.plateau.mean(), 100 * plain.accuracy.mean(), plain.plateau.mean())
        rows.append([setting.lr, setting.weight_decay, *map(float, values)])
    columns = ["lr", "wd", "test, %", "training loss", "test without norm, %", "training loss without norm"]
    return Table("Learning rate and decay", columns, rows, "Means over seeds; losses over the last fifth of the steps.")


def _figure(grid: Mapping[Setting, Runs]) -> Figure:
    points = {}
    for lr in sorted({s.lr for s in grid}):
        chosen = [(s, runs) for s, runs in grid.items() if s.lr == lr]
        x = [math.sqrt(s.lr * s.weight_decay) for s, _ in chosen]
        points[f"lr {lr:g}"] = (x, [100 * float(runs.accuracy.mean()) for _, runs in chosen])
    figure = scatter_chart("Accuracy on one axis", points, "sqrt(lr * wd)", "test accuracy, %")
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def _notes() -> Text:
    return Text(
        "The law holds where a run is several relaxation times, 1 / (2 lr wd) steps, long. Before that the norm still "
        "remembers where it started, and learning rate and decay do not act through their product alone.",
        title="How to read it",
    )


STUDY = Study(
    slug="l2-normalization",
    title="Does weight decay of normalised weights do more than set a learning rate?",
    room="optim",
    paper=Paper("L2 Regularization versus Batch and Weight Normalization", "van Laarhoven", 2017, "1706.05350"),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 5},
    measure=measure,
)

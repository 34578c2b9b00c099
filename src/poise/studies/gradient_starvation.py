"""Study of "Gradient Starvation": a strong feature keeps weaker ones from being learned.

Two coupled features whose end is known exactly, two moons that one coordinate separates, and, for the limits of the
remedy, digits with a bit that gives their class away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import SGD, Adam, Optimizer

from poise.data import load_digits
from poise.dynamics import decoupled_fixed_point, responses, ridge_fixed_point, sensitivity
from poise.evidence import PairedComparison, compare_paired
from poise.losses import spectral_decoupling
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.kit.networks import mlp
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

# The toy: two samples of one class, and two features that share them.
DIRECTIONS = torch.tensor([[math.sqrt(0.75), -0.5], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
WEAK, STRONG = 2.0, (2.0, 3.0, 4.0, 5.0, 6.0)
RIDGE, DECOUPLING = 0.01, 0.002

# Networks of all seeds are trained side by side: logits and labels (-1, 1) are of shape (seeds, samples).
Loss = Callable[[Tensor, Tensor], Tensor]
Parameters = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    toy_steps: int = 5000
    moon_steps: int = 1500
    digit_steps: int = 300


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(toy_steps=100, moon_steps=30, digit_steps=10),
    "default": Plan(),
    "full": Plan(toy_steps=20000, moon_steps=10000, digit_steps=1000),
}


# --- A: the toy --------------------------------------------------------------------------------------------------


def solved_toy(strong: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both responses at the exact minimum, with the penalty on weights and with that on logits."""
    kernel = (DIRECTIONS * torch.tensor([strong, WEAK]) ** 2) @ DIRECTIONS.T
    ends = ridge_fixed_point(kernel, RIDGE), decoupled_fixed_point(kernel, DECOUPLING)
    ridge, decoupled = (responses(r, torch.ones(2), DIRECTIONS).numpy() for r in ends)
    return ridge, decoupled


def descended_toy(steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the same two after gradient descent from zero, one row for each strength of ``STRONG``."""
    strengths = torch.tensor([[strong, WEAK] for strong in STRONG], dtype=torch.float64)
    phi = DIRECTIONS * strengths[:, None]
    theta = torch.zeros(2, len(STRONG), 2, dtype=torch.float64, requires_grad=True)  # one block for each penalty
    optimizer = SGD([theta], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = torch.einsum("knd,pkd->pkn", phi, theta)
        penalties = RIDGE / 2 * theta[0].square().sum() + DECOUPLING / 2 * logits[1].square().sum()
        (F.softplus(-logits).sum() + penalties).backward()
        optimizer.step()
    ridge, decoupled = torch.einsum("knd,pkd->pkn", phi, theta.detach()) @ DIRECTIONS  # all labels are 1
    return ridge.numpy(), decoupled.numpy()


# --- training of all seeds at once ---------------------------------------------------------------------------------


def networks(widths: Sequence[int], seeds: Sequence[int]) -> tuple[nn.Sequential, Parameters]:
    """Return one ReLU network as a pattern, and the parameters of one for each seed, stacked."""
    models = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(mlp(widths, nn.ReLU))
    stacked, _ = stack_module_state(models)
    return models[0], stacked


def logits_of(model: nn.Module, parameters: Parameters, x: Float[Tensor, "seeds n d"]) -> Float[Tensor, "seeds n"]:
    """Return the logit of each network on its own samples."""
    return vmap(lambda own, inputs: functional_call(model, own, (inputs,)).squeeze(-1))(parameters, x)


def train(
    model: nn.Module, parameters: Parameters, x: Tensor, y: Tensor, loss: Loss, optimizer: Optimizer, steps: int
) -> None:
    """Train on the full batch. The losses of the seeds are summed: no network feels another."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss(logits_of(model, parameters, x), y).mean(1).sum().backward()
        optimizer.step()


def logistic(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of two classes, by sample."""
    return F.softplus(-y * logits)


def decoupled(coef: float) -> Loss:
    """Cross entropy with a penalty on the logits."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        penalties = vmap(lambda own: spectral_decoupling(own, coef))(logits)
        return logistic(logits, y) + penalties[:, None]

    return loss


def smoothed(logits: Tensor, y: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross entropy with smoothed labels."""
    return F.binary_cross_entropy_with_logits(logits, (1 + y * (1 - smoothing)) / 2, reduction="none")


def focal(logits: Tensor, y: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss: well-fitted samples count less."""
    return torch.sigmoid(-y * logits) ** gamma * logistic(logits, y)


# --- B: two moons --------------------------------------------------------------------------------------------------


def moons(n: int, margin: float, seed: int) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Return two moons whose classes a straight line parts by twice ``margin`` (negative: they overlap).

    The first coordinate is the one that separates; the second gives the moons' shape.
    """
    points, classes = make_moons(n, noise=0.1, random_state=seed)
    label = 2.0 * classes - 1
    across, along = points[:, 1] - 0.3 * label, points[:, 0] - 0.5
    across = across - across.mean()
    across = np.sign(-across * label) * across - margin * label
    return torch.tensor(np.stack([across, along], 1)).float(), torch.tensor(label).float()


def boundary(model: nn.Module, parameters: Parameters) -> Float[np.ndarray, "seeds heights"]:
    """Return where each network's logit crosses zero, for second coordinates in [-1.2, 1.2]; NaN where it does not.

    Of several crossings it is the one nearest to the line between the classes.
    """
    heights, across = torch.linspace(-1.2, 1.2, 49), torch.linspace(-3, 3, 601)
    grid = torch.cartesian_prod(heights, across).flip(1)
    seeds = len(next(iter(parameters.values())))
    with torch.no_grad():
        values = logits_of(model, parameters, grid.expand(seeds, -1, -1)).view(seeds, 49, 601).double()
    left, right = values[..., :-1], values[..., 1:]
    crosses = left.sign() != right.sign()
    at = across[:-1].double() + left / torch.where(crosses, left - right, 1.0) * (across[1] - across[0])
    distance = torch.where(crosses, at.abs(), math.inf)
    nearest = torch.take_along_dim(at, distance.argmin(-1, keepdim=True), -1).squeeze(-1)
    return torch.where(crosses.any(-1), nearest, math.nan).numpy()


@dataclass(frozen=True, slots=True)
class MoonRuns:
    """What became of one arm, one number a seed; the boundary of the first seed."""

    shifted: NDArray[np.float64]
    mildly_shifted: NDArray[np.float64]
    spread: NDArray[np.float64]
    missing: int
    boundary: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train on two moons."""

    loss: Loss = logistic
    decay: float = 0.0
    margin: float = 0.1
    adam: bool = False


DECAYS = ("weight decay 0.003", "weight decay 0.01", "weight decay 0.03")
MOON_ARMS: Mapping[str, Arm] = {
    "cross entropy": Arm(),
    "decoupling 0.003": Arm(decoupled(0.003)),
    "decoupling 0.03": Arm(decoupled(0.03)),
    "weight decay 0.003": Arm(decay=0.003),
    "weight decay 0.01": Arm(decay=0.01),
    "weight decay 0.03": Arm(decay=0.03),
    "label smoothing 0.1": Arm(smoothed),
    "focal loss": Arm(focal),
    "Adam": Arm(adam=True),
    "margin -0.1": Arm(margin=-0.1),
}


def train_on_moons(arm: Arm, steps: int, seeds: Sequence[int]) -> MoonRuns:
    """Train one network a seed on 300 points and test each on 2000 fresh ones that overlap."""
    x, y = _stacked_moons(300, arm.margin, seeds)
    model, parameters = networks((2, 200, 1), seeds)
    weights = list(parameters.values())
    sgd = SGD(weights, lr=0.01, momentum=0.9, weight_decay=arm.decay)
    train(model, parameters, x, y, arm.loss, Adam(weights, lr=0.001) if arm.adam else sgd, steps)
    fresh = [seed + 10_000 for seed in seeds]
    far, near = (_accuracy(model, parameters, *_stacked_moons(2000, margin, fresh)) for margin in (-0.2, -0.1))
    line = boundary(model, parameters)
    spread = np.array([np.std(own[~np.isnan(own)]) if not np.isnan(own).all() else math.nan for own in line])
    return MoonRuns(far, near, spread, int(np.isnan(line).sum()), line[0])


def _stacked_moons(n: int, margin: float, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    sets = [moons(n, margin, seed) for seed in seeds]
    return torch.stack([x for x, _ in sets]), torch.stack([y for _, y in sets])


@torch.no_grad()
def _accuracy(model: nn.Module, parameters: Parameters, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    return (logits_of(model, parameters, x) * y > 0).double().mean(1).numpy()


# --- C: digits with a bit that gives the class away ------------------------------------------------------------------


def digits_with_bit(agreement: float, seed: int) -> tuple[Float[Tensor, "n 65"], Float[Tensor, " n"]]:
    """Return pixels in [-1, 1] with one more column of -1 and 1, and labels: 1 for digits from 5.

    Args:
        agreement: share of samples, drawn at random, whose bit is the label; in the others it is reversed.
        seed: seed of the order of samples and of the draw.
    """
    data, generator = load_digits(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    x, y = data.inputs[order] / 8 - 1, 2.0 * (data.targets[order] >= 5) - 1
    bit = torch.where(torch.rand(len(data), generator=generator) < agreement, y, -y)
    return torch.cat([x, bit[:, None]], 1), y


def train_on_digits(agreement: float, loss: Loss, steps: int, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Train on 1000 digits; return the accuracies on 797 others whose bit agrees, is reversed, or is 0."""
    sets = [digits_with_bit(agreement, seed) for seed in seeds]
    x, y = torch.stack([x for x, _ in sets]), torch.stack([y for _, y in sets])
    model, parameters = networks((65, 200, 1), seeds)
    train(model, parameters, x[:, :1000], y[:, :1000], loss, Adam(list(parameters.values()), lr=1e-3), steps)
    found = {}
    for name, sign in (("agrees", 1.0), ("reversed", -1.0), ("absent", 0.0)):
        told = x[:, 1000:].clone()
        told[:, :, -1] = sign * y[:, 1000:]
        found[name] = _accuracy(model, parameters, told, y[:, 1000:])
    return found


DIGIT_ARMS: Mapping[str, Loss] = {
    "cross entropy": logistic,
    "decoupling 0.03": decoupled(0.03),
    "decoupling 0.1": decoupled(0.1),
}
AGREEMENTS = (0.98, 1.0)


# --- the claims --------------------------------------------------------------------------------------------------


def judge_starvation(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the smallest and largest change of the weak response from one strength to the next."""
    return "reproduced" if n["largest_step"] < 0 else "refuted" if n["smallest_step"] >= 0 else "partly"


def judge_decoupling(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the range of responses over the strengths."""
    return "reproduced" if n["range"] <= 1e-3 else "refuted"


def judge_moons(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the lead on every seed, over weight decay, and by the spread of the boundary."""
    won = n["lead_min"] >= 3 and n["over_decay"] > 0 and n["spread_ratio"] >= 2
    return "reproduced" if won else "refuted"


def judge_margin(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the spreads of the boundary with and without a gap between the classes."""
    if n["difference"] <= 0:
        return "refuted"
    return "reproduced" if n["low"] > 0 else "partly"


CLAIMS = (
    Claim(
        "starvation",
        "The stronger one feature is, the weaker is the final response to another that shares samples with it.",
        "a theorem, and a toy example",
        "Two coupled features, strong one from 2 to 6, by Newton's method and by gradient descent. Reproduced if the "
        "weak response falls at every step, refuted if at none.",
        judge_starvation,
    ),
    Claim(
        "decoupling",
        "With a penalty on the logits instead, the responses do not depend on the strength of the features.",
        "a theorem, and a toy example",
        "The same features: reproduced if responses differ by at most 1e-3 over all strengths, refuted otherwise.",
        judge_decoupling,
    ),
    Claim(
        "two-moons",
        "On two moons that a straight line separates, spectral decoupling learns the curved boundary; weight decay "
        "does not.",
        "figure only",
        "Fresh points at margin -0.2. Reproduced if decoupling 0.03 leads cross entropy by 3 points on every seed, "
        "leads the best of three weight decays on average, and its boundary is at least twice as curved; refuted "
        "otherwise.",
        judge_moons,
    ),
    Claim(
        "margin",
        "A gap between the classes keeps cross entropy from learning the curve that it learns without the gap.",
        "figure only",
        "Spread of the boundary, trained at margin -0.1 minus +0.1. Reproduced if positive with a 95 % interval above "
        "0, refuted if not positive.",
        judge_margin,
    ),
)


@dataclass(frozen=True, slots=True)
class Toy:
    """Responses of the toy, one row for each strength of the strong feature, by penalty and method."""

    ridge: Mapping[str, NDArray[np.float64]]
    decoupled: Mapping[str, NDArray[np.float64]]


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the three parts and put what came out beside the claims."""
    plan = PLANS[budget]
    progress(0.0, "two coupled features")
    toy = _toy(plan)
    arms = {}
    for i, (name, arm) in enumerate(MOON_ARMS.items()):
        progress(0.2 + 0.06 * i, f"two moons, {name}")
        arms[name] = train_on_moons(arm, plan.moon_steps, seeds)
    progress(0.8, "digits")
    digits = {
        (agreement, name): train_on_digits(agreement, loss, plan.digit_steps, seeds)
        for agreement in AGREEMENTS
        for name, loss in DIGIT_ARMS.items()
    }
    progress(1.0, "done")
    claims = {
        "starvation": _measure_starvation(toy),
        "decoupling": _measure_decoupling(toy),
        "two-moons": _measure_moons(arms),
        "margin": _measure_margin(arms),
    }
    figure = _toy_figure(toy)
    blocks: list[Text | Table | Figure | Code] = [
        figure,
        _toy_table(toy),
        _boundary_figure(arms),
        _moon_table(arms),
        _digit_table(digits),
        _notes(),
    ]
    return Measurement(claims, f"{claims['starvation'].ours}. {claims['two-moons'].ours}.", blocks, figure.figure)


def _toy(plan: Plan) -> Toy:
    solved = np.array([solved_toy(strong) for strong in STRONG])
    ridge, decoupled = descended_toy(plan.toy_steps)
    return Toy({"solved": solved[:, 0], "descent": ridge}, {"solved": solved[:, 1], "descent": decoupled})


def _measure_starvation(toy: Toy) -> Measured:
    steps = np.concatenate([np.diff(z[:, 1]) for z in toy.ridge.values()])
    weak = toy.ridge["solved"][:, 1]
    words = f"the response to the weak feature falls from {weak[0]:.3f} to {weak[-1]:.3f} as the strong one grows"
    return Measured(words, {"largest_step": steps.max(), "smallest_step": steps.min()})


def _measure_decoupling(toy: Toy) -> Measured:
    spread = max(float(np.ptp(z, axis=0).max()) for z in toy.decoupled.values())
    first = toy.decoupled["solved"][0]
    return Measured(f"responses ({first[0]:.4f}, {first[1]:.4f}), range {spread:.1e}", {"range": spread})


def _measure_moons(arms: Mapping[str, MoonRuns]) -> Measured:
    plain, treated = arms["cross entropy"], arms["decoupling 0.03"]
    best = max(DECAYS, key=lambda name: float(arms[name].shifted.mean()))
    paired = _compare(plain, treated)
    low, high = paired.interval
    ratio = float(treated.spread.mean() / plain.spread.mean())
    words = (
        f"at margin -0.2 {paired.mean_treated:.1f} % are right with decoupling and {paired.mean_control:.1f} % with "
        f"cross entropy, difference {paired.difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), "
        f"{100 * arms[best].shifted.mean():.1f} % with {best}, "
        f"{100 * arms['label smoothing 0.1'].shifted.mean():.1f} % with label smoothing; the boundary's spread "
        f"is {ratio:.1f} times that of cross entropy"
    )
    numbers = {
        "lead_min": float(100 * (treated.shifted - plain.shifted).min()),
        "over_decay": float(100 * (treated.shifted - arms[best].shifted).mean()),
        "spread_ratio": ratio,
    }
    return Measured(words, numbers)


def _compare(control: MoonRuns, treated: MoonRuns) -> PairedComparison:
    return compare_paired(100 * control.shifted, 100 * treated.shifted, lower_is_better=False)


def _measure_margin(arms: Mapping[str, MoonRuns]) -> Measured:
    gap, overlap = arms["cross entropy"].spread, arms["margin -0.1"].spread
    paired = compare_paired(gap, overlap, lower_is_better=False)
    low, high = paired.interval
    words = (
        f"spread {overlap.mean():.3f} without and {gap.mean():.3f} with the gap, difference {paired.difference:+.3f} "
        f"(95 % interval {low:+.3f} to {high:+.3f})"
    )
    return Measured(words, {"difference": paired.difference, "low": low, "high": high})


def _toy_figure(toy: Toy) -> Figure:
    curves = {"penalty on weights": (STRONG, toy.ridge["solved"][:, 1])}
    curves["penalty on logits"] = (STRONG, toy.decoupled["solved"][:, 1])
    return line_chart(
        "Response to the weak feature", curves, "strength of the strong feature", "final response to the weak feature"
    )


def _toy_table(toy: Toy) -> Table:
    rows: list[list[object]] = []
    for i, strong in enumerate(STRONG):
        slope = float(sensitivity(DIRECTIONS, torch.tensor([strong, WEAK]), RIDGE)[1, 0])
        ends = [*toy.ridge["solved"][i], *toy.ridge["descent"][i], slope, *toy.decoupled["descent"][i]]
        rows.append([strong, *(float(value) for value in ends)])
    columns = ["strong feature", "z1", "z2", "z1, descent", "z2, descent", "dz2 / ds1^2"]
    columns += ["z1, descent, logits", "z2, descent, logits"]
    caption = "Penalty on the weights but for the last two columns; the slope is exact, by implicit differentiation."
    return Table("Two coupled features", columns, rows, caption)


def _boundary_figure(arms: Mapping[str, MoonRuns]) -> Figure:
    names = ("cross entropy", "weight decay 0.01", "decoupling 0.03", "margin -0.1")
    curves = {name: (np.linspace(-1.2, 1.2, 49), arms[name].boundary) for name in names}
    return line_chart("Boundary between the moons", curves, "along the moons", "where the logit is zero, first seed")


def _moon_table(arms: Mapping[str, MoonRuns]) -> Table:
    rows: list[list[object]] = []
    for name, runs in arms.items():
        far, near = (100 * float(values.mean()) for values in (runs.shifted, runs.mildly_shifted))
        rows.append([name, far, near, 100 * float(runs.shifted.min()), float(runs.spread.mean()), runs.missing])
    columns = ["arm", "margin -0.2, %", "margin -0.1, %", "worst seed, %", "spread", "no crossing"]
    caption = (
        "Trained at margin +0.1 but for the last arm; SGD with momentum but for Adam. Spread: standard deviation of "
        "the boundary. No crossing: heights, over all seeds, at which the logit has one sign."
    )
    return Table("Two moons", columns, rows, caption)


def _digit_table(digits: Mapping[tuple[float, str], Mapping[str, NDArray[np.float64]]]) -> Table:
    rows = [
        [f"{100 * agreement:.0f} %", name, *(100 * float(values.mean()) for values in found.values())]
        for (agreement, name), found in digits.items()
    ]
    columns = ["bit agrees in training", "arm", "bit agrees, %", "reversed, %", "absent, %"]
    return Table("Digits with a bit that gives the class away", columns, rows, "797 held-out digits, mean over seeds.")


def _notes() -> Text:
    return Text(
        "Decoupling is no cure for every shortcut. Where a bit is wrong for 2 % of the training samples, cross entropy "
        "learns shape from those it cannot fit otherwise; a penalty on the logits takes that reason away. Where the "
        "bit is always right there may be nothing left to learn. The paper's coloured digits and faces are not run.",
        title="Limits",
    )


STUDY = Study(
    slug="gradient-starvation",
    title="Does a strong feature keep weaker ones from being learned?",
    room="losses",
    paper=Paper("Gradient Starvation: A Learning Proclivity in Neural Networks", "Pezeshki et al.", 2020, "2011.09468"),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 5, "full": 10},
    measure=measure,
)

"""Study of "Gradient Starvation": a strong feature keeps weaker ones from being learned.

Two coupled features whose end is known exactly, two moons that one coordinate separates, and, for the limits of the
remedy, digits with a bit that gives their class away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.func import vmap
from torch.optim import SGD, Adam, Optimizer

from poise.dynamics import decoupled_fixed_point, responses, ridge_fixed_point, sensitivity
from poise.evidence import compare_paired
from poise.losses import spectral_decoupling
from poise.nn.mlp import seeded_mlp
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import above, at_least, at_most, below
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.tables import mean_table
from poise.studies.kit.words import difference, interval

# The toy: two samples of one class, and two features that share them.
DIRECTIONS = torch.tensor([[math.sqrt(0.75), -0.5], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
WEAK, STRONG = 2.0, (2.0, 3.0, 4.0, 5.0, 6.0)
RIDGE, DECOUPLING = 0.01, 0.002

# Networks of all seeds are trained side by side: logits and labels (-1, 1) are of shape (seeds, samples).
Loss = Callable[[Tensor, Tensor], Tensor]
Nets = SideBySide[nn.Sequential]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    toy_steps: int = 5000
    moon_steps: int = 1500
    digit_steps: int = 300


PLANS: dict[Budget, Plan] = {"tiny": Plan(100, 30, 10), "default": Plan(), "full": Plan(20000, 10000, 1000)}


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


def networks(widths: Sequence[int], seeds: Sequence[int]) -> Nets:
    """Return one ReLU network for each seed."""
    return SideBySide([seeded_mlp(widths, seed, nn.ReLU) for seed in seeds])


def train(nets: Nets, x: Tensor, y: Tensor, loss: Loss, optimizer: Optimizer, steps: int) -> None:
    """Train on the full batch. The losses of the seeds are summed: no network feels another."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss(nets(x).squeeze(-1), y).mean(1).sum().backward()
        optimizer.step()


def accuracy(nets: Nets, x: Float[Tensor, "seeds n d"], y: Float[Tensor, "seeds n"]) -> NDArray[np.float64]:
    """Return the fraction of right signs of each network, on samples of its own."""
    return (nets.evaluate(x).squeeze(-1) * y > 0).double().mean(1).numpy()


def logistic(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of two classes, by sample."""
    return F.softplus(-y * logits)


def decoupled(coef: float) -> Loss:
    """Cross entropy with a penalty on the logits."""
    penalty = vmap(lambda own: spectral_decoupling(own, coef))
    return lambda logits, y: logistic(logits, y) + penalty(logits)[:, None]


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


def boundary(nets: Nets) -> Float[np.ndarray, "seeds heights"]:
    """Return where each network's logit crosses zero, for second coordinates in [-1.2, 1.2]; NaN where it does not.

    Of several crossings it is the one nearest to the line between the classes.
    """
    heights, across = torch.linspace(-1.2, 1.2, 49), torch.linspace(-3, 3, 601)
    grid = torch.cartesian_prod(heights, across).flip(1)
    values = nets.evaluate(grid.expand(nets.nets, -1, -1)).view(nets.nets, 49, 601).double()
    left, right = values[..., :-1], values[..., 1:]
    crosses = left.sign() != right.sign()
    at = across[:-1].double() + left / torch.where(crosses, left - right, 1.0) * (across[1] - across[0])
    distance = torch.where(crosses, at.abs(), math.inf)
    nearest = torch.take_along_dim(at, distance.argmin(-1, keepdim=True), -1).squeeze(-1)
    return torch.where(crosses.any(-1), nearest, math.nan).numpy()


@dataclass(frozen=True, slots=True)
class MoonRuns:
    """Networks of one arm, a value per seed; the boundary is that of the first seed."""

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
    **{name: Arm(decay=float(name.split()[-1])) for name in DECAYS},
    "label smoothing 0.1": Arm(smoothed),
    "focal loss": Arm(focal),
    "Adam": Arm(adam=True),
    "margin -0.1": Arm(margin=-0.1),
}


def train_on_moons(arm: Arm, steps: int, seeds: Sequence[int]) -> MoonRuns:
    """Train one network a seed on 300 points and test each on 2000 fresh ones that overlap."""
    nets = networks((2, 200, 1), seeds)
    sgd = SGD(nets.parameters(), lr=0.01, momentum=0.9, weight_decay=arm.decay)
    optimizer = Adam(nets.parameters(), lr=0.001) if arm.adam else sgd
    train(nets, *stacked_moons(300, arm.margin, seeds), arm.loss, optimizer, steps)
    fresh = [seed + 10_000 for seed in seeds]
    far, near = (accuracy(nets, *stacked_moons(2000, margin, fresh)) for margin in (-0.2, -0.1))
    line = boundary(nets)
    spread = np.array([np.std(own[~np.isnan(own)]) if not np.isnan(own).all() else math.nan for own in line])
    return MoonRuns(far, near, spread, int(np.isnan(line).sum()), line[0])


def stacked_moons(n: int, margin: float, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return two moons for each seed."""
    x, y = zip(*(moons(n, margin, seed) for seed in seeds), strict=True)
    return torch.stack(x), torch.stack(y)


# --- C: digits with a bit that gives the class away ------------------------------------------------------------------


def digits_with_bit(agreement: float, seed: int) -> tuple[Float[Tensor, "n 65"], Float[Tensor, " n"]]:
    """Return pixels in [-1, 1] with one more column of -1 and 1, and labels: 1 for digits from 5.

    Args:
        agreement: fraction of samples, drawn at random, whose bit is the label; in the others it is reversed.
        seed: seed of the order of samples and of the draw.
    """
    x, classes, *_ = digits(seed, train=1797, scale="unit")
    y, generator = 2.0 * (classes >= 5) - 1, torch.Generator().manual_seed(seed)
    torch.randperm(len(x), generator=generator)  # the draw that ordered the digits
    bit = torch.where(torch.rand(len(x), generator=generator) < agreement, y, -y)
    return torch.cat([2 * x - 1, bit[:, None]], 1), y


def train_on_digits(agreement: float, loss: Loss, steps: int, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Train on 1000 digits; return the accuracies on 797 others whose bit agrees, is reversed, or is 0."""
    x, y = map(torch.stack, zip(*(digits_with_bit(agreement, seed) for seed in seeds), strict=True))
    nets = networks((65, 200, 1), seeds)
    train(nets, x[:, :1000], y[:, :1000], loss, Adam(nets.parameters(), lr=1e-3), steps)
    x, y, accuracies = x[:, 1000:].clone(), y[:, 1000:], {}
    for name, sign in (("agrees", 1.0), ("reversed", -1.0), ("absent", 0.0)):
        x[:, :, -1] = sign * y
        accuracies[name] = accuracy(nets, x, y)
    return accuracies


DIGIT_ARMS = {"cross entropy": logistic, "decoupling 0.03": decoupled(0.03), "decoupling 0.1": decoupled(0.1)}
AGREEMENTS = (0.98, 1.0)

# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Responses of the toy by method, a row for each strength; runs on moons by arm."""

    ridge: Mapping[str, NDArray[np.float64]]  # with the penalty on weights
    decoupled: Mapping[str, NDArray[np.float64]]  # with that on logits
    moons: Mapping[str, MoonRuns]
    # Accuracies by agreement and arm, then by what the bit says.
    digits: Mapping[tuple[float, str], Mapping[str, NDArray[np.float64]]]


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the three parts."""
    plan = PLANS[budget]
    progress(0.0, "two coupled features")
    solved, descended = np.array([solved_toy(strong) for strong in STRONG]), descended_toy(plan.toy_steps)
    return Results(
        {"solved": solved[:, 0], "descent": descended[0]},
        {"solved": solved[:, 1], "descent": descended[1]},
        run_each(
            lambda arm: train_on_moons(MOON_ARMS[arm], plan.moon_steps, seeds),
            list(MOON_ARMS),
            part_of(progress, 0.2, 0.8),
            name="two moons, {}".format,
        ),
        run_each(
            lambda cell: train_on_digits(cell[0], DIGIT_ARMS[cell[1]], plan.digit_steps, seeds),
            list(product(AGREEMENTS, DIGIT_ARMS)),
            part_of(progress, 0.8, 1),
            name="digits, {0[1]}".format,
        ),
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "starvation",
    "The stronger one feature is, the weaker is the final response to another that shares samples with it.",
    paper="a theorem, and a toy example",
    protocol="Two coupled features, strong one from 2 to 6, by Newton's method and by gradient descent: largest and "
    "smallest change of the weak response from one strength to the next.",
    reproduced=below("largest_step", 0),
    refuted=at_least("smallest_step", 0),
    without_seeds="nothing is drawn.",
)
def starvation(results: Results) -> Measured:
    steps = np.concatenate([np.diff(z[:, 1]) for z in results.ridge.values()])
    weak = results.ridge["solved"][:, 1]
    words = f"the response to the weak feature falls from {weak[0]:.3f} to {weak[-1]:.3f} as the strong one grows"
    return Measured(words, {"largest_step": steps.max(), "smallest_step": steps.min()})


@claim(
    "decoupling",
    "With a penalty on the logits instead, the responses do not depend on the strength of the features.",
    paper="a theorem, and a toy example",
    protocol="The same features: range of the responses over all strengths.",
    reproduced=at_most("range", 1e-3),
    without_seeds="nothing is drawn.",
)
def independence(results: Results) -> Measured:
    spread = max(float(np.ptp(z, axis=0).max()) for z in results.decoupled.values())
    first = results.decoupled["solved"][0]
    return Measured(f"responses ({first[0]:.4f}, {first[1]:.4f}), range {spread:.1e}", {"range": spread})


@claim(
    "two-moons",
    "On two moons that a straight line separates, spectral decoupling learns the curved boundary; weight decay "
    "does not.",
    paper="figure only",
    protocol="Fresh points at margin -0.2. Points by which decoupling 0.03 leads cross entropy on the worst seed and "
    "on average, and the best of three weight decays on average; spread of its boundary by that of cross entropy.",
    reproduced=at_least("lead_min", 3, "smallest lead")
    & at_least("lead", 3, "mean lead")
    & above("over_decay", 0)
    & at_least("spread_ratio", 2),
    over_seeds=["lead", "over_decay", "spread_ratio"],
)
def two_moons(results: Results) -> Measured:
    plain, treated = results.moons["cross entropy"], results.moons["decoupling 0.03"]
    best = max(DECAYS, key=lambda name: float(results.moons[name].shifted.mean()))
    decayed, smooth = results.moons[best].shifted, results.moons["label smoothing 0.1"].shifted
    paired = compare_paired(100 * plain.shifted, 100 * treated.shifted, lower_is_better=False)
    ratio, interval = bootstrap_over_seeds(
        lambda a, b: a.mean() / b.mean(), treated.spread, plain.spread, positive=True
    )
    words = (
        f"at margin -0.2 {paired.mean_treated:.1f} % are right with decoupling and {paired.mean_control:.1f} % with "
        f"cross entropy, difference {difference(paired, '+.1f', 'points')}, {100 * decayed.mean():.1f} % with {best}, "
        f"{100 * smooth.mean():.1f} % with label smoothing; the boundary's spread is {ratio:.1f} times that of cross "
        "entropy"
    )
    lead, over = 100 * (treated.shifted - plain.shifted), 100 * (treated.shifted - decayed)
    numbers = {"lead_min": lead.min(), "lead": lead.mean(), "over_decay": over.mean(), "spread_ratio": ratio}
    return Measured(words, numbers, {"lead": lead, "over_decay": over}, {"spread_ratio": interval})


@claim(
    "margin",
    "A gap between the classes keeps cross entropy from learning the curve that it learns without the gap.",
    paper="figure only",
    protocol="Spread of the boundary, trained at margin -0.1 minus +0.1, with a 95 % interval.",
    reproduced=above("low", 0, "lower end"),
    refuted=at_most("difference", 0),
    over_seeds=["difference"],
)
def margin(results: Results) -> Measured:
    gap, overlap = results.moons["cross entropy"].spread, results.moons["margin -0.1"].spread
    paired = compare_paired(gap, overlap, lower_is_better=False)
    low, high = paired.interval
    words = (
        f"spread {overlap.mean():.3f} without and {gap.mean():.3f} with the gap, difference {paired.difference:+.3f} "
        f"({interval(low, high)})"
    )
    numbers = {"difference": paired.difference, "low": low, "high": high}
    return Measured(words, numbers, {"difference": overlap - gap})


# --- the report --------------------------------------------------------------------------------------------------

NOTES = (
    "Decoupling is no cure for every shortcut. Where a bit is wrong for 2 % of the training samples, cross entropy "
    "learns shape from those it cannot fit otherwise; a penalty on the logits takes that reason away. Where the "
    "bit is always right there may be nothing left to learn. The paper's coloured digits and faces are not run."
)


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    penalties = {"penalty on weights": results.ridge, "penalty on logits": results.decoupled}
    lines = {name: (STRONG, z["solved"][:, 1]) for name, z in penalties.items()}
    axes = "strength of the strong feature", "final response to the weak feature"
    figure = line_chart("Response to the weak feature", lines, *axes)
    return Presentation(
        f"{claims['starvation'].text}. {claims['two-moons'].text}.",
        [
            figure,
            _toy_table(results),
            _boundary_figure(results.moons),
            _moon_table(results.moons),
            _digit_table(results),
            Text(NOTES, title="Limits"),
        ],
        figure.figure,
    )


def _toy_table(results: Results) -> Table:
    rows = []
    for i, strong in enumerate(STRONG):
        slope = float(sensitivity(DIRECTIONS, torch.tensor([strong, WEAK]), RIDGE)[1, 0])
        ridge = *results.ridge["solved"][i], *results.ridge["descent"][i]
        rows.append([strong, *ridge, slope, *results.decoupled["descent"][i]])
    columns = ["strong feature", "z1", "z2", "z1, descent", "z2, descent", "dz2 / ds1^2"]
    columns += ["z1, descent, logits", "z2, descent, logits"]
    caption = "Penalty on the weights but for the last two columns; the slope is exact, by implicit differentiation."
    return Table("Two coupled features", columns, rows, caption)


def _boundary_figure(arms: Mapping[str, MoonRuns]) -> Figure:
    names = ("cross entropy", "weight decay 0.01", "decoupling 0.03", "margin -0.1")
    curves = {name: (np.linspace(-1.2, 1.2, 49), arms[name].boundary) for name in names}
    return line_chart("Boundary between the moons", curves, "along the moons", "where the logit is zero, first seed")


def _moon_table(arms: Mapping[str, MoonRuns]) -> Table:
    rows = {}
    for name, runs in arms.items():
        percent = runs.shifted.mean(), runs.mildly_shifted.mean(), runs.shifted.min()
        rows[name] = [*(100 * value for value in percent), runs.spread, runs.missing]
    columns = ["margin -0.2, %", "margin -0.1, %", "worst seed, %", "spread", "no crossing"]
    caption = (
        "Trained at margin +0.1 but for the last arm; SGD with momentum but for Adam. Spread: standard deviation of "
        "the boundary. No crossing: heights, over all seeds, at which the logit has one sign."
    )
    return mean_table("Two moons", ["arm"], columns, rows, caption)


def _digit_table(results: Results) -> Table:
    rows = {
        (f"{100 * agreement:.0f} %", name): [100 * values.mean() for values in accuracies.values()]
        for (agreement, name), accuracies in results.digits.items()
    }
    keys, columns = ["bit agrees in training", "arm"], ["bit agrees, %", "reversed, %", "absent, %"]
    title = "Digits with a bit that gives the class away"
    return mean_table(title, keys, columns, rows, "797 held-out digits, mean over seeds.")


STUDY = Study(
    slug="gradient-starvation",
    title="Does a strong feature keep weaker ones from being learned?",
    room="losses",
    paper=Paper("Gradient Starvation: A Learning Proclivity in Neural Networks", "Pezeshki et al.", 2020, "2011.09468"),
    seeds={"tiny": 2, "default": 5, "full": 10},
    experiment=experiment,
    claims=(starvation, independence, two_moons, margin),
    present=present,
)

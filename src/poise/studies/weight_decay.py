"""Study of "Why Do We Need Weight Decay in Modern Deep Learning?": decay keeps noise alive and sets the step size.

Over-training on noisy labels (200 digits, a fifth of the labels random, SGD without momentum), the effective learning
rate (exactly for SGD, with AdamW on characters) and weights kept in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from poise.curvature import jacobian_frobenius
from poise.data import load_breast_cancer, standardize
from poise.evidence import PairedComparison, compare_paired
from poise.optim import MatchEffectiveLR, TwoPhaseLR, decay_groups, group_effective_lr
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import batch_indices, cross_entropies
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.character_gpt import CONTEXT, CharacterGPT, corpus
from poise.studies.kit.digits import digits, digits_by_seed
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.networks import relu_net
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.tables import mean_table, seed_table
from poise.studies.kit.words import interval

WIDTHS, TRAIN, NOISE, BATCH = (64, 64, 64, 10), 200, 0.2, 16
LARGE, SMALL, DECAY = 0.3, 0.03, 0.003
CELLS = tuple(product((LARGE, SMALL), (0.0, DECAY)))
CHARACTER_LR, CHARACTER_DECAY, CHARACTER_BATCH, CHARACTER_WARM_UP = 1e-2, 0.3, 16, 40
ARMS = ("no decay", "decay", "matched")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    steps: Mapping[float, int] = field(default_factory=lambda: {LARGE: 1200, SMALL: 6000})
    last_steps: int = 200
    exact_steps: int = 200
    character_steps: int | None = None
    bf16_steps: int = 2000


PLANS: dict[Budget, Plan] = {
    "tiny": Plan({LARGE: 60, SMALL: 60}, 10, exact_steps=20, character_steps=60, bf16_steps=200),
    "default": Plan(),
    "full": Plan({LARGE: 4800, SMALL: 24000}, exact_steps=1000, bf16_steps=10_000),
}


# --- A: over-training --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OverTraining:
    """Networks of one learning rate and decay, a value per seed; at the end, where nothing else is said."""

    plateau: Float[np.ndarray, " seeds"]  # mean training loss over the last quarter of the first phase
    accuracy: Float[np.ndarray, " seeds"]  # on the digits that were not trained on
    jacobian: Float[np.ndarray, " seeds"]  # mean squared Frobenius norm of d outputs / d weights, training digits
    norm: Float[np.ndarray, " seeds"]  # of all weights
    loss: Float[np.ndarray, " seeds"]  # on the training digits
    curve: Float[np.ndarray, " blocks"]  # training loss of the first phase, mean over seeds


def over_train(lr: float, weight_decay: float, plan: Plan, seeds: Sequence[int]) -> OverTraining:
    """Train networks of several seeds at a constant learning rate, then shortly at a hundredth of it."""
    x, y, x_test, y_test = digits_by_seed(seeds, TRAIN, "unit", NOISE)
    nets, steps = SideBySide([relu_net(WIDTHS, seed) for seed in seeds]), plan.steps[lr]
    total = steps + plan.last_steps
    optimizer = SGD(nets.parameters(), lr, weight_decay=weight_decay)
    schedule = TwoPhaseLR(optimizer, total, first_decay=steps / total, final_lr=lr / 100)
    every, losses = torch.arange(len(seeds))[:, None], []
    for pick in batch_indices(seeds, TRAIN, total, BATCH):
        loss = cross_entropies(nets(x[every, pick]), y[every, pick])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    first = torch.stack(losses[:steps]).double().numpy()
    squares = [p.detach().double().square().flatten(1).sum(1) for p in nets.parameters()]
    return OverTraining(
        plateau=first[-steps // 4 :].mean(0),
        accuracy=nets.accuracy(x_test, y_test).numpy(),
        jacobian=np.array([jacobian_frobenius(net, own).value for net, *own in zip(nets.models, x, y, strict=True)]),
        norm=torch.stack(squares).sum(0).sqrt().numpy(),
        loss=cross_entropies(nets.evaluate(x), y).double().numpy(),
        curve=np.array([block.mean() for block in np.array_split(first, 50)]),
    )


# --- B: effective learning rate ----------------------------------------------------------------------------------


def equivalent_lr(lr: float, weight_decay: float, step: int) -> float:
    """Return the learning rate without decay that moves a scale-invariant weight as ``lr`` does with it."""
    return lr * (1 - lr * weight_decay) ** -(2 * step + 1)


def exact_equivalence(steps: int, seed: int, lr: float = 0.5, weight_decay: float = 0.02) -> float:
    """Return the largest relative difference of losses between SGD with decay and SGD with the equivalent rate."""
    x, y, *_ = digits(train=TRAIN, scale="unit")
    start = torch.randn(10, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    decayed, plain = SGD([weights[0]], lr, weight_decay=weight_decay), SGD([weights[1]], lr)
    schedule = LambdaLR(plain, lambda step: equivalent_lr(lr, weight_decay, step) / lr)
    worst = 0.0
    for _ in range(steps):
        losses = [F.cross_entropy(x.double() @ (5 * w / w.norm()).T, y) for w in weights]
        for loss, optimizer in zip(losses, (decayed, plain), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        a, b = (loss.item() for loss in losses)
        worst = max(worst, abs(a - b) / a)
    return worst


def train_characters(arm: str, seed: int, steps: int | None, trace: list[float]) -> Float[np.ndarray, " steps"]:
    """Train a one-layer GPT once over the text; return its training losses.

    The learning rate warms up, stays, and falls linearly to a tenth in the last quarter.

    Args:
        arm: ``"no decay"``, ``"decay"``, or ``"matched"``: no decay, with the effective learning rates of the other.
        seed: of weights and of the order of the text.
        steps: number of steps; one pass by default.
        trace: learning rate over weight norm at each step, written by ``"decay"`` and read by ``"matched"``.
    """
    text, generator = corpus(), torch.Generator().manual_seed(seed)
    windows = text.train[: len(text.train) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    windows = windows[torch.randperm(len(windows), generator=generator)]
    batches = windows.split(CHARACTER_BATCH)[: steps or len(windows) // CHARACTER_BATCH]
    model = CharacterGPT(64, text.classes, qk_norm=False, generator=generator, blocks=1)
    weight_decay = CHARACTER_DECAY if arm == "decay" else 0.0
    optimizer = AdamW(decay_groups(model, weight_decay), CHARACTER_LR, (0.9, 0.95), foreach=True)
    schedule = (
        MatchEffectiveLR(optimizer, trace, "adamw")
        if arm == "matched"
        else LambdaLR(optimizer, lambda step: constant_then_decayed(step, len(batches)))
    )
    losses = []
    for step, ids in enumerate(batches):
        if arm == "decay":
            trace.append(group_effective_lr(optimizer, "adamw"))
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        if step + 1 < len(batches):
            schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).double().numpy()


def constant_then_decayed(step: int, steps: int) -> float:
    """Return the learning rate as a fraction of its peak."""
    warm, falling = min(1.0, (step + 1) / CHARACTER_WARM_UP), (steps - step) / (0.25 * steps)
    return min(warm, 0.1 + 0.9 * min(1.0, falling))


# --- C: bfloat16 -------------------------------------------------------------------------------------------------


def lost_updates(weight_decay: float, steps: int, seed: int) -> float:
    """Return the fraction of updates in the second half of a run that leave a bfloat16 weight as it was."""
    data, generator = load_breast_cancer(), torch.Generator().manual_seed(seed)
    (x,) = standardize(data.inputs)
    x, y = x.bfloat16(), data.targets.bfloat16()
    w = nn.Parameter((0.01 * torch.randn(x.shape[1], generator=generator)).bfloat16())
    optimizer = SGD([w], lr=0.1, weight_decay=weight_decay)
    fractions = []
    for step in range(steps):
        pick = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(x[pick] @ w, y[pick]).backward()
        before = w.detach().clone()
        optimizer.step()
        assert w.grad is not None
        meant = w.grad.float() + weight_decay * before.float() != 0
        if step >= steps // 2 and meant.any():
            fractions.append(float((w.detach() == before)[meant].float().mean()))
    return float(np.mean(fractions))


# --- the experiment ----------------------------------------------------------------------------------------------

Curves = Mapping[str, Float[np.ndarray, "seeds steps"]]


@dataclass(frozen=True, slots=True)
class Results:
    """Networks by learning rate and decay, losses by arm, and numbers of the parts without networks."""

    plan: Plan
    cells: Mapping[tuple[float, float], OverTraining]
    curves: Curves
    exact: float  # largest relative difference of losses between decay and the equivalent learning rate
    lost: Mapping[float, np.ndarray]  # fraction of lost updates of each seed, by decay


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the three parts."""
    plan = PLANS[budget]

    def characters(seed: int) -> list[np.ndarray]:
        trace: list[float] = []
        return [train_characters(arm, seed, plan.character_steps, trace) for arm in ARMS]

    name = "noisy digits, learning rate {0[0]:g}, decay {0[1]:g}".format
    cells = run_each(lambda cell: over_train(*cell, plan, seeds), CELLS, part_of(progress, 0, 0.4), name=name)
    curves = run_each(characters, seeds[:3], part_of(progress, 0.4, 0.95), name="characters, seed {}".format)
    return Results(
        plan,
        cells,
        {arm: np.stack(losses) for arm, *losses in zip(ARMS, *curves.values(), strict=True)},
        exact=max(exact_equivalence(plan.exact_steps, seed) for seed in seeds),
        lost={wd: np.array([lost_updates(wd, plan.bf16_steps, seed) for seed in seeds]) for wd in (0.0, 0.01)},
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "stabilization",
    "At a large learning rate weight decay keeps the training loss from vanishing, and the noise that this leaves "
    "acts like a penalty on the Jacobian.",
    paper="ResNet-18, CIFAR-10, figures",
    protocol="Learning rate 0.3. Plateau with decay by that without, and squared Jacobian without by that with: the "
    "smallest ratios over seeds, and the means (plateau, jacobian).",
    reproduced=at_least("plateau_ratio", 5)
    & at_least("jacobian_ratio", 1.5)
    & at_least("plateau", 5)
    & at_least("jacobian", 1.5),
    refuted=below("plateau", 5) | below("jacobian", 1.5),
    over_seeds=["plateau", "jacobian"],
)
def stabilization(results: Results) -> Measured:
    plain, decayed = results.cells[LARGE, 0.0], results.cells[LARGE, DECAY]
    plateau, jacobian = decayed.plateau / plain.plateau, plain.jacobian / decayed.jacobian
    words = (
        f"at learning rate {LARGE:g} decay lifts the plateau of the training loss {plateau.mean():.1f} times (every "
        f"seed at least {plateau.min():.1f}) and lowers the squared Jacobian {jacobian.mean():.2f} times (at least "
        f"{jacobian.min():.2f})"
    )
    numbers = {"plateau_ratio": plateau.min(), "jacobian_ratio": jacobian.min()}
    return Measured(words, numbers, {"plateau": plateau, "jacobian": jacobian})


@claim(
    "generalization",
    "A large learning rate together with weight decay generalises best.",
    paper="ResNet-18, CIFAR-10, figures",
    protocol="Best cell: 1 if this is the best of the four cells, 0 if not. Probability: that it is better than no "
    "decay at the large learning rate, from paired differences. Lead: points by which it is better than the best of "
    "the three others.",
    reproduced=at_least("p_better", 0.95, "probability") & equal_to("best_cell", 1) & above("lead", 0),
    refuted=equal_to("best_cell", 0) & below("lead", 0),
    over_seeds=["lead"],
)
def generalization(results: Results) -> Measured:
    means = {cell: 100 * float(runs.accuracy.mean()) for cell, runs in results.cells.items()}
    best = max(means, key=lambda cell: means[cell])
    large, small = (_gain(results, lr) for lr in (LARGE, SMALL))
    words = (
        f"decay changes test accuracy by {large.difference:+.2f} points at learning rate {LARGE:g} "
        f"({interval(*large.interval, '+.2f')}) and by {small.difference:+.2f} "
        f"({small.interval[0]:+.2f} to {small.interval[1]:+.2f}) at {SMALL:g}; best is learning rate {best[0]:g} with "
        f"decay {best[1]:g}, {means[best]:.2f} %"
    )
    second = max((cell for cell in means if cell != (LARGE, DECAY)), key=lambda cell: means[cell])
    lead = 100 * (results.cells[LARGE, DECAY].accuracy - results.cells[second].accuracy)
    numbers = {"best_cell": best == (LARGE, DECAY), "p_better": large.p_better, "lead": lead.mean()}
    return Measured(words, numbers, {"lead": lead})


def _gain(results: Results, lr: float) -> PairedComparison:
    plain, decayed = (100 * results.cells[lr, decay].accuracy for decay in (0.0, DECAY))
    return compare_paired(plain, decayed, lower_is_better=False)


@claim(
    "exact-rate",
    "For a scale-invariant weight under SGD, decay is exactly a learning rate that grows.",
    paper="derived",
    protocol="Losses of SGD with decay and of SGD with lr (1 - lr wd)^-(2t+1).",
    reproduced=at_most("difference", 1e-10),
    without_seeds="an identity, which holds for every seed up to rounding; the largest difference of all is judged.",
)
def exact_rate(results: Results) -> Measured:
    words = f"losses differ by at most {results.exact:.1e} over {results.plan.exact_steps} steps"
    return Measured(words, {"difference": results.exact})


@claim(
    "matched-rate",
    "In language models near one epoch decay acts through the effective learning rate: matching it without decay "
    "gives the same training curve.",
    paper="GPT-2 124M, OpenWebText, figures",
    protocol="Largest distance in nats from the curve with decay, in twentieths of the run, means of seeds: of the "
    "matched run, and of the one without decay.",
    reproduced=at_most("matched", 0.02),
    refuted=above("matched", 0.02) & at_least("matched", "no_decay"),
    over_seeds=["matched", "no_decay"],
)
def matched_rate(results: Results) -> Measured:
    (matched, interval), (plain, interval_plain) = (
        bootstrap_over_seeds(curve_distance, results.curves[arm], results.curves["decay"])
        for arm in ("matched", "no decay")
    )
    words = (
        f"the curve with matched rate is within {matched:.3f} nats of that with decay, the one without decay within "
        f"{plain:.3f}"
    )
    intervals = {"matched": interval, "no_decay": interval_plain}
    return Measured(words, {"matched": matched, "no_decay": plain}, intervals=intervals)


def curve_distance(a: Float[np.ndarray, "seeds steps"], b: Float[np.ndarray, "seeds steps"]) -> float:
    """Return the largest difference of two curves in twentieths of the run, means over seeds."""
    return float(max(abs(block.mean()) for block in np.array_split((a - b).mean(0), 20)))


@claim(
    "bf16",
    "With weights in bfloat16 decay keeps updates from being lost in rounding.",
    paper="loss diverges without decay, in bfloat16 only",
    protocol="Logistic regression: fraction of updates that leave a weight as it was, with decay minus without; mean "
    "and largest over seeds.",
    reproduced=below("largest_difference", 0) & below("mean_difference", 0),
    refuted=at_least("mean_difference", 0),
    over_seeds=["mean_difference"],
)
def bf16(results: Results) -> Measured:
    plain, decayed = results.lost.values()
    words = f"{decayed.mean():.1%} of updates are lost with decay 0.01, {plain.mean():.1%} without"
    differences = decayed - plain
    numbers = {"mean_difference": differences.mean(), "largest_difference": differences.max()}
    return Measured(words, numbers, {"mean_difference": differences})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    lines = {
        f"learning rate {lr:g}, decay {decay:g}": (np.linspace(0, 1, 50), runs.curve)
        for (lr, decay), runs in results.cells.items()
    }
    axes = "fraction of the first phase", "training loss, mean over seeds"
    figure = line_chart("Decay keeps the loss up", lines, *axes, log_y=True)
    last = {arm: losses[:, -max(1, losses.shape[1] // 20) :].mean(1) for arm, losses in results.curves.items()}
    caption = "Mean over the last twentieth of the run. The paper finds it lower with decay; shown here, not judged."
    return Presentation(
        f"On noisy digits {claims['stabilization'].text}; {claims['generalization'].text}.",
        [
            figure,
            _cells_table(results),
            _characters_figure(results.curves),
            seed_table("Last training loss on characters", ["run"], last, caption=caption),
            _notes(results),
        ],
        figure.figure,
    )


def _cells_table(results: Results) -> Table:
    rows = {}
    for cell, runs in results.cells.items():
        # Coupled decay is the gradient of this penalty, whatever the run itself was trained on.
        penalized = runs.loss + DECAY / 2 * runs.norm**2
        rows[cell] = [runs.plateau, 100 * runs.accuracy, runs.jacobian, runs.norm, runs.loss, penalized]
    columns = ["plateau", "test, %", "squared Jacobian", "weight norm", "last training loss"]
    columns.append(f"loss + {DECAY:g}/2 |w|^2")
    caption = (
        "Means over seeds. Were decay a regulariser of the usual kind, the lowest penalised loss (last column) would "
        "be the best network."
    )
    return mean_table("Four ways to over-train", ["learning rate", "decay"], columns, rows, caption)


def _characters_figure(curves: Curves) -> Figure:
    lines = {}
    for arm, losses in curves.items():
        blocks = np.array_split(losses.mean(0), 60)
        lines[arm] = (np.cumsum([len(block) for block in blocks]), [block.mean() for block in blocks])
    return line_chart("One pass over the text", lines, "step", "training loss in nats, mean over seeds")


def _notes(results: Results) -> Text:
    jacobian, accuracy = (
        np.concatenate([getattr(runs, key) for runs in results.cells.values()]) for key in ("jacobian", "accuracy")
    )
    rank = float(spearmanr(jacobian, accuracy).statistic)
    return Text(
        f"Over all cells and seeds the rank correlation of squared Jacobian and test accuracy is {rank:+.2f} "
        "(reported, not judged). The paper also says that decay does not help at a small learning "
        "rate; what it does there is stated beside the claim on generalisation.",
        title="How to read it",
    )


STUDY = Study(
    slug="weight-decay",
    title="Does weight decay act through the dynamics of training rather than as a penalty?",
    room="optim",
    paper=Paper("Why Do We Need Weight Decay in Modern Deep Learning?", "D'Angelo et al.", 2024, "2310.04415"),
    seeds={"tiny": 2, "default": 5, "full": 10},
    experiment=experiment,
    claims=(stabilization, generalization, exact_rate, matched_rate, bf16),
    present=present,
)

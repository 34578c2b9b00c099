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
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from poise.curvature import jacobian_frobenius
from poise.data import load_breast_cancer, load_digits, standardize
from poise.evidence import compare_paired
from poise.optim import MatchEffectiveLR, TwoPhaseLR, decay_groups, group_effective_lr
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.kit.character_gpt import CONTEXT, CharacterGPT, corpus
from poise.studies.stacked_mlp import StackedMLP, batch_indices, stacked_accuracy, stacked_cross_entropy
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

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
    """Networks of one learning rate and decay, a value per seed.

    Args:
        plateau: mean training loss over the last quarter of the first phase.
        accuracy: on the digits that were not trained on, at the end.
        jacobian: mean squared Frobenius norm of d outputs / d weights over the training digits, at the end.
        norm: of all weights, at the end.
        loss: on the training digits, at the end.
        curve: training loss of the first phase, in 50 blocks, mean over seeds.
    """

    plateau: Float[np.ndarray, " seeds"]
    accuracy: Float[np.ndarray, " seeds"]
    jacobian: Float[np.ndarray, " seeds"]
    norm: Float[np.ndarray, " seeds"]
    loss: Float[np.ndarray, " seeds"]
    curve: Float[np.ndarray, " blocks"]


def noisy_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training pixels and labels, a fifth of them random, and those of all other digits, untouched."""
    data, generator = load_digits(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    x, y = data.inputs[order] / 16, data.targets[order]
    noisy = y[:TRAIN].clone()
    wrong = torch.randperm(TRAIN, generator=generator)[: round(NOISE * TRAIN)]
    noisy[wrong] = torch.randint(10, (len(wrong),), generator=generator)
    return x[:TRAIN], noisy, x[TRAIN:], y[TRAIN:]


def over_train(lr: float, weight_decay: float, plan: Plan, seeds: Sequence[int]) -> OverTraining:
    """Train networks of several seeds at a constant learning rate, then shortly at a hundredth of it."""
    x, y, x_test, y_test = (torch.stack(part) for part in zip(*map(noisy_digits, seeds), strict=True))
    model, steps = StackedMLP(seeds, WIDTHS), plan.steps[lr]
    total = steps + plan.last_steps
    optimizer = SGD(model.parameters(), lr, weight_decay=weight_decay)
    schedule = TwoPhaseLR(optimizer, total, first_decay=steps / total, final_lr=lr / 100)
    nets, losses = torch.arange(len(seeds))[:, None], []
    for pick in batch_indices(seeds, TRAIN, total, BATCH):
        loss = stacked_cross_entropy(model(x[nets, pick]), y[nets, pick])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    first = torch.stack(losses[:steps]).double().numpy()
    with torch.no_grad():
        end = stacked_cross_entropy(model(x), y).double().numpy()
    jacobian = [jacobian_frobenius(model.network(i), (x[i], y[i])).value for i in range(len(seeds))]
    norm = torch.stack([p.detach().double().square().flatten(1).sum(1) for p in model.parameters()]).sum(0).sqrt()
    return OverTraining(
        plateau=first[-steps // 4 :].mean(0),
        accuracy=stacked_accuracy(model, x_test, y_test).numpy(),
        jacobian=np.array(jacobian),
        norm=norm.numpy(),
        loss=end,
        curve=np.array([block.mean() for block in np.array_split(first, 50)]),
    )


# --- B: effective learning rate ----------------------------------------------------------------------------------


def equivalent_lr(lr: float, weight_decay: float, step: int) -> float:
    """Return the learning rate without decay that moves a scale-invariant weight as ``lr`` does with it."""
    return lr * (1 - lr * weight_decay) ** -(2 * step + 1)


def exact_equivalence(steps: int, seed: int, lr: float = 0.5, weight_decay: float = 0.02) -> float:
    """Return the largest relative difference of losses between SGD with decay and SGD with the equivalent rate."""
    data, generator = load_digits(), torch.Generator().manual_seed(seed)
    x, y = data.inputs[:TRAIN].double() / 16, data.targets[:TRAIN]
    start = torch.randn(10, 64, generator=generator, dtype=torch.float64)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    decayed, plain = SGD([weights[0]], lr, weight_decay=weight_decay), SGD([weights[1]], lr)
    schedule = LambdaLR(plain, lambda step: equivalent_lr(lr, weight_decay, step) / lr)
    worst = 0.0
    for _ in range(steps):
        losses = [F.cross_entropy(x @ (5 * w / w.norm()).T, y) for w in weights]
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
    """Return the learning rate as a share of its peak."""
    warm, falling = min(1.0, (step + 1) / CHARACTER_WARM_UP), (steps - step) / (0.25 * steps)
    return min(warm, 0.1 + 0.9 * min(1.0, falling))


# --- C: bfloat16 -------------------------------------------------------------------------------------------------


def absorbed_share(weight_decay: float, steps: int, seed: int) -> float:
    """Return the share of updates in the second half of a run that leave a bfloat16 weight as it was."""
    data, generator = load_breast_cancer(), torch.Generator().manual_seed(seed)
    (x,) = standardize(data.inputs)
    x, y = x.bfloat16(), data.targets.bfloat16()
    w = nn.Parameter((0.01 * torch.randn(x.shape[1], generator=generator)).bfloat16())
    optimizer = SGD([w], lr=0.1, weight_decay=weight_decay)
    shares = []
    for step in range(steps):
        pick = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(x[pick] @ w, y[pick]).backward()
        before = w.detach().clone()
        optimizer.step()
        assert w.grad is not None
        meant = w.grad.float() + weight_decay * before.float() != 0
        if step >= steps // 2 and meant.any():
            shares.append(float((w.detach() == before)[meant].float().mean()))
    return float(np.mean(shares))


# --- claims ------------------------------------------------------------------------------------------------------


def judge_stabilization(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the smallest ratios over seeds."""
    return "reproduced" if n["plateau_ratio"] >= 5 and n["jacobian_ratio"] >= 1.5 else "refuted"


def judge_generalization(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the best cell, and by the paired difference at the large learning rate."""
    if not n["best_cell"]:
        return "refuted"
    return "reproduced" if n["p_better"] >= 0.95 else "partly"


def judge_exact(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the largest difference of losses."""
    return "reproduced" if n["difference"] <= 1e-10 else "refuted"


def judge_matched(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the distances of curves."""
    if n["matched"] <= 0.02:
        return "reproduced"
    return "partly" if n["matched"] < n["no_decay"] else "refuted"


def judge_bf16(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the shares of lost updates, seed by seed."""
    if n["mean_difference"] >= 0:
        return "refuted"
    return "reproduced" if n["largest_difference"] < 0 else "partly"


CLAIMS = (
    Claim(
        "stabilization",
        "At a large learning rate weight decay keeps the training loss from vanishing, and the noise that this leaves "
        "acts like a penalty on the Jacobian.",
        "ResNet-18, CIFAR-10, figures",
        "Learning rate 0.3, with decay by without, on every seed: reproduced if the plateau is at least 5 times as "
        "high and the squared Jacobian at least 1.5 times as small, else refuted.",
        judge_stabilization,
    ),
    Claim(
        "generalization",
        "A large learning rate together with weight decay generalises best.",
        "ResNet-18, CIFAR-10, figures",
        "Reproduced if this is the best of the four cells and better than no decay at the large learning rate (90 % "
        "interval of paired differences above 0); refuted if another cell is best.",
        judge_generalization,
    ),
    Claim(
        "exact-rate",
        "For a scale-invariant weight under SGD, decay is exactly a learning rate that grows.",
        "derived",
        "Losses of SGD with decay and of SGD with lr (1 - lr wd)^-(2t+1): reproduced if they differ by at most 1e-10, "
        "else refuted.",
        judge_exact,
    ),
    Claim(
        "matched-rate",
        "In language models near one epoch decay acts through the effective learning rate: matching it without decay "
        "gives the same training curve.",
        "GPT-2 124M, OpenWebText, figures",
        "Largest distance from the curve with decay, in twentieths of the run, means of seeds: reproduced up to 0.02 "
        "nats; refuted if the run without decay is as near.",
        judge_matched,
    ),
    Claim(
        "bf16",
        "With weights in bfloat16 decay keeps updates from being lost in rounding.",
        "loss diverges without decay, in bfloat16 only",
        "Share of updates that leave a weight as it was, logistic regression: reproduced if decay lowers it on every "
        "seed, refuted if not in the mean.",
        judge_bf16,
    ),
)


# --- the experiment ----------------------------------------------------------------------------------------------

Cells = Mapping[tuple[float, float], OverTraining]
Curves = Mapping[str, Float[np.ndarray, "seeds steps"]]


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the parts and put what came out beside the claims."""
    plan, cells = PLANS[budget], {}
    for i, (lr, weight_decay) in enumerate(CELLS):
        progress(0.1 * i, f"noisy digits, learning rate {lr:g}, decay {weight_decay:g}")
        cells[lr, weight_decay] = over_train(lr, weight_decay, plan, seeds)
    curves = _characters(plan, seeds[:3], progress)
    progress(0.95, "exact equivalence and bfloat16")
    absorbed = {decay: [absorbed_share(decay, plan.bf16_steps, seed) for seed in seeds] for decay in (0.0, 0.01)}
    exact = max(exact_equivalence(plan.exact_steps, seed) for seed in seeds)
    progress(1.0, "done")
    claims = {
        "stabilization": _measure_stabilization(cells),
        "generalization": _measure_generalization(cells),
        "exact-rate": Measured(
            f"losses differ by at most {exact:.1e} over {plan.exact_steps} steps", {"difference": exact}
        ),
        "matched-rate": _measure_matched(curves),
        "bf16": _measure_bf16(absorbed),
    }
    figure = _figure(cells)
    blocks: list[Text | Table | Figure | Code] = [
        figure,
        _cells_table(cells),
        _characters_figure(curves),
        _characters_table(curves),
        _notes(cells),
    ]
    summary = f"On noisy digits {claims['stabilization'].ours}; {claims['generalization'].ours}."
    return Measurement(claims, summary, blocks, figure.figure)


def _characters(plan: Plan, seeds: Sequence[int], progress: Progress) -> Curves:
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for i, seed in enumerate(seeds):
        trace: list[float] = []
        for j, arm in enumerate(ARMS):
            progress(0.4 + 0.55 * (3 * i + j) / (3 * len(seeds)), f"characters, {arm}, seed {seed}")
            found[arm].append(train_characters(arm, seed, plan.character_steps, trace))
    return {arm: np.stack(losses) for arm, losses in found.items()}


def _measure_stabilization(cells: Cells) -> Measured:
    plain, decayed = cells[LARGE, 0.0], cells[LARGE, DECAY]
    plateau, jacobian = decayed.plateau / plain.plateau, plain.jacobian / decayed.jacobian
    words = (
        f"at learning rate {LARGE:g} decay lifts the plateau of the training loss {plateau.mean():.1f} times (every "
        f"seed at least {plateau.min():.1f}) and lowers the squared Jacobian {jacobian.mean():.2f} times (at least "
        f"{jacobian.min():.2f})"
    )
    return Measured(words, {"plateau_ratio": plateau.min(), "jacobian_ratio": jacobian.min()})


def _measure_generalization(cells: Cells) -> Measured:
    means = {cell: 100 * float(runs.accuracy.mean()) for cell, runs in cells.items()}
    best = max(means, key=lambda cell: means[cell])
    paired = compare_paired(100 * cells[LARGE, 0.0].accuracy, 100 * cells[LARGE, DECAY].accuracy, lower_is_better=False)
    small = compare_paired(100 * cells[SMALL, 0.0].accuracy, 100 * cells[SMALL, DECAY].accuracy, lower_is_better=False)
    words = (
        f"decay changes test accuracy by {paired.difference:+.2f} points at learning rate {LARGE:g} (95 % interval "
        f"{paired.interval[0]:+.2f} to {paired.interval[1]:+.2f}) and by {small.difference:+.2f} "
        f"({small.interval[0]:+.2f} to {small.interval[1]:+.2f}) at {SMALL:g}; best is learning rate {best[0]:g} with "
        f"decay {best[1]:g}, {means[best]:.2f} %"
    )
    return Measured(words, {"best_cell": best == (LARGE, DECAY), "p_better": paired.p_better})


def _measure_matched(curves: Curves) -> Measured:
    distance = {arm: curve_distance(curves[arm], curves["decay"]) for arm in ("matched", "no decay")}
    words = (
        f"the curve with matched rate is within {distance['matched']:.3f} nats of that with decay, the one without "
        f"decay within {distance['no decay']:.3f}"
    )
    return Measured(words, {"matched": distance["matched"], "no_decay": distance["no decay"]})


def curve_distance(a: Float[np.ndarray, "seeds steps"], b: Float[np.ndarray, "seeds steps"]) -> float:
    """Return the largest difference of two curves in twentieths of the run, means over seeds."""
    blocks = np.array_split((a - b).mean(0), 20)
    return float(max(abs(block.mean()) for block in blocks))


def _measure_bf16(absorbed: Mapping[float, Sequence[float]]) -> Measured:
    plain, decayed = (np.array(absorbed[decay]) for decay in (0.0, 0.01))
    words = f"{decayed.mean():.1%} of updates are lost with decay 0.01, {plain.mean():.1%} without"
    differences = decayed - plain
    return Measured(words, {"mean_difference": differences.mean(), "largest_difference": differences.max()})


def _cell_name(cell: tuple[float, float]) -> str:
    return f"learning rate {cell[0]:g}, decay {cell[1]:g}"


def _figure(cells: Cells) -> Figure:
    lines = {_cell_name(cell): (np.linspace(0, 1, 50), runs.curve) for cell, runs in cells.items()}
    return line_chart(
        "Decay keeps the loss up", lines, "share of the first phase", "training loss, mean over seeds", log_y=True
    )


def _cells_table(cells: Cells) -> Table:
    rows: list[list[object]] = []
    for (lr, decay), runs in cells.items():
        # Coupled decay is the gradient of this penalty, whatever the run itself was trained on.
        penalized = runs.loss + DECAY / 2 * runs.norm**2
        means = (float(v.mean()) for v in (runs.plateau, 100 * runs.accuracy, runs.jacobian, runs.norm))
        rows.append([lr, decay, *means, float(runs.loss.mean()), float(penalized.mean())])
    columns = [
        "learning rate",
        "decay",
        "plateau",
        "test, %",
        "squared Jacobian",
        "weight norm",
        "last training loss",
        f"loss + {DECAY:g}/2 |w|^2",
    ]
    caption = (
        "Means over seeds. Were decay a regulariser of the usual kind, the lowest penalised loss (last column) would "
        "be the best network."
    )
    return Table("Four ways to over-train", columns, rows, caption)


def _characters_figure(curves: Curves) -> Figure:
    lines = {}
    for arm, losses in curves.items():
        blocks = np.array_split(losses.mean(0), 60)
        ends = np.cumsum([len(block) for block in blocks])
        lines[arm] = (ends, [block.mean() for block in blocks])
    return line_chart("One pass over the text", lines, "step", "training loss in nats, mean over seeds")


def _characters_table(curves: Curves) -> Table:
    rows = [[arm, *_final(losses)] for arm, losses in curves.items()]
    caption = "Mean over the last twentieth of the run. The paper finds it lower with decay; shown here, not judged."
    return Table("Last training loss on characters", ["run", "mean", "lowest seed", "highest seed"], rows, caption)


def _final(losses: Float[np.ndarray, "seeds steps"]) -> tuple[float, float, float]:
    last = losses[:, -max(1, losses.shape[1] // 20) :].mean(1)
    return float(last.mean()), float(last.min()), float(last.max())


def _notes(cells: Cells) -> Text:
    jacobian, accuracy = (np.concatenate([getattr(r, k) for r in cells.values()]) for k in ("jacobian", "accuracy"))
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
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 5, "full": 10},
    measure=measure,
)

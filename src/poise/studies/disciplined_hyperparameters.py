"""Study of "A disciplined approach to neural network hyper-parameters": range test, 1cycle, and what is coupled.

Digits (800 to train on, 297 to choose by, 700 to report), four hidden layers of 64 ReLU units with or without batch
norm, Nesterov SGD, batches of 64. Every schedule has the same choice of learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from poise.data import load_digits
from poise.evidence import compare_paired
from poise.optim import OneCycle
from poise.preflight import LRRangeTest, NoSuggestion, lr_range_test
from poise.preflight.range_test.lr_suggestion import divergence_lr
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.stacked_mlp import StackedMLP, batch_indices, stacked_accuracy, stacked_cross_entropy
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

WIDTHS, BATCH, TRAIN, VALIDATION = (64, 64, 64, 64, 64, 10), 64, 800, 297
NOISE = 0.2
LRS = (0.03, 0.1, 0.3, 1.0)
STABLE_LRS = tuple(0.05 * 2**k for k in range(7))
DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 3e-2)
DECAY_LRS = (0.03, 1.0)
MOMENTUMS = (0.85, 0.9, 0.95)

Maker = Callable[[Optimizer, float, int], LRScheduler]
SCHEDULES: Mapping[str, Maker] = {
    "1cycle": lambda o, lr, steps: OneCycle(o, lr, steps),
    "1cycle, constant momentum": lambda o, lr, steps: OneCycle(o, lr, steps, momentum=None),
    "1cycle of torch": lambda o, lr, steps: OneCycleLR(
        o, lr, steps, pct_start=0.45, anneal_strategy="linear", div_factor=10, final_div_factor=1e3, three_phase=True
    ),
    "multistep": lambda o, lr, steps: MultiStepLR(
        o, [round(share * steps) for share in (0.5, 0.75, 0.875, 0.906, 0.9375)], gamma=0.316
    ),
    "constant": lambda o, lr, steps: LambdaLR(o, lambda step: 1.0),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What one run is made of; ``momentum`` counts where the schedule does not move it."""

    schedule: str
    lr: float
    steps: int
    momentum: float = 0.9
    weight_decay: float = 1e-4
    normed: bool = True
    noisy: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys; ``lengths`` are a quarter, a half and all of the steps of the multistep baseline."""

    lengths: tuple[int, int, int] = (100, 200, 400)
    stable_steps: int = 200
    coupling_steps: int = 1000
    coupling_seeds: int = 8
    range_steps: int = 100


PLANS: dict[Budget, Plan] = {
    "tiny": Plan((4, 8, 16), stable_steps=20, coupling_steps=20, coupling_seeds=2, range_steps=60),
    "default": Plan(),
    "full": Plan((200, 400, 800), stable_steps=200, coupling_steps=4000, coupling_seeds=16, range_steps=200),
}


@dataclass(frozen=True, slots=True)
class Runs:
    """Networks of one setting, a value per seed: accuracies in percent, and whether they trained."""

    validation: Float[np.ndarray, " seeds"]
    test: Float[np.ndarray, " seeds"]
    stable: Bool[np.ndarray, " seeds"]


@cache
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels in [0, 1], digits, and the training labels of which a fifth are random."""
    data, generator = load_digits(), torch.Generator().manual_seed(0)
    order = torch.randperm(len(data), generator=generator)
    x, y = data.inputs[order] / 16, data.targets[order]
    noisy = y[:TRAIN].clone()
    wrong = torch.randperm(TRAIN, generator=generator)[: round(NOISE * TRAIN)]
    noisy[wrong] = torch.randint(10, (len(wrong),), generator=generator)
    return x, y, noisy


def train(setting: Setting, seeds: Sequence[int]) -> Runs:
    """Train networks of several seeds. A run is stable if its loss is finite at the end and below that of the start."""
    x, y, noisy = digits()
    labels = noisy if setting.noisy else y[:TRAIN]
    model = StackedMLP(seeds, WIDTHS, 1e-5 if setting.normed else None)
    optimizer = SGD(
        model.parameters(), setting.lr, setting.momentum, weight_decay=setting.weight_decay, nesterov=True, foreach=True
    )
    schedule = SCHEDULES[setting.schedule](optimizer, setting.lr, setting.steps)
    losses = []
    for pick in batch_indices(seeds, TRAIN, setting.steps, BATCH):
        loss = stacked_cross_entropy(model(x[pick]), labels[pick])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    first, last = losses[0].numpy(), torch.stack(losses[-max(1, setting.steps // 10) :]).mean(0).numpy()
    held_out, test = slice(TRAIN, TRAIN + VALIDATION), slice(TRAIN + VALIDATION, None)
    validation, reported = (100 * stacked_accuracy(model, x[part], y[part]).numpy() for part in (held_out, test))
    return Runs(validation, reported, np.isfinite(last) & (last < first))


def range_test(seed: int, steps: int) -> LRRangeTest:
    """Make a range test of the network without batch norm."""
    x, y, _ = digits()
    batches = [(x[pick[0]], y[pick[0]]) for pick in batch_indices([seed], TRAIN, steps, BATCH)]
    held_out = x[TRAIN : TRAIN + VALIDATION], y[TRAIN : TRAIN + VALIDATION]

    def loss_fn(model: StackedMLP, batch: tuple[Tensor, Tensor]) -> Tensor:
        return stacked_cross_entropy(model(batch[0]), batch[1]).sum()

    return lr_range_test(StackedMLP([seed], WIDTHS), loss_fn, batches, None, 1e-4, 10, steps, val_batch=held_out)


# --- claims ------------------------------------------------------------------------------------------------------


def judge_range_test(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by how many seeds are stable at the suggestion, and unstable far above the divergence."""
    if n["suggested"] == 1 and n["stable_at_suggestion"] == 1 and n["unstable_above"] == 1:
        return "reproduced"
    return "refuted" if n["stable_at_suggestion"] <= 0.5 or n["unstable_above"] <= 0.5 else "partly"


def judge_coupling(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by where the best weight decay stands in the grid."""
    if n["shift"] == 0:
        return "partly"
    return "reproduced" if n["shift"] < 0 else "refuted"


def judge_momentum(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by accuracy beside the best constant momentum, and by the largest stable learning rate."""
    as_good, as_stable = n["difference"] >= -0.5, n["largest_lr_cyclic"] >= n["largest_lr_constant"]
    return "reproduced" if as_good and as_stable else "partly" if as_good or as_stable else "refuted"


def judge_super_convergence(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by accuracy at half the steps."""
    return "reproduced" if n["difference"] >= -0.2 else "refuted"


CLAIMS = (
    Claim(
        "range-test",
        "A range test finds the largest learning rate at which training is stable.",
        "figures only",
        "Without batch norm, 200 steps: reproduced if all seeds get a suggestion and train at it, and none trains at "
        "ten times the learning rate of divergence; refuted if half or fewer do so.",
        judge_range_test,
    ),
    Claim(
        "coupling",
        "With a larger learning rate the best weight decay is smaller.",
        "figures only",
        "Weight decay of the best mean validation accuracy at 1cycle to 1.0 against 0.03, a fifth of the labels "
        "random, without batch norm: reproduced if smaller, refuted if larger.",
        judge_coupling,
    ),
    Claim(
        "cyclic-momentum",
        "Momentum that falls while the learning rate rises is as good as the best constant one, and bears a larger "
        "learning rate.",
        "figures only",
        "Reproduced if test accuracy is within 0.5 points of the best constant momentum of 0.85, 0.9 and 0.95, and the "
        "largest learning rate at which all seeds train (without batch norm) is at least that of 0.95; refuted if "
        "neither.",
        judge_momentum,
    ),
    Claim(
        "super-convergence",
        "1cycle reaches the accuracy of a multistep schedule in far fewer steps.",
        "ResNet-56, CIFAR-10: 92.4 in 95 epochs",
        "Test accuracy of 1cycle at half the steps of multistep: reproduced if within 0.2 points or above, "
        "else refuted.",
        judge_super_convergence,
    ),
)


# --- the experiment ----------------------------------------------------------------------------------------------


class Results:
    """Runs by setting, each made once, of the seeds that it was asked for."""

    def __init__(self, seeds: Sequence[int], progress: Progress, total: int) -> None:
        self.seeds, self.progress, self.total, self.steps = seeds, progress, total, 0
        self.runs: dict[Setting, Runs] = {}

    def __call__(self, setting: Setting, seeds: Sequence[int] | None = None) -> Runs:
        """Return the runs of a setting."""
        if setting not in self.runs:
            self.progress(min(1.0, self.steps / self.total), f"{setting.schedule}, learning rate {setting.lr:g}")
            self.runs[setting] = train(setting, seeds or self.seeds)
            self.steps += setting.steps
        return self.runs[setting]

    def best(self, schedule: str, steps: int, momentum: float = 0.9) -> tuple[float, Runs]:
        """Return the learning rate with the best mean validation accuracy, and its runs."""
        runs = {lr: self(Setting(schedule, lr, steps, momentum)) for lr in LRS}
        lr = max(LRS, key=lambda rate: float(runs[rate].validation.mean()))
        return lr, runs[lr]


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the four parts and put what came out beside the claims."""
    plan = PLANS[budget]
    swept = len(LRS) * (4 * sum(plan.lengths) + len(MOMENTUMS) * plan.lengths[1])
    coupled = len(DECAYS) * len(DECAY_LRS) * plan.coupling_steps
    results = Results(seeds, progress, swept + coupled + 2 * len(STABLE_LRS) * plan.stable_steps)
    progress(0.0, "range tests")
    tests = {seed: range_test(seed, plan.range_steps) for seed in seeds}
    more_seeds = range(seeds[0], seeds[0] + plan.coupling_seeds)
    decays = {
        (lr, decay): results(
            Setting("1cycle", lr, plan.coupling_steps, weight_decay=decay, normed=False, noisy=True), more_seeds
        )
        for lr in DECAY_LRS
        for decay in DECAYS
    }
    claims = {
        "range-test": _measure_range_test(tests, plan),
        "coupling": _measure_coupling(decays),
        "cyclic-momentum": _measure_momentum(results, plan),
        "super-convergence": _measure_super_convergence(results, plan),
    }
    table = _schedules_table(results, plan)
    progress(1.0, "done")
    figure = _decay_figure(decays)
    ranges = next(block for block in tests[seeds[0]].report().blocks if isinstance(block, Figure))
    blocks: list[Text | Table | Figure | Code] = [ranges, figure, table, _decay_table(decays), _notes()]
    summary = f"On digits {claims['range-test'].ours}; {claims['super-convergence'].ours}."
    return Measurement(claims, summary, blocks, figure.figure)


def _measure_range_test(tests: Mapping[int, LRRangeTest], plan: Plan) -> Measured:
    suggested: list[float] = []
    stable: list[bool] = []
    trained_above: list[bool] = []
    for seed, test in tests.items():
        try:
            lr, diverged = test.suggest("divergence/3").lr_max, divergence_lr(test.best_curve())
        except NoSuggestion:
            continue
        suggested.append(lr)
        for rate, found in ((lr, stable), (10 * diverged, trained_above)):
            found.append(bool(train(Setting("constant", rate, plan.stable_steps, normed=False), [seed]).stable[0]))
    numbers = {
        "suggested": len(suggested) / len(tests),
        "stable_at_suggestion": sum(stable) / len(tests),
        "unstable_above": 1 - float(np.mean(trained_above)) if trained_above else 0.0,
    }
    rates = f"{min(suggested):.2g} to {max(suggested):.2g}" if suggested else "none"
    words = (
        f"the range test suggests learning rates of {rates}, at which {sum(stable)} of {len(tests)} seeds train; at "
        f"ten times the rate of divergence {sum(trained_above)} do"
    )
    return Measured(words, numbers)


def _measure_coupling(decays: Mapping[tuple[float, float], Runs]) -> Measured:
    best = {}
    for lr in DECAY_LRS:
        means = [float(decays[lr, decay].validation.mean()) for decay in DECAYS]
        best[lr] = int(np.argmax(means))
        if max(means) < 20:
            return Measured(f"at learning rate {lr:g} no weight decay trains (best accuracy {max(means):.1f} %)")
    small, large = (DECAYS[best[lr]] for lr in DECAY_LRS)
    words = (
        f"the best weight decay is {small:g} at learning rate {DECAY_LRS[0]:g} (test {_test(decays, 0, small)}) and "
        f"{large:g} at {DECAY_LRS[1]:g} (test {_test(decays, 1, large)})"
    )
    return Measured(words, {"shift": best[DECAY_LRS[1]] - best[DECAY_LRS[0]]})


def _test(decays: Mapping[tuple[float, float], Runs], which: int, decay: float) -> str:
    return f"{decays[DECAY_LRS[which], decay].test.mean():.1f} %"


def _measure_momentum(results: Results, plan: Plan) -> Measured:
    steps = plan.lengths[1]
    _, cyclic = results.best("1cycle", steps)
    constant = {m: results.best("1cycle, constant momentum", steps, m)[1] for m in MOMENTUMS}
    momentum = max(MOMENTUMS, key=lambda m: float(constant[m].validation.mean()))
    paired = compare_paired(constant[momentum].test, cyclic.test, lower_is_better=False)
    largest = {
        name: max(
            (lr for lr in STABLE_LRS if results(Setting(name, lr, plan.stable_steps, 0.95, normed=False)).stable.all()),
            default=0.0,
        )
        for name in ("1cycle", "1cycle, constant momentum")
    }
    cyclic_lr, constant_lr = largest["1cycle"], largest["1cycle, constant momentum"]
    words = (
        f"cyclic momentum is {paired.difference:+.2f} points (95 % interval {paired.interval[0]:+.2f} to "
        f"{paired.interval[1]:+.2f}) from the best constant one, {momentum:g}; it trains up to {cyclic_lr:g}, constant "
        f"0.95 up to {constant_lr:g}"
    )
    numbers = {"difference": paired.difference, "largest_lr_cyclic": cyclic_lr, "largest_lr_constant": constant_lr}
    return Measured(words, numbers)


def _measure_super_convergence(results: Results, plan: Plan) -> Measured:
    _, half, whole = plan.lengths
    multistep, cycle = results.best("multistep", whole)[1], results.best("1cycle", half)[1]
    paired = compare_paired(multistep.test, cycle.test, lower_is_better=False)
    words = (
        f"1cycle in {half} steps is {paired.difference:+.2f} points (95 % interval {paired.interval[0]:+.2f} to "
        f"{paired.interval[1]:+.2f}) from multistep in {whole} ({paired.mean_control:.2f} %)"
    )
    return Measured(words, {"difference": paired.difference})


def _schedules_table(results: Results, plan: Plan) -> Table:
    rows: list[list[object]] = []
    for schedule in ("1cycle", "1cycle of torch", "multistep", "constant"):
        for steps in plan.lengths:
            lr, runs = results.best(schedule, steps)
            rows.append([schedule, steps, lr, float(runs.validation.mean()), float(runs.test.mean())])
    columns = ["schedule", "steps", "learning rate", "validation, %", "test, %"]
    caption = (
        f"Each at the best of {', '.join(f'{lr:g}' for lr in LRS)} by validation. With batch norm, means of seeds."
    )
    return Table("Schedules", columns, rows, caption)


def _decay_table(decays: Mapping[tuple[float, float], Runs]) -> Table:
    rows = [
        [lr, decay, float(r.validation.mean()), float(r.test.mean()), f"{r.stable.sum()} of {r.stable.size}"]
        for (lr, decay), r in decays.items()
    ]
    columns = ["learning rate", "weight decay", "validation, %", "test, %", "seeds that trained"]
    return Table("Learning rate and weight decay", columns, rows, "1cycle, without batch norm, noisy labels.")


def _decay_figure(decays: Mapping[tuple[float, float], Runs]) -> Figure:
    places = np.array([math.log10(decay) if decay else -5.0 for decay in DECAYS])
    lines = {
        f"learning rate {lr:g}": (places, np.array([decays[lr, decay].test.mean() for decay in DECAYS]))
        for lr in DECAY_LRS
    }
    x_title = "log10 of weight decay (no decay at -5)"
    return line_chart("Learning rate and weight decay", lines, x_title, "test accuracy, %")


def _notes() -> Text:
    return Text(
        "Range tests and the search for stable learning rates use the network without batch norm: with it, nothing "
        "diverges at the rates in question. A pilot with 200 steps and clean labels found no coupling of learning rate "
        "and weight decay and no super-convergence on digits; 1797 images of 8 x 8 pixels may be too easy for either.",
        title="How to read it",
    )


STUDY = Study(
    slug="disciplined-hyperparameters",
    title="Do a range test and one cycle take the place of a grid of hyper-parameters?",
    room="preflight",
    paper=Paper(
        "A disciplined approach to neural network hyper-parameters: Part 1 - learning rate, batch size, momentum, and "
        "weight decay",
        "Smith",
        2018,
        "1803.09820",
    ),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 4, "full": 8},
    measure=measure,
)

"""Study of "A disciplined approach to neural network hyper-parameters": range test, 1cycle, and what is coupled.

Digits (800 to train on, 297 to choose by, 700 to report), four hidden layers of 64 ReLU units with or without batch
norm, Nesterov SGD, batches of 64. Every schedule has the same choice of learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from poise.evidence import compare_paired
from poise.optim import OneCycle
from poise.preflight import LRRangeTest, NoSuggestion, lr_range_test
from poise.preflight.range_test.lr_suggestion import Rule as LRRule
from poise.preflight.range_test.lr_suggestion import divergence_lr
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import batch_indices, cross_entropies
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.networks import relu_net
from poise.studies.kit.rules import above, all_or_none, at_least, at_most, below
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.tables import mean_table
from poise.studies.kit.words import difference

PAPERS_RULE: LRRule = "divergence/3"
DEFAULT_RULE: LRRule = "minimum/10"
WIDTHS, BATCH, TRAIN, VALIDATION = (64, 64, 64, 64, 64, 10), 64, 800, 297
NOISE = 0.2
LRS = (0.03, 0.1, 0.3, 1.0)
STABLE_LRS = tuple(0.05 * 2**k for k in range(7))
DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 3e-2)
DECAY_LRS = (0.03, 1.0)
MOMENTUMS = (0.85, 0.9, 0.95)
CYCLE, STILL = "1cycle", "1cycle, constant momentum"
COMPARED = (CYCLE, "1cycle of torch", "multistep", "constant")

Maker = Callable[[Optimizer, float, int], LRScheduler]
SCHEDULES: Mapping[str, Maker] = {
    CYCLE: lambda o, lr, steps: OneCycle(o, lr, steps),
    STILL: lambda o, lr, steps: OneCycle(o, lr, steps, momentum=None),
    "1cycle of torch": lambda o, lr, steps: OneCycleLR(
        o, lr, steps, pct_start=0.45, anneal_strategy="linear", div_factor=10, final_div_factor=1e3, three_phase=True
    ),
    "multistep": lambda o, lr, steps: MultiStepLR(
        o, [round(part * steps) for part in (0.5, 0.75, 0.875, 0.906, 0.9375)], gamma=0.316
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
    range_seeds: int = 40  # fewer cannot show that nine in ten train: 36 of 36 is the least that does


PLANS: dict[Budget, Plan] = {
    "tiny": Plan((4, 8, 16), stable_steps=20, coupling_steps=20, coupling_seeds=2, range_steps=60, range_seeds=2),
    "default": Plan(),
    "full": Plan(
        (200, 400, 800), stable_steps=200, coupling_steps=4000, coupling_seeds=16, range_steps=200, range_seeds=80
    ),
}


@dataclass(frozen=True, slots=True)
class Runs:
    """Networks of one setting, a value per seed: accuracies in percent, and whether they trained."""

    validation: Float[np.ndarray, " seeds"]
    test: Float[np.ndarray, " seeds"]
    stable: Bool[np.ndarray, " seeds"]


def train(setting: Setting, seeds: Sequence[int]) -> Runs:
    """Train networks of several seeds. A run is stable if its loss is finite at the end and below that of the start."""
    x, y, x_held, y_held = digits(0, TRAIN, "unit", NOISE if setting.noisy else 0.0)
    nets = SideBySide([relu_net(WIDTHS, seed, 1e-5 if setting.normed else None) for seed in seeds])
    optimizer = SGD(
        nets.parameters(), setting.lr, setting.momentum, weight_decay=setting.weight_decay, nesterov=True, foreach=True
    )
    schedule = SCHEDULES[setting.schedule](optimizer, setting.lr, setting.steps)
    losses = []
    for pick in batch_indices(seeds, TRAIN, setting.steps, BATCH):
        loss = cross_entropies(nets(x[pick]), y[pick])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    first, last = losses[0].numpy(), torch.stack(losses[-max(1, setting.steps // 10) :]).mean(0).numpy()
    right = (nets.evaluate(x_held.expand(nets.nets, -1, -1)).argmax(-1) == y_held).double()
    validation, test = (100 * part.mean(1).numpy() for part in (right[:, :VALIDATION], right[:, VALIDATION:]))
    return Runs(validation, test, np.isfinite(last) & (last < first))


def range_test(seed: int, steps: int) -> LRRangeTest:
    """Make a range test of the network without batch norm."""
    x, y, x_held, y_held = digits(0, TRAIN, "unit")
    batches = [(x[pick[0]], y[pick[0]]) for pick in batch_indices([seed], TRAIN, steps, BATCH)]
    held_out = x_held[:VALIDATION], y_held[:VALIDATION]
    net = relu_net(WIDTHS, seed)
    return lr_range_test(net, nn.CrossEntropyLoss(), batches, None, 1e-4, 10, steps, val_batch=held_out)


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A range test, what it suggests, and whether networks train at that and at ten times the rate of divergence.

    ``lr`` and ``trains`` are those of the paper's rule, ``default_lr`` and ``default_trains`` of the library's default.
    """

    test: LRRangeTest
    lr: float | None = None
    trains: bool = False
    trains_above: bool = False
    default_lr: float | None = None
    default_trains: bool = False


def suggestion(seed: int, plan: Plan) -> Suggestion:
    """Make a range test and try what both rules say."""
    test = range_test(seed, plan.range_steps)

    def trains(lr: float | None) -> bool:
        setting = None if lr is None else Setting("constant", lr, plan.stable_steps, normed=False)
        return setting is not None and bool(train(setting, [seed]).stable[0])

    lr, default = _suggested(test, PAPERS_RULE), _suggested(test, DEFAULT_RULE)
    above_divergence = None if lr is None else 10 * divergence_lr(test.best_curve())
    return Suggestion(test, lr, trains(lr), trains(above_divergence), default, trains(default))


def _suggested(test: LRRangeTest, rule: LRRule) -> float | None:
    try:
        return test.suggest(rule).lr_max
    except NoSuggestion:
        return None


@dataclass(frozen=True, slots=True)
class Results:
    """Range tests by seed, and runs by setting; those of the coupling by learning rate and weight decay."""

    plan: Plan
    suggestions: Mapping[int, Suggestion]
    runs: Mapping[Setting, Runs]
    decays: Mapping[tuple[float, float], Runs]

    def best(self, schedule: str, steps: int, momentum: float = 0.9) -> tuple[float, Runs]:
        """Return the learning rate with the best mean validation accuracy, and its runs."""
        runs = {lr: self.runs[Setting(schedule, lr, steps, momentum)] for lr in LRS}
        lr = max(LRS, key=lambda rate: float(runs[rate].validation.mean()))
        return lr, runs[lr]


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Make the range tests, and run all schedules, learning rates and weight decays."""
    plan = PLANS[budget]
    more_seeds, range_seeds = (range(seeds[0], seeds[0] + n) for n in (plan.coupling_seeds, plan.range_seeds))
    settings = [
        *(Setting(name, lr, steps) for name, steps, lr in product(COMPARED, plan.lengths, LRS)),
        *(Setting(STILL, lr, plan.lengths[1], momentum) for momentum, lr in product(MOMENTUMS, LRS)),
        *(_stable_setting(name, lr, plan) for name, lr in product((CYCLE, STILL), STABLE_LRS)),
    ]

    def coupled(cell: tuple[float, float]) -> Runs:
        lr, decay = cell
        return train(Setting(CYCLE, lr, plan.coupling_steps, weight_decay=decay, normed=False, noisy=True), more_seeds)

    return Results(
        plan,
        run_each(
            lambda seed: suggestion(seed, plan), range_seeds, part_of(progress, 0, 0.1), name="range test {}".format
        ),
        run_each(lambda s: train(s, seeds), settings, part_of(progress, 0.1, 0.5), name=lambda s: s.schedule),
        run_each(coupled, list(product(DECAY_LRS, DECAYS)), part_of(progress, 0.5, 1), name="1cycle to {0[0]}".format),
    )


def _stable_setting(schedule: str, lr: float, plan: Plan) -> Setting:
    return Setting(schedule, lr, plan.stable_steps, 0.95, normed=False)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "range-test",
    "A range test finds the largest learning rate at which training is stable.",
    paper="figures only",
    protocol="Without batch norm, 200 steps. Fractions of seeds that get a suggestion, that train at it, and that do "
    "not train at ten times the learning rate of divergence.",
    reproduced=at_least("suggested", 0.9) & at_least("stable_at_suggestion", 0.9) & at_least("unstable_above", 0.9),
    refuted=at_most("stable_at_suggestion", 0.5) | at_most("unstable_above", 0.5),
    over_seeds=["suggested", "stable_at_suggestion", "unstable_above"],
)
def finds_largest_lr(results: Results) -> Measured:
    tests = list(results.suggestions.values())
    made = [s for s in tests if s.lr is not None]
    rates, total = [s.lr for s in made if s.lr is not None], len(tests)
    stable, above_divergence = sum(s.trains for s in made), sum(s.trains_above for s in made)
    by_seed = {
        "suggested": [s.lr is not None for s in tests],
        "stable_at_suggestion": [s.trains for s in tests],
        "unstable_above": [not s.trains_above for s in made] or [False] * total,
    }
    numbers = {name: float(np.mean(outcomes)) for name, outcomes in by_seed.items()}
    words = (
        f"the range test suggests learning rates of {f'{min(rates):.2g} to {max(rates):.2g}' if rates else 'none'}, at "
        f"which {stable} of {total} seeds train; at ten times the rate of divergence {above_divergence} do"
    )
    return Measured(words, numbers, by_seed)


@claim(
    "default-rule",
    "Networks train at the learning rate that the library's default rule reads from the same range test.",
    paper="not in the paper: a tenth of the learning rate with the lowest loss",
    protocol="The networks and seeds of the claim before. Fraction of all seeds that get a suggestion and train at it.",
    reproduced=at_least("trains", 0.9),
    refuted=at_most("trains", 0.5),
    over_seeds=["trains"],
)
def default_rule(results: Results) -> Measured:
    tests = list(results.suggestions.values())
    rates, trains = [s.default_lr for s in tests if s.default_lr is not None], [s.default_trains for s in tests]
    both = [s.default_lr / s.lr for s in tests if s.default_lr is not None and s.lr is not None]
    beside = f", {float(np.median(both)):.2g} times the paper's rule (median)" if both else ""
    words = (
        f"the default rule suggests learning rates of {f'{min(rates):.2g} to {max(rates):.2g}' if rates else 'none'}"
        f"{beside}, at which {sum(trains)} of {len(tests)} seeds train"
    )
    return Measured(words, {"trains": float(np.mean(trains))}, {"trains": trains})


@claim(
    "coupling",
    "With a larger learning rate the best weight decay is smaller.",
    paper="figures only",
    protocol="1cycle to 0.03 and to 1.0, a fifth of the labels random, without batch norm. Shift: by how many places "
    "of the grid the weight decay of the best mean validation accuracy is larger at 1.0.",
    reproduced=below("shift", 0),
    refuted=above("shift", 0),
    over_seeds=["shift"],
)
def coupling(results: Results) -> Measured:
    best, accuracies = [], []
    for lr in DECAY_LRS:
        accuracies.append(np.stack([results.decays[lr, decay].validation for decay in DECAYS], 1))
        means = accuracies[-1].mean(0)
        best.append(int(means.argmax()))
        if max(means) < 20:
            return Measured(f"at learning rate {lr:g} no weight decay trains (best accuracy {max(means):.1f} %)")
    small, large = (
        f"{DECAYS[i]:g} at {{}}{lr:g} (test {results.decays[lr, DECAYS[i]].test.mean():.1f} %)"
        for lr, i in zip(DECAY_LRS, best, strict=True)
    )
    words = f"the best weight decay is {small.format('learning rate ')} and {large.format('')}"
    shift, interval = bootstrap_over_seeds(_shift, *accuracies)
    return Measured(words, {"shift": shift}, intervals={"shift": interval})


def _shift(small: Float[np.ndarray, "seeds decays"], large: Float[np.ndarray, "seeds decays"]) -> float:
    """Return by how many places the weight decay of the best mean accuracy is larger at the larger learning rate."""
    return float(large.mean(0).argmax() - small.mean(0).argmax())


@claim(
    "cyclic-momentum",
    "Momentum that falls while the learning rate rises is as good as the best constant one, and bears a larger "
    "learning rate.",
    paper="figures only",
    protocol="Difference in points of test accuracy to the best constant momentum of 0.85, 0.9 and 0.95; largest "
    "learning rates at which all seeds train without batch norm, the constant momentum being 0.95; larger: by how much "
    "the largest at which a seed trains is larger with cyclic momentum, mean over seeds.",
    rule=all_or_none(
        at_least("difference", -0.5),
        at_least("largest_lr_cyclic", "largest_lr_constant") & at_least("larger", 0),
        over_seeds=["difference", "larger"],
    ),
)
def cyclic_momentum(results: Results) -> Measured:
    steps = results.plan.lengths[1]
    constant = {m: results.best(STILL, steps, m)[1] for m in MOMENTUMS}
    momentum = max(MOMENTUMS, key=lambda m: float(constant[m].validation.mean()))
    usual, cyclic = constant[momentum].test, results.best(CYCLE, steps)[1].test
    paired = compare_paired(usual, cyclic, lower_is_better=False)
    stable = {
        name: np.stack([results.runs[_stable_setting(name, lr, results.plan)].stable for lr in STABLE_LRS])
        for name in (CYCLE, STILL)
    }
    cyclic_lr, constant_lr = (max(np.array(STABLE_LRS)[own.all(1)], default=0.0) for own in stable.values())
    by_seed = {name: (np.array(STABLE_LRS)[:, None] * own).max(0) for name, own in stable.items()}
    larger = by_seed[CYCLE] - by_seed[STILL]
    words = (
        f"cyclic momentum is {difference(paired, '+.2f', 'points')} from the best constant one, {momentum:g}; it "
        f"trains up to {cyclic_lr:g}, constant 0.95 up to {constant_lr:g}"
    )
    numbers = {
        "difference": paired.difference,
        "largest_lr_cyclic": cyclic_lr,
        "largest_lr_constant": constant_lr,
        "larger": larger.mean(),
    }
    return Measured(words, numbers, {"difference": cyclic - usual, "larger": larger})


@claim(
    "super-convergence",
    "1cycle reaches the accuracy of a multistep schedule in far fewer steps.",
    paper="ResNet-56, CIFAR-10: 92.4 in 95 epochs",
    protocol="Test accuracy in points, 1cycle at half the steps of multistep minus multistep.",
    reproduced=at_least("difference", -0.2),
    over_seeds=["difference"],
)
def super_convergence(results: Results) -> Measured:
    _, half, whole = results.plan.lengths
    multistep, cycle = results.best("multistep", whole)[1], results.best(CYCLE, half)[1]
    paired = compare_paired(multistep.test, cycle.test, lower_is_better=False)
    words = (
        f"1cycle in {half} steps is {difference(paired, '+.2f', 'points')} from multistep in {whole} "
        f"({paired.mean_control:.2f} %)"
    )
    return Measured(words, {"difference": paired.difference}, {"difference": cycle.test - multistep.test})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    figure, first = _decay_figure(results), next(iter(results.suggestions.values()))
    ranges = next(block for block in first.test.report().blocks if isinstance(block, Figure))
    return Presentation(
        f"On digits {claims['range-test'].text}; {claims['super-convergence'].text}.",
        [ranges, figure, _schedules_table(results), _decay_table(results), Text(NOTES, "How to read it")],
        figure.figure,
    )


def _schedules_table(results: Results) -> Table:
    rows = {}
    for schedule, steps in product(COMPARED, results.plan.lengths):
        lr, runs = results.best(schedule, steps)
        rows[schedule, steps] = [lr, runs.validation, runs.test]
    columns = ["learning rate", "validation, %", "test, %"]
    caption = (
        f"Each at the best of {', '.join(f'{lr:g}' for lr in LRS)} by validation. With batch norm, means of seeds."
    )
    return mean_table("Schedules", ["schedule", "steps"], columns, rows, caption)


def _decay_table(results: Results) -> Table:
    rows = {
        cell: [runs.validation, runs.test, f"{runs.stable.sum()} of {runs.stable.size}"]
        for cell, runs in results.decays.items()
    }
    keys, columns = ["learning rate", "weight decay"], ["validation, %", "test, %", "seeds that trained"]
    caption = "1cycle, without batch norm, noisy labels."
    return mean_table("Learning rate and weight decay", keys, columns, rows, caption)


def _decay_figure(results: Results) -> Figure:
    places = [math.log10(decay) if decay else -5.0 for decay in DECAYS]
    lines = {
        f"learning rate {lr:g}": (places, [float(results.decays[lr, decay].test.mean()) for decay in DECAYS])
        for lr in DECAY_LRS
    }
    x_title = "log10 of weight decay (no decay at -5)"
    return line_chart("Learning rate and weight decay", lines, x_title, "test accuracy, %")


NOTES = (
    "Range tests and the search for stable learning rates use the network without batch norm: with it, nothing "
    "diverges at the rates in question. A pilot with 200 steps and clean labels found no coupling of learning rate "
    "and weight decay and no super-convergence on digits; 1797 images of 8 x 8 pixels may be too easy for either."
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
    seeds={"tiny": 2, "default": 4, "full": 8},
    experiment=experiment,
    claims=(finds_largest_lr, default_rule, coupling, cyclic_momentum, super_convergence),
    present=present,
)

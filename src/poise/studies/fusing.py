"""Study of "Fusing finetuned models for better pretraining": the average of fine-tuned models is a better start.

Bodies that were pretrained to tell rotations of digits are fine-tuned on five classes each, averaged, and fine-tuned
once more on three labels a class. Beside them: the pretrained body, single sources, and bodies without an ancestor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW

from poise.evidence import PairedComparison, compare_paired
from poise.nn.mlp import mlp, seeded_mlp
from poise.optim import FuseInfo, ModelAverager, fuse, loss_barrier
from poise.report import Figure, Table, Text, bar_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import cross_entropies
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import above, all_or_none, at_least, at_most
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.tables import mean_table
from poise.studies.kit.words import difference

WIDTHS = (64, 128, 128)
HEAD = "4."
SOURCES, CLASSES_OF_SOURCE = 5, 5
LR, BATCH = 1e-3, 32
UNLABELLED, LABELLED, HELD_OUT, LABELS_OF_CLASS = 200, 400, 600, 3

# One state dict a network; all networks of a stage are trained side by side.
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys: steps of pretraining and of sources, and of the target."""

    steps: int = 150
    target_steps: int = 60
    decays: tuple[float, ...] = (0.0, 0.1, 1.0, 30.0)


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(steps=15, target_steps=10, decays=(0.0, 0.1)),
    "default": Plan(),
    "full": Plan(steps=500, target_steps=200),
}


# --- data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and classes, and which classes count in the loss."""

    x: Float[Tensor, "n 64"]
    y: Int[Tensor, " n"]
    classes: tuple[int, ...]

    def of(self, classes: Sequence[int]) -> Examples:
        """Return the examples of some classes."""
        chosen = torch.isin(self.y, torch.tensor(list(classes)))
        return Examples(self.x[chosen], self.y[chosen], tuple(classes))


@dataclass(frozen=True, slots=True)
class Split:
    """The digits of one seed, divided so that no image serves twice."""

    rotations: Examples
    labelled: Examples
    target: Examples
    test: Examples
    source_classes: tuple[tuple[int, ...], ...]


def split(seed: int) -> Split:
    """Divide the digits, and draw the classes of each source."""
    x, y, *_ = digits(seed, train=1797, scale="unit")
    generator, every = torch.Generator().manual_seed(seed), tuple(range(10))
    torch.randperm(len(x), generator=generator)  # the draw that ordered the digits
    part, rest = slice(UNLABELLED, UNLABELLED + LABELLED), slice(UNLABELLED + LABELLED, None)
    held = Examples(x[rest], y[rest], every)
    few = torch.cat([(held.y == digit).nonzero()[:LABELS_OF_CLASS, 0] for digit in every])
    others = torch.ones(len(held.y), dtype=torch.bool).index_fill_(0, few, False).nonzero()[:HELD_OUT, 0]
    drawn = [torch.randperm(10, generator=generator)[:CLASSES_OF_SOURCE].sort().values for _ in range(SOURCES)]
    return Split(
        rotated(x[:UNLABELLED]),
        Examples(x[part], y[part], every),
        Examples(held.x[few], held.y[few], every),
        Examples(held.x[others], held.y[others], every),
        tuple(tuple(classes.tolist()) for classes in drawn),
    )


def rotated(x: Float[Tensor, "n 64"]) -> Examples:
    """Return each image in four orientations; the class is the number of quarter turns."""
    images = x.view(-1, 8, 8)
    turned = torch.cat([images.rot90(k, (1, 2)) for k in range(4)])
    return Examples(turned.reshape(-1, 64), torch.arange(4).repeat_interleave(len(x)), tuple(range(4)))


# --- training ----------------------------------------------------------------------------------------------------


def body(seed: int) -> State:
    """Return a fresh body."""
    return body_of(seeded_mlp((*WIDTHS, 10), seed, nn.ReLU).state_dict())


def body_of(state: Mapping[str, Tensor]) -> State:
    """Return a network without its head."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}


def with_head(state: Mapping[str, Tensor], seed: int, classes: int = 10) -> State:
    """Return a body with a fresh head."""
    return {**seeded_mlp((*WIDTHS, classes), seed + 1000, nn.ReLU).state_dict(), **body_of(state)}


def network(state: Mapping[str, Tensor]) -> nn.Sequential:
    """Return a network with these weights."""
    with torch.device("meta"):  # no initial weights, hence no random numbers drawn
        model = mlp((*WIDTHS, len(state[HEAD + "bias"])), nn.ReLU)
    model.load_state_dict(dict(state), assign=True)
    return model


def train(
    states: Sequence[State], examples: Sequence[Examples], steps: int, seeds: Sequence[int], decay: float = 0.01
) -> list[State]:
    """Train networks side by side, each on examples of its own, with AdamW in batches of 32.

    Args:
        states: weights to start from, one state dict a network; they are not changed.
        examples: what each network learns; logits of other classes than theirs do not count.
        steps: number of steps.
        seeds: seed of each network's batches.
        decay: AdamW's weight decay.
    """
    nets = SideBySide([network(state) for state in states])
    optimizer = AdamW(nets.parameters(), lr=LR, weight_decay=decay)
    hidden = _hidden_classes(examples, len(states[0][HEAD + "bias"]))[:, None]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(steps):
        drawn = [_draw(own, generator) for own, generator in zip(examples, generators, strict=True)]
        x, y = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        optimizer.zero_grad()
        cross_entropies(nets(x).masked_fill(hidden, -torch.inf), y).sum().backward()
        optimizer.step()
    return [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in nets.models]


def _draw(examples: Examples, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch, drawn with replacement; all examples where there are no more than a batch."""
    if len(examples.y) <= BATCH:
        return examples.x, examples.y
    chosen = torch.randint(len(examples.y), (BATCH,), generator=generator)
    return examples.x[chosen], examples.y[chosen]


def _hidden_classes(examples: Sequence[Examples], classes: int) -> Tensor:
    hidden = torch.ones(len(examples), classes, dtype=torch.bool)
    for row, own in zip(hidden, examples, strict=True):
        row[list(own.classes)] = False
    return hidden


# --- starts for the target ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Starts:
    """Bodies of one seed to start the target from, by name, and what was found on the way."""

    bodies: Mapping[str, State]
    kin: FuseInfo
    strangers: FuseInfo
    barrier: float
    barrier_of_strangers: float


SOURCE_NAMES = tuple(f"source {i}" for i in range(SOURCES))
LEFT_OUT = tuple(f"fused without {i}" for i in range(SOURCES))


def make_starts(splits: Sequence[Split], plan: Plan, seeds: Sequence[int]) -> list[Starts]:
    """Pretrain and fine-tune the sources of all seeds; then average."""

    def pretrained(splits: Sequence[Split], seeds: Sequence[int]) -> list[State]:
        fresh = [with_head(body(seed), seed, classes=4) for seed in seeds]
        return train(fresh, [parts.rotations for parts in splits], plan.steps, seeds)

    def fine_tuned(starts: Sequence[State], seeds: Sequence[int]) -> list[list[State]]:
        which = [i % SOURCES for i in range(len(seeds))]
        examples = [parts.labelled.of(parts.source_classes[i]) for parts, i in zip(five, which, strict=True)]
        states = [with_head(start, seed) for start, seed in zip(starts, seeds, strict=True)]
        ends = train(states, examples, plan.steps, [100 * seed + i for seed, i in zip(seeds, which, strict=True)])
        return [ends[k : k + SOURCES] for k in range(0, len(ends), SOURCES)]

    # Sources of a seed have its pretrained body and one head in common; strangers have a body and a head of their own.
    five, roots = [parts for parts in splits for _ in range(SOURCES)], pretrained(splits, seeds)
    kin = fine_tuned([root for root in roots for _ in range(SOURCES)], [seed for seed in seeds for _ in range(SOURCES)])
    own_seeds = [10_000 + SOURCES * seed + i for seed in seeds for i in range(SOURCES)]
    strangers = fine_tuned(pretrained(five, own_seeds), own_seeds)
    return [_starts(*of_seed) for of_seed in zip(splits, seeds, roots, kin, strangers, strict=True)]


def _starts(parts: Split, seed: int, pretrained: State, kin: Sequence[State], strangers: Sequence[State]) -> Starts:
    root, bodies = body_of(pretrained), [body_of(state) for state in kin]
    fused, info = fuse(bodies, base=root)
    half, _ = fuse(bodies, base=root, scale=0.5)
    mixed, info_of_strangers = fuse([body_of(state) for state in strangers], force=True)
    averager = ModelAverager()
    for own in bodies:
        averager.add(own)
    named: dict[str, State] = {"random": body(seed), "pretrained": root, **dict(zip(SOURCE_NAMES, bodies, strict=True))}
    named |= cast(dict[str, State], {"fused": fused, "half of the way": half, "fused strangers": mixed})
    named |= {name: averager.average_without(own) for name, own in zip(LEFT_OUT, bodies, strict=True)}
    shared = {
        (i, j): sorted(set(parts.source_classes[i]) & set(parts.source_classes[j]))
        for i, j in combinations(range(SOURCES), 2)
    }
    i, j = max(shared, key=lambda pair: len(shared[pair]))
    heights = [barrier(states[i], states[j], parts.labelled.of(shared[i, j])) for states in (kin, strangers)]
    return Starts(named, info, info_of_strangers, *heights)


def barrier(first: State, second: State, examples: Examples) -> float:
    """Return the loss barrier between two networks on classes that both learned."""
    hidden = _hidden_classes([examples], 10)

    def loss(model: nn.Module) -> float:
        return float(F.cross_entropy(model(examples.x).masked_fill(hidden, -torch.inf), examples.y))

    return loss_barrier(network(first), network(second), loss).height


# --- the experiment ----------------------------------------------------------------------------------------------


def transfer(
    starts: Sequence[Starts], splits: Sequence[Split], plan: Plan, seeds: Sequence[int], decay: float
) -> dict[str, NDArray[np.float64]]:
    """Fine-tune every start on the target; return test accuracies in percent, one a seed, by start."""
    names = list(starts[0].bodies)
    jobs = [(k, name) for k in range(len(seeds)) for name in names]
    states = [with_head(starts[k].bodies[name], 5000 + seeds[k]) for k, name in jobs]
    ends = train(states, [splits[k].target for k, _ in jobs], plan.target_steps, [seeds[k] for k, _ in jobs], decay)
    tests = [splits[k].test for k, _ in jobs]
    right = [network(end)(test.x).argmax(1) == test.y for end, test in zip(ends, tests, strict=True)]
    by_seed = 100 * torch.stack(right).double().mean(1).view(len(seeds), len(names)).numpy()
    return dict(zip(names, by_seed.T, strict=True))


@dataclass(frozen=True, slots=True)
class Results:
    """Starts by seed, and accuracies by decay, then start."""

    plan: Plan
    starts: Mapping[int, Starts]
    accuracies: Mapping[float, Mapping[str, NDArray[np.float64]]]

    @property
    def plain(self) -> Mapping[str, NDArray[np.float64]]:
        """Accuracies without decay."""
        return self.accuracies[0.0]

    def over_sources(self, statistic: Callable[..., NDArray[np.float64]], decay: float = 0.0) -> NDArray[np.float64]:
        """Return a statistic over the single sources of each seed."""
        return statistic([self.accuracies[decay][name] for name in SOURCE_NAMES], axis=0)

    def gain(self, start: str) -> PairedComparison:
        """Compare fused bodies with another start."""
        return compare_paired(self.plain[start], self.plain["fused"], lower_is_better=False)


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Make the starts of all seeds, then train each on the target."""
    plan, splits = PLANS[budget], [split(seed) for seed in seeds]
    progress(0.0, "pretraining and sources")
    starts = make_starts(splits, plan, seeds)
    accuracies = run_each(
        lambda decay: transfer(starts, splits, plan, seeds, decay),
        plan.decays,
        part_of(progress, 0.5, 1),
        name="target, weight decay {:g}".format,
    )
    return Results(plan, dict(zip(seeds, starts, strict=True)), accuracies)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "fused-start",
    "The average of models fine-tuned from one pretrained model is a better start than that model.",
    paper="better on most targets; RoBERTa, figures only",
    protocol="Accuracy on the target in points, mean over seeds: fused minus pretrained body, with a 95 % interval, "
    "and fused minus a single source.",
    reproduced=at_least("difference", 2) & above("low", 0, "its lower end") & at_least("over_sources", -0.5),
    refuted=at_most("difference", 0),
    over_seeds=["difference", "over_sources"],
)
def fused_start(results: Results) -> Measured:
    gain, sources = results.gain("pretrained"), results.over_sources(np.mean)
    words = (
        f"{gain.mean_treated:.1f} % from the fused body, {gain.mean_control:.1f} % from the pretrained one, "
        f"difference {difference(gain, '+.1f', 'points')}; {sources.mean():.1f} % from one source"
    )
    fused = results.plain["fused"]
    over = fused - sources
    numbers = {"difference": gain.difference, "low": gain.interval[0], "over_sources": over.mean()}
    return Measured(words, numbers, {"difference": fused - results.plain["pretrained"], "over_sources": over})


@claim(
    "less-dependent",
    "A fused start depends less on the choice of sources than a start from one source.",
    paper="in words",
    protocol="Ratio: standard deviation over the choice of one source by that over the source left out of the average, "
    "mean over seeds.",
    reproduced=above("ratio", 3),
    refuted=at_most("ratio", 1),
    over_seeds=["ratio"],
)
def less_dependent(results: Results) -> Measured:
    single = results.over_sources(np.std)
    fused = np.std([results.plain[name] for name in LEFT_OUT], axis=0)
    ratio, interval = bootstrap_over_seeds(lambda a, b: a.mean() / b.mean(), single, fused, positive=True)
    words = f"standard deviation {single.mean():.2f} points over sources, {fused.mean():.2f} over the source left out"
    return Measured(words, {"ratio": ratio}, intervals={"ratio": interval})


@claim(
    "common-ancestor",
    "Only models with a common ancestor can be fused.",
    paper="the premise of the method",
    protocol="Sources from random bodies of their own (strangers): points by which the fused one is above a random "
    "body, and the loss barrier between two of them, beside that between two with a common ancestor.",
    rule=all_or_none(
        at_most("over_random", 2),
        above("barrier_of_strangers", "barrier", times=5),
        over_seeds=["over_random", "barrier", "barrier_of_strangers"],
    ),
)
def common_ancestor(results: Results) -> Measured:
    mixed, random, starts = results.plain["fused strangers"], results.plain["random"], results.starts.values()
    barriers = {name: [getattr(s, name) for s in starts] for name in ("barrier", "barrier_of_strangers")}
    kin, strangers = (float(np.mean(own)) for own in barriers.values())
    words = (
        f"fused without an ancestor {mixed.mean():.1f} %, from a random body {random.mean():.1f} %; barrier "
        f"{strangers:.2f} without and {kin:.2f} with an ancestor"
    )
    over = mixed - random
    numbers = {"over_random": float(over.mean()), "barrier": kin, "barrier_of_strangers": strangers}
    return Measured(words, numbers, {"over_random": over, **barriers})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    figure, random = _figure(results), results.gain("random")
    low, high = random.interval
    return Presentation(
        f"{claims['fused-start'].text}. Over a random body the fused one gains {random.difference:+.1f} points "
        f"({low:+.1f} to {high:+.1f}). {claims['common-ancestor'].text}.",
        [figure, _start_table(results), _decay_table(results), _fuse_table(results), _setting(results.plan)],
        figure.figure,
    )


def _rows(results: Results) -> dict[str, NDArray[np.float64]]:
    """Return the accuracies that are compared, with single sources by their mean and their best."""
    plain = results.plain
    return {
        "random body": plain["random"],
        "pretrained": plain["pretrained"],
        "one source, mean": results.over_sources(np.mean),
        "best source (needs test labels)": results.over_sources(np.max),
        "fused": plain["fused"],
        "half of the way to fused": plain["half of the way"],
        "fused strangers": plain["fused strangers"],
    }


def _figure(results: Results) -> Figure:
    rows = _rows(results)
    bars = {name: float(values.mean()) for name, values in rows.items()}
    errors = {name: (float(values.min()), float(values.max())) for name, values in rows.items()}
    return bar_chart("Accuracy on the target", bars, "test accuracy, %, mean and range over seeds", errors)


def _start_table(results: Results) -> Table:
    rows = {}
    for name, values in _rows(results).items():
        paired = compare_paired(results.plain["pretrained"], values, lower_is_better=False)
        rows[name] = [values, paired.difference, *paired.interval]
    caption = "No weight decay on the target; 95 % intervals of the paired difference."
    return mean_table("Starts", ["start"], ["test, %", "minus pretrained", "from", "to"], rows, caption)


def _decay_table(results: Results) -> Table:
    rows = {
        decay: [scores["pretrained"], results.over_sources(np.mean, decay), scores["fused"]]
        for decay, scores in results.accuracies.items()
    }
    caption = (
        "Decay in the target's fine-tuning. The paper says that it undoes the gain of a single source and not that of "
        f"fusing. A decay of 30 takes {100 * 30 * LR:.0f} % of the weights at every step."
    )
    columns = ["pretrained, %", "one source, %", "fused, %"]
    return mean_table("Weight decay on the target", ["AdamW decay"], columns, rows, caption)


def _fuse_table(results: Results) -> Table:
    rows, off = [], ~torch.eye(SOURCES, dtype=torch.bool)
    for seed, start in results.starts.items():
        kin = [start.kin.shrink, float(start.kin.cosines[off].mean()), start.kin.kinship, start.strangers.kinship]
        rows.append([seed, *kin, start.barrier, start.barrier_of_strangers])
    columns = ["seed", "shrink", "cosine of tasks", "kinship", "kinship, strangers", "barrier", "barrier, strangers"]
    caption = (
        "Shrink: norm of the mean task vector over the mean norm, 0.45 for five tasks that share nothing. Kinship: "
        "mean cosine between whole weights. Barrier: between the two sources that share most classes, on these."
    )
    return Table("What was fused", columns, rows, caption)


def _setting(plan: Plan) -> Text:
    return Text(
        f"Body {WIDTHS}, ReLU. Pretraining: {UNLABELLED} images in four orientations. {SOURCES} sources: those of "
        f"{LABELLED} labelled images that belong to {CLASSES_OF_SOURCE} random classes, {plan.steps} steps each. "
        f"Target: {LABELS_OF_CLASS} labels for each of ten classes, {plan.target_steps} steps. Optimizers, heads and "
        "batches are the same for all starts of a seed.",
        title="Setting",
    )


STUDY = Study(
    slug="fusing",
    title="Is the average of fine-tuned models a better start than their ancestor?",
    room="optim",
    paper=Paper("Fusing finetuned models for better pretraining", "Choshen et al.", 2022, "2204.03044"),
    seeds={"tiny": 2, "default": 8, "full": 20},
    experiment=experiment,
    claims=(fused_start, less_dependent, common_ancestor),
    present=present,
)

"""Study of "Fusing finetuned models for better pretraining": the average of fine-tuned models is a better start.

Bodies that were pretrained to tell rotations of digits are fine-tuned on five classes each, averaged, and fine-tuned
once more on three labels a class. Beside them: the pretrained body, single sources, and bodies without an ancestor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import AdamW

from poise.data import load_digits
from poise.evidence import PairedComparison, compare_paired
from poise.optim import FuseInfo, ModelAverager, fuse, loss_barrier
from poise.report import Code, Figure, Table, Text, bar_chart
from poise.studies.kit.networks import mlp
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

WIDTHS = (64, 128, 128)
HEAD = "4."
SOURCES, CLASSES_OF_SOURCE = 5, 5
LR = 1e-3
UNLABELLED, LABELLED, HELD_OUT, LABELS_OF_CLASS = 200, 400, 600, 3
DECAYS = (0.0, 0.1, 1.0, 30.0)

# One state dict a network; all networks of a stage are trained side by side.
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys: steps of pretraining and of sources, and of the target."""

    steps: int = 150
    target_steps: int = 60
    decays: tuple[float, ...] = DECAYS


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
    data, generator = load_digits(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    x, y = data.inputs[order] / 16, data.targets[order]
    every = tuple(range(10))
    unlabelled, rest = x[:UNLABELLED], slice(UNLABELLED + LABELLED, None)
    held = Examples(x[rest], y[rest], every)
    few = torch.cat([(held.y == digit).nonzero()[:LABELS_OF_CLASS, 0] for digit in every])
    others = torch.ones(len(held.y), dtype=torch.bool).index_fill_(0, few, False).nonzero()[:HELD_OUT, 0]
    part = slice(UNLABELLED, UNLABELLED + LABELLED)
    drawn = [torch.randperm(10, generator=generator)[:CLASSES_OF_SOURCE].sort().values for _ in range(SOURCES)]
    return Split(
        rotated(unlabelled),
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
    return {name: tensor for name, tensor in _fresh(seed, 10).items() if not name.startswith(HEAD)}


def with_head(state: Mapping[str, Tensor], seed: int, classes: int = 10) -> State:
    """Return a body with a fresh head."""
    head = {name: tensor for name, tensor in _fresh(seed + 1000, classes).items() if name.startswith(HEAD)}
    return {**{name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}, **head}


def _fresh(seed: int, classes: int) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(mlp((*WIDTHS, classes), nn.ReLU).state_dict())


def network(state: Mapping[str, Tensor]) -> nn.Sequential:
    """Return a network with these weights."""
    with torch.device("meta"):  # no initial weights, hence no random numbers drawn
        model = mlp((*WIDTHS, len(state[HEAD + "bias"])), nn.ReLU)
    model.load_state_dict(dict(state), assign=True)
    return model


def train(
    states: Sequence[State],
    examples: Sequence[Examples],
    steps: int,
    seeds: Sequence[int],
    decay: float = 0.01,
    batch: int = 32,
) -> list[State]:
    """Train networks side by side, each on examples of its own, with AdamW.

    Args:
        states: weights to start from, one state dict a network; they are not changed.
        examples: what each network learns; logits of other classes than theirs do not count.
        steps: number of steps.
        seeds: seed of each network's batches.
        decay: AdamW's weight decay.
        batch: samples of a step, drawn with replacement; the whole set where it is not larger.
    """
    models = [network(state) for state in states]
    model, (parameters, _) = models[0], stack_module_state(models)
    optimizer = AdamW(list(parameters.values()), lr=LR, weight_decay=decay)
    hidden = _hidden_classes(examples, len(states[0][HEAD + "bias"]))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(steps):
        drawn = [_draw(own, batch, generator) for own, generator in zip(examples, generators, strict=True)]
        x, y = torch.stack([x for x, _ in drawn]), torch.stack([y for _, y in drawn])
        optimizer.zero_grad()
        logits = vmap(lambda own, inputs: functional_call(model, own, (inputs,)))(parameters, x)
        losses = vmap(F.cross_entropy)(logits.masked_fill(hidden[:, None], -torch.inf), y)
        losses.sum().backward()  # a sum: no network feels another
        optimizer.step()
    return [{name: tensor[i].detach().clone() for name, tensor in parameters.items()} for i in range(len(states))]


def _draw(examples: Examples, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if len(examples.y) <= batch:
        return examples.x, examples.y
    chosen = torch.randint(len(examples.y), (batch,), generator=generator)
    return examples.x[chosen], examples.y[chosen]


def _hidden_classes(examples: Sequence[Examples], classes: int) -> Tensor:
    hidden = torch.ones(len(examples), classes, dtype=torch.bool)
    for row, own in zip(hidden, examples, strict=True):
        row[list(own.classes)] = False
    return hidden


@torch.no_grad()
def accuracy(state: State, examples: Examples) -> float:
    """Return the share of examples that a network gets right."""
    return float((network(state)(examples.x).argmax(1) == examples.y).double().mean())


# --- starts for the target -----------------------------------------------------------------------------------------


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
    pretrained = pretrain([body(seed) for seed in seeds], splits, plan, seeds)
    kin = _sources(pretrained, splits, plan, seeds)
    # Their counterparts without a common ancestor: each source has a pretrained body of its own.
    five = [s for s in splits for _ in range(SOURCES)]
    own_seeds = [10_000 + SOURCES * seed + i for seed in seeds for i in range(SOURCES)]
    origins = pretrain([body(seed) for seed in own_seeds], five, plan, own_seeds)
    strangers = _fine_tune(origins, five, [i for _ in seeds for i in range(SOURCES)], plan, own_seeds)
    return [
        _starts(splits[k], seed, pretrained[k], kin[k], strangers[SOURCES * k : SOURCES * (k + 1)])
        for k, seed in enumerate(seeds)
    ]


def pretrain(bodies: Sequence[State], splits: Sequence[Split], plan: Plan, seeds: Sequence[int]) -> list[State]:
    """Teach bodies to tell rotations."""
    starts = [with_head(own, seed, classes=4) for own, seed in zip(bodies, seeds, strict=True)]
    return train(starts, [s.rotations for s in splits], plan.steps, seeds)


def _sources(
    pretrained: Sequence[State], splits: Sequence[Split], plan: Plan, seeds: Sequence[int]
) -> list[list[State]]:
    """Fine-tune the sources of each seed, all from its pretrained body and one head."""
    starts = [state for state in pretrained for _ in range(SOURCES)]
    five, own_seeds = [s for s in splits for _ in range(SOURCES)], [seed for seed in seeds for _ in range(SOURCES)]
    flat = _fine_tune(starts, five, [i for _ in seeds for i in range(SOURCES)], plan, own_seeds)
    return [flat[SOURCES * k : SOURCES * (k + 1)] for k in range(len(seeds))]


def _fine_tune(
    starts: Sequence[State], splits: Sequence[Split], which: Sequence[int], plan: Plan, seeds: Sequence[int]
) -> list[State]:
    examples = [s.labelled.of(s.source_classes[i]) for s, i in zip(splits, which, strict=True)]
    states = [with_head(start, seed) for start, seed in zip(starts, seeds, strict=True)]
    batches = [100 * seed + i for seed, i in zip(seeds, which, strict=True)]
    return train(states, examples, plan.steps, batches)


def _starts(parts: Split, seed: int, pretrained: State, kin: Sequence[State], strangers: Sequence[State]) -> Starts:
    root = _body_of(pretrained)
    bodies, others = [_body_of(state) for state in kin], [_body_of(state) for state in strangers]
    fused, info = fuse(bodies, base=root)
    half, _ = fuse(bodies, base=root, scale=0.5)
    mixed, found = fuse(others, force=True)
    averager = ModelAverager()
    for own in bodies:
        averager.add(own)
    named: dict[str, State] = {"random": body(seed), "pretrained": root, **dict(zip(SOURCE_NAMES, bodies, strict=True))}
    named |= {"fused": _dict(fused), "half of the way": _dict(half), "fused strangers": _dict(mixed)}
    named |= {name: averager.average_without(own) for name, own in zip(LEFT_OUT, bodies, strict=True)}
    pair = max(combinations(range(SOURCES), 2), key=lambda ij: len(_shared(parts, *ij)))
    heights = [barrier(states[pair[0]], states[pair[1]], parts, _shared(parts, *pair)) for states in (kin, strangers)]
    return Starts(named, info, found, heights[0], heights[1])


def barrier(first: State, second: State, parts: Split, classes: Sequence[int]) -> float:
    """Return the loss barrier between two sources on the classes that both learned."""
    examples = parts.labelled.of(classes)
    hidden = _hidden_classes([examples], 10)

    def loss(model: nn.Module) -> float:
        return float(F.cross_entropy(model(examples.x).masked_fill(hidden, -torch.inf), examples.y))

    return loss_barrier(network(first), network(second), loss).height


def _shared(parts: Split, i: int, j: int) -> list[int]:
    return sorted(set(parts.source_classes[i]) & set(parts.source_classes[j]))


def _body_of(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}


def _dict(fused: nn.Module | State) -> State:
    assert isinstance(fused, dict)
    return fused


# --- the target --------------------------------------------------------------------------------------------------


def transfer(
    starts: Sequence[Starts], splits: Sequence[Split], plan: Plan, seeds: Sequence[int], decay: float
) -> dict[str, NDArray[np.float64]]:
    """Fine-tune every start on the target; return test accuracies in percent, one a seed, by start."""
    names = list(starts[0].bodies)
    jobs = [(k, name) for k in range(len(seeds)) for name in names]
    states = [with_head(starts[k].bodies[name], 5000 + seeds[k]) for k, name in jobs]
    ends = train(states, [splits[k].target for k, _ in jobs], plan.target_steps, [seeds[k] for k, _ in jobs], decay)
    scores = [100 * accuracy(state, splits[k].test) for (k, _), state in zip(jobs, ends, strict=True)]
    by_seed = np.array(scores).reshape(len(seeds), len(names))
    return dict(zip(names, by_seed.T, strict=True))


# --- the claims --------------------------------------------------------------------------------------------------


def judge_fused(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the lead over pretraining, its interval, and the distance to intertraining."""
    if n["difference"] <= 0:
        return "refuted"
    held = n["low"] > 0 and n["difference"] >= 2 and n["over_sources"] >= -0.5
    return "reproduced" if held else "partly"


def judge_dependence(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the ratio of both standard deviations."""
    return "reproduced" if n["ratio"] > 3 else "refuted" if n["ratio"] <= 1 else "partly"


def judge_ancestor(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by what fused strangers add to a random body, and by the barriers."""
    held = [n["over_random"] <= 2, n["barrier_of_strangers"] > 5 * n["barrier"]]
    return "reproduced" if all(held) else "partly" if any(held) else "refuted"


CLAIMS = (
    Claim(
        "fused-start",
        "The average of models fine-tuned from one pretrained model is a better start than that model.",
        "better on most targets; RoBERTa, figures only",
        "Accuracy on the target, over seeds. Reproduced if the gain over the pretrained body is at least 2 points with "
        "a 95 % interval above 0, and at most 0.5 points are lost against a single source; refuted without a gain.",
        judge_fused,
    ),
    Claim(
        "less-dependent",
        "A fused start depends less on the choice of sources than a start from one source.",
        "in words",
        "Standard deviation over the choice of one source by that over the source left out of the average, mean over "
        "seeds: reproduced above 3, refuted up to 1.",
        judge_dependence,
    ),
    Claim(
        "common-ancestor",
        "Only models with a common ancestor can be fused.",
        "the premise of the method",
        "Sources from random bodies of their own: the fused one is at most 2 points above a random body, and the loss "
        "barrier between two of them is more than 5 times that between kin. Reproduced if both hold, refuted if "
        "neither.",
        judge_ancestor,
    ),
)


@dataclass(frozen=True, slots=True)
class Results:
    """Starts of all seeds, and accuracies by decay, then start."""

    starts: Sequence[Starts]
    accuracies: Mapping[float, Mapping[str, NDArray[np.float64]]]

    @property
    def plain(self) -> Mapping[str, NDArray[np.float64]]:
        """Accuracies without decay."""
        return self.accuracies[0.0]

    def over_sources(self, statistic: Callable[..., NDArray[np.float64]], decay: float = 0.0) -> NDArray[np.float64]:
        """A statistic over the single sources of each seed."""
        return statistic([self.accuracies[decay][name] for name in SOURCE_NAMES], axis=0)


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Train everything and put what came out beside the claims."""
    plan = PLANS[budget]
    progress(0.0, "pretraining and sources")
    splits = [split(seed) for seed in seeds]
    starts = make_starts(splits, plan, seeds)
    accuracies = {}
    for i, decay in enumerate(plan.decays):
        progress(0.5 + 0.5 * i / len(plan.decays), f"target, weight decay {decay:g}")
        accuracies[decay] = transfer(starts, splits, plan, seeds, decay)
    progress(1.0, "done")
    results = Results(starts, accuracies)
    gain = compare_paired(results.plain["pretrained"], results.plain["fused"], lower_is_better=False)
    claims = {
        "fused-start": _measure_fused(results, gain),
        "less-dependent": _measure_dependence(results),
        "common-ancestor": _measure_ancestor(results),
    }
    figure = _figure(results)
    blocks: list[Text | Table | Figure | Code] = [figure, _start_table(results), _decay_table(results)]
    blocks += [_fuse_table(results, seeds), _notes(plan)]
    random = compare_paired(results.plain["random"], results.plain["fused"], lower_is_better=False)
    summary = (
        f"{claims['fused-start'].ours}. Over a random body the fused one gains {random.difference:+.1f} points "
        f"({random.interval[0]:+.1f} to {random.interval[1]:+.1f}). {claims['common-ancestor'].ours}."
    )
    return Measurement(claims, summary, blocks, figure.figure)


def _measure_fused(results: Results, gain: PairedComparison) -> Measured:
    sources = results.over_sources(np.mean)
    over = float((results.plain["fused"] - sources).mean())
    low, high = gain.interval
    words = (
        f"{gain.mean_treated:.1f} % from the fused body, {gain.mean_control:.1f} % from the pretrained one, "
        f"difference {gain.difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}); "
        f"{sources.mean():.1f} % from one source"
    )
    return Measured(words, {"difference": gain.difference, "low": low, "over_sources": over})


def _measure_dependence(results: Results) -> Measured:
    single = float(results.over_sources(np.std).mean())
    fused = float(np.std([results.plain[name] for name in LEFT_OUT], axis=0).mean())
    words = f"standard deviation {single:.2f} points over sources, {fused:.2f} over the source left out"
    return Measured(words, {"ratio": single / fused})


def _measure_ancestor(results: Results) -> Measured:
    over = float((results.plain["fused strangers"] - results.plain["random"]).mean())
    kin, strangers = (
        float(np.mean([getattr(start, name) for start in results.starts]))
        for name in ("barrier", "barrier_of_strangers")
    )
    words = (
        f"fused without an ancestor {results.plain['fused strangers'].mean():.1f} %, from a random body "
        f"{results.plain['random'].mean():.1f} %; barrier {strangers:.2f} without and {kin:.2f} with an ancestor"
    )
    return Measured(words, {"over_random": over, "barrier": kin, "barrier_of_strangers": strangers})


def _rows(results: Results, decay: float) -> dict[str, NDArray[np.float64]]:
    """The starts that are compared, with single sources by their mean and their best."""
    found = results.accuracies[decay]
    return {
        "random body": found["random"],
        "pretrained": found["pretrained"],
        "one source, mean": results.over_sources(np.mean, decay),
        "best source (needs test labels)": results.over_sources(np.max, decay),
        "fused": found["fused"],
        "half of the way to fused": found["half of the way"],
        "fused strangers": found["fused strangers"],
    }


def _figure(results: Results) -> Figure:
    rows = _rows(results, 0.0)
    bars = {name: float(values.mean()) for name, values in rows.items()}
    errors = {name: (float(values.min()), float(values.max())) for name, values in rows.items()}
    return bar_chart("Accuracy on the target", bars, "test accuracy, %, mean and range over seeds", errors)


def _start_table(results: Results) -> Table:
    rows: list[list[object]] = []
    for name, values in _rows(results, 0.0).items():
        paired = compare_paired(results.plain["pretrained"], values, lower_is_better=False)
        rows.append([name, float(values.mean()), paired.difference, *paired.interval])
    columns = ["start", "test, %", "minus pretrained", "from", "to"]
    return Table("Starts", columns, rows, "No weight decay on the target; 95 % intervals of the paired difference.")


def _decay_table(results: Results) -> Table:
    rows: list[list[object]] = []
    for decay in results.accuracies:
        found = _rows(results, decay)
        rows.append([decay, *(float(found[name].mean()) for name in ("pretrained", "one source, mean", "fused"))])
    columns = ["AdamW decay", "pretrained, %", "one source, %", "fused, %"]
    caption = (
        "Decay in the target's fine-tuning. The paper says that it undoes the gain of a single source and not that of "
        f"fusing. A decay of 30 takes {100 * 30 * LR:.0f} % of the weights at every step."
    )
    return Table("Weight decay on the target", columns, rows, caption)


def _fuse_table(results: Results, seeds: Sequence[int]) -> Table:
    rows: list[list[object]] = []
    for seed, start in zip(seeds, results.starts, strict=True):
        off = ~torch.eye(SOURCES, dtype=torch.bool)
        cosine = float(start.kin.cosines[off].mean())
        kin = [start.kin.shrink, cosine, start.kin.kinship, start.strangers.kinship]
        rows.append([seed, *kin, start.barrier, start.barrier_of_strangers])
    columns = ["seed", "shrink", "cosine of tasks", "kinship", "kinship, strangers", "barrier", "barrier, strangers"]
    caption = (
        "Shrink: norm of the mean task vector over the mean norm, 0.45 for five tasks that share nothing. Kinship: "
        "mean cosine between whole weights. Barrier: between the two sources that share most classes, on these."
    )
    return Table("What was fused", columns, rows, caption)


def _notes(plan: Plan) -> Text:
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
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 8, "full": 20},
    measure=measure,
)

"""Study of "A Loss Curvature Perspective on Training Instability": learning rates that train, and sharpness.

Residual ReLU networks of width 64 with ten branches on handwritten digits, He's weights in the branches and no
normalisation, which makes them steep on purpose; SGD with momentum. The same grid of learning rates is trained plainly,
with warm-up, with clipping, with layer norm, and from MetaInit and GradInit. All runs of an architecture train side by
side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from scipy.stats import gmean, rankdata
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim import SGD

from poise.curvature import Hessian, eigs
from poise.dynamics import momentum_edge
from poise.nn import gaussian_batches, gradinit_sgd_, metainit_
from poise.nn.mlp import mlp
from poise.report import Figure, Table, Text, line_chart, scatter_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import batch_indices, cross_entropies
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import all_or_none, at_least, at_most, below
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.tables import log_x
from poise.studies.kit.words import listed

WIDTH, BRANCHES, BATCH, MOMENTUM, CLIP = 64, 10, 64, 0.9, 1.0
PLAIN, WARM_UP, CLIPPED, NORMED = "plain", "warm-up", "clip", "LayerNorm"
JUDGED = (PLAIN, WARM_UP, CLIPPED, NORMED)
INITIALISERS = ("MetaInit", "GradInit")
GUESSING = math.log(10)
TRAINED = 0.8  # of the loss at the start, or of that of guessing where the start is above it
LIMIT = 1.5
EDGE = momentum_edge(1.0, MOMENTUM)  # 2 (1 + beta): sharpness times learning rate where SGD stops being stable


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    steps: int = 150
    warm_up: int = 100
    probe_step: int = 20
    metainit_steps: int = 500
    gradinit_steps: int = 100
    multiples: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16, 32)
    examples: int = 500
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan((1e-3, 3e-2), 24, 16, 4, 2, 2, (1, 8), 64, 1),
    "default": Plan(),
    "full": Plan(steps=600, warm_up=400),
}


# --- networks ----------------------------------------------------------------------------------------------------


class ResidualMLP(nn.Module):
    """Branches of ReLU and a linear map, with He's weights; with norms, one begins each branch and one the read-out."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, WIDTH) if normed else nn.Identity
        self.first, self.last = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.branches = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BRANCHES))
        self.norms = nn.ModuleList(norm() for _ in range(BRANCHES + 1))
        he_(self.branches)

    def forward(self, x: Float[Tensor, "batch 64"]) -> Float[Tensor, "batch 10"]:
        """Return the logits."""
        h = self.first(x)
        for norm, branch in zip(self.norms, self.branches, strict=False):
            h = h + branch(F.relu(norm(h)))
        logits: Tensor = self.last(self.norms[-1](h))
        return logits


def network(strategy: str, seed: int, plan: Plan) -> ResidualMLP:
    """Return a fresh network.

    Args:
        strategy: how it will be trained, which only layer norm and the initialisers take note of.
        seed: of the weights, the same ones for all strategies.
        plan: says how many steps an initialiser takes.
    """
    net = seeded(lambda: ResidualMLP(strategy == NORMED), seed)
    x, y = examples()
    halves = list(zip(x.split(BATCH // 2), y.split(BATCH // 2), strict=True))[:-1]
    if strategy == "MetaInit":
        data = gaussian_batches((BATCH, 64), 10, seed)
        metainit_(net, nn.CrossEntropyLoss(), data, steps=plan.metainit_steps)
    if strategy == "GradInit":
        gradinit_sgd_(net, nn.CrossEntropyLoss(), halves, lr=0.05, steps=plan.gradinit_steps, seed=seed)
    return net


Net = TypeVar("Net", bound=nn.Module)


def seeded(make: Callable[[], Net], seed: int) -> Net:
    """Return what ``make`` makes with torch's global generator set to a seed, and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def he_(layers: Iterable[nn.Module]) -> None:
    """Give linear layers He's weights and no biases."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def examples() -> tuple[Float[Tensor, "1797 64"], Int64[Tensor, " 1797"]]:
    """Return all standardised digits and their classes, in an order of no meaning."""
    x, y, *_ = digits(0, train=1797)
    return x, y


def sharpness(net: nn.Module, count: int) -> float:
    """Return the largest eigenvalue of the Hessian on the first digits; infinite for a network that has diverged."""
    x, y = examples()
    x, y, net = x[:count].double(), y[:count], copy.deepcopy(net).double()
    with torch.no_grad():
        if not F.cross_entropy(net(x), y).isfinite():
            return math.inf
    generator = torch.Generator().manual_seed(0)
    return float(eigs(Hessian(net, nn.CrossEntropyLoss(), (x, y)), tol=1e-2, generator=generator).values[0])


def sharpness_of_all(nets: Iterable[nn.Module], plan: Plan, progress: Progress) -> NDArray[np.float64]:
    """Return the sharpness of every network."""
    copies = [
        copy.deepcopy(net) for net in nets
    ]  # views of stacked parameters would go to processes as the whole stack
    steepness = run_each(
        partial(sharpness, count=plan.examples), copies, progress, plan.n_jobs, lambda net: "sharpness"
    )
    return np.array(list(steepness.values()))


# --- training ----------------------------------------------------------------------------------------------------

Grid = NDArray[np.float64]
"""One value per learning rate and seed."""


@dataclass(frozen=True, slots=True)
class Runs:
    """All runs of one strategy: a value per seed, or per learning rate and seed."""

    lrs: tuple[float, ...]
    start: NDArray[np.float64]  # loss of the fresh network on all digits
    fresh: NDArray[np.float64]  # its sharpness
    loss: Grid  # mean of the last 20 training losses; infinite if one is not finite
    early: Grid  # sharpness at the probe step
    ratio: Grid  # that times the learning rate of that step, over the limit 2 (1 + beta)
    late: Grid  # sharpness at the end

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which runs ended below 0.8 of the loss at the start, or of guessing."""
        return self.loss < TRAINED * np.minimum(self.start, GUESSING)

    @property
    def lr_max(self) -> NDArray[np.float64]:
        """The largest learning rate that trained, per seed; 0 if none did."""
        return (np.array(self.lrs)[:, None] * self.trained).max(0)


def train(strategies: Sequence[str], plan: Plan, seeds: Sequence[int], progress: Progress) -> dict[str, Runs]:
    """Train every strategy, all of one architecture, at every learning rate and seed, all side by side."""
    x, y = examples()
    begun = list(product(strategies, seeds))
    fresh = run_each(lambda cell: network(*cell, plan), begun, part_of(progress, 0, 0.5), plan.n_jobs, "{0[0]}".format)
    runs = list(product(strategies, plan.lrs, seeds))
    nets = SideBySide([fresh[s, seed] for s, _, seed in runs])
    lrs = torch.tensor([lr for _, lr, _ in runs])
    warming, clipping = (torch.tensor([s == name for s, _, _ in runs]) for name in (WARM_UP, CLIPPED))
    start = np.array([float(F.cross_entropy(net(x), y).detach()) for net in fresh.values()])
    steep = sharpness_of_all(fresh.values(), plan, part_of(progress, 0.5, 0.6))
    losses, buffers = [], [torch.zeros_like(p) for p in nets.parameters()]
    early = ratio = np.zeros(len(runs))
    picks = batch_indices(seeds, len(y), plan.steps, BATCH).repeat(1, len(runs) // len(seeds), 1)
    for step, pick in enumerate(picks):
        loss = cross_entropies(nets(x[pick]), y[pick])
        losses.append(loss.detach())
        gradients = torch.autograd.grad(loss.sum(), nets.parameters())
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        clip = torch.where(clipping, (CLIP / norms).clamp(max=1.0), 1.0)
        rates = torch.where(warming, min(1.0, (step + 1) / plan.warm_up) * lrs, lrs)
        if step == plan.probe_step:
            early = sharpness_of_all(nets.models, plan, part_of(progress, 0.6, 0.8))
            ratio = (rates * clip).double().numpy() * early / EDGE
        with torch.no_grad():  # torch's SGD with momentum, with a learning rate and a clip for every network
            for p, g, v in zip(nets.parameters(), gradients, buffers, strict=True):
                column = (-1, *[1] * (p.ndim - 1))
                v.mul_(MOMENTUM).add_(clip.view(column) * g)
                p.sub_(rates.view(column) * v)
    last = torch.stack(losses[-20:]).double().mean(0).nan_to_num(nan=math.inf).numpy()
    late = sharpness_of_all(nets.models, plan, part_of(progress, 0.8, 1))
    per_seed = [values.reshape(len(strategies), len(seeds)) for values in (start, steep)]
    grids = [values.reshape(len(strategies), len(plan.lrs), len(seeds)) for values in (last, early, ratio, late)]
    return {s: Runs(plan.lrs, *(values[i] for values in (*per_seed, *grids))) for i, s in enumerate(strategies)}


# --- the counter-example -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlainNetworks:
    """Four layers without branches, full batches: final loss per multiple of 2 / lambda and seed."""

    start: float
    plain: Grid
    warmed: Grid


def plain_networks(plan: Plan, seeds: Sequence[int]) -> PlainNetworks:
    """Train plain networks from He's weights, with and without warm-up, at multiples of their limit."""
    x, y = (part[: plan.examples] for part in examples())
    fresh = [seeded(_plain_network, seed) for seed in seeds]
    limits = [2 / sharpness(net, plan.examples) for net in fresh]
    runs = list(product((False, True), plan.multiples, range(len(seeds))))
    nets = SideBySide([fresh[i] for _, _, i in runs])
    optimizer = SGD(nets.parameters(), lr=1.0)  # every network's own learning rate is a factor on its gradient
    lrs = torch.tensor([multiple * limits[i] for _, multiple, i in runs])
    warming = torch.tensor([warmed for warmed, _, _ in runs])
    inputs, targets, start = x.expand(len(runs), *x.shape), y.expand(len(runs), -1), 0.0
    for step in range(plan.steps):
        loss = cross_entropies(nets(inputs), targets)
        start = start or float(loss.detach().mean())
        optimizer.zero_grad()
        loss.sum().backward()
        nets.scale_gradients(torch.where(warming, min(1.0, (step + 1) / plan.warm_up) * lrs, lrs))
        optimizer.step()
    final = cross_entropies(nets.evaluate(inputs), targets).double().nan_to_num(nan=math.inf).numpy()
    return PlainNetworks(start, *final.reshape(2, len(plan.multiples), len(seeds)))


def _plain_network() -> nn.Module:
    net = mlp((64, WIDTH, WIDTH, WIDTH, 10), nn.ReLU)
    he_(net)
    return net


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Runs by strategy, and the counter-example."""

    plan: Plan
    runs: Mapping[str, Runs]
    counter: PlainNetworks


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Train residual networks without and with layer norm, then plain ones."""
    plan = PLANS[budget]
    runs = train((PLAIN, WARM_UP, CLIPPED, *INITIALISERS), plan, seeds, part_of(progress, 0, 0.7))
    runs |= train((NORMED,), plan, seeds, part_of(progress, 0.7, 0.9))
    return Results(plan, runs, plain_networks(plan, seeds))


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "warm-up",
    "Warm-up, and clipping, let a steep network without normalisation train at larger learning rates.",
    paper="warm-up alone stabilises as much as normalisation or an initialiser (figures)",
    protocol="Both: fraction of seeds in which warm-up and clipping each raise the largest learning rate of the grid "
    "that trains to at least 3 times the plain one.",
    reproduced=at_least("both", 0.9),
    refuted=at_most("both", 1 / 3),
    over_seeds=["both"],
)
def warm_up(results: Results) -> Measured:
    runs = results.runs
    factors = {name: _over(runs[name].lr_max, runs[PLAIN].lr_max) for name in (WARM_UP, CLIPPED)}
    both = np.minimum(factors[WARM_UP], factors[CLIPPED]) >= 3
    words = ", ".join(f"{name} {listed(values, '.3g', 'inf')}" for name, values in factors.items())
    return Measured(
        f"largest learning rate over the plain one, per seed: {words}", {"both": both.mean()}, {"both": both}
    )


@claim(
    "layer-norm",
    "Layer norm acts by flattening the loss at the start, and raises the largest learning rate with it.",
    paper="normalised networks begin at a low curvature (figures)",
    protocol="Geometric means over seeds: how many times lower the sharpness of fresh networks is, and how many times "
    "higher the largest learning rate.",
    rule=all_or_none(at_least("flatter", 20), at_least("faster", 10), over_seeds=["flatter", "faster"]),
)
def layer_norm(results: Results) -> Measured:
    plain, normed = results.runs[PLAIN], results.runs[NORMED]
    ratios = {"flatter": plain.fresh / normed.fresh, "faster": _over(normed.lr_max, plain.lr_max)}
    found = {name: bootstrap_over_seeds(gmean, own, positive=True) for name, own in ratios.items()}
    numbers = {name: value for name, (value, _) in found.items()}
    words = "sharpness {flatter:.3g} times lower, largest learning rate {faster:.3g} times higher".format(**numbers)
    return Measured(words, numbers, intervals={name: interval for name, (_, interval) in found.items()})


@claim(
    "prediction",
    "Whether a run trains is decided by its sharpness, early, against the limit of its learning rate.",
    paper="runs far above the limit fail unless they come down (figures)",
    protocol="Over all runs of the four strategies: area under the ROC curve of sharpness over limit at step 20.",
    reproduced=at_least("auc", 0.85, "area"),
    refuted=below("auc", 0.7, "area"),
    over_seeds=["auc"],
)
def prediction(results: Results) -> Measured:
    judged = [results.runs[name] for name in JUDGED]
    ratio, trained = (np.concatenate([getattr(runs, key).ravel() for runs in judged]) for key in ("ratio", "trained"))
    if trained.all() or not trained.any():
        return Measured(f"all {len(trained)} runs ended alike, so nothing can be predicted")
    by_seed = [np.concatenate([getattr(runs, key) for runs in judged]).T for key in ("ratio", "trained")]
    auc, interval = bootstrap_over_seeds(_area, *by_seed)
    rates = np.concatenate([np.repeat(runs.lrs, runs.loss.shape[1]) for runs in judged])
    by_rate = float(roc_auc_score(~trained, rates))
    right = float(((ratio < LIMIT) == trained).mean())
    words = (
        f"area {auc:.3f} ({by_rate:.3f} by the learning rate alone); below {LIMIT} is right about {100 * right:.0f} % "
        f"of {len(trained)} runs, of which {int(trained.sum())} trained"
    )
    return Measured(words, {"auc": auc, "auc_of_rate": by_rate, "right": right}, intervals={"auc": interval})


def _area(ratio: NDArray[np.float64], trained: NDArray[np.bool_]) -> float:
    """Return the area under the curve of a ratio that says which runs fail; NaN where all ended alike."""
    if trained.all() or not trained.any():
        return math.nan
    # Ranks, since sharpness is infinite where a run has diverged already.
    return float(roc_auc_score(~trained.ravel(), rankdata(ratio)))


@claim(
    "threshold",
    "The largest learning rate without any help is the limit of the fresh network, up to a catapult.",
    paper="learning rates up to a few times the limit train after a jump to a flatter place",
    protocol="Inside: fraction of seeds whose largest plain learning rate over 2 (1 + beta) / sharpness of the fresh "
    "network lies between 1 and 10.",
    reproduced=at_least("inside", 0.9),
    refuted=below("inside", 0.5),
    over_seeds=["inside"],
)
def threshold(results: Results) -> Measured:
    ratio = results.runs[PLAIN].lr_max * results.runs[PLAIN].fresh / EDGE
    words = f"largest learning rate over the limit, per seed: {listed(ratio, '.3g', 'inf')}"
    inside = (ratio >= 1) & (ratio <= 10)
    return Measured(words, {"inside": inside.mean()}, {"inside": inside})


def _over(values: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ratios of learning rates; infinite over 0, where nothing trained, and 1 for 0 over 0."""
    return np.where(base > 0, values / np.where(base > 0, base, 1), np.where(values > 0, math.inf, 1.0))


# --- the report --------------------------------------------------------------------------------------------------

NOTES = (
    "A run has trained if the mean of its last 20 training losses is below 0.8 of the loss at the start, or of that of "
    "guessing where the start is above it: a network that died at the loss of guessing has not trained. The learning "
    "rate of a clipped step is the one that the shortened gradient amounts to. Layer norm begins every branch and the "
    "read-out, as pre-norm networks have it. MetaInit and GradInit are shown and not judged; they tune the same fresh "
    "networks on the training digits. Not tested: networks of a size at which the paper worked, Adam, other data."
)


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    runs, step = results.runs, results.plan.probe_step
    picture = _loss_figure(runs)
    return Presentation(
        f"Warm-up and clipping: {claims['warm-up'].text}. Sharpness over the limit at step {step}: "
        f"{claims['prediction'].text}.",
        [
            picture,
            _lr_table(runs),
            _sharpness_figure(runs[PLAIN]),
            _ratio_figure(runs),
            _counter_table(results.plan.multiples, results.counter),
            Text(NOTES, "What was chosen here"),
        ],
        picture.figure,
    )


def _loss_figure(runs: Mapping[str, Runs]) -> Figure:
    # Infinite where a seed diverged, which leaves a gap in the curve.
    series = {name: (r.lrs, r.loss.mean(1)) for name, r in runs.items()}
    limit = {"limit of the fresh network": float(EDGE / gmean(runs[PLAIN].fresh))}
    title = "Training loss at the end over learning rate"
    return log_x(line_chart(title, series, "learning rate", "loss", log_y=True, markers=limit))


def _sharpness_figure(plain: Runs) -> Figure:
    lrs = np.array(plain.lrs)
    series = {
        "fresh": (lrs, np.full(len(lrs), gmean(plain.fresh))),
        "at the probe step": (lrs, _geometric(plain.early)),
        "at the end": (lrs, _geometric(plain.late)),
        "limit 2 (1 + beta) / lr": (lrs, EDGE / lrs),
    }
    title = "Sharpness of plain runs over learning rate"
    return log_x(line_chart(title, series, "learning rate", "sharpness", log_y=True))


def _geometric(values: Grid) -> NDArray[np.float64]:
    """Return geometric means over seeds; NaN where a seed diverged or was not curved upwards."""
    safe = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    return np.exp(np.log(safe).mean(1))


def _ratio_figure(runs: Mapping[str, Runs]) -> Figure:
    series = {}
    for name in JUDGED:
        shown = np.isfinite(runs[name].ratio) & np.isfinite(runs[name].loss) & (runs[name].ratio > 0)
        if shown.any():
            series[name] = runs[name].ratio[shown], runs[name].loss[shown]
    title = "Training loss at the end over early sharpness"
    return log_x(scatter_chart(title, series, "sharpness over limit, early", "loss", log_y=True))


def _lr_table(runs: Mapping[str, Runs]) -> Table:
    rows = [
        [name, seed, r.fresh[seed], EDGE / r.fresh[seed], r.lr_max[seed], r.lr_max[seed] * r.fresh[seed] / EDGE]
        for name, r in runs.items()
        for seed in range(len(r.fresh))
    ]
    columns = ["strategy", "seed", "sharpness at the start", "limit", "largest lr that trains", "over the limit"]
    return Table("What each strategy bears", columns, rows, "0: no learning rate of the grid trained.")


def _counter_table(multiples: Sequence[float], counter: PlainNetworks) -> Table:
    lower = np.less(counter.warmed, counter.plain)
    medians = np.median(counter.plain, 1), np.median(counter.warmed, 1)
    rows = [list(row) for row in zip(multiples, *medians, lower.sum(1), strict=True)]
    useless = [f"{multiples[i]:g}" for i in np.flatnonzero(~lower.any(1)).tolist()]
    caption = (
        "Four layers without branches, He's weights, gradient descent on a full batch from a loss of "
        f"{counter.start:.2f}. A learning rate at which a network finds a flatter place by itself needs no warm-up, "
        f"which then costs steps. It ended lower in no seed at {', '.join(useless) or 'none'} times the limit. Medians "
        "over seeds of the last loss."
    )
    columns = ["lr over 2 / sharpness", "plain", "warm-up", "seeds in which warm-up ends lower"]
    return Table("Counter-example: warm-up where it is not needed", columns, rows, caption)


STUDY = Study(
    slug="loss-curvature",
    title="Does sharpness early in training say which learning rates train?",
    room="preflight",
    paper=Paper(
        "A Loss Curvature Perspective on Training Instability in Deep Learning", "Gilmer et al.", 2021, "2110.04369"
    ),
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(warm_up, layer_norm, prediction, threshold),
    present=present,
)

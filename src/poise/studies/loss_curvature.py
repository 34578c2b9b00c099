"""Study of "A Loss Curvature Perspective on Training Instability": learning rates that train, and sharpness.

Residual ReLU networks of width 64 with ten branches on handwritten digits, He's weights in the branches and no
normalisation, which makes them steep on purpose; SGD with momentum. The same grid of learning rates is trained plainly,
with warm-up, with clipping, with layer norm, and from MetaInit and GradInit. All runs of an architecture train side by
side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.stats import gmean, rankdata
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from poise.curvature import Hessian, eigs
from poise.data import load_digits, standardize
from poise.dynamics import momentum_edge
from poise.nn import gaussian_batches, gradinit_sgd_, metainit_
from poise.report import Code, Figure, Table, Text, line_chart, scatter_chart
from poise.studies.kit.networks import mlp
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.stacked_mlp import batch_indices, stacked_cross_entropy
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

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
        for branch in self.branches:
            assert isinstance(branch, nn.Linear)
            nn.init.kaiming_normal_(branch.weight, nonlinearity="relu")
            nn.init.zeros_(branch.bias)

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResidualMLP(strategy == NORMED)
    x, y = digits()
    halves = list(zip(x.split(BATCH // 2), y.split(BATCH // 2), strict=True))[:-1]
    if strategy == "MetaInit":
        data = gaussian_batches((BATCH, 64), 10, seed)
        metainit_(net, nn.CrossEntropyLoss(), data, steps=plan.metainit_steps)
    if strategy == "GradInit":
        gradinit_sgd_(net, nn.CrossEntropyLoss(), halves, lr=0.05, steps=plan.gradinit_steps, seed=seed)
    return net


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return all standardised digits and their classes, in an order of no meaning."""
    data = load_digits()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    (x,) = standardize(data.inputs[order])
    return x, data.targets[order]


def sharpness(net: nn.Module, examples: int) -> float:
    """Return the largest eigenvalue of the Hessian on the first digits; infinite for a network that has diverged."""
    x, y = digits()
    x, y, net = x[:examples].double(), y[:examples], copy.deepcopy(net).double()
    with torch.no_grad():
        if not F.cross_entropy(net(x), y).isfinite():
            return math.inf
    generator = torch.Generator().manual_seed(0)
    return float(eigs(Hessian(net, nn.CrossEntropyLoss(), (x, y)), tol=1e-2, generator=generator).values[0])


# --- training ----------------------------------------------------------------------------------------------------

Grid = NDArray[np.float64]
"""One value per learning rate and seed."""


@dataclass(frozen=True, slots=True)
class Runs:
    """All runs of one strategy.

    Args:
        lrs: the learning rates.
        start: loss of the fresh network on all digits, per seed.
        fresh: its sharpness, per seed.
        loss: mean of the last 20 training losses; infinite if one is not finite.
        early: sharpness at the probe step.
        ratio: that times the learning rate of that step, over the limit 2 (1 + beta).
        late: sharpness at the end.
    """

    lrs: tuple[float, ...]
    start: NDArray[np.float64]
    fresh: NDArray[np.float64]
    loss: Grid
    early: Grid
    ratio: Grid
    late: Grid

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which runs ended below 0.8 of the loss at the start, or of guessing."""
        return self.loss < TRAINED * np.minimum(self.start, GUESSING)

    @property
    def lr_max(self) -> NDArray[np.float64]:
        """The largest learning rate that trained, per seed; 0 if none did."""
        return (np.array(self.lrs)[:, None] * self.trained).max(0)


def train(strategies: Sequence[str], plan: Plan, seeds: Sequence[int]) -> dict[str, Runs]:
    """Train every strategy at every learning rate and seed, all side by side.

    Args:
        strategies: of one architecture.
        plan: the budget.
        seeds: of weights and batches.
    """
    x, y = digits()
    begun = list(product(strategies, seeds))
    fresh = dict(zip(begun, Parallel(plan.n_jobs)(delayed(network)(s, seed, plan) for s, seed in begun), strict=True))
    runs = list(product(strategies, plan.lrs, seeds))
    nets, pattern = SideBySide([fresh[s, seed] for s, _, seed in runs]), fresh[strategies[0], seeds[0]]
    lrs = torch.tensor([lr for _, lr, _ in runs])
    warming, clipping = (torch.tensor([s == name for s, _, _ in runs]) for name in (WARM_UP, CLIPPED))
    start = [float(F.cross_entropy(net(x), y).detach()) for net in fresh.values()]
    steep = [sharpness(net, plan.examples) for net in fresh.values()]
    losses, buffers = [], [torch.zeros_like(p) for p in nets.parameters()]
    early = ratio = np.zeros(len(runs))
    picks = batch_indices(seeds, len(y), plan.steps, BATCH).repeat(1, len(runs) // len(seeds), 1)
    for step, pick in enumerate(picks):
        rise = min(1.0, (step + 1) / plan.warm_up)
        loss = stacked_cross_entropy(nets(x[pick]), y[pick])
        losses.append(loss.detach())
        gradients = torch.autograd.grad(loss.sum(), nets.parameters())
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        clip = torch.where(clipping, (CLIP / norms).clamp(max=1.0), 1.0)
        rates = torch.where(warming, rise * lrs, lrs)
        if step == plan.probe_step:
            early = _sharpness_of_all(nets, pattern, plan)
            ratio = (rates * clip).double().numpy() * early / EDGE
        _momentum_step(nets.parameters(), gradients, buffers, rates, clip)
    last = torch.stack(losses[-20:]).double().mean(0).nan_to_num(nan=math.inf).numpy()
    shape = (len(strategies), len(plan.lrs), len(seeds))
    grids = [values.reshape(shape) for values in (last, early, ratio, _sharpness_of_all(nets, pattern, plan))]
    per_seed = [np.array(values).reshape(len(strategies), len(seeds)) for values in (start, steep)]
    return {
        s: Runs(plan.lrs, *(values[i] for values in per_seed), *(grid[i] for grid in grids))
        for i, s in enumerate(strategies)
    }


@torch.no_grad()
def _momentum_step(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], buffers: Sequence[Tensor], rates: Tensor, clip: Tensor
) -> None:
    """SGD with momentum as torch has it, with a learning rate and a factor on the gradient for every network."""
    for p, g, v in zip(parameters, gradients, buffers, strict=True):
        column = (-1, *[1] * (p.ndim - 1))
        v.mul_(MOMENTUM).add_(clip.view(column) * g)
        p.sub_(rates.view(column) * v)


def _sharpness_of_all(nets: SideBySide, pattern: nn.Module, plan: Plan) -> NDArray[np.float64]:
    copies = [copy.deepcopy(pattern) for _ in range(nets.nets)]
    for i, net in enumerate(copies):
        for own, stacked in zip(net.parameters(), nets.parameters(), strict=True):
            own.data.copy_(stacked[i])
    return np.array(Parallel(plan.n_jobs)(delayed(sharpness)(net, plan.examples) for net in copies))


# --- the counter-example -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlainNetworks:
    """Four layers without branches, full batches: final loss per multiple of 2 / lambda and seed."""

    start: float
    plain: Grid
    warmed: Grid


def plain_networks(plan: Plan, seeds: Sequence[int]) -> PlainNetworks:
    """Train plain networks from He's weights, with and without warm-up, at multiples of their limit."""
    x, y = (part[: plan.examples] for part in digits())
    fresh = [_plain_network(seed) for seed in seeds]
    limits = [2 / sharpness(net, plan.examples) for net in fresh]
    runs = list(product((False, True), plan.multiples, range(len(seeds))))
    nets = SideBySide([fresh[i] for _, _, i in runs])
    lrs = torch.tensor([multiple * limits[i] for _, multiple, i in runs])
    warming, ones = torch.tensor([warmed for warmed, _, _ in runs]), torch.ones(len(runs))
    inputs, targets, start = x.expand(len(runs), *x.shape), y.expand(len(runs), -1), 0.0
    for step in range(plan.steps):
        loss = stacked_cross_entropy(nets(inputs), targets)
        start = start or float(loss.detach().mean())
        gradients = torch.autograd.grad(loss.sum(), nets.parameters())
        rates = torch.where(warming, min(1.0, (step + 1) / plan.warm_up) * lrs, lrs)
        at_rest = [torch.zeros_like(p) for p in nets.parameters()]  # every step anew: no momentum here
        _momentum_step(nets.parameters(), gradients, at_rest, rates, ones)
    with torch.no_grad():
        final = stacked_cross_entropy(nets(inputs), targets).double().nan_to_num(nan=math.inf).numpy()
    plain, warmed = final.reshape(2, len(plan.multiples), len(seeds))
    return PlainNetworks(start, plain, warmed)


def _plain_network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = mlp((64, WIDTH, WIDTH, WIDTH, 10), nn.ReLU)
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return net


# --- claims ------------------------------------------------------------------------------------------------------


def judge_warm_up(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the share of seeds in which both raise the largest learning rate to three times the plain one."""
    if n["both"] == 1:
        return "reproduced"
    return "refuted" if n["both"] <= 1 / 3 else "partly"


def judge_layer_norm(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the factors on sharpness and on the largest learning rate."""
    return _count([n["flatter"] >= 20, n["faster"] >= 10])


def judge_prediction(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the area under the curve."""
    if n["auc"] >= 0.85:
        return "reproduced"
    return "partly" if n["auc"] >= 0.7 else "refuted"


def judge_threshold(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by whether every seed's ratio is in the range, or none."""
    return _count([n["inside"] == 1, n["inside"] > 0])


def _count(held: Sequence[bool]) -> ClaimVerdict:
    return "reproduced" if all(held) else "partly" if any(held) else "refuted"


CLAIMS = (
    Claim(
        "warm-up",
        "Warm-up, and clipping, let a steep network without normalisation train at larger learning rates.",
        "warm-up alone stabilises as much as normalisation or an initialiser (figures)",
        "Largest learning rate of the grid that trains, at least 3 times the plain one for both. Reproduced if so in "
        "every seed, refuted if it fails in 2 of 3.",
        judge_warm_up,
    ),
    Claim(
        "layer-norm",
        "Layer norm acts by flattening the loss at the start, and raises the largest learning rate with it.",
        "normalised networks begin at a low curvature (figures)",
        "Sharpness of fresh networks at least 20 times lower and largest learning rate at least 10 times higher "
        "(geometric means over seeds). Reproduced if both hold, refuted if neither.",
        judge_layer_norm,
    ),
    Claim(
        "prediction",
        "Whether a run trains is decided by its sharpness, early, against the limit of its learning rate.",
        "runs far above the limit fail unless they come down (figures)",
        "Over all runs of the four strategies: area under the ROC curve of sharpness over limit at step 20. Reproduced "
        "at 0.85 or more, refuted below 0.7.",
        judge_prediction,
    ),
    Claim(
        "threshold",
        "The largest learning rate without any help is the limit of the fresh network, up to a catapult.",
        "learning rates up to a few times the limit train after a jump to a flatter place",
        "Largest plain learning rate over 2 (1 + beta) / sharpness of the fresh network, between 1 and 10. Reproduced "
        "if so in every seed, refuted if in none.",
        judge_threshold,
    ),
)


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the experiment and put what came out beside the claims."""
    plan = PLANS[budget]
    progress(0.0, "plain, warm-up, clip and initialisers, side by side")
    runs = train((PLAIN, WARM_UP, CLIPPED, *INITIALISERS), plan, seeds)
    progress(0.7, "layer norm")
    runs |= train((NORMED,), plan, seeds)
    progress(0.9, "plain networks")
    counter = plain_networks(plan, seeds)
    progress(1.0, "done")
    claims = {
        "warm-up": _measure_warm_up(runs),
        "layer-norm": _measure_layer_norm(runs),
        "prediction": _measure_prediction(runs),
        "threshold": _measure_threshold(runs[PLAIN]),
    }
    picture = _loss_figure(runs)
    blocks: list[Text | Table | Figure | Code] = [
        picture,
        _lr_table(runs),
        _sharpness_figure(runs[PLAIN]),
        _ratio_figure(runs),
        _counter_table(plan, counter),
        Text(_NOTES, "What was chosen here"),
    ]
    summary = (
        f"Warm-up and clipping: {claims['warm-up'].ours}. Sharpness over the limit at step {plan.probe_step}: "
        f"{claims['prediction'].ours}."
    )
    return Measurement(claims, summary, blocks, picture.figure)


def _measure_warm_up(runs: Mapping[str, Runs]) -> Measured:
    factors = {name: _over(runs[name].lr_max, runs[PLAIN].lr_max) for name in (WARM_UP, CLIPPED)}
    both = np.minimum(factors[WARM_UP], factors[CLIPPED]) >= 3
    words = ", ".join(f"{name} {_list(values)}" for name, values in factors.items())
    return Measured(f"largest learning rate over the plain one, per seed: {words}", {"both": float(both.mean())})


def _measure_layer_norm(runs: Mapping[str, Runs]) -> Measured:
    flatter = float(gmean(runs[PLAIN].fresh / runs[NORMED].fresh))
    faster = float(gmean(_over(runs[NORMED].lr_max, runs[PLAIN].lr_max)))
    ours = f"sharpness {flatter:.3g} times lower, largest learning rate {faster:.3g} times higher"
    return Measured(ours, {"flatter": flatter, "faster": faster})


def _measure_prediction(runs: Mapping[str, Runs]) -> Measured:
    ratio, trained = (
        np.concatenate([getattr(runs[name], key).ravel() for name in JUDGED]) for key in ("ratio", "trained")
    )
    if trained.all() or not trained.any():
        return Measured(f"all {len(trained)} runs ended alike, so nothing can be predicted")
    # Ranks, since sharpness is infinite where a run has diverged already.
    auc = float(roc_auc_score(~trained, rankdata(ratio)))
    rates = np.concatenate([np.repeat(runs[name].lrs, runs[name].loss.shape[1]) for name in JUDGED])
    by_rate = float(roc_auc_score(~trained, rates))
    right = float(((ratio < LIMIT) == trained).mean())
    ours = (
        f"area {auc:.3f} ({by_rate:.3f} by the learning rate alone); below {LIMIT} is right about {100 * right:.0f} % "
        f"of {len(trained)} runs, of which {int(trained.sum())} trained"
    )
    return Measured(ours, {"auc": auc, "auc_of_rate": by_rate, "right": right})


def _measure_threshold(plain: Runs) -> Measured:
    ratio = plain.lr_max * plain.fresh / EDGE
    inside = float(((ratio >= 1) & (ratio <= 10)).mean())
    return Measured(f"largest learning rate over the limit, per seed: {_list(ratio)}", {"inside": inside})


def _over(values: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ratios of learning rates; infinite over 0, where nothing trained, and 1 for 0 over 0."""
    return np.where(base > 0, values / np.where(base > 0, base, 1), np.where(values > 0, math.inf, 1.0))


def _list(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


# --- figures and tables ------------------------------------------------------------------------------------------

_NOTES = (
    "A run has trained if the mean of its last 20 training losses is below 0.8 of the loss at the start, or of that of "
    "guessing where the start is above it: a network that died at the loss of guessing has not trained. The learning "
    "rate of a clipped step is the one that the shortened gradient amounts to. Layer norm begins every branch and the "
    "read-out, as pre-norm networks have it. MetaInit and GradInit are shown and not judged; they tune the same fresh "
    "networks on the training digits. Not tested: networks of a size at which the paper worked, Adam, other data."
)


def _loss_figure(runs: Mapping[str, Runs]) -> Figure:
    # Infinite where a seed diverged, which leaves a gap in the curve.
    series = {name: (r.lrs, r.loss.mean(1)) for name, r in runs.items()}
    limit = {"limit of the fresh network": float(EDGE / gmean(runs[PLAIN].fresh))}
    figure = line_chart(
        "Training loss at the end over learning rate", series, "learning rate", "loss", log_y=True, markers=limit
    )
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def _sharpness_figure(plain: Runs) -> Figure:
    lrs = np.array(plain.lrs)
    series = {
        "fresh": (lrs, np.full(len(lrs), gmean(plain.fresh))),
        "at the probe step": (lrs, _geometric(plain.early)),
        "at the end": (lrs, _geometric(plain.late)),
        "limit 2 (1 + beta) / lr": (lrs, EDGE / lrs),
    }
    figure = line_chart("Sharpness of plain runs over learning rate", series, "learning rate", "sharpness", log_y=True)
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


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
    figure = scatter_chart(title, series, "sharpness over limit, early", "loss", log_y=True)
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def _lr_table(runs: Mapping[str, Runs]) -> Table:
    rows = [
        [name, seed, r.fresh[seed], EDGE / r.fresh[seed], r.lr_max[seed], r.lr_max[seed] * r.fresh[seed] / EDGE]
        for name, r in runs.items()
        for seed in range(len(r.fresh))
    ]
    columns = ["strategy", "seed", "sharpness at the start", "limit", "largest lr that trains", "over the limit"]
    return Table("What each strategy bears", columns, rows, "0: no learning rate of the grid trained.")


def _counter_table(plan: Plan, counter: PlainNetworks) -> Table:
    rows = [
        [multiple, float(np.median(plain)), float(np.median(warmed)), int(np.sum(warmed < plain))]
        for multiple, plain, warmed in zip(plan.multiples, counter.plain, counter.warmed, strict=True)
    ]
    needless = ~(counter.warmed < counter.plain).any(1)
    useless = [f"{multiple:g}" for multiple in np.array(plan.multiples)[needless]]
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
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 5},
    measure=measure,
)

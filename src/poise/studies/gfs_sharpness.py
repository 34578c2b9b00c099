"""Study of "Gradient Descent Monotonically Decreases the Sharpness of Gradient Flow Solutions".

Three systems under full-batch gradient descent with learning rates up to and beyond the edge of stability: scalar
networks, whose gradient-flow solution has a closed form; the squared regression model, where it solves a convex
problem; and a tanh network on handwritten digits, where the flow is integrated.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from poise.data import load_digits
from poise.dynamics import ScalarNetwork, SquaredRegression, gradient_flow_limit
from poise.evidence import clopper_pearson
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_each, stage
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to, holds_in
from poise.studies.kit.tables import record_table

F64 = torch.float64
EDGE = 2.0
EXPLODED = 1e3
"""Multiple of the first loss at which a run counts as exploded; from such weights a flow would take for ever."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    depths: tuple[int, ...] = (2, 3, 4, 5)
    nets_per_depth: int = 10
    scalar_steps: int = 3000
    regression_edges: tuple[float, ...] = (1.5, 2.2, 2.5)
    regression_steps: int = 1000
    network_edges: tuple[float, ...] = (1.6, 2.4, 2.8)
    network_steps: int = 160
    measure_every: int = 10


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(nets_per_depth=3, scalar_steps=200, regression_steps=60, network_edges=(2.4,), network_steps=40),
    "default": Plan(),
    "full": Plan(
        nets_per_depth=100, regression_edges=(1.5, 1.8, 2.2, 2.5, 2.8), network_edges=(1.6, 2.2, 2.4, 2.6, 2.8)
    ),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of gradient descent."""

    edge: float  # learning rate times sharpness of the gradient-flow solution at the start
    lr: float
    steps: np.ndarray  # steps at which the sharpness was measured
    gfs: np.ndarray  # sharpness of the gradient-flow solution there
    plain: np.ndarray  # sharpness of the weights themselves there
    loss: np.ndarray  # at every step
    evals: float = 0.0  # gradients that the flows took, on average; 0 where no flow was integrated
    euler: float = 0.0  # gradients that Euler's method with a tenth of the learning rate would take, on average
    at_rest: bool = True  # whether every flow came to rest
    exploded: bool = False  # whether the loss grew by a factor of 1000, where the run was stopped

    @property
    def largest_rise(self) -> float:
        """Largest relative rise of :attr:`gfs` between two measurements; infinite for a run that exploded."""
        return math.inf if self.exploded else rise(self.gfs)

    @property
    def loss_rises(self) -> bool:
        """Whether the loss rose in a step, rounding at the very end left out."""
        return rise(self.loss[self.loss > 1e-18]) > 1e-9

    @property
    def plain_rises(self) -> bool:
        """Whether the plain sharpness rose by more than the network's gate allows, or the run exploded."""
        return self.exploded or rise(self.plain) > 1e-4


def rise(values: np.ndarray) -> float:
    """Return the largest relative increase between neighbours, 0 if there is none."""
    return max(0.0, float((values[1:] / values[:-1] - 1.0).max(initial=0.0)))


# --- A: scalar networks ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScalarRuns:
    """Many scalar networks."""

    largest_rise: float  # largest relative rise of the GFS sharpness over all steps at which weights keep their signs
    left: int  # networks that a step took to another sign, where the closed form and the theorem end
    edges: np.ndarray  # learning rate times GFS sharpness at the start, shape (networks,)
    ends: np.ndarray  # the same at the end, NaN where the loss is not below 1e-10
    loss_rises: np.ndarray  # whether the loss rose in a step


def run_scalar(seed: int, depth: int, plan: Plan) -> ScalarRuns:
    """Run gradient descent on random scalar networks that start in the stable set."""
    w, lr = draw_scalar(depth, plan.nets_per_depth, torch.Generator().manual_seed(1000 * depth + seed))
    path = [w]
    for _ in range(plan.scalar_steps):
        w = w - lr[:, None] * ScalarNetwork(w).gradient()
        path.append(w)
    whole = torch.stack(path)
    kept = (whole > 0).all(-1).cummin(0).values
    # Where the signs are lost there is no closed form: such points count as balanced and are masked below.
    networks = ScalarNetwork(whole.where(kept[..., None], 1.0))
    gfs, loss = networks.gfs_sharpness(), networks.loss()
    rises = ((gfs[1:] / gfs[:-1] - 1.0) * kept[1:]).clamp(min=0)
    climbs = (loss[1:] > loss[:-1] * (1 + 1e-9)) & (loss[:-1] > 1e-18) & kept[1:]
    converged = kept[-1] & (loss[-1] < 1e-10)
    return ScalarRuns(
        largest_rise=float(rises.max()),
        left=int((~kept[-1]).sum()),
        edges=(lr * gfs[0]).numpy(),
        ends=(lr * gfs[-1]).where(converged, torch.nan).numpy(),
        loss_rises=climbs.any(0).numpy(),
    )


def draw_scalar(
    depth: int, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "count depth"], Float[Tensor, " count"]]:
    """Draw weights in [0.2, 2] and rates with lr * phi_0 in [1.5, 2.8], until enough start in the stable set."""
    nets: list[Tensor] = []
    rates: list[Tensor] = []
    while len(nets) < count:
        w = 0.2 + 1.8 * torch.rand(depth, generator=generator, dtype=F64)
        net = ScalarNetwork(w)
        lr = (1.5 + 1.3 * torch.rand((), generator=generator, dtype=F64)) / net.gfs_sharpness()
        if net.in_stable_set(float(lr)):
            nets.append(w)
            rates.append(lr)
    return torch.stack(nets), torch.stack(rates)


# --- B: squared regression ---------------------------------------------------------------------------------------


def draw_regression(seed: int) -> SquaredRegression:
    """Draw 4 Gaussian examples with 8 features, and weights around 0.6."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(4, 8, generator=g, dtype=F64), torch.randn(4, generator=g, dtype=F64)
    u, v = (0.6 + 0.2 * torch.randn(8, generator=g, dtype=F64) for _ in range(2))
    return SquaredRegression(u, v, x, y)


def run_regression(seed: int, edge: float, plan: Plan) -> Run:
    """Run gradient descent, with the sharpness at every step, until the loss is at rounding."""
    model = draw_regression(seed)
    lr = edge / float(model.gfs_sharpness())
    rows: list[tuple[float, float, float]] = []
    for _ in range(plan.regression_steps + 1):
        rows.append((float(model.gfs_sharpness()), float(model.sharpness()), float(model.loss())))
        if rows[-1][-1] < 1e-24:
            break
        model = model.gd_step(lr)
    gfs, plain, loss = np.array(rows).T
    return Run(edge, lr, np.arange(len(rows)), gfs, plain, loss)


# --- C: a network on digits --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TanhNetwork:
    """``f(x) = a . tanh(W x + b)`` with squared error / 2, as functions of the flat weights (W, b, a).

    The gradient is written out: inside the integrator it is several times faster than autograd on so small a network.
    """

    inputs: Float[Tensor, "n features"]
    targets: Float[Tensor, " n"]
    hidden: int = 10

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.hidden * (self.inputs.shape[1] + 2)

    def loss(self, w: Float[Tensor, " parameters"]) -> Float[Tensor, ""]:
        """Mean squared error / 2."""
        W, b, a = self._parts(w)
        return 0.5 * (torch.tanh(self.inputs @ W.T + b) @ a - self.targets).square().mean()

    def gradient(self, w: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        """Its gradient."""
        W, b, a = self._parts(w)
        h = torch.tanh(self.inputs @ W.T + b)
        residual = (h @ a - self.targets) / len(self.targets)
        inner = torch.outer(residual, a) * (1.0 - h * h)
        return torch.cat([(inner.T @ self.inputs).flatten(), inner.sum(0), residual @ h])

    def hessian(self, w: Float[Tensor, " parameters"]) -> Float[Tensor, "parameters parameters"]:
        """Its Hessian."""
        return torch.func.jacfwd(self.gradient)(w)

    def _parts(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        W, b, a = w.split([self.hidden * self.inputs.shape[1], self.hidden, self.hidden])
        return W.view(self.hidden, -1), b, a


def draw_network(seed: int) -> tuple[TanhNetwork, Float[Tensor, " parameters"]]:
    """Return the first 24 threes and eights in 8 principal components, and Gaussian weights of spread 0.5."""
    digits = load_digits()
    chosen = ((digits.targets == 3) | (digits.targets == 8)).nonzero()[:24, 0]
    images = digits.inputs[chosen].double().numpy()
    centred = images - images.mean(0)
    components = torch.from_numpy(centred @ np.linalg.svd(centred, full_matrices=False)[2][:8].T)
    targets = torch.where(digits.targets[chosen] == 3, 1.0, -1.0).double()
    network = TanhNetwork(components / components.std(correction=0), targets)
    return network, torch.from_numpy(np.random.default_rng(seed).normal(0.0, 0.5, network.size))


def run_network(seed: int, edge: float, plan: Plan) -> Run:
    """Run gradient descent, and now and then the flow to its end; stop where the loss has exploded."""
    network, w = draw_network(seed)
    lr, rows, loss, flows = 0.0, [], [], []
    for step in range(plan.network_steps + 1):
        loss.append(float(network.loss(w)))
        if not loss[-1] < EXPLODED * loss[0]:
            break
        if step % plan.measure_every == 0:
            flow = gradient_flow_limit(network.gradient, w, hess=network.hessian)
            top, own = (float(torch.linalg.eigvalsh(network.hessian(at))[-1]) for at in (flow.x, w))
            lr = lr or edge / top
            rows.append((step, top, own))
            flows.append(flow)
        w = w - lr * network.gradient(w)
    at, gfs, plain = np.array(rows).T
    return Run(
        *(edge, lr, at, gfs, plain, np.array(loss)),
        evals=float(np.mean([flow.n_evals for flow in flows])),
        euler=float(np.mean([flow.t / (0.1 * lr) for flow in flows])),
        at_rest=all(flow.converged for flow in flows),
        exploded=len(loss) <= plan.network_steps,
    )


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """All runs; those of the regression and of the network by seed and edge."""

    scalar: list[ScalarRuns]
    regression: Mapping[tuple[int, float], Run]
    network: Mapping[tuple[int, float], Run]

    @property
    def networks_beyond(self) -> list[Run]:
        """The networks that start beyond the edge of stability."""
        return [run for run in self.network.values() if run.edge > EDGE]


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the three parts."""
    plan = PLANS[budget]
    at = partial(stage, progress)
    scalar = run_each(lambda c: run_scalar(*c, plan), [*product(seeds, plan.depths)], at("scalar networks", 0, 0.1))
    starts = [*product(seeds, plan.regression_edges)], [*product(seeds, plan.network_edges)]
    regression = run_each(lambda c: run_regression(*c, plan), starts[0], at("squared regression", 0.1, 0.2))
    network = run_each(lambda c: run_network(*c, plan), starts[1], at("network", 0.2, 1))
    return Results(list(scalar.values()), regression, network)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "scalar",
    "In scalar networks no step of gradient descent raises the sharpness of the gradient-flow solution, up to "
    "2 sqrt(2) / lr.",
    paper="proved",
    protocol="Largest relative rise in a step.",
    reproduced=at_most("largest_rise", 1e-10),
    refuted=above("largest_rise", 1e-2),
    without_seeds="a theorem, which holds for every network up to rounding; the largest rise of all is judged.",
)
def scalar_networks(results: Results) -> Measured:
    runs = results.scalar
    largest, count = max(run.largest_rise for run in runs), sum(len(run.edges) for run in runs)
    left = sum(run.left for run in runs)
    words = f"largest relative rise {largest:.1e} in {count} networks; {left} left the signs they started with"
    return Measured(words, {"largest_rise": largest, "networks": count, "left": left})


@claim(
    "scalar-end",
    "Scalar networks that start beyond 2 / lr end just below it.",
    paper="proved, the gap left open",
    protocol="Runs whose loss ends below 1e-10: what fraction ends in [1.9, 2] / lr (inside), where the highest ends.",
    reproduced=at_least("inside", 0.9) & at_most("highest", EDGE),
    refuted=below("inside", 0.5),
    over_seeds=["inside"],
    unit="networks",
)
def scalar_end(results: Results) -> Measured:
    edges, ends = (np.concatenate([getattr(run, name) for run in results.scalar]) for name in ("edges", "ends"))
    ends = ends[(edges > EDGE) & np.isfinite(ends)]
    if not len(ends):
        return Measured("no network that started beyond the edge has converged")
    inside = (ends >= 1.9) & (ends <= EDGE)
    words = f"{inside.mean():.0%} of {len(ends)} networks, which end in [{ends.min():.3f}, {ends.max():.4f}]"
    numbers = {"inside": inside.mean(), "lowest": ends.min(), "highest": ends.max(), "networks": len(ends)}
    return Measured(words, numbers, {"inside": inside})


@claim(
    "regression",
    "The same holds for the squared regression model.",
    paper="shown in figures",
    protocol="Largest relative rise in a step: of all runs, and (rise) of the runs of a seed, mean over seeds.",
    reproduced=at_most("largest_rise", 1e-10) & at_most("rise", 1e-10),
    refuted=above("rise", 1e-2),
    over_seeds=["rise"],
)
def squared_regression(results: Results) -> Measured:
    rises = [max(own) for own in _by_seed(results.regression, lambda run: run.largest_rise).values()]
    words = f"largest relative rise {max(rises):.1e} in {len(results.regression)} runs"
    return Measured(words, {"largest_rise": max(rises), "rise": statistics.mean(rises)}, {"rise": rises})


def _by_seed(runs: Mapping[tuple[int, float], Run], value: Callable[[Run], float]) -> dict[int, list[float]]:
    """Return a number of the runs of each seed."""
    found: dict[int, list[float]] = {}
    for (seed, _), run in runs.items():
        found.setdefault(seed, []).append(value(run))
    return found


@claim(
    "network",
    "It falls steadily in networks on real data, where the plain sharpness does not.",
    paper="shown in figures",
    protocol="Starts in (2, 2.8] / lr, every tenth step. Largest relative rise, infinite for a run that explodes; "
    "plain share: fraction of runs in which the plain sharpness rises; at rest: 1 if all flows came to their ends. "
    "Falls: a run that rises by no more than 1e-4; rising share: fraction of a seed's runs that rise by more than "
    "1e-2, mean over seeds.",
    reproduced=at_most("largest_rise", 1e-4)
    & equal_to("plain_share", 1)
    & equal_to("at_rest", 1)
    & holds_in(equal_to("falls", 1), 0.9, unit="runs"),
    refuted=above("largest_rise", 1e-2) & above("rising_share", 0),
    over_seeds=["rising_share"],
)
def network_on_digits(results: Results) -> Measured:
    runs = results.networks_beyond
    largest = max(run.largest_rise for run in runs)
    risen, plain = sum(run.largest_rise > 1e-4 for run in runs), sum(run.plain_rises for run in runs)
    exploded, (low, high) = sum(run.exploded for run in runs), clopper_pearson(risen, len(runs))
    words = (
        f"it rises in {risen} of {len(runs)} runs [{low:.0%}, {high:.0%}], of which {exploded} explode, elsewhere by "
        f"at most {_largest_rise(runs)}; the plain sharpness rises in {plain}"
    )
    beyond = {key: run for key, run in results.network.items() if run.edge > EDGE}
    rising = [statistics.mean(own) for own in _by_seed(beyond, lambda run: run.largest_rise > 1e-2).values()]
    numbers = {
        "largest_rise": largest,
        "plain_share": plain / len(runs),
        "at_rest": all(run.at_rest for run in runs),
        "rising_share": statistics.mean(rising),
    }
    return Measured(words, numbers, {"falls": [run.largest_rise <= 1e-4 for run in runs], "rising_share": rising})


@claim(
    "others",
    "At the edge of stability neither the loss nor the sharpness is monotone.",
    paper="shown in figures",
    protocol="Starts beyond 2 / lr: fraction of runs in which the loss, and the plain sharpness, rises.",
    reproduced=at_least("loss_share", 0.9) & at_least("plain_share", 0.9),
    refuted=below("loss_share", 0.5) | below("plain_share", 0.5),
    over_seeds=["loss_share", "plain_share"],
    unit="runs",
)
def others(results: Results) -> Measured:
    scalar = np.concatenate([run.loss_rises[run.edges > EDGE] for run in results.scalar])
    trained = [run for run in results.regression.values() if run.edge > EDGE] + results.networks_beyond
    by_run = {
        "loss_share": [*map(bool, scalar), *(run.loss_rises for run in trained)],
        "plain_share": [run.plain_rises for run in trained],
    }
    (loss, total), (plain, others) = ((sum(own), len(own)) for own in by_run.values())
    words = f"the loss rises in {loss} of {total} runs, the plain sharpness in {plain} of {others}"
    return Measured(words, {name: statistics.mean(own) for name, own in by_run.items()}, by_run)


def _largest_rise(runs: Sequence[Run]) -> str:
    value = max((run.largest_rise for run in runs if not run.exploded), default=0.0)
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-4 else f"{value:.2%}"


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    runs, curve = results.networks_beyond, _network_figure(results.network)
    summary = (
        f"{len(runs)} runs of a network start beyond the edge of stability. {sum(run.exploded for run in runs)} "
        "explode; in the others the sharpness of the gradient-flow solution rises between two measurements by at most "
        f"{_largest_rise(runs)}, while the plain sharpness rises in "
        f"{sum(run.plain_rises for run in runs)} of all and the loss in {sum(run.loss_rises for run in runs)}."
    )
    return Presentation(
        summary,
        [
            curve,
            _loss_figure(results.network),
            _table("Network on digits", results.network),
            _table("Squared regression", results.regression),
            _notes(results.network.values()),
        ],
        curve.figure,
    )


def _network_figure(runs: Mapping[tuple[int, float], Run]) -> Figure:
    series = {}
    for edge, run in _first_seed(runs).items():
        series[f"solution, start {edge}"] = (run.steps, run.lr * run.gfs)
        if edge > EDGE:
            series[f"weights, start {edge}"] = (run.steps, run.lr * run.plain)
    title = "Sharpness of the flow's solution and of the weights"
    figure = line_chart(title, series, "step", "learning rate x sharpness")
    figure.figure.add_hline(y=EDGE, line_dash="dot", line_width=1, annotation_text="edge of stability")
    return figure


def _loss_figure(runs: Mapping[tuple[int, float], Run]) -> Figure:
    series = {f"start {edge}": (np.arange(len(run.loss)), run.loss) for edge, run in _first_seed(runs).items()}
    return line_chart("Loss in the same runs", series, "step", "mean squared error / 2", log_y=True)


def _first_seed(runs: Mapping[tuple[int, float], Run]) -> dict[float, Run]:
    first = next(iter(runs))[0]
    return {edge: run for (seed, edge), run in runs.items() if seed == first}


def _table(title: str, runs: Mapping[tuple[int, float], Run]) -> Table:
    rows = [
        {
            "Seed": seed,
            "lr x GFS sharpness, start": edge,
            "End": run.lr * run.gfs[-1],
            "Largest relative rise": "exploded" if run.exploded else run.largest_rise,
            "Largest lr x plain sharpness": run.lr * run.plain.max(),
            "Plain sharpness rises": "yes" if run.plain_rises else "no",
            "Loss rises": "yes" if run.loss_rises else "no",
        }
        for (seed, edge), run in runs.items()
    ]
    return record_table(title, rows, "GFS sharpness: that of the point where gradient flow from the weights ends.")


def _notes(runs: Collection[Run]) -> Text:
    evals, euler = np.mean([run.evals for run in runs]), np.mean([run.euler for run in runs])
    return Text(
        f"One gradient flow of the network takes {evals:,.0f} gradients by backward differentiation formulas; Euler's "
        f"method with a tenth of the learning rate would take {euler:,.0f}. In the scalar networks and the squared "
        "regression no flow is integrated, so that rises down to rounding would show. All in float64. The network has "
        "100 parameters and sees 24 images in 8 principal components; a seed draws its weights.",
        title="Set-up",
    )


STUDY = Study(
    slug="gfs-sharpness",
    title="Does gradient descent lower the sharpness of gradient-flow solutions?",
    room="dynamics",
    paper=Paper(
        "Gradient Descent Monotonically Decreases the Sharpness of Gradient Flow Solutions in Scalar Networks and "
        "Beyond",
        "Kreisler et al.",
        2023,
        "2305.13064",
    ),
    seeds={"tiny": 1, "default": 5, "full": 10},
    experiment=experiment,
    claims=(scalar_networks, scalar_end, squared_regression, network_on_digits, others),
    present=present,
)

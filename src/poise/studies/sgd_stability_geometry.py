"""Study of "A Precise Characterization of SGD Stability Using Loss Surface Geometry": coherence, and what is exact.

Three parts. Groups of copies, where the paper's bound is tight and the exact limit has a closed form. Random Hessians,
where its divergence theorem may not be violated. A tanh network on digits, trained until it fits every example, pushed
by a millionth and left to SGD at multiples of its exact limit: does it leave?
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from poise.data import load_digits
from poise.dynamics import SecondMomentOperator, sgd_lyapunov_exponent
from poise.dynamics.sgd_noise.coherence import coherence_of_gram
from poise.dynamics.sgd_noise.curvature_moments import curvature_moments
from poise.dynamics.sgd_noise.per_example_factors import PerExampleGram
from poise.evidence import clopper_pearson
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_each, stage
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to, holds_in
from poise.studies.kit.tables import record_table

FACTORS = (0.7, 0.95, 1.3, 2.0)
WIDTH, PUSH, ESCAPED = 30, 1e-6, 1e-6
_LESSON = "Mean square and typical behaviour"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    ensembles: int
    examples: int
    batch_sizes: tuple[int, ...]
    runs: int
    steps: int
    train_steps: int
    lyapunov_steps: int


PLANS: Mapping[Budget, Plan] = {
    "tiny": Plan(40, 20, (1, 20), 3, 300, 40_000, 200),
    "default": Plan(300, 60, (1, 4, 16, 60), 6, 1500, 40_000, 2000),
    "full": Plan(3000, 60, (1, 2, 4, 8, 16, 32, 60), 24, 5000, 40_000, 2000),
}


# --- groups of copies, and random Hessians -----------------------------------------------------------------------


def gram_of(factors: Float[Tensor, "n outputs parameters"]) -> PerExampleGram:
    """Return the products of all rows of some factors."""
    rows = factors.flatten(0, 1)
    return PerExampleGram(rows @ rows.mT, len(factors), len(factors))


def groups_of_copies(n: int, size: int, square: float = 2.0) -> Float[Tensor, "n 1 groups"]:
    """Return gradients of ``n / size`` orthogonal groups of ``size`` copies, each of squared length ``square``."""
    groups = torch.eye(n // size, dtype=torch.float64).repeat_interleave(size, 0)
    return square**0.5 * groups[:, None]


def tight_family_error(n: int = 12) -> float:
    """Return the largest relative distance of the exact limit from its closed form over the family."""
    errors = []
    for size in (1, 3, 4, 12):
        factors = groups_of_copies(n, size)
        found = coherence_of_gram(gram_of(factors))
        for batch_size in (1, 4):
            exact = SecondMomentOperator(factors, 1.0, batch_size, "bernoulli").critical_lr()
            closed = 2 * size / (2.0 * size / n * (size + n / batch_size - 1))
            errors += [abs(exact / closed - 1), abs(found.lr_coherence(batch_size) / closed - 1)]
    return max(errors)


def random_factors(rng: np.random.Generator) -> Float[Tensor, "n outputs parameters"]:
    """Return the factors of a few random Hessians of random rank in a few dimensions."""
    n, parameters = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    outputs = int(rng.integers(1, parameters + 1))
    return torch.from_numpy(rng.standard_normal((n, outputs, parameters)))


def divergence_violations(ensembles: int, seed: int) -> tuple[int, list[float]]:
    """Count random ensembles that are stable above the paper's bound; also exact over estimated limits."""
    rng = np.random.default_rng(seed)
    violations, ratios = 0, []
    for _ in range(ensembles):
        factors = random_factors(rng)
        batch_size = int(rng.integers(1, len(factors)))
        found = coherence_of_gram(gram_of(factors))
        exact = SecondMomentOperator(factors, 1.0, batch_size, "bernoulli").critical_lr()
        violations += exact > found.lr_divergence(batch_size) * (1 + 1e-9)
        ratios.append(exact / found.lr_coherence(batch_size))
    return violations, ratios


# --- a network on digits -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TanhNet:
    """Networks ``a . tanh(W x + b) + c`` with one flat vector of parameters each, and their data."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, " n"]

    @property
    def sizes(self) -> list[int]:
        """Sizes of W, b, a and c."""
        return [WIDTH * self.x.shape[1], WIDTH, WIDTH, 1]

    def initial(self, generator: torch.Generator) -> Float[Tensor, " P"]:
        """Return random weights, output weights large enough that gradient descent comes to rest soon."""
        scales = [self.x.shape[1] ** -0.5, 0.0, 0.4, 0.0]
        drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for size in self.sizes]
        return torch.cat([scale * part for scale, part in zip(scales, drawn, strict=True)])

    def residual_and_jacobian(
        self, theta: Float[Tensor, "runs P"]
    ) -> tuple[Float[Tensor, "runs n"], Float[Tensor, "runs n P"]]:
        """Return errors and output gradients of many networks at once."""
        hidden, a = self._hidden(theta)
        back = (1 - hidden.square()) * a[:, None]
        by_weight = (back.unsqueeze(-1) * self.x[:, None]).flatten(2)
        one = torch.ones(*hidden.shape[:2], 1, dtype=theta.dtype)
        return self._errors(theta, hidden, a), torch.cat([by_weight, back, hidden, one], dim=2)

    def gradient(self, theta: Float[Tensor, "runs P"], weights: Float[Tensor, "runs n"]) -> Float[Tensor, "runs P"]:
        """Return the gradients of ``sum_i weights_i (f_i - y_i)^2 / 2``."""
        hidden, a = self._hidden(theta)
        error = weights * self._errors(theta, hidden, a)
        back = error.unsqueeze(-1) * (1 - hidden.square()) * a[:, None]
        by_weight = (back.mT @ self.x).flatten(1)
        return torch.cat([by_weight, back.sum(1), (hidden.mT @ error.unsqueeze(-1))[..., 0], error.sum(1, True)], 1)

    def loss(self, theta: Float[Tensor, "runs P"]) -> Float[Tensor, " runs"]:
        """Return half the mean squared error."""
        return self._errors(theta, *self._hidden(theta)).square().mean(1) / 2

    def _hidden(self, theta: Tensor) -> tuple[Float[Tensor, "runs n width"], Float[Tensor, "runs width"]]:
        w, b, a, _ = theta.split(self.sizes, dim=1)
        return (self.x @ w.view(-1, WIDTH, self.x.shape[1]).mT + b[:, None]).tanh(), a

    def _errors(self, theta: Tensor, hidden: Tensor, a: Tensor) -> Float[Tensor, "runs n"]:
        return (hidden @ a.unsqueeze(-1))[..., 0] + theta[:, -1:] - self.y


def digits_of_two_kinds(n: int, generator: torch.Generator) -> TanhNet:
    """Return n digits 3, 5 (+1) and 8, 9 (-1), less the mean digit and of length 8."""
    data = load_digits()
    chosen = torch.isin(data.targets, torch.tensor([3, 5, 8, 9])).nonzero()[:, 0]
    x, y = data.inputs[chosen].double(), torch.where(data.targets[chosen] < 6, 1.0, -1.0).double()
    x = x - x.mean(0)
    drawn = torch.randperm(len(chosen), generator=generator)[:n]
    return TanhNet(8 * x[drawn] / x[drawn].norm(dim=1, keepdim=True), y[drawn])


def minimum(net: TanhNet, generator: torch.Generator, steps: int, lr: float = 0.02) -> Float[Tensor, " P"]:
    """Return weights at which gradient descent fits every example, to a loss of 1e-20.

    Raises:
        RuntimeError: if it does not within ``steps``.
    """
    theta = net.initial(generator)[None]
    full = torch.full((1, len(net.y)), 1 / len(net.y), dtype=torch.float64)
    for step in range(steps):
        theta = theta - lr * net.gradient(theta, full)
        if step % 100 == 99 and net.loss(theta).item() < 1e-20:
            return theta[0]
    raise RuntimeError(f"gradient descent reached a loss of {net.loss(theta).item():.1e} in {steps} steps, not 1e-20")


def escapes(
    net: TanhNet,
    at: Float[Tensor, " P"],
    lrs: Sequence[float],
    batch_size: int,
    runs: int,
    steps: int,
    generator: torch.Generator,
) -> list[int]:
    """Count the runs of SGD that leave the minimum, for each learning rate."""
    lr = torch.tensor(lrs, dtype=torch.float64).repeat_interleave(runs)[:, None]
    push = torch.randn(len(lr), len(at), generator=generator, dtype=torch.float64)
    theta = at + PUSH * push / push.norm(dim=1, keepdim=True)
    gone = torch.zeros(len(lr), dtype=torch.bool)
    for step in range(steps):
        drawn = torch.rand(len(lr), len(net.y), generator=generator).topk(batch_size, dim=1).indices
        weights = torch.zeros(len(lr), len(net.y), dtype=torch.float64).scatter_(1, drawn, 1 / batch_size)
        theta = theta - lr * net.gradient(theta, weights)
        if step % 50 == 49 or step == steps - 1:
            gone |= ~(net.loss(theta) <= ESCAPED)  # NaN is gone too
            theta = torch.where(gone[:, None], at, theta)  # what left stays counted and cannot overflow
    return gone.view(len(lrs), runs).sum(1).tolist()


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits at one minimum and batch size, and what runs did."""

    seed: int
    batch_size: int
    exact: float
    coherence: float
    moment: float
    trace: float
    gd: float
    sigma: float
    escaped: dict[float, int]
    lyapunov: dict[float, float]

    @property
    def off(self) -> float:
        """Factor between the coherence estimate and the exact limit, at least 1."""
        return max(self.coherence / self.exact, self.exact / self.coherence)


def _measure_net(seed: int, plan: Plan) -> list[Limits]:
    generator = torch.Generator().manual_seed(seed)
    net = digits_of_two_kinds(plan.examples, generator)
    at = minimum(net, generator, plan.train_steps)
    factors = net.residual_and_jacobian(at[None])[1][0][:, None]
    gram = gram_of(factors)
    found, moments = coherence_of_gram(gram), curvature_moments(gram)
    operator = SecondMomentOperator(factors, 1.0, 1)
    out = []
    for batch_size in plan.batch_sizes:
        exact = operator.at(batch_size=batch_size).critical_lr()
        estimates = found.lr_coherence(batch_size), moments.lr_bound(batch_size, "without"), 2 / moments.trace
        lrs = [factor * exact for factor in FACTORS]
        counts = escapes(net, at, lrs, batch_size, plan.runs, plan.steps, generator)
        noisy = [operator.at(lr=lr, batch_size=batch_size) for lr in lrs]
        exponents = [sgd_lyapunov_exponent(of, steps=plan.lyapunov_steps, generator=generator).value for of in noisy]
        escaped, lyapunov = dict(zip(FACTORS, counts, strict=True)), dict(zip(FACTORS, exponents, strict=True))
        out.append(Limits(seed, batch_size, exact, *estimates, found.lr_gd, found.sigma, escaped, lyapunov))
    return out


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """What came out."""

    plan: Plan  # what was run
    tight_error: float  # largest error of the tight family
    violations: int  # random ensembles that are stable above the paper's bound
    ratios: list[float]  # exact over estimated limits of all random ensembles
    limits: list[Limits]  # of every network and batch size, in the order of the seeds

    @property
    def single(self) -> list[Limits]:
        """The limits at batch size 1, one a seed."""
        return [limit for limit in self.limits if limit.batch_size == 1]

    @property
    def by_seed(self) -> list[list[Limits]]:
        """The limits of each seed's network, at all batch sizes."""
        return [list(of_seed) for _, of_seed in groupby(self.limits, attrgetter("seed"))]


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run all three parts."""
    plan, each = PLANS[budget], PLANS[budget].ensembles // len(seeds)
    random = run_each(lambda seed: divergence_violations(each, seed), seeds, stage(progress, "Hessians, seed", 0, 0.2))
    networks = run_each(lambda seed: _measure_net(seed, plan), seeds, stage(progress, "digits, seed", 0.2, 1))
    violations, ratios = sum(found for found, _ in random.values()), chain(*(ratios for _, ratios in random.values()))
    return Results(plan, tight_family_error(), violations, list(ratios), list(chain(*networks.values())))


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "tight",
    "For orthogonal groups of identical examples the coherence formula is the exact limit.",
    paper="near-optimality theorem",
    protocol="Relative distance of exact limit and formula from the closed form, the largest of all group and batch "
    "sizes.",
    reproduced=at_most("error", 1e-10),
    without_seeds="an identity, and nothing is drawn.",
)
def tight(results: Results) -> Measured:
    return Measured(f"largest relative error {results.tight_error:.1e}", {"error": results.tight_error})


@claim(
    "divergence",
    "Above min(2, sigma (n/B - 1)^-1/2) / sharpness SGD diverges in mean square.",
    paper="divergence theorem",
    protocol="Violations: random ensembles that are stable above it.",
    reproduced=equal_to("violations", 0),
    without_seeds="a theorem, which holds for every ensemble: one violation would refute it.",
)
def divergence(results: Results) -> Measured:
    violations, ensembles = results.violations, len(results.ratios)
    words = f"{violations} of {ensembles} random ensembles"
    return Measured(words, {"violations": violations, "ensembles": ensembles})


@claim(
    "mean-square",
    "A network at an interpolating minimum stays below its exact limit, and leaves above it at batch size 1.",
    paper="boundary seen on synthetic quadratics",
    protocol="Runs that leave at 0.95 of the limit or less, and at 0.7 (far below); fraction of a network's runs that "
    "leave at 1.3 times the limit and batch size 1, the least and the mean over networks (above). Stays: a run at 0.95 "
    "or less that does not leave; leaving: fraction of a network's runs at 0.7 that leave, mean over networks.",
    reproduced=equal_to("escaped_below", 0)
    & at_least("least_share_above", 5 / 6)
    & at_least("share_above", 5 / 6)
    & holds_in(equal_to("stays", 1), 0.9, unit="runs"),
    refuted=above("escaped_far_below", 0) & above("leaving", 0),
    over_seeds=["share_above", "leaving"],
)
def mean_square(results: Results) -> Measured:
    runs, limits = results.plan.runs, results.limits
    below_limit = sum(limit.escaped[f] for limit in limits for f in (0.7, 0.95))
    far_below = sum(limit.escaped[0.7] for limit in limits)
    single = [limit.escaped[1.3] / runs for limit in results.single]
    low, high = clopper_pearson(round(sum(single) * runs), len(single) * runs)
    words = (
        f"{below_limit} of {2 * len(limits) * runs} runs left at 0.95 of the exact limit or less; at 1.3 times and "
        f"batch size 1, {np.mean(single):.0%} [{low:.0%}, {high:.0%}] left"
    )
    leaving = [statistics.mean(limit.escaped[0.7] / runs for limit in of_seed) for of_seed in results.by_seed]
    numbers = {
        "escaped_below": below_limit,
        "escaped_far_below": far_below,
        "least_share_above": min(single),
        "share_above": statistics.mean(single),
        "leaving": statistics.mean(leaving),
    }
    stays = [i >= below_limit for i in range(2 * len(limits) * runs)]
    return Measured(words, numbers, {"stays": stays, "share_above": single, "leaving": leaving})


@claim(
    "coherence",
    "Coherence, sharpness, batch size and n suffice to estimate the limit.",
    paper="near-optimality theorem",
    protocol="Factor between the estimate and the exact limit, the worst of all networks and batch sizes, and (factor) "
    "the worst batch size of a network, mean over networks.",
    reproduced=at_most("worst_factor", 1.6) & at_most("factor", 1.6),
    refuted=above("factor", 3),
    over_seeds=["factor"],
)
def coherence(results: Results) -> Measured:
    factors = [max(limit.off for limit in of_seed) for of_seed in results.by_seed]
    words = f"within a factor of {max(factors):.2f} over {len(results.limits)} cases"
    return Measured(words, {"worst_factor": max(factors), "factor": statistics.mean(factors)}, {"factor": factors})


@claim(
    "gd",
    "The full-batch rule 2 / sharpness is far too permissive for small batches.",
    paper="motivation of the paper",
    protocol="Batch size 1. Factor by which 2 / sharpness (gd), 2 / trace and the coherence estimate miss the exact "
    "limit, means over networks.",
    reproduced=below("coherence", "gd") & below("coherence", "trace"),
    refuted=at_most("gd", "coherence"),
    over_seeds=["gd", "trace", "coherence"],
)
def gradient_descent_rule(results: Results) -> Measured:
    by_seed = np.array([[x.gd / x.exact, x.trace / x.exact, x.off] for x in results.single])
    gd, trace, off = by_seed.mean(0)
    words = (
        f"2/sharpness {gd:.1f} times too large, 2/trace {trace:.2f} times, coherence estimate off by {off:.2f} times"
    )
    names = ("gd", "trace", "coherence")
    numbers = dict(zip(names, by_seed.mean(0), strict=True))
    return Measured(f"{words}, at batch size 1", numbers, dict(zip(names, by_seed.T, strict=True)))


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    limits, plan = results.limits, results.plan
    figure = _figure(limits)
    overstated = np.mean([limit.gd / limit.exact for limit in results.single])
    summary = (
        f"At single-example batches 2 / sharpness overstates the learning rate that is stable in mean square "
        f"{overstated:.1f} times; the coherence estimate is off by a factor of at most "
        f"{max(limit.off for limit in limits):.2f} over all batch sizes. {claims['mean-square'].text}."
    )
    return Presentation(
        summary,
        [_lesson(limits, plan), figure, _limit_table(limits), _escape_table(limits, plan), _ratio_text(results.ratios)],
        figure.figure,
    )


def _lesson(limits: Sequence[Limits], plan: Plan) -> Text:
    above = [(limit, factor) for limit in limits for factor in FACTORS if factor > 1]
    returning = [(limit, factor) for limit, factor in above if limit.lyapunov[factor] < 0]
    words = (
        "The limits are of the mean square. Above them the average over runs explodes, which rare bad batches can do "
        "alone: whether a typical run leaves is decided by the sign of the Lyapunov exponent. Above the exact limit it "
        f"is negative in {len(returning)} of {len(above)} cases here"
    )
    if not returning:
        return Text(f"{words}: at these minima mean square and typical behaviour part nowhere.", _LESSON)
    stayed = sum(plan.runs - limit.escaped[factor] for limit, factor in returning)
    return Text(f"{words}, and in these {stayed} of {len(returning) * plan.runs} runs stayed.", _LESSON)


def _figure(limits: Sequence[Limits]) -> Figure:
    of = [limit for limit in limits if limit.seed == limits[0].seed]
    sizes = np.array([limit.batch_size for limit in of], dtype=float)
    names = {"exact": "exact", "coherence": "coherence estimate", "moment": "moment bound", "gd": "2 / sharpness"}
    curves = {label: (sizes, np.array([getattr(limit, name) for limit in of])) for name, label in names.items()}
    figure = line_chart("Limit of the learning rate over batch size", curves, "batch size", "learning rate", log_y=True)
    figure.figure.update_xaxes(type="log")
    return figure


def _limit_table(limits: Sequence[Limits]) -> Table:
    rows = [
        {
            "Network": x.seed,
            "Batch size": x.batch_size,
            "Exact": x.exact,
            "Coherence estimate": x.coherence,
            "Moment bound": x.moment,
            "2/trace": x.trace if x.batch_size == 1 else None,
            "2/sharpness": x.gd,
            "Sigma": x.sigma,
        }
        for x in limits
    ]
    caption = "Batches without replacement; the coherence estimate is of batches by independent coins."
    return record_table("Limits of the learning rate", rows, caption)


def _escape_table(limits: Sequence[Limits], plan: Plan) -> Table:
    rows = [[x.seed, x.batch_size, factor, x.escaped[factor], x.lyapunov[factor]] for x in limits for factor in FACTORS]
    columns = ["Network", "Batch size", "lr over exact limit", f"Left, of {plan.runs}", "Lyapunov exponent"]
    caption = (
        f"Pushed by {PUSH:g}, {plan.steps} steps; left: loss above {ESCAPED:g} at one of the checks, every 50 steps."
    )
    return Table("Who leaves", columns, rows, caption)


def _ratio_text(ratios: Sequence[float]) -> Text:
    low, median, high = np.quantile(ratios, [0, 0.5, 1])
    return Text(
        f"Over {len(ratios)} random ensembles the exact limit is {low:.3f} to {high:.3f} times the coherence estimate, "
        f"median {median:.3f}.",
        "How good the estimate is on random Hessians",
    )


STUDY = Study(
    slug="sgd-stability-geometry",
    title="Does the coherence of examples predict the largest stable learning rate of SGD?",
    room="dynamics",
    paper=Paper(
        "A Precise Characterization of SGD Stability Using Loss Surface Geometry", "Dexter et al.", 2024, "2401.12332"
    ),
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(tight, divergence, mean_square, coherence, gradient_descent_rule),
    present=present,
)

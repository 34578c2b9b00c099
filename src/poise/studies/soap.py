"""Study of "SOAP: Improving and Stabilizing Shampoo using Adam": steps, time and preconditioning frequency.

An autoencoder of real 8 x 8 digits stands in for the paper's language models of 210 to 660 million parameters. All runs
use linear warm-up over 10 % of the steps, then a cosine to 0; betas are 0.95, there is no decay, and each optimizer has
the best learning rate of the same grid. The loss is the mean squared error over all digits after the last step.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import gmean
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from poise.evidence import compare_paired
from poise.nn.mlp import seeded_mlp
from poise.optim import SOAP
from poise.preflight import SweepResult, lr_figure, sweep
from poise.report import Figure, Table, Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import above, all_or_none, at_least, at_most, below
from poise.studies.kit.seed_interval import Interval
from poise.studies.kit.tables import seed_chart

BETA = 0.95
FREQUENCIES = (1, 10, 100)
LARGE, SMALL = 512, 32
SHARES = (0.35, 0.5, 0.6, 0.75)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    steps: int
    lrs: tuple[float, ...]
    rounds: int
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(12, (1e-2, 3e-2), rounds=1, n_jobs=1),  # starting a second process takes longer than the runs
    "default": Plan(300, (1e-3, 3e-3, 1e-2, 3e-2), rounds=7),
    "full": Plan(1000, (1e-3, 3e-3, 1e-2, 3e-2), rounds=21),
}


# --- the optimizers ----------------------------------------------------------------------------------------------


class Shampoo(Optimizer):
    r"""Shampoo with exponent 1/2, trace correction and the step size of Adam: the baseline of the frequency claim.

    .. math:: W \leftarrow W - \eta \frac{\|A\|}{\|S\|} S, \qquad
        S = L^{-1/2} M R^{-1/2}

    with the averages :math:`M` of the gradient, :math:`L, R` of its Gram matrices, and Adam's update :math:`A`. The
    roots are taken anew every ``frequency`` steps. The trace is a factor, so it cancels against :math:`\|S\|`. Vectors
    follow Adam.
    """

    def __init__(self, params: Any, lr: float, frequency: int) -> None:
        super().__init__(params, {"lr": lr, "frequency": frequency})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not used."""
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * self._update(p, self.state[p], group["frequency"]))

    def _update(self, p: Tensor, state: dict[str, Any], frequency: int) -> Tensor:
        assert p.grad is not None
        grad = p.grad
        if not state:
            grams = [torch.zeros(n, n) for n in p.shape] if p.dim() == 2 else []
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p), grams=grams)
        state["step"] += 1
        correction = 1 - BETA ** state["step"]
        mean, square = state["mean"].lerp_(grad, 1 - BETA), state["square"].lerp_(grad**2, 1 - BETA)
        adam = mean / correction / ((square / correction).sqrt() + 1e-8)
        if not state["grams"]:
            return adam
        for gram, x in zip(state["grams"], (grad, grad.mT), strict=True):
            gram.lerp_(x @ x.mT, 1 - BETA)
        if (state["step"] - 1) % frequency == 0:
            state["roots"] = [_inverse_root(gram) for gram in state["grams"]]
        left, right = state["roots"]
        direction = left @ mean @ right
        return direction * (adam.norm() / direction.norm().clamp_min(1e-30))


def _inverse_root(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    values, vectors = torch.linalg.eigh(gram)
    floor = 1e-6 * values[-1].clamp_min(1e-30)  # rounding of float32 lies below
    return (vectors * values.clamp_min(floor).rsqrt()) @ vectors.mT


@dataclass(frozen=True, slots=True)
class Method:
    """An optimizer with everything but its learning rate."""

    name: str  # ``"AdamW"``, ``"SOAP"`` or ``"Shampoo"``
    frequency: int = 10  # steps between two refreshes of the preconditioner
    variant: str = ""  # of SOAP: ``"one-sided"``, rotates one side only; ``"factored"``, of the second moment

    @property
    def label(self) -> str:
        """Name in figures and tables."""
        frequency = "" if self.name == "AdamW" else f", every {self.frequency}"
        return f"{self.name}{frequency}{', ' if self.variant else ''}{self.variant}"

    def optimizer(self, params: Any, lr: float) -> Optimizer:
        """Return the optimizer of these parameters."""
        if self.name == "AdamW":
            return AdamW(params, lr, (BETA, BETA), weight_decay=0.0, foreach=True)
        if self.name == "Shampoo":
            return Shampoo(params, lr, self.frequency)
        sides = {"one_sided": self.variant == "one-sided", "factored": self.variant == "factored"}
        options: dict[str, Any] = {"precondition_frequency": self.frequency, "null_space": "reference", **sides}
        return SOAP(params, lr, (BETA, BETA), weight_decay=0.0, **options)


ADAMW, SOAP_10 = Method("AdamW"), Method("SOAP")
ONE_SIDED, FACTORED = Method("SOAP", variant="one-sided"), Method("SOAP", variant="factored")
TUNED = (ADAMW, *(Method(name, f) for name in ("SOAP", "Shampoo") for f in FREQUENCIES))
# By batch size, the methods that are tuned and those that take SOAP's learning rate.
METHODS = {LARGE: (TUNED, (ONE_SIDED, FACTORED)), SMALL: ((ADAMW, SOAP_10), ())}


# --- one run -----------------------------------------------------------------------------------------------------


class Training:
    """A run, one step at a time."""

    def __init__(self, method: Method, batch: int, steps: int, lr: float, seed: int) -> None:
        self.model = seeded_mlp((64, 64, 32, 8, 32, 64, 64), seed)
        self.model[5] = nn.Identity()  # the code is linear
        self.optimizer = method.optimizer(self.model.parameters(), lr)
        self.schedule = LambdaLR(self.optimizer, partial(_shape, steps=steps))
        generator = torch.Generator().manual_seed(seed)
        self.digits = digits(train=1797, scale="unit").x
        self.batches = iter(torch.randint(len(self.digits), (steps, batch), generator=generator))

    def step(self) -> None:
        """Train on the next batch."""
        x = self.digits[next(self.batches)]
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(x), x).backward()
        self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def loss(self) -> float:
        """Return the mean squared error over all digits."""
        return nn.functional.mse_loss(self.model(self.digits), self.digits).item()


def _shape(step: int, steps: int) -> float:
    """The schedule as a fraction of the peak: linear warm-up, then cosine to 0."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / (steps - warm_up))))


def train(method: Method, batch: int, steps: int, lr: float, seed: int) -> dict[str, float]:
    """Train one autoencoder on one thread."""
    with one_thread():
        training = Training(method, batch, steps, lr, seed)
        start = training.loss()
        for _ in range(steps):
            training.step()
        return {"loss": training.loss(), "init_loss": start}


def step_time_ratio(batch: int, rounds: int, steps: int = 40) -> float:
    """Return CPU time of a whole training step with SOAP over that with AdamW: median over rounds in turn.

    Args:
        batch: batch size.
        rounds: how often both are measured.
        steps: steps of a measurement; a multiple of the frequency, so that refreshes count in full.
    """
    with one_thread():
        pairs = [[_seconds(method, batch, steps) for method in (ADAMW, SOAP_10)] for _ in range(rounds)]
    return statistics.median(soap / adamw for adamw, soap in pairs)


def _seconds(method: Method, batch: int, steps: int) -> float:
    training = Training(method, batch, steps + 1, 1e-3, seed=0)
    training.step()  # makes the state
    start = time.process_time()
    for _ in range(steps):
        training.step()
    return time.process_time() - start


# --- the experiment ----------------------------------------------------------------------------------------------

Losses = Float[np.ndarray, " seeds"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What came out for one batch size."""

    batch: int  # batch size
    tuned: Mapping[Method, SweepResult]  # every tuned method's sweep over learning rates
    runs: Mapping[tuple[Method, float], Losses]  # by method and fraction of the steps, at SOAP's rate
    time_ratio: float  # CPU time of a step with SOAP over that with AdamW

    def best(self, method: Method) -> Losses:
        """Return a method's losses at its best learning rate."""
        return _best(self.tuned[method])

    def ratios(self, share: float) -> Losses:
        """Return the ratio of SOAP's loss with a fraction of the steps to AdamW's with all, for each seed."""
        return self.runs[SOAP_10, share] / self.best(ADAMW)

    @property
    def share_needed(self) -> float:
        """Smallest fraction of the steps with which SOAP is no worse than AdamW on every seed; infinite if none is."""
        return _share_needed(np.stack([self.ratios(share) for share in SHARES], 1))

    def wall_ratio(self) -> tuple[float, Interval]:
        """Return the time to AdamW's loss, as a fraction of AdamW's, and its interval over seeds."""
        by_seed = np.stack([self.ratios(share) for share in SHARES], 1)
        return bootstrap_over_seeds(lambda own: self.time_ratio * _share_needed(own), by_seed, positive=True)


@dataclass(frozen=True, slots=True)
class Results:
    """Both batch sizes."""

    plan: Plan
    large: Problem
    small: Problem


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run both batch sizes."""
    plan = PLANS[budget]
    large = solve(LARGE, plan, seeds, part_of(progress, 0, 0.75))
    return Results(plan, large, solve(SMALL, plan, seeds, part_of(progress, 0.75, 1)))


def solve(batch: int, plan: Plan, seeds: Sequence[int], progress: Progress) -> Problem:
    """Run everything for one batch size."""
    tuned, variants = METHODS[batch]

    def run(method: Method, share: float, lrs: Sequence[float]) -> SweepResult:
        job = partial(train, method, batch, round(share * plan.steps))
        return sweep(job, lrs, None, seeds, plan.n_jobs, progress=False)

    sweeps = run_each(
        lambda method: run(method, 1.0, plan.lrs), tuned, part_of(progress, 0, 0.8), name=attrgetter("label")
    )
    lr = [sweeps[SOAP_10].curve().best_lr]
    cells = [(method, 1.0) for method in variants] + [(SOAP_10, share) for share in SHARES]
    runs = run_each(
        lambda cell: _best(run(*cell, lr)),
        cells,
        part_of(progress, 0.8, 1),
        name="{0[0].label}, {0[1]} of the steps".format,
    )
    return Problem(batch, sweeps, runs, step_time_ratio(batch, plan.rounds))


def _share_needed(ratios: Float[np.ndarray, "seeds shares"]) -> float:
    """Return the smallest fraction of the steps at which no seed has a ratio above 1; infinite if there is none."""
    return min((share for share, own in zip(SHARES, ratios.T, strict=True) if (own <= 1).all()), default=math.inf)


def _best(result: SweepResult) -> Losses:
    curve = result.curve()
    return curve.effective_losses[result.lrs.index(curve.best_lr)]


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "fewer-steps",
    "SOAP needs at least 40 % fewer steps than AdamW at a large batch.",
    paper="at least 40 % fewer at a batch of 2 million tokens",
    protocol="SOAP's loss with 60 % and with 75 % of the steps, on schedules of their own, over AdamW's with all: on "
    "the worst seed, and the mean over seeds.",
    reproduced=at_most("worst", 1, "worst ratio with 60 %") & at_most("ratio", 1, "mean ratio with 60 %"),
    refuted=above("ratio", 1, "mean ratio with 60 %") & above("ratio_at_most", 1, "mean ratio with 75 %"),
    over_seeds=["ratio", "ratio_at_most"],
)
def fewer_steps(results: Results) -> Measured:
    return _measure_steps(results.large, 0.6)


@claim(
    "small-batch",
    "At a small batch SOAP still needs a quarter fewer steps.",
    paper="25 % fewer at a batch of 256 thousand tokens",
    protocol="Batch 32. SOAP's loss with 75 % of the steps, on a schedule of their own, over AdamW's with all: on the "
    "worst seed, and the mean over seeds.",
    reproduced=at_most("worst", 1, "worst ratio") & at_most("ratio", 1, "mean ratio"),
    over_seeds=["ratio"],
)
def small_batch(results: Results) -> Measured:
    return _measure_steps(results.small, 0.75)


def _measure_steps(problem: Problem, claimed: float) -> Measured:
    adamw, soap = problem.best(ADAMW), problem.runs[SOAP_10, claimed]
    paired = compare_paired(adamw, soap)
    low, high = paired.interval
    ratios, at_most_three_quarters = problem.ratios(claimed), problem.ratios(0.75)
    words = (
        f"with {claimed:.0%} of the steps SOAP ends at {soap.mean():.5f}, AdamW with all at {adamw.mean():.5f} "
        f"(difference {paired.difference:.5f}, 95 % interval {low:.5f} to {high:.5f}); on the worst seed the ratio "
        f"is {ratios.max():.2f}. The smallest share tried that suffices is "
        f"{_percent(problem.share_needed)}"
    )
    by_seed = {"ratio": ratios, "ratio_at_most": at_most_three_quarters}
    numbers = {"worst": ratios.max(), "worst_at_most": at_most_three_quarters.max()}
    return Measured(words, {**numbers, **{name: own.mean() for name, own in by_seed.items()}}, by_seed)


def _over(losses: Losses, base: Losses) -> tuple[float, Interval]:
    """Return the mean of losses over that of others, and its interval over seeds."""
    return bootstrap_over_seeds(lambda a, b: a.mean() / b.mean(), losses, base, positive=True)


@claim(
    "every-frequency",
    "SOAP beats AdamW however often its bases are refreshed.",
    paper="at every frequency from 1 to 100",
    protocol="Mean loss over AdamW's at 1, 10 and 100 steps between refreshes.",
    rule=all_or_none(
        *(below(f"ratio_{f}", 1, f"ratio at {f}") for f in FREQUENCIES), over_seeds=[f"ratio_{f}" for f in FREQUENCIES]
    ),
)
def every_frequency(results: Results) -> Measured:
    adamw = results.large.best(ADAMW)
    found = {f: _over(results.large.best(Method("SOAP", f)), adamw) for f in FREQUENCIES}
    words = ", ".join(f"{ratio:.2f} when refreshed every {f}" for f, (ratio, _) in found.items())
    numbers = {f"ratio_{f}": ratio for f, (ratio, _) in found.items()}
    intervals = {f"ratio_{f}": interval for f, (_, interval) in found.items()}
    return Measured(f"SOAP's loss over AdamW's: {words}", numbers, intervals=intervals)


@claim(
    "stale-basis",
    "Refreshing the bases less often costs some of the gain.",
    paper="loss grows slowly with the frequency number (figure only)",
    protocol="Ratio of the loss every 100 steps to that every 10, and the probability that it is worse.",
    reproduced=above("ratio", 1) & at_least("p_worse", 0.975, "P(worse)"),
    refuted=at_most("ratio", 1),
    over_seeds=["ratio"],
)
def stale_basis(results: Results) -> Measured:
    often, seldom = (results.large.best(Method("SOAP", f)) for f in (10, 100))
    (ratio, interval), p_worse = _over(seldom, often), compare_paired(seldom, often).p_better
    words = f"loss {often.mean():.5f} every 10 steps, {seldom.mean():.5f} every 100: a ratio of {ratio:.2f}"
    numbers = {"ratio": ratio, "p_worse": p_worse}
    return Measured(f"{words}, P(worse) = {p_worse:.3f}", numbers, intervals={"ratio": interval})


@claim(
    "slower-decline",
    "With rarer refreshes SOAP declines much more slowly than Shampoo.",
    paper="Shampoo falls behind from 10 steps on (figure only)",
    protocol="Growth of the loss from every step to every 100 steps, the probability that SOAP's is smaller, and the "
    "growth with Shampoo over that with SOAP (slower), all geometric means over seeds.",
    reproduced=above("shampoo", "soap") & above("slower", 1) & at_least("p_less", 0.975, "P(less)"),
    refuted=at_most("slower", 1),
    over_seeds=["slower"],
)
def slower_decline(results: Results) -> Measured:
    best = results.large.best
    declines = {name: best(Method(name, 100)) / best(Method(name, 1)) for name in ("SOAP", "Shampoo")}
    p_less = compare_paired(np.log(declines["Shampoo"]), np.log(declines["SOAP"])).p_better
    soap, shampoo = (float(gmean(declines[name])) for name in ("SOAP", "Shampoo"))
    slower, interval = bootstrap_over_seeds(gmean, declines["Shampoo"] / declines["SOAP"], positive=True)
    words = (
        f"from every step to every 100 steps the loss grows {soap:.2f} times with SOAP, {shampoo:.2f} times with "
        f"Shampoo (P(less with SOAP) = {p_less:.3f})"
    )
    numbers = {"soap": soap, "shampoo": shampoo, "p_less": p_less, "slower": slower}
    return Measured(words, numbers, intervals={"slower": interval})


@claim(
    "variants",
    "One-sided and factored SOAP still beat AdamW.",
    paper="a slight loss against full SOAP",
    protocol="Mean loss over AdamW's.",
    rule=all_or_none(below("one_sided", 1, "one-sided"), below("factored", 1), over_seeds=["one_sided", "factored"]),
)
def variants(results: Results) -> Measured:
    adamw, large = results.large.best(ADAMW), results.large
    full = float(large.best(SOAP_10).mean() / adamw.mean())
    found = {
        name: _over(large.runs[method, 1.0], adamw)
        for name, method in (("one_sided", ONE_SIDED), ("factored", FACTORED))
    }
    numbers = {name: ratio for name, (ratio, _) in found.items()}
    words = "loss over AdamW's: {:.2f} in full, {:.2f} one-sided, {:.2f} factored".format(full, *numbers.values())
    intervals = {name: interval for name, (_, interval) in found.items()}
    return Measured(words, {"full": full, **numbers}, intervals=intervals)


@claim(
    "wall-time",
    "SOAP reaches AdamW's loss in less time.",
    paper="at least 35 % less",
    protocol="Time of a step times the fraction of the steps that is needed, over AdamW's, at the large and at the "
    "small batch.",
    reproduced=at_most("large", 0.65) | at_most("small", 0.65),
    refuted=at_least("large", 1) & at_least("small", 1),
    over_seeds=["large", "small"],
)
def wall_time(results: Results) -> Measured:
    problems = {"large": results.large, "small": results.small}
    found = {name: problem.wall_ratio() for name, problem in problems.items()}
    words = "; ".join(
        f"batch {p.batch}: {_percent(p.share_needed)} of the steps, each {p.time_ratio:.2f} times as long, is "
        f"{found[name][0]:.2f} of AdamW's time"
        for name, p in problems.items()
    )
    numbers = {name: ratio for name, (ratio, _) in found.items()}
    return Measured(words, numbers, intervals={name: interval for name, (_, interval) in found.items()})


def _percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else f"more than {max(SHARES):.0%}"


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, table and summary together."""
    large, small = results.large, results.small
    picture = _frequency_figure(large)
    sweeps = {method.label: large.tuned[method].curve() for method in TUNED if method.frequency == 10}
    summary = (
        f"On the digits autoencoder SOAP reaches AdamW's final loss with {_percent(large.share_needed)} of the steps "
        f"at batch {LARGE} and {_percent(small.share_needed)} at batch {SMALL}. A step takes {large.time_ratio:.2f} "
        f"and {small.time_ratio:.2f} times as much CPU time, so the time to the same loss is "
        f"{large.wall_ratio()[0]:.2f} and {small.wall_ratio()[0]:.2f} times AdamW's."
    )
    return Presentation(
        summary,
        [
            picture,
            _shares_figure(large, small),
            lr_figure(sweeps, "Final loss over learning rate, batch 512"),
            _runs_table(large, small),
            _notes(results.plan),
        ],
        picture.figure,
    )


def _frequency_figure(problem: Problem) -> Figure:
    curves: dict[str, Any] = {
        name: (FREQUENCIES, np.stack([problem.best(Method(name, f)) for f in FREQUENCIES], 1))
        for name in ("SOAP", "Shampoo")
    }
    curves["AdamW"] = ([FREQUENCIES[0], FREQUENCIES[-1]], np.full((1, 2), problem.best(ADAMW).mean()))
    title = "Final loss over the steps between two refreshes"
    figure = seed_chart(title, curves, "steps between refreshes", "mean squared error")
    figure.figure.update_xaxes(type="log")
    return figure


def _shares_figure(*problems: Problem) -> Figure:
    curves = {}
    for problem in problems:
        losses = [*(problem.runs[SOAP_10, share] for share in SHARES), problem.best(SOAP_10)]
        curves[f"batch {problem.batch}"] = ([*SHARES, 1.0], np.stack(losses, 1) / problem.best(ADAMW)[:, None])
    title = "SOAP with fewer steps against AdamW with all"
    figure = seed_chart(title, curves, "share of AdamW's steps", "loss over AdamW's final loss")
    figure.figure.add_hline(y=1, line_dash="dot", line_width=1)
    return figure


def _runs_table(*problems: Problem) -> Table:
    rows: list[list[object]] = []
    for problem in problems:
        lr = problem.tuned[SOAP_10].curve().best_lr
        runs = [(method.label, 1.0, of.curve().best_lr, _best(of)) for method, of in problem.tuned.items()]
        for (method, share), losses in problem.runs.items():
            runs.append((method.label if share == 1 else f"{method.label}, fewer steps", share, lr, losses))
        rows += [[problem.batch, *run, losses.mean(), losses.min(), losses.max()] for *run, losses in runs]
    columns = ["Batch", "Optimizer", "Share of steps", "Learning rate", "Loss", "Lowest seed", "Highest seed"]
    return Table("Runs", columns, rows, "The best learning rate of each; variants and shorter runs take SOAP's.")


def _notes(plan: Plan) -> Text:
    return Text(
        f"Autoencoder 64-64-32-8-32-64-64 of the 1797 digits, tanh, {plan.steps} steps. Learning rates "
        f"{', '.join(f'{lr:g}' for lr in plan.lrs)}. Shampoo takes the exponent 1/2 and Adam's step size, and "
        "eigenvalues below a millionth of the largest count as that. SOAP runs as the paper's code does "
        "(null_space='reference'). Time is CPU time of whole training steps on one thread, forward and backward "
        "passes included; on an accelerator and at larger widths both sides change.",
        title="Set-up",
    )


STUDY = Study(
    slug="soap",
    title="Does Adam in Shampoo's eigenbasis need fewer steps than AdamW?",
    room="optim",
    paper=Paper("SOAP: Improving and Stabilizing Shampoo using Adam", "Vyas et al.", 2024, "2409.11321"),
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(fewer_steps, small_batch, every_frequency, stale_basis, slower_decline, variants, wall_time),
    present=present,
)

"""Study of "SOAP: Improving and Stabilizing Shampoo using Adam": steps, time and preconditioning frequency.

An autoencoder of real 8 x 8 digits stands in for the paper's language models of 210 to 660 million parameters. All runs
use linear warm-up over 10 % of the steps, then a cosine to 0; betas are 0.95, there is no decay, and each optimizer has
the best learning rate of the same grid. The loss is the mean squared error over all digits after the last step.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from poise.data import load_digits
from poise.evidence import compare_paired
from poise.optim import SOAP
from poise.preflight import SweepResult, lr_figure, sweep
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit.networks import mlp
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

BETA = 0.95
FREQUENCIES = (1, 10, 100)
LARGE, SMALL = 512, 32
SHARES = (0.35, 0.5, 0.6, 0.75)


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
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p), grams=[], roots=[])
            state["grams"] = [torch.zeros(n, n) for n in p.shape] if p.dim() == 2 else []
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
    """An optimizer with everything but its learning rate.

    Args:
        name: ``"AdamW"``, ``"SOAP"`` or ``"Shampoo"``.
        frequency: steps between two refreshes of the preconditioner.
        one_sided: SOAP's variant that rotates one side only.
        factored: SOAP's variant with a factored second moment.
    """

    name: str
    frequency: int = 10
    one_sided: bool = False
    factored: bool = False

    @property
    def label(self) -> str:
        """Name in figures and tables."""
        words = ["one-sided"] * self.one_sided + ["factored"] * self.factored
        frequency = [] if self.name == "AdamW" else [f"every {self.frequency}"]
        return ", ".join([self.name, *frequency, *words])

    def optimizer(self, params: Any, lr: float) -> Optimizer:
        """Return the optimizer of these parameters."""
        if self.name == "AdamW":
            return torch.optim.AdamW(params, lr, (BETA, BETA), weight_decay=0.0, foreach=True)
        if self.name == "Shampoo":
            return Shampoo(params, lr, self.frequency)
        return SOAP(
            params,
            lr,
            (BETA, BETA),
            weight_decay=0.0,
            precondition_frequency=self.frequency,
            one_sided=self.one_sided,
            factored=self.factored,
            null_space="reference",
        )


ADAMW, SOAP_10 = Method("AdamW"), Method("SOAP")
ONE_SIDED, FACTORED = Method("SOAP", one_sided=True), Method("SOAP", factored=True)
TUNED = (ADAMW, *(Method(name, f) for name in ("SOAP", "Shampoo") for f in FREQUENCIES))


# --- one run -----------------------------------------------------------------------------------------------------


class Training:
    """A run, one step at a time; uses torch's global generator only while it is made."""

    def __init__(self, method: Method, batch: int, steps: int, lr: float, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = nn.Sequential(mlp((64, 64, 32, 8)), mlp((8, 32, 64, 64)))  # the code between them is linear
        self.optimizer = method.optimizer(self.model.parameters(), lr)
        self.schedule = LambdaLR(self.optimizer, partial(_shape, steps=steps))
        generator = torch.Generator().manual_seed(seed)
        self.batches = iter(torch.randint(len(digits()), (steps, batch), generator=generator))

    def step(self) -> None:
        """Train on the next batch."""
        x = digits()[next(self.batches)]
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(x), x).backward()
        self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def loss(self) -> float:
        """Return the mean squared error over all digits."""
        return nn.functional.mse_loss(self.model(digits()), digits()).item()


@cache
def digits() -> Float[Tensor, "images 64"]:
    """Load the images once per process, with pixels from 0 to 1."""
    return load_digits().inputs / 16


def _shape(step: int, steps: int) -> float:
    """The schedule as a share of the peak: linear warm-up, then cosine to 0."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / (steps - warm_up))))


def train(method: Method, batch: int, steps: int, lr: float, seed: int) -> dict[str, float]:
    """Train one autoencoder on one thread."""
    with _one_thread():
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
    with _one_thread():
        ratios = []
        for _ in range(rounds):
            adamw, soap = (_seconds(method, batch, steps) for method in (ADAMW, SOAP_10))
            ratios.append(soap / adamw)
    return statistics.median(ratios)


def _seconds(method: Method, batch: int, steps: int) -> float:
    training = Training(method, batch, steps + 1, 1e-3, seed=0)
    training.step()  # makes the state
    start = time.process_time()
    for _ in range(steps):
        training.step()
    return time.process_time() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    # Tensors this small gain nothing from threads, and the sweep runs a process per core.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the experiment ----------------------------------------------------------------------------------------------


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

Losses = Float[np.ndarray, " seeds"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What came out for one batch size.

    Args:
        batch: batch size.
        tuned: every tuned method's sweep over learning rates, by label.
        variants: losses of SOAP's variants at SOAP's learning rate, by label.
        shares: losses of SOAP with a share of AdamW's steps, by share.
        time_ratio: CPU time of a step with SOAP over that with AdamW.
    """

    batch: int
    tuned: Mapping[str, SweepResult]
    variants: Mapping[str, Losses]
    shares: Mapping[float, Losses]
    time_ratio: float

    def best(self, method: Method) -> Losses:
        """Return a method's losses at its best learning rate."""
        return _best(self.tuned[method.label])

    def worst_ratio(self, share: float) -> float:
        """Return the largest ratio over seeds of SOAP's loss with a share of the steps to AdamW's with all."""
        return float((self.shares[share] / self.best(ADAMW)).max())

    @property
    def share_needed(self) -> float:
        """Smallest share of the steps with which SOAP is no worse than AdamW on every seed; infinite if none is."""
        return min((s for s in self.shares if self.worst_ratio(s) <= 1), default=math.inf)

    @property
    def wall_ratio(self) -> float:
        """Time to AdamW's loss, as a share of AdamW's."""
        return self.share_needed * self.time_ratio


class Laboratory:
    """Runs sweeps and reports how much is done."""

    def __init__(self, plan: Plan, seeds: Sequence[int], progress: Progress, total_steps: float) -> None:
        self.plan, self.seeds, self.progress = plan, seeds, progress
        self.total, self.done = total_steps * len(seeds), 0.0

    def run(self, method: Method, batch: int, share: float = 1.0, lrs: Sequence[float] | None = None) -> SweepResult:
        """Train at each learning rate and seed with a share of the plan's steps."""
        steps = round(share * self.plan.steps)

        def tick(*_: object) -> None:
            self.done += steps
            self.progress(min(1.0, self.done / self.total), f"{method.label}, batch {batch}, {steps} steps")

        job = partial(train, method, batch, steps)
        return sweep(job, lrs or self.plan.lrs, None, self.seeds, self.plan.n_jobs, tick)

    def problem(self, batch: int, tuned: Sequence[Method], variants: Sequence[Method]) -> Problem:
        """Run everything for one batch size."""
        sweeps = {method.label: self.run(method, batch) for method in tuned}
        lr = [sweeps[SOAP_10.label].curve().best_lr]
        return Problem(
            batch,
            sweeps,
            {method.label: _best(self.run(method, batch, lrs=lr)) for method in variants},
            {share: _best(self.run(SOAP_10, batch, share, lr)) for share in SHARES},
            step_time_ratio(batch, self.plan.rounds),
        )


def _best(result: SweepResult) -> Losses:
    curve = result.curve()
    return curve.effective_losses[result.lrs.index(curve.best_lr)]


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the experiment and put what came out beside the claims."""
    plan = PLANS[budget]
    total = plan.steps * (len(plan.lrs) * (len(TUNED) + 2) + 2 + 2 * sum(SHARES))
    laboratory = Laboratory(plan, seeds, progress, total)
    large = laboratory.problem(LARGE, TUNED, (ONE_SIDED, FACTORED))
    small = laboratory.problem(SMALL, (ADAMW, SOAP_10), ())
    claims = {
        "fewer-steps": _measure_steps(large, 0.6, 0.75),
        "small-batch": _measure_steps(small, 0.75, 0.75),
        "every-frequency": _measure_frequencies(large),
        "stale-basis": _measure_stale(large),
        "slower-decline": _measure_decline(large),
        "variants": _measure_variants(large),
        "wall-time": _measure_time(large, small),
    }
    picture = _frequency_figure(large)
    sweeps = {method.label: large.tuned[method.label].curve() for method in TUNED if method.frequency == 10}
    blocks: list[Text | Table | Figure] = [
        picture,
        _shares_figure(large, small),
        lr_figure(sweeps, "Final loss over learning rate, batch 512"),
        _runs_table(large, small),
        _notes(plan),
    ]
    summary = (
        f"On the digits autoencoder SOAP reaches AdamW's final loss with {_percent(large.share_needed)} of the steps "
        f"at batch {LARGE} and {_percent(small.share_needed)} at batch {SMALL}. A step takes {large.time_ratio:.2f} "
        f"and {small.time_ratio:.2f} times as much CPU time, so the time to the same loss is "
        f"{large.wall_ratio:.2f} and {small.wall_ratio:.2f} times AdamW's."
    )
    return Measurement(claims, summary, blocks, picture.figure)


def _measure_steps(problem: Problem, claimed: float, most: float) -> Measured:
    adamw, soap = problem.best(ADAMW), problem.shares[claimed]
    paired = compare_paired(adamw, soap)
    low, high = paired.interval
    ours = (
        f"with {claimed:.0%} of the steps SOAP ends at {soap.mean():.5f}, AdamW with all at {adamw.mean():.5f} "
        f"(difference {paired.difference:.5f}, 95 % interval {low:.5f} to {high:.5f}); on the worst seed the ratio "
        f"is {problem.worst_ratio(claimed):.2f}. The smallest share tried that suffices is "
        f"{_percent(problem.share_needed)}"
    )
    return Measured(ours, {"worst": problem.worst_ratio(claimed), "worst_at_most": problem.worst_ratio(most)})


def _measure_frequencies(problem: Problem) -> Measured:
    adamw = problem.best(ADAMW).mean()
    ratios = {f: float(problem.best(Method("SOAP", f)).mean() / adamw) for f in FREQUENCIES}
    words = ", ".join(f"{ratio:.2f} when refreshed every {f}" for f, ratio in ratios.items())
    return Measured(f"SOAP's loss over AdamW's: {words}", {f"ratio_{f}": ratio for f, ratio in ratios.items()})


def _measure_stale(problem: Problem) -> Measured:
    often, seldom = (problem.best(Method("SOAP", f)) for f in (10, 100))
    paired = compare_paired(seldom, often)
    ratio = float(seldom.mean() / often.mean())
    ours = f"loss {often.mean():.5f} every 10 steps, {seldom.mean():.5f} every 100: a ratio of {ratio:.2f}"
    return Measured(f"{ours}, P(worse) = {paired.p_better:.3f}", {"ratio": ratio, "p_worse": paired.p_better})


def _measure_decline(problem: Problem) -> Measured:
    declines = {name: problem.best(Method(name, 100)) / problem.best(Method(name, 1)) for name in ("SOAP", "Shampoo")}
    paired = compare_paired(np.log(declines["Shampoo"]), np.log(declines["SOAP"]))
    soap, shampoo = (float(np.exp(np.log(declines[name]).mean())) for name in ("SOAP", "Shampoo"))
    ours = (
        f"from every step to every 100 steps the loss grows {soap:.2f} times with SOAP, {shampoo:.2f} times with "
        f"Shampoo (P(less with SOAP) = {paired.p_better:.3f})"
    )
    return Measured(ours, {"soap": soap, "shampoo": shampoo, "p_less": paired.p_better})


def _measure_variants(problem: Problem) -> Measured:
    adamw = problem.best(ADAMW).mean()
    one_sided, factored = (float(problem.variants[m.label].mean() / adamw) for m in (ONE_SIDED, FACTORED))
    full = float(problem.best(SOAP_10).mean() / adamw)
    ours = f"loss over AdamW's: {full:.2f} in full, {one_sided:.2f} one-sided, {factored:.2f} factored"
    return Measured(ours, {"full": full, "one_sided": one_sided, "factored": factored})


def _measure_time(large: Problem, small: Problem) -> Measured:
    ours = "; ".join(
        f"batch {p.batch}: {_percent(p.share_needed)} of the steps, each {p.time_ratio:.2f} times as long, is "
        f"{p.wall_ratio:.2f} of AdamW's time"
        for p in (large, small)
    )
    return Measured(ours, {"large": large.wall_ratio, "small": small.wall_ratio})


def _percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else f"more than {max(SHARES):.0%}"


# --- figures and tables ------------------------------------------------------------------------------------------


def _frequency_figure(problem: Problem) -> Figure:
    series: dict[str, Any] = {
        name: (FREQUENCIES, [float(problem.best(Method(name, f)).mean()) for f in FREQUENCIES])
        for name in ("SOAP", "Shampoo")
    }
    series["AdamW"] = ([FREQUENCIES[0], FREQUENCIES[-1]], [float(problem.best(ADAMW).mean())] * 2)
    bands = {name: _band([problem.best(Method(name, f)) for f in FREQUENCIES]) for name in ("SOAP", "Shampoo")}
    figure = line_chart(
        "Final loss over the steps between two refreshes",
        series,
        "steps between refreshes",
        "mean squared error",
        bands={name: (FREQUENCIES, *band) for name, band in bands.items()},
    )
    figure.figure.update_xaxes(type="log")
    return figure


def _band(losses: Sequence[Losses]) -> tuple[list[float], list[float]]:
    return [float(row.min()) for row in losses], [float(row.max()) for row in losses]


def _shares_figure(*problems: Problem) -> Figure:
    series, bands = {}, {}
    shares = [*SHARES, 1.0]
    for problem in problems:
        ratios = [problem.shares[s] / problem.best(ADAMW) for s in SHARES]
        ratios.append(problem.best(SOAP_10) / problem.best(ADAMW))
        label = f"batch {problem.batch}"
        series[label] = (shares, [float(row.mean()) for row in ratios])
        bands[label] = (shares, *_band(ratios))
    figure = line_chart(
        "SOAP with fewer steps against AdamW with all",
        series,
        "share of AdamW's steps",
        "loss over AdamW's final loss",
        bands=bands,
    )
    figure.figure.add_hline(y=1, line_dash="dot", line_width=1)
    return figure


def _runs_table(*problems: Problem) -> Table:
    rows: list[list[object]] = []
    for problem in problems:
        for label, result in problem.tuned.items():
            losses = _best(result)
            rows.append([problem.batch, label, 1.0, result.curve().best_lr, losses.mean(), losses.min(), losses.max()])
        lr = problem.tuned[SOAP_10.label].curve().best_lr
        shorter = [(f"{SOAP_10.label}, fewer steps", share, losses) for share, losses in problem.shares.items()]
        for label, share, losses in [*((name, 1.0, x) for name, x in problem.variants.items()), *shorter]:
            rows.append([problem.batch, label, share, lr, losses.mean(), losses.min(), losses.max()])
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


# --- the claims --------------------------------------------------------------------------------------------------


def judge_steps(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the worst seed, with the claimed share of the steps and with the most that is allowed."""
    if n["worst"] <= 1:
        return "reproduced"
    return "refuted" if n["worst_at_most"] > 1 else "partly"


def judge_frequencies(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by how many frequencies beat AdamW."""
    return _count([n[f"ratio_{f}"] < 1 for f in FREQUENCIES])


def judge_stale(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the ratio; whether seeds agree makes the difference to *partly*."""
    if n["ratio"] <= 1:
        return "refuted"
    return "reproduced" if n["p_worse"] >= 0.975 else "partly"


def judge_decline(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by whose loss grows more."""
    if n["shampoo"] <= n["soap"]:
        return "refuted"
    return "reproduced" if n["p_less"] >= 0.975 else "partly"


def judge_variants(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by which variants beat AdamW."""
    return _count([n["one_sided"] < 1, n["factored"] < 1])


def judge_time(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the better of the two batch sizes."""
    best = min(n["large"], n["small"])
    return "reproduced" if best <= 0.65 else "partly" if best < 1 else "refuted"


def _count(held: Sequence[bool]) -> ClaimVerdict:
    return "reproduced" if all(held) else "partly" if any(held) else "refuted"


CLAIMS = (
    Claim(
        "fewer-steps",
        "SOAP needs at least 40 % fewer steps than AdamW at a large batch.",
        "at least 40 % fewer at a batch of 2 million tokens",
        "Reproduced if SOAP with 60 % of the steps, on its own schedule, is no worse than AdamW on every seed; refuted "
        "if 75 % are not enough.",
        judge_steps,
    ),
    Claim(
        "small-batch",
        "At a small batch SOAP still needs a quarter fewer steps.",
        "25 % fewer at a batch of 256 thousand tokens",
        "Reproduced if SOAP with 75 % of the steps is no worse than AdamW on every seed at batch 32; refuted if not.",
        judge_steps,
    ),
    Claim(
        "every-frequency",
        "SOAP beats AdamW however often its bases are refreshed.",
        "at every frequency from 1 to 100",
        "Mean loss below AdamW's at 1, 10 and 100 steps between refreshes. Reproduced if at all, refuted if at none.",
        judge_frequencies,
    ),
    Claim(
        "stale-basis",
        "Refreshing the bases less often costs some of the gain.",
        "loss grows slowly with the frequency number (figure only)",
        "Reproduced if the loss every 100 steps is above that every 10 and P(worse) >= 0.975; partly if above; refuted "
        "if not.",
        judge_stale,
    ),
    Claim(
        "slower-decline",
        "With rarer refreshes SOAP declines much more slowly than Shampoo.",
        "Shampoo falls behind from 10 steps on (figure only)",
        "Growth of the loss from every step to every 100 steps. Reproduced if Shampoo's is larger and P >= 0.975; "
        "partly if larger; refuted if not.",
        judge_decline,
    ),
    Claim(
        "variants",
        "One-sided and factored SOAP still beat AdamW.",
        "a slight loss against full SOAP",
        "Mean loss below AdamW's. Reproduced if for both, refuted if for neither.",
        judge_variants,
    ),
    Claim(
        "wall-time",
        "SOAP reaches AdamW's loss in less time.",
        "at least 35 % less",
        "Time of a step times the share of steps needed, against AdamW, at the better of two batch sizes. Reproduced "
        "at 0.65 or less, refuted at 1 or more.",
        judge_time,
    ),
)

STUDY = Study(
    slug="soap",
    title="Does Adam in Shampoo's eigenbasis need fewer steps than AdamW?",
    room="optim",
    paper=Paper("SOAP: Improving and Stabilizing Shampoo using Adam", "Vyas et al.", 2024, "2409.11321"),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 5},
    measure=measure,
)

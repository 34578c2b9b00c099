"""Study of "Small-scale proxies for large-scale Transformer training instabilities": learning rate x qk-norm.

A character GPT with 25,000 parameters in its blocks stands in for the paper's models of up to 4.8 billion. Learned
positions take the place of rotary ones; the rest is the paper's: pre-norm blocks without biases, GELU, untied head,
independent decay, z-loss, clipping at 1, linear warm-up, cosine to 1e-5. Validation is the cross entropy of 32 fixed
windows of the last tenth of the text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from joblib import Parallel, delayed

from poise.evidence import compare_paired
from poise.preflight import (
    LRCurve,
    LRSensitivity,
    SignalForecast,
    SweepPoint,
    SweepResult,
    forecast_signal,
    lr_figure,
    lr_sensitivity,
)
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.kit.character_gpt import CONTEXT, HEAD_DIM
from poise.studies.proxy_claims import CLAIMS
from poise.studies.proxy_runs import BLOCKS, Setting, bigram_loss, train_side_by_side, unigram_loss
from poise.studies.study import Budget, Measured, Measurement, Paper, Progress, Study

PLAIN, NORMED = "no qk-norm", "qk-norm"
NO_WARM_UP, NO_DECAY, NO_Z_LOSS = "no warm-up", "no decay", "no decay, no z-loss"
NARROW, STANDARD, DEEP, MU, MU_FULL = "narrow", "wide", "deep", "wide, muParam (simple)", "wide, muParam (full)"


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    lrs: tuple[float, ...]
    setting: Setting
    widths: tuple[int, ...]
    forced_steps: int
    eps_lr: float = 1e-2
    epsilons: tuple[float, ...] = (1e-3, 1e-2)  # about the gradient's root mean square, and far above it
    growth_lr: float = 1e-1
    kappas: tuple[float, ...] = (1e3, 1e4)
    upper: int = 3  # so many of the highest learning rates for the runs with one thing left out
    narrow: int = 16  # width at which muParam changes nothing
    wide: int = 64
    deep: int = 8  # blocks; with the setting's width as many parameters as the wide model
    batches: tuple[int, ...] = ()  # batch sizes beside the setting's
    horizons: tuple[int, ...] = ()  # numbers of steps beside the setting's
    mu_full_lr: float | None = None  # the learning rate that muParam (full) should survive; None leaves it out
    n_jobs: int = -1


_TINY = Setting(qk_norm=False, width=16, steps=6, warm_up=2, probe_step=3)
_DEFAULT = Setting(qk_norm=False)
_FULL = Setting(qk_norm=False, steps=1000, warm_up=50, probe_step=100)
PLANS: dict[Budget, Plan] = {
    "tiny": Plan(
        (1e-2, 1e-1, 3e-1),
        _TINY,
        (16, 32, 48, 64),
        forced_steps=6,
        wide=32,
        batches=(4,),
        horizons=(3,),
        mu_full_lr=1.0,
        n_jobs=1,  # starting a second process takes longer than the runs
    ),
    "default": Plan((1e-3, 1e-2, 3e-2, 1e-1, 3e-1), _DEFAULT, (16, 32, 64, 128), forced_steps=3000, batches=(32,)),
    "full": Plan(
        (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        _FULL,
        (16, 32, 64, 128, 256),
        forced_steps=10_000,
        batches=(32,),
        horizons=(500, 2000),
        mu_full_lr=1.0,
    ),
}


@dataclass(frozen=True, slots=True)
class Job:
    """Runs of one setting, side by side in one process."""

    setting: Setting
    lrs: tuple[float, ...]

    @property
    def work(self) -> float:
        """About proportional to the time."""
        s = self.setting
        return len(self.lrs) * (s.last_step or s.steps) * s.blocks * s.batch * (s.width + 32)


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of the experiment, by what they are for."""

    plan: Plan
    curves: Mapping[str, SweepResult]
    growth: Mapping[tuple[str, int], SweepResult]
    epsilons: Mapping[float, SweepResult]
    drift: Mapping[str, SweepResult]
    left_out: Mapping[str, SweepResult]
    kappas: Mapping[float, SweepResult]
    scaled: Mapping[str, SweepResult]
    mu_logits: Mapping[str, SweepResult]
    batches: Mapping[int, SweepResult]
    horizons: Mapping[int, SweepResult]


def jobs_of(plan: Plan) -> dict[str, dict[Any, Job]]:
    """Return everything that the claims need, by field of :class:`Runs`."""
    base = plan.setting
    normed = replace(base, qk_norm=True)
    settings = {PLAIN: base, NORMED: normed}
    # Output logits drift only late, in a small model without decay.
    drifting = replace(normed, width=16, steps=plan.forced_steps, weight_decay=0.0)
    no_decay = replace(normed, weight_decay=0.0)
    left_out = {NO_WARM_UP: replace(normed, warm_up=0), NO_DECAY: no_decay, NO_Z_LOSS: replace(no_decay, z_coef=0.0)}
    wide = replace(base, width=plan.wide)
    high, calm, upper = (plan.growth_lr,), (plan.eps_lr,), plan.lrs[-plan.upper :]
    return {
        "curves": {name: Job(s, plan.lrs) for name, s in settings.items()},
        "growth": {
            (name, w): Job(replace(s, width=w, last_step=s.probe_step), high)
            for name, s in settings.items()
            for w in plan.widths
        },
        "epsilons": {eps: Job(replace(normed, eps=eps), calm) for eps in plan.epsilons},
        "drift": {"no z-loss": Job(replace(drifting, z_coef=0.0), high), "z-loss": Job(drifting, high)},
        "left_out": {name: Job(s, upper) for name, s in left_out.items()},
        "kappas": {kappa: Job(replace(base, kappa=kappa), calm) for kappa in plan.kappas},
        "scaled": _scaled(plan, normed),
        "mu_logits": {STANDARD: Job(wide, high), MU: Job(replace(wide, mu_base=plan.narrow), high)},
        "batches": {size: Job(replace(normed, batch=size), plan.lrs) for size in plan.batches},
        "horizons": {steps: Job(replace(normed, steps=steps), plan.lrs) for steps in plan.horizons},
    }


def _scaled(plan: Plan, normed: Setting) -> dict[str, Job]:
    """Return wider and deeper models, all with qk-norm."""
    wide = replace(normed, width=plan.wide)
    mu = replace(wide, mu_base=plan.narrow)
    jobs = {
        NARROW: Job(replace(normed, width=plan.narrow), plan.lrs),
        STANDARD: Job(wide, plan.lrs),
        MU: Job(mu, plan.lrs),
        DEEP: Job(replace(normed, blocks=plan.deep), plan.lrs),
    }
    if plan.mu_full_lr is not None:
        jobs[MU_FULL] = Job(replace(mu, mu_full=True), (*plan.lrs, plan.mu_full_lr))
    return jobs


def run_all(plan: Plan, seeds: Sequence[int], progress: Progress) -> Runs:
    """Run everything that the claims need, the longest jobs first."""
    jobs = jobs_of(plan)
    order = [(group, key, job) for group, own in jobs.items() for key, job in own.items()]
    order.sort(key=lambda entry: -entry[2].work)
    done, total = 0.0, sum(job.work for *_, job in order)
    found: dict[str, dict[Any, SweepResult]] = {group: {} for group in jobs}
    parallel = Parallel(plan.n_jobs, return_as="generator")
    results = parallel(delayed(_run)(job, seeds) for *_, job in order)
    for (group, key, job), result in zip(order, results, strict=True):
        found[group][key] = result
        done += job.work
        progress(min(1.0, done / total), group.replace("_", " "))
    return Runs(plan, **{group: {key: found[group][key] for key in own} for group, own in jobs.items()})


def _run(job: Job, seeds: Sequence[int]) -> SweepResult:
    ended = train_side_by_side(job.setting, job.lrs, seeds)
    points = [
        SweepPoint(lr, None, seed, own.pop("loss"), own.pop("init_loss"), own)
        for (lr, seed), own in zip(product(job.lrs, seeds), ended, strict=True)
    ]
    return SweepResult(job.lrs, (None,), tuple(seeds), tuple(points))


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the experiment and put what came out beside the claims."""
    runs = run_all(PLANS[budget], seeds, progress)
    curves = {name: result.curve() for name, result in runs.curves.items()}
    forecast = _forecast(runs, PLAIN)
    claims = {
        "sensitivity": _measure_sensitivity(curves),
        "high-lr": _measure_high_lr(curves),
        "logit-growth": _measure_logit_growth(runs),
        "logit-limit": _measure_logit_limit(runs.curves[PLAIN]),
        "forecast": _measure_forecast(runs, forecast),
        "gradient-rms": _measure_gradient_rms(runs),
        "epsilon": _measure_epsilon(runs),
        "output-drift": _measure_output_drift(runs),
        "kappa": _measure_kappa(runs),
        "warm-up": _measure_left_out(runs, NO_WARM_UP, NORMED, "without warm-up", "with it"),
        "decay": _measure_left_out(runs, NO_DECAY, NORMED, "without decay", "with it"),
        "z-loss": _measure_left_out(runs, NO_Z_LOSS, NO_DECAY, "without decay and z-loss", "without decay"),
        "mu-optimum": _measure_mu_optimum(runs),
        "mu-loss": _measure_mu_loss(runs),
        "mu-logits": _measure_mu_logits(runs),
        "mu-full": _measure_mu_full(runs),
        "size": _measure_size(runs),
        "depth": _measure_depth(runs),
        "batch": _measure_no_effect(runs, runs.batches, runs.plan.setting.batch, "windows a batch"),
        "steps": _measure_no_effect(runs, runs.horizons, runs.plan.setting.steps, "steps"),
    }
    picture = _curves_figure(curves)
    blocks: list[Text | Table | Figure | Code] = [
        picture,
        _logits_figure(runs),
        _forecast_figure(runs, forecast),
        _curves_table(runs),
        _left_out_table(runs),
        _scaled_figure(runs),
        _scaled_table(runs),
        _drift_table(runs),
        _notes(runs.plan),
    ]
    summary = (
        f"At this size {claims['sensitivity'].ours}. Without qk-norm the largest attention logit at learning rate "
        f"{runs.plan.growth_lr:g} is {claims['logit-growth'].numbers['logit_plain']:.0f}; with it "
        f"{claims['logit-growth'].numbers['logit_normed']:.1f}."
    )
    return Measurement(claims, summary, blocks, picture.figure)


def _measure_sensitivity(curves: Mapping[str, LRCurve]) -> Measured:
    plain, normed = lr_sensitivity(curves[PLAIN]), lr_sensitivity(curves[NORMED])
    paired = compare_paired(plain.per_seed, normed.per_seed)
    ratio = _ratio(curves[PLAIN], curves[NORMED])
    low, high = (-end for end in reversed(paired.interval))
    ours = (
        f"learning-rate sensitivity is {plain.value:.3f} without and {normed.value:.3f} with qk-norm, a ratio of "
        f"{ratio:.2f} (difference {plain.value - normed.value:.3f}, 95 % interval {low:.3f} to {high:.3f})"
    )
    return Measured(ours, {"ratio": ratio, "p_better": paired.p_better})


def _measure_high_lr(curves: Mapping[str, LRCurve]) -> Measured:
    plain, normed = (curves[name].effective_losses[-1] for name in (PLAIN, NORMED))
    paired = compare_paired(plain, normed)
    low, high = (-end for end in reversed(paired.interval))
    ours = (
        f"at learning rate {curves[PLAIN].lrs[-1]:g}: {plain.mean():.3f} without, {normed.mean():.3f} with "
        f"(worse by {-paired.difference:.3f}, 95 % interval {low:.3f} to {high:.3f})"
    )
    return Measured(ours, {"gap": -paired.difference, "p_better": paired.p_better})


def _measure_logit_growth(runs: Runs) -> Measured:
    row = runs.plan.lrs.index(runs.plan.growth_lr)
    logits = {name: _geometric(result.signal("logit_max_end")[row]) for name, result in runs.curves.items()}
    entropy = {name: float(result.signal("entropy_end")[row].mean()) for name, result in runs.curves.items()}
    ours = (
        f"at learning rate {runs.plan.growth_lr:g}: largest logit {logits[PLAIN]:.0f} and lowest entropy "
        f"{entropy[PLAIN]:.3f} without; {logits[NORMED]:.1f} and {entropy[NORMED]:.3f} with qk-norm"
    )
    numbers = {"logit_plain": logits[PLAIN], "entropy_plain": entropy[PLAIN], "logit_normed": logits[NORMED]}
    return Measured(ours, {**numbers, "entropy_normed": entropy[NORMED]})


def _measure_logit_limit(plain: SweepResult) -> Measured:
    above = (plain.signal("logit_max_early") > 1e4) | (plain.signal("logit_max_end") > 1e4)
    if not above.any():
        return Measured("no run had a logit above 1e4")
    curve, count = plain.curve(), int(above.sum())
    diverged, losses = int(curve.diverged[above].sum()), curve.effective_losses[above]
    ours = (
        f"{count} runs above 1e4, {diverged} of them diverged; they ended at {losses.min():.3f} to {losses.max():.3f}, "
        f"far from the {curve.init_losses.mean():.3f} of the start but worse than the best learning rate's "
        f"{curve.best_loss:.3f}"
    )
    return Measured(ours, {"runs": count, "diverged": diverged})


def _forecast(runs: Runs, name: str) -> SignalForecast:
    """Fit all widths but the largest."""
    widths = runs.plan.widths[:-1]
    return forecast_signal([_parameters(w) for w in widths], [_early_logit(runs, name, w) for w in widths])


def _measure_forecast(runs: Runs, forecast: SignalForecast) -> Measured:
    width = runs.plan.widths[-1]
    observed = _early_logit(runs, PLAIN, width)
    predicted, low, high = forecast.predict(_parameters(width))
    miss = abs(math.log10(predicted / observed))
    limit = "is never reached by the fit" if math.isinf(forecast.crossing) else f"at {forecast.crossing:.2g} parameters"
    ours = (
        f"width {width}: predicted {predicted:.0f} ({low:.0f} to {high:.0f} leaving one width out), observed "
        f"{observed:.0f}, {miss:.2f} decades apart; 1e4 {limit}"
    )
    return Measured(ours, {"decades": miss})


def _measure_gradient_rms(runs: Runs) -> Measured:
    over_lr = _slope(runs.plan.lrs, [_geometric(row) for row in runs.curves[NORMED].signal("mlp_grad_rms_end")])
    by_width = [_geometric(runs.growth[NORMED, w].signal("mlp_grad_rms_early")) for w in runs.plan.widths]
    over_size = _slope([_parameters(w) for w in runs.plan.widths], by_width)
    ours = f"exponent {over_lr:+.2f} in the learning rate and {over_size:+.2f} in the number of parameters"
    return Measured(ours, {"over_lr": over_lr, "over_size": over_size})


def _measure_epsilon(runs: Runs) -> Measured:
    row = runs.plan.lrs.index(runs.plan.eps_lr)
    # The protocol was written for the smaller one. The larger, added after a first look, is shown and not judged.
    usual, judged = runs.curves[NORMED], min(runs.epsilons)
    harm = {
        eps: compare_paired(result.curve().effective_losses[0], usual.curve().effective_losses[row])
        for eps, result in runs.epsilons.items()
    }
    shrink = {eps: float(result.signal("eps_shrink_end").mean()) for eps, result in runs.epsilons.items()}
    usual_shrink = float(usual.signal("eps_shrink_end")[row].mean())
    updates = ", ".join(f"{shrink[e]:.2f} at {e:g} (loss {-harm[e].difference:+.3f})" for e in runs.epsilons)
    ours = f"updates are {usual_shrink:.2f} of their size at epsilon 1e-08, {updates}"
    numbers = {"shrink_usual": usual_shrink, "shrink": shrink[judged], "harm": -harm[judged].difference}
    return Measured(ours, {**numbers, "p_worse": harm[judged].p_better})


def _measure_output_drift(runs: Runs) -> Measured:
    log_z = {name: float(np.abs(result.signal("log_z")).mean()) for name, result in runs.drift.items()}
    logit = float(runs.drift["no z-loss"].signal("mean_logit").mean())
    ours = (
        f"after {runs.plan.forced_steps} steps without decay: mean logit {logit:.1f} and |log Z| "
        f"{log_z['no z-loss']:.2f} without z-loss, |log Z| {log_z['z-loss']:.2f} with it"
    )
    return Measured(ours, {"mean_logit": logit, "log_z_without": log_z["no z-loss"], "log_z_with": log_z["z-loss"]})


def _measure_kappa(runs: Runs) -> Measured:
    row = runs.plan.lrs.index(runs.plan.eps_lr)
    usual = runs.curves[PLAIN].curve().effective_losses[row]
    losses = {kappa: result.curve().effective_losses[0] for kappa, result in runs.kappas.items()}
    low, high = min(losses), max(losses)
    harm, over = compare_paired(losses[low], usual), losses[high].mean() - bigram_loss()
    words = ", ".join(f"{loss.mean():.3f} at {kappa:g}" for kappa, loss in losses.items())
    ours = (
        f"at learning rate {runs.plan.eps_lr:g} the loss is {usual.mean():.3f} without a scale, {words}; a bigram "
        f"table has {bigram_loss():.3f}"
    )
    numbers = {"harm": -harm.difference, "p_worse": harm.p_better, "over_bigram": float(over)}
    return Measured(ours, numbers | {"usual_over_bigram": float(usual.mean()) - bigram_loss()})


def _measure_left_out(runs: Runs, without: str, kept: str, words: str, kept_words: str) -> Measured:
    """Compare the sensitivities over the highest learning rates with one thing left out and kept."""
    absent, present = (_upper_sensitivity(runs, name) for name in (without, kept))
    paired = compare_paired(absent.per_seed, present.per_seed)
    low, high = (-end for end in reversed(paired.interval))
    ours = (
        f"over learning rates {runs.plan.lrs[-runs.plan.upper]:g} to {runs.plan.lrs[-1]:g} sensitivity is "
        f"{absent.value:.3f} {words} and {present.value:.3f} {kept_words} (difference "
        f"{-paired.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})"
    )
    return Measured(ours, {"difference": -paired.difference, "p_better": paired.p_better})


def _upper_sensitivity(runs: Runs, name: str) -> LRSensitivity:
    result = runs.left_out[name] if name in runs.left_out else runs.curves[name]
    return lr_sensitivity(result.curve(), (runs.plan.lrs[-runs.plan.upper], runs.plan.lrs[-1]))


def _measure_mu_optimum(runs: Runs) -> Measured:
    narrow = _best_log_lrs(runs.scaled[NARROW])
    moved = {name: _best_log_lrs(runs.scaled[name]) - narrow for name in (STANDARD, MU)}
    paired = compare_paired(np.abs(moved[STANDARD]), np.abs(moved[MU]))
    low, high = (-end for end in reversed(paired.interval))
    ours = (
        f"from width {runs.plan.narrow} to {runs.plan.wide} the best learning rate moves by "
        f"{moved[STANDARD].mean():+.2f} decades, with muParam by {moved[MU].mean():+.2f}; a seed's distance is "
        f"{np.abs(moved[STANDARD]).mean():.2f} and {np.abs(moved[MU]).mean():.2f} (shorter by "
        f"{-paired.difference:.2f}, 95 % interval {low:+.2f} to {high:+.2f})"
    )
    return Measured(ours, {"difference": -paired.difference, "p_better": paired.p_better})


def _measure_mu_loss(runs: Runs) -> Measured:
    standard, mu = (runs.scaled[name].curve() for name in (STANDARD, MU))
    gain, ratio = standard.best_loss - mu.best_loss, _ratio(standard, mu)
    ours = (
        f"at width {runs.plan.wide} the best loss is {standard.best_loss:.3f} without and {mu.best_loss:.3f} with "
        f"muParam, sensitivity {lr_sensitivity(standard).value:.3f} and {lr_sensitivity(mu).value:.3f}"
    )
    return Measured(ours, {"gain": gain, "ratio": ratio})


def _measure_mu_logits(runs: Runs) -> Measured:
    logits = {name: _geometric(result.signal("logit_max_end")[0]) for name, result in runs.mu_logits.items()}
    ours = (
        f"width {runs.plan.wide}, learning rate {runs.plan.growth_lr:g}, no qk-norm: largest logit "
        f"{logits[STANDARD]:.0f} without and {logits[MU]:.0f} with muParam, under which linear layers learn at "
        f"{runs.plan.growth_lr * runs.plan.narrow / runs.plan.wide:g}"
    )
    return Measured(ours, {"logit_standard": logits[STANDARD], "logit_mu": logits[MU]})


def _measure_mu_full(runs: Runs) -> Measured:
    if MU_FULL not in runs.scaled:
        return Measured("not tested at this budget; the full budget does")
    standard, full = (runs.scaled[name].curve() for name in (STANDARD, MU_FULL))
    gain, last = standard.best_loss - full.best_loss, full.effective_losses[-1]
    ours = (
        f"with muParam (full) and qk-norm, width {runs.plan.wide}, the loss at learning rate {full.lrs[-1]:g} is "
        f"{last.mean():.3f} (characters drawn by frequency: {unigram_loss():.3f}); best losses are "
        f"{standard.best_loss:.3f} without and {full.best_loss:.3f} with it"
    )
    return Measured(ours, {"over_unigram": float(last.max()) - unigram_loss(), "gain": gain})


def _measure_size(runs: Runs) -> Measured:
    narrow, wide = (runs.scaled[name].curve() for name in (NARROW, STANDARD))
    return _measure_rise(wide, narrow, f"at width {runs.plan.wide}", f"at width {runs.plan.narrow}")


def _measure_depth(runs: Runs) -> Measured:
    wide, deep = (runs.scaled[name].curve() for name in (STANDARD, DEEP))
    shape = f"with {runs.plan.deep} blocks of width {runs.plan.setting.width}"
    return _measure_rise(deep, wide, shape, f"with {BLOCKS} of width {runs.plan.wide}, as many parameters")


def _measure_rise(high: LRCurve, low: LRCurve, high_words: str, low_words: str) -> Measured:
    """Compare the sensitivity that should be higher with the one that should be lower."""
    above, below = lr_sensitivity(high), lr_sensitivity(low)
    paired = compare_paired(above.per_seed, below.per_seed)
    start, end = (-end for end in reversed(paired.interval))
    ours = (
        f"sensitivity is {above.value:.3f} {high_words} and {below.value:.3f} {low_words} (difference "
        f"{-paired.difference:+.3f}, 95 % interval {start:+.3f} to {end:+.3f})"
    )
    return Measured(ours, {"difference": -paired.difference, "p_better": paired.p_better})


def _measure_no_effect(runs: Runs, others: Mapping[int, SweepResult], usual: int, words: str) -> Measured:
    """Compare the highest sensitivity with the lowest, over the values of something that should not matter."""
    if not others:
        return Measured("not tested at this budget; the full budget does")
    curves = {usual: runs.curves[NORMED].curve()} | {value: result.curve() for value, result in others.items()}
    by_value = {value: lr_sensitivity(curves[value]) for value in sorted(curves)}
    low, *_, high = sorted(by_value.values(), key=lambda sensitivity: sensitivity.value)
    p_lower = compare_paired(high.per_seed, low.per_seed).p_better
    listed = ", ".join(f"{sensitivity.value:.3f} at {value} {words}" for value, sensitivity in by_value.items())
    ratio = high.value / low.value if low.value > 0 else math.inf
    return Measured(f"sensitivity is {listed}", {"ratio": ratio, "p_apart": p_lower})


def _ratio(without: LRCurve, with_it: LRCurve) -> float:
    # A sensitivity of exactly zero would make the ratio undefined; it is infinite then.
    low = lr_sensitivity(with_it).value
    return lr_sensitivity(without).value / low if low > 0 else math.inf


def _best_log_lrs(result: SweepResult) -> Float[np.ndarray, " seeds"]:
    """Return each seed's best learning rate, as its decimal logarithm."""
    return np.array([best_log_lr(result.lrs, own) for own in result.curve().effective_losses.T])


def best_log_lr(lrs: Sequence[float], losses: Float[np.ndarray, " lrs"]) -> float:
    """Return log10 of the best learning rate: the lowest point of a parabola through the best loss and its neighbours.

    A best loss at an end of the grid has one neighbour only; then the end itself is returned.
    """
    x, i = np.log10(lrs), int(np.argmin(losses))
    if i in (0, len(x) - 1):
        return float(x[i])
    square, linear, _ = np.polyfit(x[i - 1 : i + 2], losses[i - 1 : i + 2], 2)
    return float(-linear / (2 * square)) if square > 0 else float(x[i])


def _early_logit(runs: Runs, name: str, width: int) -> float:
    return _geometric(runs.growth[name, width].signal("logit_max_early"))


def _parameters(width: int) -> int:
    """Parameters of the blocks, as the paper counts them: 12 x depth x width^2."""
    return 12 * BLOCKS * width**2


def _geometric(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log10(x), np.log10(y), 1)[0])


# --- figures and tables ------------------------------------------------------------------------------------------


def _curves_figure(curves: Mapping[str, LRCurve]) -> Figure:
    figure = lr_figure(curves, "Validation loss over learning rate")
    bigram = bigram_loss()
    figure.figure.add_hline(y=bigram, line_dash="dot", line_width=1, annotation_text="bigram table")
    return Figure(figure.title, figure.figure, f"{figure.alt} A bigram table has {bigram:.3f}.")


def _logits_figure(runs: Runs) -> Figure:
    series = {
        name: (runs.plan.lrs, [_geometric(row) for row in result.signal("logit_max_early")])
        for name, result in runs.curves.items()
    }
    title = f"Largest attention logit after {runs.plan.setting.probe_step} steps"
    figure = line_chart(title, series, "learning rate", "largest attention logit", log_y=True)
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def _forecast_figure(runs: Runs, forecast: SignalForecast) -> Figure:
    sizes = [_parameters(w) for w in runs.plan.widths]
    fine = np.geomspace(sizes[0], sizes[-1], 30)
    fit = np.array([forecast.predict(size) for size in fine])
    series: dict[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]] = {
        f"observed, {PLAIN}": (sizes, [_early_logit(runs, PLAIN, w) for w in runs.plan.widths]),
        "forecast from all but the largest": (fine, fit[:, 0]),
        f"observed, {NORMED}": (sizes, [_early_logit(runs, NORMED, w) for w in runs.plan.widths]),
    }
    bands = {"forecast from all but the largest": (fine, fit[:, 1], fit[:, 2])}
    title = f"Attention logits over model size, learning rate {runs.plan.growth_lr:g}"
    figure = line_chart(title, series, "parameters in the blocks", "largest attention logit", log_y=True, bands=bands)
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def _curves_table(runs: Runs) -> Table:
    columns = [
        "Model",
        "Learning rate",
        "Loss",
        "Lowest seed",
        "Highest seed",
        "Logit early",
        "Logit at end",
        "Entropy",
    ]
    rows: list[list[object]] = []
    for name, result in runs.curves.items():
        losses = result.curve().effective_losses
        early, end, entropy = (result.signal(s) for s in ("logit_max_early", "logit_max_end", "entropy_end"))
        for i, lr in enumerate(result.lrs):
            row = [losses[i].mean(), losses[i].min(), losses[i].max()]
            rows.append([name, lr, *row, _geometric(early[i]), _geometric(end[i]), entropy[i].mean()])
    caption = (
        "Loss in nats per character. Logits are the largest of a run, geometric means over seeds; entropy is that of "
        "the lowest head at the end, as a share of the largest possible."
    )
    return Table("Runs by learning rate", columns, rows, caption)


def _left_out_table(runs: Runs) -> Table:
    lrs = runs.plan.lrs[-runs.plan.upper :]
    rows: list[list[object]] = []
    for name in (NORMED, *runs.left_out):
        result = runs.left_out[name] if name in runs.left_out else runs.curves[name]
        curve = result.curve().within(lrs[0], lrs[-1])
        means = curve.effective_losses.mean(axis=1)
        rows.append([name, *map(float, means), _upper_sensitivity(runs, name).value])
    columns = ["Runs", *(f"Loss at {lr:g}" for lr in lrs), "Sensitivity"]
    caption = "Models with qk-norm; sensitivity over these learning rates only, means over seeds."
    return Table("One thing left out", columns, rows, caption)


def _shapes_of_models(runs: Runs) -> dict[str, SweepResult]:
    """Return the runs with qk-norm by what differs in the model or its training."""
    plan, s = runs.plan, runs.plan.setting
    words = {
        NARROW: f"width {plan.narrow}",
        STANDARD: f"width {plan.wide}",
        MU: f"width {plan.wide}, muParam (simple)",
        MU_FULL: f"width {plan.wide}, muParam (full)",
        DEEP: f"width {s.width}, {plan.deep} blocks",
    }
    return {
        f"width {s.width}, as in the other runs": runs.curves[NORMED],
        **{words[name]: result for name, result in runs.scaled.items()},
        **{f"width {s.width}, batch {size}": result for size, result in runs.batches.items()},
        **{f"width {s.width}, {steps} steps": result for steps, result in runs.horizons.items()},
    }


def _scaled_figure(runs: Runs) -> Figure:
    curves = {name: result.curve() for name, result in _shapes_of_models(runs).items() if "steps" not in name}
    return lr_figure(curves, "Wider and deeper models, with qk-norm")


def _scaled_table(runs: Runs) -> Table:
    rows: list[list[object]] = []
    for name, result in _shapes_of_models(runs).items():
        curve, best = result.curve(), _best_log_lrs(result)
        rows.append([name, lr_sensitivity(curve).value, curve.best_loss, 10 ** best.mean(), 10 ** best.std()])
    columns = ["Runs", "Sensitivity", "Best loss", "Best learning rate", "Its spread over seeds, as a factor"]
    caption = (
        "Models with qk-norm. The best learning rate is the lowest point of a parabola through a seed's best loss and "
        "its neighbours on the grid; geometric mean over seeds. muParam's learning rate is that of the width at which "
        f"it changes nothing, {runs.plan.narrow}."
    )
    return Table("Width, depth, muParam, batch size and number of steps", columns, rows, caption)


def _drift_table(runs: Runs) -> Table:
    rows = [
        [name, *(float(result.signal(s).mean()) for s in ("mean_logit", "log_z")), result.curve().best_loss]
        for name, result in runs.drift.items()
    ]
    columns = ["Runs", "Mean output logit", "Mean log Z", "Validation loss"]
    caption = f"Width 16, learning rate {runs.plan.growth_lr:g}, no weight decay, {runs.plan.forced_steps} steps."
    return Table("Output logits in a long run", columns, rows, caption)


def _notes(plan: Plan) -> Text:
    s = plan.setting
    return Text(
        f"Character GPT on the Python reference manual: width {s.width}, heads of {HEAD_DIM}, {BLOCKS} blocks, context "
        f"{CONTEXT}, batch {s.batch}, {s.steps} steps of which {s.warm_up} warm-up. Learned positions instead of "
        "rotary ones. The sweep over sizes changes the width and with it the number of heads; the depth stays. The "
        "default budget leaves out the lower end of the paper's grid, which measures under-training with so few "
        "steps, and the number of steps and muParam (full), which the full budget tests. Not tested at all: other "
        "scales and forms of attention, whole-width norms, how weight decay moves the best learning rate. At "
        "learning rates from 0.1 training amplifies rounding, so that a verdict close to its bound may differ between "
        "machines.",
        title="Set-up",
    )


STUDY = Study(
    slug="small-scale-proxies",
    title="Do small Transformers show the instabilities of large ones?",
    room="preflight",
    paper=Paper(
        "Small-scale proxies for large-scale Transformer training instabilities", "Wortsman et al.", 2023, "2309.14322"
    ),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 5},
    measure=measure,
)

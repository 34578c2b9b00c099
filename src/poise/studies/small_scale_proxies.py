"""Study of "Small-scale proxies for large-scale Transformer training instabilities": learning rate x qk-norm.

A character GPT with 25,000 parameters in its blocks stands in for the paper's models of up to 4.8 billion. Learned
positions take the place of rotary ones; the rest is the paper's: pre-norm blocks without biases, GELU, untied head,
independent decay, z-loss, clipping at 1, linear warm-up, cosine to 1e-5. Validation is the cross entropy of 32 fixed
windows of the last tenth of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from scipy.stats import gmean
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from poise.evidence import PairedComparison, compare_paired
from poise.losses import cross_entropy_with_z_loss
from poise.nn import transplant_logit_scale
from poise.optim import IndependentAdamW, mu_param_groups
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
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, Claim, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.character_gpt import CONTEXT, HEAD_DIM, Block, CharacterGPT, corpus
from poise.studies.kit.grid import run_each
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import Rule, above, all_or_none, at_least, at_most, below, equal_to
from poise.studies.kit.seed_interval import Interval
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.tables import log_x
from poise.studies.kit.words import interval

BLOCKS, BATCH = 2, 8
FINAL_LR = 1e-5

PLAIN, NORMED = "no qk-norm", "qk-norm"
NO_WARM_UP, NO_DECAY, NO_Z_LOSS = "no warm-up", "no decay", "no decay, no z-loss"
NARROW, STANDARD, DEEP, MU, MU_FULL = "narrow", "wide", "deep", "wide, muParam (simple)", "wide, muParam (full)"

# --- attention in the model --------------------------------------------------------------------------------------


@torch.no_grad()
def attention_signals(model: CharacterGPT, ids: Int64[Tensor, "batch time"]) -> tuple[float, float]:
    """Return max |logit| over visible entries, and the lowest head's mean of entropy / log(visible entries)."""
    visible = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    largest = torch.log(visible.sum(-1))[1:]  # the first position sees only itself
    x, logit_max, entropy = model.tokens(ids) + model.positions.weight, 0.0, 1.0
    for block in model.blocks:
        assert isinstance(block, Block)
        q, k, _ = block.heads(x)
        logits = q @ k.transpose(-1, -2) / math.sqrt(HEAD_DIM)
        logit_max = max(logit_max, logits[..., visible].abs().max().item())
        p = logits.masked_fill(~visible, -math.inf).softmax(-1)
        spread = torch.special.entr(p).sum(-1)[..., 1:] / largest
        entropy = min(entropy, spread.mean((0, 2)).min().item())
        x = block(x)
    return logit_max, entropy


class TransplantedScale(nn.Module):
    """Gives queries and keys the logit scale of a larger model, in the place of a qk-norm."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.kappa = kappa

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys whose logits lie between -kappa sqrt(head_dim) and that."""
        return transplant_logit_scale(query, self.kappa), transplant_logit_scale(key, self.kappa)


class ScaledQueries(nn.Module):
    """Divides queries by sqrt(head_dim), so that attention's scale is 1 / head_dim, after what was there before."""

    def __init__(self, before: nn.Module | None) -> None:
        super().__init__()
        self.before = before

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled queries, and the keys."""
        query, key = (query, key) if self.before is None else self.before(query, key)
        return query / math.sqrt(HEAD_DIM), key


@torch.no_grad()
def apply_full_mu_param(model: CharacterGPT, base_width: int) -> None:
    """What muParam (full) adds to the learning rates: head, attention scale, and queries that begin at zero."""
    width = model.head.in_features
    model.head.weight.mul_(math.sqrt(base_width / width))  # std 1 / sqrt(width) becomes sqrt(base width) / width
    for block in model.blocks:
        qkv, before = block.qkv, block.qk_norm
        assert isinstance(qkv, nn.Linear)
        assert not isinstance(before, Tensor)
        qkv.weight[:width].zero_()
        block.qk_norm = ScaledQueries(before)


# --- runs side by side -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same in all runs of a sweep."""

    qk_norm: bool
    width: int = 32
    blocks: int = BLOCKS
    batch: int = BATCH
    steps: int = 200
    warm_up: int = 20
    probe_step: int = 60
    last_step: int | None = None
    eps: float = 1e-8
    weight_decay: float = 1e-4
    z_coef: float = 1e-4
    kappa: float | None = None
    mu_base: int | None = None  # the width at which muParam changes nothing; None is the standard parametrisation
    mu_full: bool = False


def train(setting: Setting, lr: float, seed: int, size: int | None = None) -> dict[str, float]:
    """Train one model; ``size`` takes the place of the setting's width. Uses one thread and no global random state."""
    return train_side_by_side(replace(setting, width=size or setting.width), [lr], [seed])[0]


def train_side_by_side(setting: Setting, lrs: Sequence[float], seeds: Sequence[int]) -> list[dict[str, float]]:
    """Train one model for each learning rate and seed; return what each ended with, seeds fastest.

    Uses one thread and no global random state.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        text = corpus()
        begun = [_begin(setting, seed) for _ in lrs for seed in seeds]
        nets, starts = SideBySide([model for model, _ in begun]), torch.stack([start for _, start in begun])
        optimizer, shapes = _optimizer(nets, setting, lrs, len(seeds))
        schedule = LambdaLR(optimizer, shapes)
        init_losses, early = [_validate(model)["loss"] for model in nets.models], [dict[str, float]() for _ in begun]
        for step in range(setting.steps if setting.last_step is None else setting.last_step):
            ids = text.train[starts[:, step] + torch.arange(CONTEXT + 1)]
            logits = nets(ids[..., :-1]).flatten(0, -2)
            losses = cross_entropy_with_z_loss(logits, ids[..., 1:].flatten(), coef=setting.z_coef, reduction="sum")
            nets.zero_grad()
            (losses / (setting.batch * CONTEXT)).backward()
            nets.clip_grad_norm(1.0)
            optimizer.step()
            schedule.step()
            if step + 1 == setting.probe_step:
                early = _probe(nets, optimizer, setting.eps, "early")
        ended = zip(init_losses, nets.models, early, _probe(nets, optimizer, setting.eps, "end"), strict=True)
        return [{"init_loss": init_loss} | _validate(model) | a | b for init_loss, model, a, b in ended]


def _begin(setting: Setting, seed: int) -> tuple[CharacterGPT, Int64[Tensor, "steps batch 1"]]:
    """Return a model at its start and where each batch's windows begin."""
    text, generator = corpus(), torch.Generator().manual_seed(seed)
    model = CharacterGPT(setting.width, text.classes, setting.qk_norm, generator, setting.blocks)
    if setting.kappa is not None:
        for block in model.blocks:
            block.qk_norm = TransplantedScale(setting.kappa)
    if setting.mu_full and setting.mu_base is not None:
        apply_full_mu_param(model, setting.mu_base)
    return model, torch.randint(len(text.train) - CONTEXT, (setting.steps, setting.batch, 1), generator=generator)


def _optimizer(
    nets: SideBySide[CharacterGPT], setting: Setting, lrs: Sequence[float], seeds: int
) -> tuple[IndependentAdamW, list[Callable[[int], float]]]:
    """Return the optimizer, and for each of its groups the shape of its schedule."""
    factors = _lr_factors(nets.models[0], setting)
    groups: list[dict[str, Any]] = []
    shapes: list[Callable[[int], float]] = []
    for i, lr in enumerate(lrs):
        own = (i * seeds, (i + 1) * seeds)
        for factor in sorted(set(factors.values())):
            leaves = [(name, nets.leaf(name, *own)) for name, its in factors.items() if its == factor]
            groups.append({"params": leaves, "lr": lr * factor, "models": own})
            shapes.append(partial(_shape, lr=lr, setting=setting))
    return IndependentAdamW(groups, lrs[0], (0.9, 0.95), setting.eps, setting.weight_decay, foreach=True), shapes


def _lr_factors(model: nn.Module, setting: Setting) -> dict[str, float]:
    """Return each parameter's fraction of the learning rate, by name."""
    if setting.mu_base is None:
        return {name: 1.0 for name, _ in model.named_parameters()}
    groups = mu_param_groups(model, setting.mu_base, lr=1.0, width=setting.width)
    by_id = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def _shape(step: int, lr: float, setting: Setting) -> float:
    """The schedule as a fraction of the peak: linear warm-up, then cosine to ``FINAL_LR``."""
    if step < setting.warm_up:
        return (step + 1) / setting.warm_up
    progress = (step - setting.warm_up) / max(1, setting.steps - setting.warm_up)
    floor = min(1.0, FINAL_LR / lr)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def _validate(model: CharacterGPT) -> dict[str, float]:
    """Measure cross entropy, mean log normaliser and mean logit over the validation windows."""
    windows = corpus().windows
    logits = model(windows[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    mean_logit = logits.mean().item()
    return {"loss": loss.item(), "log_z": logits.logsumexp(-1).mean().item(), "mean_logit": mean_logit}


def _probe(
    nets: SideBySide[CharacterGPT], optimizer: IndependentAdamW, eps: float, when: str
) -> list[dict[str, float]]:
    roots: list[dict[str, Tensor]] = [{} for _ in nets.models]
    for group in optimizer.param_groups:
        for name, leaf in zip(group["param_names"], group["params"], strict=True):
            for own, square in zip(roots[slice(*group["models"])], optimizer.state[leaf]["exp_avg_sq"], strict=True):
                own[name] = square.sqrt()
    return [_signals(model, own, eps, when) for model, own in zip(nets.models, roots, strict=True)]


def _signals(model: CharacterGPT, roots: Mapping[str, Tensor], eps: float, when: str) -> dict[str, float]:
    logit_max, entropy = attention_signals(model, corpus().windows[:, :-1])
    every = torch.cat([root[root > 0] for root in roots.values()])
    return {
        f"logit_max_{when}": logit_max,
        f"entropy_{when}": entropy,
        f"eps_shrink_{when}": (every / (every + eps)).mean().item(),
        f"mlp_grad_rms_{when}": roots["blocks.0.up.weight"].square().mean().sqrt().item(),
    }


@cache
def unigram_loss() -> float:
    """Validation loss of the characters' frequencies in the training text."""
    text = corpus()
    share = torch.bincount(text.train, minlength=text.classes).double() / len(text.train)
    return -share.log()[text.windows[:, 1:]].mean().item()


@cache
def bigram_loss() -> float:
    """Validation loss of the bigram table of the training text (one count added everywhere)."""
    text = corpus()
    pairs = text.train[:-1] * text.classes + text.train[1:]
    counts = 1 + torch.bincount(pairs, minlength=text.classes**2).double().view(text.classes, -1)
    log_p = (counts / counts.sum(1, keepdim=True)).log()
    return -log_p[text.windows[:, :-1], text.windows[:, 1:]].mean().item()


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
        (1e-2, 1e-1, 3e-1), _TINY, (16, 32, 48, 64), 6, wide=32, batches=(4,), horizons=(3,), mu_full_lr=1.0, n_jobs=1
    ),
    "default": Plan((1e-3, 1e-2, 3e-2, 1e-1, 3e-1), _DEFAULT, (16, 32, 64, 128), 3000, batches=(32,)),
    "full": Plan(
        (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        _FULL,
        (16, 32, 64, 128, 256),
        10_000,
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

    def run(self, seeds: Sequence[int]) -> SweepResult:
        """Train everything."""
        ended = train_side_by_side(self.setting, self.lrs, seeds)
        points = [
            SweepPoint(lr, None, seed, own.pop("loss"), own.pop("init_loss"), own)
            for (lr, seed), own in zip(product(self.lrs, seeds), ended, strict=True)
        ]
        return SweepResult(self.lrs, (None,), tuple(seeds), tuple(points))


Key = tuple[str, Any]
"""What runs are for, and which of them."""


def jobs_of(plan: Plan) -> dict[Key, Job]:
    """Return everything that the claims need."""
    base, normed = plan.setting, replace(plan.setting, qk_norm=True)
    settings = {PLAIN: base, NORMED: normed}
    # Output logits drift only late, in a small model without decay.
    drifting = replace(normed, width=16, steps=plan.forced_steps, weight_decay=0.0)
    no_decay = replace(normed, weight_decay=0.0)
    left_out = {NO_WARM_UP: replace(normed, warm_up=0), NO_DECAY: no_decay, NO_Z_LOSS: replace(no_decay, z_coef=0.0)}
    wide = replace(normed, width=plan.wide)
    mu = replace(wide, mu_base=plan.narrow)
    scaled = {
        NARROW: replace(normed, width=plan.narrow),
        STANDARD: wide,
        MU: mu,
        DEEP: replace(normed, blocks=plan.deep),
    }
    high, calm, upper = (plan.growth_lr,), (plan.eps_lr,), plan.lrs[-plan.upper :]
    jobs: dict[Key, Job] = {("curves", name): Job(s, plan.lrs) for name, s in settings.items()}
    for (name, s), w in product(settings.items(), plan.widths):
        jobs["growth", (name, w)] = Job(replace(s, width=w, last_step=s.probe_step), high)
    jobs |= {("epsilons", eps): Job(replace(normed, eps=eps), calm) for eps in plan.epsilons}
    jobs |= {("drift", "no z-loss"): Job(replace(drifting, z_coef=0.0), high), ("drift", "z-loss"): Job(drifting, high)}
    jobs |= {("left out", name): Job(s, upper) for name, s in left_out.items()}
    jobs |= {("kappas", kappa): Job(replace(base, kappa=kappa), calm) for kappa in plan.kappas}
    jobs |= {("scaled", name): Job(s, plan.lrs) for name, s in scaled.items()}
    if plan.mu_full_lr is not None:
        jobs["scaled", MU_FULL] = Job(replace(mu, mu_full=True), (*plan.lrs, plan.mu_full_lr))
    jobs |= {("muParam logits", name): Job(replace(scaled[name], qk_norm=False), high) for name in (STANDARD, MU)}
    jobs |= {("batches", size): Job(replace(normed, batch=size), plan.lrs) for size in plan.batches}
    return jobs | {("horizons", steps): Job(replace(normed, steps=steps), plan.lrs) for steps in plan.horizons}


@dataclass(frozen=True, slots=True)
class Results:
    """The runs, by what they are for."""

    plan: Plan
    runs: Mapping[Key, SweepResult]

    def of(self, group: str) -> dict[Any, SweepResult]:
        """Return the runs of one group, in the order of :func:`jobs_of`."""
        return {key: result for (own, key), result in self.runs.items() if own == group}

    def curve(self, group: str, key: Any) -> LRCurve:
        """Return the final losses of some runs over the learning rate."""
        return self.runs[group, key].curve()

    def usual_losses(self, name: str) -> Float[np.ndarray, " seeds"]:
        """Return the losses of usual runs at the low learning rate, at which something is forced in others."""
        return self.curve("curves", name).effective_losses[self.plan.lrs.index(self.plan.eps_lr)]

    def upper_sensitivity(self, name: str) -> LRSensitivity:
        """Return the sensitivity over the highest learning rates, of the usual runs or with something left out."""
        group = "left out" if ("left out", name) in self.runs else "curves"
        return lr_sensitivity(self.curve(group, name), (self.plan.lrs[-self.plan.upper], self.plan.lrs[-1]))

    def early_logits_by_seed(self, name: str) -> Float[np.ndarray, "seeds widths"]:
        """Return the largest logit at the probe, for each seed and width."""
        return self.growth_by_seed(name, "logit_max_early")

    def early_logits(self, name: str) -> list[float]:
        """Return the largest logit at the probe for each width, geometric mean over seeds."""
        return [*gmean(self.early_logits_by_seed(name))]

    def growth_by_seed(self, name: str, signal: str) -> Float[np.ndarray, "seeds widths"]:
        """Return a signal at the high learning rate, for each seed and width."""
        return np.stack([self.runs["growth", (name, w)].signal(signal)[0] for w in self.plan.widths], 1)

    @property
    def sizes(self) -> list[int]:
        """Parameters of the blocks for each width, as the paper counts them: 12 x depth x width^2."""
        return [12 * BLOCKS * width**2 for width in self.plan.widths]

    @property
    def forecast(self) -> SignalForecast:
        """The fit of early logits without qk-norm of all widths but the largest."""
        return forecast_signal(self.sizes[:-1], self.early_logits(PLAIN)[:-1])


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run everything that the claims need, the longest jobs first."""
    plan = PLANS[budget]
    jobs = jobs_of(plan)
    order = sorted(jobs, key=lambda key: -jobs[key].work)
    runs = run_each(lambda key: jobs[key].run(seeds), order, progress, plan.n_jobs, "{0[0]}: {0[1]}".format)
    return Results(plan, {key: runs[key] for key in jobs})


# --- the claims --------------------------------------------------------------------------------------------------


def rise(usual: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> PairedComparison:
    """Compare values of the same seeds: by how much the other are higher, and how sure that is."""
    return compare_paired(usual, other, lower_is_better=False)


def sensitivity_ratio(high: LRSensitivity, low: LRSensitivity) -> tuple[float, Interval]:
    """Return the ratio of two sensitivities, infinite where the lower is exactly zero, and its interval over seeds."""
    by_seed = np.asarray(high.per_seed), np.asarray(low.per_seed)
    return bootstrap_over_seeds(lambda a, b: a.mean() / b.mean() if b.any() else math.inf, *by_seed, positive=True)


def with_intervals(found: Mapping[str, tuple[float, Interval]], words: str, **more: float) -> Measured:
    """Return numbers with their intervals over seeds, and others without."""
    numbers = {name: value for name, (value, _) in found.items()}
    return Measured(words, {**numbers, **more}, intervals={name: interval for name, (_, interval) in found.items()})


@claim(
    "sensitivity",
    "qk-norm makes the final loss less sensitive to the learning rate.",
    paper="a strong reduction at every size (figure only)",
    protocol="Sensitivity without over that with qk-norm.",
    reproduced=at_least("ratio", 1.5) & at_least("p_better", 0.975, "P(lower)"),
    refuted=below("ratio", 1.1),
    over_seeds=["ratio"],
)
def sensitivity(results: Results) -> Measured:
    plain, normed = (lr_sensitivity(results.curve("curves", name)) for name in (PLAIN, NORMED))
    paired, ratio = rise(normed.per_seed, plain.per_seed), sensitivity_ratio(plain, normed)
    words = (
        f"learning-rate sensitivity is {plain.value:.3f} without and {normed.value:.3f} with qk-norm, a ratio of "
        f"{ratio[0]:.2f} (difference {plain.value - normed.value:.3f}, {interval(*paired.interval, '.3f')})"
    )
    return with_intervals({"ratio": ratio}, words, p_better=paired.p_better)


@claim(
    "high-lr",
    "At a learning rate of 0.3 training is worse without qk-norm.",
    paper="with it a 1.2-billion-parameter model trains at 0.3",
    protocol="Gap: by how much the loss at the largest learning rate is worse without.",
    reproduced=at_least("gap", 0.15) & at_least("p_better", 0.975, "P(worse)"),
    refuted=at_most("gap", 0.02),
    over_seeds=["gap"],
)
def high_lr(results: Results) -> Measured:
    plain, normed = (results.curve("curves", name).effective_losses[-1] for name in (PLAIN, NORMED))
    paired = rise(normed, plain)
    words = (
        f"at learning rate {results.plan.lrs[-1]:g}: {plain.mean():.3f} without, {normed.mean():.3f} with "
        f"(worse by {paired.difference:.3f}, {interval(*paired.interval, '.3f')})"
    )
    return Measured(words, {"gap": paired.difference, "p_better": paired.p_better}, {"gap": plain - normed})


@claim(
    "logit-growth",
    "At high learning rates attention logits grow without bound, attention collapses, and qk-norm prevents it.",
    paper="logits above 1e4 before divergence",
    protocol="At learning rate 0.1, end of training: largest logit and entropy of the lowest head, without qk-norm "
    "(plain) and with it (normed).",
    rule=all_or_none(
        above("logit_plain", 1e3),
        below("entropy_plain", 0.1),
        below("logit_normed", "logit_plain", times=0.1),
        over_seeds=["logit_plain", "entropy_plain", "logit_normed"],
    ),
)
def logit_growth(results: Results) -> Measured:
    row, runs = results.plan.lrs.index(results.plan.growth_lr), results.of("curves")
    logits = {
        f"logit_{short}": bootstrap_over_seeds(gmean, runs[name].signal("logit_max_end")[row], positive=True)
        for short, name in (("plain", PLAIN), ("normed", NORMED))
    }
    (plain, _), (normed, _) = logits.values()
    entropy, usual = (runs[name].signal("entropy_end")[row] for name in (PLAIN, NORMED))
    words = (
        f"at learning rate {results.plan.growth_lr:g}: largest logit {plain:.0f} and lowest entropy "
        f"{entropy.mean():.3f} without; {normed:.1f} and {usual.mean():.3f} with qk-norm"
    )
    found = {**logits, "entropy_plain": bootstrap_over_seeds(np.mean, entropy)}
    return with_intervals(found, words, entropy_normed=float(usual.mean()))


@claim(
    "logit-limit",
    "Every run whose attention logits pass 1e4 diverges.",
    paper="all such runs diverged",
    protocol="Runs without qk-norm whose logits pass 1e4; diverged: how many of them end no better than they began; "
    "share: their fraction.",
    reproduced=equal_to("diverged", "runs") & at_least("share", 0.9),
    refuted=equal_to("diverged", 0) & below("share", 0.9),
    over_seeds=["share"],
    unit="runs",
)
def logit_limit(results: Results) -> Measured:
    plain, curve = results.runs["curves", PLAIN], results.curve("curves", PLAIN)
    over = (plain.signal("logit_max_early") > 1e4) | (plain.signal("logit_max_end") > 1e4)
    if not over.any():
        return Measured("no run had a logit above 1e4")
    outcomes, losses = curve.diverged[over], curve.effective_losses[over]
    count, diverged = outcomes.size, int(outcomes.sum())
    words = (
        f"{count} runs above 1e4, {diverged} of them diverged; they ended at {losses.min():.3f} to {losses.max():.3f}, "
        f"far from the {curve.init_losses.mean():.3f} of the start but worse than the best learning rate's "
        f"{curve.best_loss:.3f}"
    )
    return Measured(words, {"runs": count, "diverged": diverged, "share": outcomes.mean()}, {"share": outcomes})


@claim(
    "forecast",
    "Attention logits of a larger model can be forecast from smaller ones by a quadratic in log size.",
    paper="crossing of 1e4 at 4.8 billion parameters and learning rate 0.01, as forecast",
    protocol="Decades between the logit at the largest width, left out of the fit, and its forecast.",
    reproduced=at_most("decades", 0.35),
    refuted=above("decades", 0.7),
    over_seeds=["decades"],
)
def forecast(results: Results) -> Measured:
    fit, observed = results.forecast, results.early_logits(PLAIN)[-1]
    predicted, low, high = fit.predict(results.sizes[-1])
    found = bootstrap_over_seeds(
        lambda logits: _decades_missed(results.sizes, np.atleast_1d(gmean(logits))), results.early_logits_by_seed(PLAIN)
    )
    limit = "is never reached by the fit" if math.isinf(fit.crossing) else f"at {fit.crossing:.2g} parameters"
    words = (
        f"width {results.plan.widths[-1]}: predicted {predicted:.0f} ({low:.0f} to {high:.0f} leaving one width out), "
        f"observed {observed:.0f}, {found[0]:.2f} decades apart; 1e4 {limit}"
    )
    return with_intervals({"decades": found}, words)


def _decades_missed(sizes: Sequence[float], logits: Float[np.ndarray, " widths"]) -> float:
    """Return by how many decades the last logit is missed by a fit of the others."""
    predicted, *_ = forecast_signal(sizes[:-1], logits[:-1].tolist()).predict(sizes[-1])
    return abs(math.log10(predicted / logits[-1]))


@claim(
    "gradient-rms",
    "The gradient of the first MLP layer shrinks with the learning rate and with size.",
    paper="it reaches Adam's epsilon of 1e-8 at 4.8 billion parameters and learning rate 0.3",
    protocol="Exponents of its root mean square over learning rates (end of training) and over the number of "
    "parameters (early), both with qk-norm.",
    rule=all_or_none(below("over_lr", 0), below("over_size", 0), over_seeds=["over_lr", "over_size"]),
)
def gradient_rms(results: Results) -> Measured:
    def slope(x: Sequence[float], by_seed: Float[np.ndarray, "seeds points"]) -> tuple[float, Interval]:
        return bootstrap_over_seeds(lambda own: float(np.polyfit(np.log10(x), np.log10(gmean(own)), 1)[0]), by_seed)

    found = {
        "over_lr": slope(results.plan.lrs, results.runs["curves", NORMED].signal("mlp_grad_rms_end").T),
        "over_size": slope(results.sizes, results.growth_by_seed(NORMED, "mlp_grad_rms_early")),
    }
    (over_lr, _), (over_size, _) = found.values()
    words = f"exponent {over_lr:+.2f} in the learning rate and {over_size:+.2f} in the number of parameters"
    return with_intervals(found, words)


@claim(
    "epsilon",
    "When gradients are no larger than Adam's epsilon, updates vanish and the loss suffers.",
    paper="epsilon 1e-15 improves the largest model; 1e-6 diverges",
    protocol="Forced here by epsilon 1e-3. Shrink: what is left of the size of updates, there and at the usual 1e-8; "
    "harm: by how much the loss is worse.",
    rule=all_or_none(
        below("shrink", 0.5) & above("shrink_usual", 0.95),
        above("harm", 0) & at_least("p_worse", 0.975, "P(worse)"),
        over_seeds=["shrink", "shrink_usual", "harm"],
    ),
)
def epsilon(results: Results) -> Measured:
    runs, usual = results.of("epsilons"), results.runs["curves", NORMED]
    harm = {eps: rise(results.usual_losses(NORMED), r.curve().effective_losses[0]) for eps, r in runs.items()}
    shrink = {eps: result.signal("eps_shrink_end")[0] for eps, result in runs.items()}
    usual_shrink = usual.signal("eps_shrink_end")[results.plan.lrs.index(results.plan.eps_lr)]
    updates = ", ".join(f"{shrink[e].mean():.2f} at {e:g} (loss {harm[e].difference:+.3f})" for e in runs)
    # The protocol was written for the smaller one. The larger, added after a first look, is shown and not judged.
    judged = min(runs)
    by_seed = {
        "shrink_usual": usual_shrink,
        "shrink": shrink[judged],
        "harm": runs[judged].curve().effective_losses[0] - results.usual_losses(NORMED),
    }
    words = f"updates are {usual_shrink.mean():.2f} of their size at epsilon 1e-08, {updates}"
    numbers = {name: own.mean() for name, own in by_seed.items()}
    return Measured(words, {**numbers, "p_worse": harm[judged].p_better}, by_seed)


@claim(
    "output-drift",
    "Without weight decay output logits drift to very negative values, and z-loss prevents it.",
    paper="seen at every size; 2.4 million parameters at learning rate 0.1",
    protocol="Forced by a long run: mean logit without z-loss, and |log Z| with it.",
    rule=all_or_none(
        below("mean_logit", -20), below("log_z_with", 1, "|log Z|"), over_seeds=["mean_logit", "log_z_with"]
    ),
)
def output_drift(results: Results) -> Measured:
    runs = results.of("drift")
    without, with_it = (np.abs(runs[name].signal("log_z"))[0] for name in ("no z-loss", "z-loss"))
    logit = runs["no z-loss"].signal("mean_logit")[0]
    words = (
        f"after {results.plan.forced_steps} steps without decay: mean logit {logit.mean():.1f} and |log Z| "
        f"{without.mean():.2f} without z-loss, |log Z| {with_it.mean():.2f} with it"
    )
    by_seed = {"mean_logit": logit, "log_z_with": with_it}
    numbers = {name: own.mean() for name, own in by_seed.items()}
    return Measured(words, {**numbers, "log_z_without": without.mean()}, by_seed)


@claim(
    "kappa",
    "Large logits do harm by themselves: a small model that is given the logit scale of a large one trains worse.",
    paper="worse near a scale of 1e3, worse than bigrams at 1e4 (10 million parameters)",
    protocol="Learning rate 0.01, queries and keys rescaled. Harm: by how much the loss at 1e3 is higher than without; "
    "over bigram: loss at 1e4 minus that of a bigram table; usual over bigram: that of the usual model minus it.",
    # A model that is behind bigrams anyway says nothing with its loss beside theirs.
    rule=all_or_none(
        above("harm", 0) & at_least("p_worse", 0.975, "P(worse)"),
        above("over_bigram", 0) & below("usual_over_bigram", 0),
        over_seeds=["harm", "over_bigram", "usual_over_bigram"],
    ),
)
def kappa(results: Results) -> Measured:
    usual = results.usual_losses(PLAIN)
    losses = {kappa: result.curve().effective_losses[0] for kappa, result in results.of("kappas").items()}
    harm, highest = rise(usual, losses[min(losses)]), losses[max(losses)]
    scaled = ", ".join(f"{loss.mean():.3f} at {kappa:g}" for kappa, loss in losses.items())
    words = (
        f"at learning rate {results.plan.eps_lr:g} the loss is {usual.mean():.3f} without a scale, {scaled}; a bigram "
        f"table has {bigram_loss():.3f}"
    )
    over = {"over_bigram": highest.mean() - bigram_loss(), "usual_over_bigram": usual.mean() - bigram_loss()}
    by_seed = {
        "harm": losses[min(losses)] - usual,
        "over_bigram": highest - bigram_loss(),
        "usual_over_bigram": usual - bigram_loss(),
    }
    return Measured(words, {"harm": harm.difference, "p_worse": harm.p_better, **over}, by_seed)


HIGHER = Rule(at_least("p_better", 0.975, "P(higher)"), at_most("difference", 0), over_seeds=("difference",))


def compare_sensitivities(
    low: LRSensitivity, high: LRSensitivity, low_words: str, high_words: str, start: str = ""
) -> Measured:
    """Compare the sensitivity that should be higher with the one that should be lower."""
    paired = rise(low.per_seed, high.per_seed)
    words = (
        f"{start}sensitivity is {high.value:.3f} {high_words} and {low.value:.3f} {low_words} (difference "
        f"{paired.difference:+.3f}, {interval(*paired.interval)})"
    )
    by_seed = {"difference": np.asarray(high.per_seed) - np.asarray(low.per_seed)}
    return Measured(words, {"difference": paired.difference, "p_better": paired.p_better}, by_seed)


def left_out_claim(id: str, text: str, paper: str, protocol: str, arms: Mapping[str, str]) -> Claim[Results]:
    """Return the claim that leaving one thing out raises the sensitivity over the highest learning rates.

    ``arms`` names the runs without it, then those with it, each with the words for it.
    """

    def measure(results: Results) -> Measured:
        start = f"over learning rates {results.plan.lrs[-results.plan.upper]:g} to {results.plan.lrs[-1]:g} "
        high, low = (results.upper_sensitivity(name) for name in arms)
        without, kept = arms.values()
        return compare_sensitivities(low, high, kept, without, start)

    return Claim(id, text, paper, protocol, HIGHER, measure)


warm_up = left_out_claim(
    "warm-up",
    "Warm-up lowers the sensitivity to the learning rate.",
    "lower, most for large models (figure only)",
    "Difference of sensitivities over the highest learning rates, with qk-norm: without warm-up minus with it.",
    {NO_WARM_UP: "without warm-up", NORMED: "with it"},
)
decay = left_out_claim(
    "decay",
    "Independent weight decay lowers the sensitivity to the learning rate.",
    "lower (figure only)",
    "The same, without weight decay minus with it.",
    {NO_DECAY: "without decay", NORMED: "with it"},
)
z_loss = left_out_claim(
    "z-loss",
    "Without weight decay, z-loss lowers the sensitivity to the learning rate.",
    "lower (figure only)",
    "The same, both without weight decay, without z-loss minus with it.",
    {NO_Z_LOSS: "without decay and z-loss", NO_DECAY: "without decay"},
)


@claim(
    "mu-optimum",
    "muParam (simple) keeps the best learning rate where it is when the model becomes wider.",
    paper="the optimum is stabilised (figure only)",
    protocol="With qk-norm, distance in decades between the best learning rates of the narrow and the wide model, "
    "without muParam minus with it.",
    rule=HIGHER,
)
def mu_optimum(results: Results) -> Measured:
    narrow, standard, mu = (best_log_lrs(results.runs["scaled", name]) for name in (NARROW, STANDARD, MU))
    distances = np.abs(standard - narrow), np.abs(mu - narrow)
    paired = rise(distances[1], distances[0])
    words = (
        f"from width {results.plan.narrow} to {results.plan.wide} the best learning rate moves by "
        f"{(standard - narrow).mean():+.2f} decades, with muParam by {(mu - narrow).mean():+.2f}; a seed's distance is "
        f"{distances[0].mean():.2f} and {distances[1].mean():.2f} (shorter by "
        f"{paired.difference:.2f}, {interval(*paired.interval, '+.2f')})"
    )
    by_seed = {"difference": distances[0] - distances[1]}
    return Measured(words, {"difference": paired.difference, "p_better": paired.p_better}, by_seed)


@claim(
    "mu-loss",
    "muParam (simple) lowers neither the loss nor the sensitivity to the learning rate.",
    paper="no improvement of either (figure only)",
    protocol="Wide model with qk-norm. Gain: by how much the best loss is lower with muParam; ratio: sensitivity "
    "without over that with it.",
    rule=all_or_none(at_most("gain", 0.02), below("ratio", 1.1), over_seeds=["gain", "ratio"]),
)
def mu_loss(results: Results) -> Measured:
    standard, mu = (results.curve("scaled", name) for name in (STANDARD, MU))
    without, with_it = lr_sensitivity(standard), lr_sensitivity(mu)
    words = (
        f"at width {results.plan.wide} the best loss is {standard.best_loss:.3f} without and {mu.best_loss:.3f} with "
        f"muParam, sensitivity {without.value:.3f} and {with_it.value:.3f}"
    )
    found = {"gain": gain_of_best(standard, mu), "ratio": sensitivity_ratio(without, with_it)}
    return with_intervals(found, words)


def gain_of_best(usual: LRCurve, other: LRCurve) -> tuple[float, Interval]:
    """Return by how much the best mean loss of a curve is below that of the usual one, and its interval over seeds."""
    losses = usual.effective_losses.T, other.effective_losses.T
    return bootstrap_over_seeds(lambda a, b: a.mean(0).min() - b.mean(0).min(), *losses)


@claim(
    "mu-logits",
    "muParam (simple) does not replace qk-norm: without it attention logits still grow.",
    paper="still unstable (figure only)",
    protocol="Wide model, learning rate 0.1, no qk-norm: largest logit, with muParam (mu) and without (standard).",
    reproduced=above("logit_mu", 1e3),
    refuted=at_most("logit_mu", "logit_standard", times=0.1),
    over_seeds=["logit_mu", "logit_standard"],
)
def mu_logits(results: Results) -> Measured:
    plan, runs = results.plan, results.of("muParam logits")
    found = {
        short: bootstrap_over_seeds(gmean, runs[name].signal("logit_max_end")[0], positive=True)
        for short, name in (("logit_standard", STANDARD), ("logit_mu", MU))
    }
    (standard, _), (mu, _) = found.values()
    words = (
        f"width {plan.wide}, learning rate {plan.growth_lr:g}, no qk-norm: largest logit {standard:.0f} without and "
        f"{mu:.0f} with muParam, under which linear layers learn at {plan.growth_lr * plan.narrow / plan.wide:g}"
    )
    return with_intervals(found, words)


NOT_TESTED = "not tested at this budget; the full budget does"


@claim(
    "mu-full",
    "muParam (full) with qk-norm trains at a learning rate of 1, but is no better at the best one.",
    paper="trains at 1; no better (figure only)",
    protocol="Over unigram: loss of the worst run at 1 minus that of the characters' frequencies, and its mean over "
    "seeds; gain: by how much the best loss is lower.",
    rule=all_or_none(
        below("over_unigram", 0) & below("mean_over_unigram", 0),
        at_most("gain", 0.02),
        over_seeds=["mean_over_unigram", "gain"],
    ),
)
def mu_full(results: Results) -> Measured:
    if ("scaled", MU_FULL) not in results.runs:
        return Measured(NOT_TESTED)
    standard, full = (results.curve("scaled", name) for name in (STANDARD, MU_FULL))
    last = full.effective_losses[-1]
    words = (
        f"with muParam (full) and qk-norm, width {results.plan.wide}, the loss at learning rate {full.lrs[-1]:g} is "
        f"{last.mean():.3f} (characters drawn by frequency: {unigram_loss():.3f}); best losses are "
        f"{standard.best_loss:.3f} without and {full.best_loss:.3f} with it"
    )
    over = last - unigram_loss()
    found = {"mean_over_unigram": bootstrap_over_seeds(np.mean, over), "gain": gain_of_best(standard, full)}
    return with_intervals(found, words, over_unigram=over.max())


@claim(
    "size",
    "The sensitivity to the learning rate rises with size, also with qk-norm.",
    paper="rises (figure only)",
    protocol="Sensitivity of the wide model minus that of the narrow one.",
    rule=HIGHER,
)
def size(results: Results) -> Measured:
    narrow, wide = (lr_sensitivity(results.curve("scaled", name)) for name in (NARROW, STANDARD))
    return compare_sensitivities(narrow, wide, f"at width {results.plan.narrow}", f"at width {results.plan.wide}")


@claim(
    "depth",
    "Sensitivity rises faster with depth than with width.",
    paper="faster (figure only)",
    protocol="With qk-norm, the deep model's sensitivity minus that of the wide one, which has as many parameters.",
    rule=HIGHER,
)
def depth(results: Results) -> Measured:
    plan, (wide, deep) = results.plan, (lr_sensitivity(results.curve("scaled", name)) for name in (STANDARD, DEEP))
    shape = f"with {plan.deep} blocks of width {plan.setting.width}"
    return compare_sensitivities(wide, deep, f"with {BLOCKS} of width {plan.wide}, as many parameters", shape)


# The bounds are those of qk-norm's effect: below 1.1 there is none, from 1.5 there is one.
NO_EFFECT = Rule(
    below("ratio", 1.1), at_least("ratio", 1.5) & at_least("p_apart", 0.975, "P(apart)"), over_seeds=("ratio",)
)


@claim(
    "batch",
    "The batch size does not change the sensitivity to the learning rate.",
    paper="no effect from 256 to 1024 (figure only)",
    protocol="With qk-norm, batch four times larger: the larger sensitivity over the smaller.",
    rule=NO_EFFECT,
)
def batch_size(results: Results) -> Measured:
    return compare_extremes(results, "batches", results.plan.setting.batch, "windows a batch")


@claim(
    "steps",
    "The number of training steps does not change the sensitivity to the learning rate.",
    paper="no effect from 5e4 to 2e5 (figure only)",
    protocol="The same, for half and twice as many steps.",
    rule=NO_EFFECT,
)
def training_steps(results: Results) -> Measured:
    return compare_extremes(results, "horizons", results.plan.setting.steps, "steps")


def compare_extremes(results: Results, group: str, usual: int, words: str) -> Measured:
    """Compare the highest sensitivity with the lowest, over the values of something that should not matter."""
    others = results.of(group)
    if not others:
        return Measured(NOT_TESTED)
    runs = {usual: results.runs["curves", NORMED], **others}
    by_value = {value: lr_sensitivity(runs[value].curve()) for value in sorted(runs)}
    low, *_, high = sorted(by_value.values(), key=lambda sensitivity: sensitivity.value)
    values = ", ".join(f"{sensitivity.value:.3f} at {value} {words}" for value, sensitivity in by_value.items())
    p_apart = rise(low.per_seed, high.per_seed).p_better
    return with_intervals({"ratio": sensitivity_ratio(high, low)}, f"sensitivity is {values}", p_apart=p_apart)


def best_log_lrs(result: SweepResult) -> Float[np.ndarray, " seeds"]:
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


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    picture, logits = _curves_figure(results), claims["logit-growth"].numbers
    summary = (
        f"At this size {claims['sensitivity'].text}. Without qk-norm the largest attention logit at learning rate "
        f"{results.plan.growth_lr:g} is {logits['logit_plain']:.0f}; with it {logits['logit_normed']:.1f}."
    )
    shapes = _shapes_of_models(results)
    scaled = {name: result.curve() for name, result in shapes.items() if "steps" not in name}
    return Presentation(
        summary,
        [
            picture,
            _logits_figure(results),
            _forecast_figure(results),
            _curves_table(results),
            _left_out_table(results),
            lr_figure(scaled, "Wider and deeper models, with qk-norm"),
            _scaled_table(shapes, results.plan.narrow),
            _drift_table(results),
            _notes(results.plan),
        ],
        picture.figure,
    )


def _curves_figure(results: Results) -> Figure:
    curves = {name: result.curve() for name, result in results.of("curves").items()}
    figure, bigram = lr_figure(curves, "Validation loss over learning rate"), bigram_loss()
    figure.figure.add_hline(y=bigram, line_dash="dot", line_width=1, annotation_text="bigram table")
    return Figure(figure.title, figure.figure, f"{figure.alt} A bigram table has {bigram:.3f}.")


def _logits_figure(results: Results) -> Figure:
    lrs, runs = results.plan.lrs, results.of("curves")
    series = {name: (lrs, gmean(result.signal("logit_max_early"), axis=1)) for name, result in runs.items()}
    title = f"Largest attention logit after {results.plan.setting.probe_step} steps"
    return log_x(line_chart(title, series, "learning rate", "largest attention logit", log_y=True))


def _forecast_figure(results: Results) -> Figure:
    fit, sizes, name = results.forecast, results.sizes, "forecast from all but the largest"
    fine = np.geomspace(sizes[0], sizes[-1], 30)
    predicted, low, high = np.transpose([fit.predict(size) for size in fine])
    series: dict[str, tuple[Any, Any]] = {
        f"observed, {PLAIN}": (sizes, results.early_logits(PLAIN)),
        name: (fine, predicted),
        f"observed, {NORMED}": (sizes, results.early_logits(NORMED)),
    }
    title, bands = (
        f"Attention logits over model size, learning rate {results.plan.growth_lr:g}",
        {name: (fine, low, high)},
    )
    x_title, y_title = "parameters in the blocks", "largest attention logit"
    return log_x(line_chart(title, series, x_title, y_title, log_y=True, bands=bands))


def _curves_table(results: Results) -> Table:
    rows = []
    for name, result in results.of("curves").items():
        signals = (result.signal(s) for s in ("logit_max_early", "logit_max_end", "entropy_end"))
        for lr, losses, early, end, entropy in zip(result.lrs, result.curve().effective_losses, *signals, strict=True):
            of_losses = [losses.mean(), losses.min(), losses.max()]
            rows.append([name, lr, *of_losses, gmean(early), gmean(end), entropy.mean()])
    columns = ["Model", "Learning rate", "Loss", "Lowest seed", "Highest seed"]
    caption = (
        "Loss in nats per character. Logits are the largest of a run, geometric means over seeds; entropy is that of "
        "the lowest head at the end, as a share of the largest possible."
    )
    return Table("Runs by learning rate", [*columns, "Logit early", "Logit at end", "Entropy"], rows, caption)


def _left_out_table(results: Results) -> Table:
    lrs = results.plan.lrs[-results.plan.upper :]
    rows = []
    for name, result in {NORMED: results.runs["curves", NORMED], **results.of("left out")}.items():
        means = result.curve().within(lrs[0], lrs[-1]).effective_losses.mean(axis=1)
        rows.append([name, *means, results.upper_sensitivity(name).value])
    columns = ["Runs", *(f"Loss at {lr:g}" for lr in lrs), "Sensitivity"]
    caption = "Models with qk-norm; sensitivity over these learning rates only, means over seeds."
    return Table("One thing left out", columns, rows, caption)


def _shapes_of_models(results: Results) -> dict[str, SweepResult]:
    """Return the runs with qk-norm by what differs in the model or its training."""
    plan, width, scaled = results.plan, results.plan.setting.width, results.of("scaled")
    words = {
        NARROW: f"width {plan.narrow}",
        STANDARD: f"width {plan.wide}",
        MU: f"width {plan.wide}, muParam (simple)",
        DEEP: f"width {width}, {plan.deep} blocks",
        MU_FULL: f"width {plan.wide}, muParam (full)",
    }
    return {
        f"width {width}, as in the other runs": results.runs["curves", NORMED],
        **{words[name]: result for name, result in scaled.items()},
        **{f"width {width}, batch {size}": result for size, result in results.of("batches").items()},
        **{f"width {width}, {steps} steps": result for steps, result in results.of("horizons").items()},
    }


def _scaled_table(shapes: Mapping[str, SweepResult], narrow: int) -> Table:
    rows = []
    for name, result in shapes.items():
        curve, best = result.curve(), best_log_lrs(result)
        rows.append([name, lr_sensitivity(curve).value, curve.best_loss, 10 ** best.mean(), 10 ** best.std()])
    columns = ["Runs", "Sensitivity", "Best loss", "Best learning rate", "Its spread over seeds, as a factor"]
    caption = (
        "Models with qk-norm. The best learning rate is the lowest point of a parabola through a seed's best loss and "
        "its neighbours on the grid; geometric mean over seeds. muParam's learning rate is that of the width at which "
        f"it changes nothing, {narrow}."
    )
    return Table("Width, depth, muParam, batch size and number of steps", columns, rows, caption)


def _drift_table(results: Results) -> Table:
    rows = [
        [name, *(result.signal(s).mean() for s in ("mean_logit", "log_z")), result.curve().best_loss]
        for name, result in results.of("drift").items()
    ]
    columns, plan = ["Runs", "Mean output logit", "Mean log Z", "Validation loss"], results.plan
    caption = f"Width 16, learning rate {plan.growth_lr:g}, no weight decay, {plan.forced_steps} steps."
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
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(
        sensitivity,
        high_lr,
        logit_growth,
        logit_limit,
        forecast,
        gradient_rms,
        epsilon,
        output_drift,
        kappa,
        warm_up,
        decay,
        z_loss,
        mu_optimum,
        mu_loss,
        mu_logits,
        mu_full,
        size,
        depth,
        batch_size,
        training_steps,
    ),
    present=present,
)

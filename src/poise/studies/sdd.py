"""Study of "Scale-Distribution Decoupling": whether decoupled linear maps make post-norm networks hard to break.

The paper's perturbation table on digits: residual networks of 16 blocks, without warm-up, at learning rates and
initial scales that are right and wrong. Then, for the claim on speed, a character language model of 12 blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from joblib import Parallel, delayed
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from poise.evidence import compare_paired
from poise.nn import apply_sdd
from poise.preflight.perturbation_grid import Recipe, final_loss, scale_weights
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.kit.character_gpt import CONTEXT, Block, CharacterGPT, corpus
from poise.studies.kit.digits import digits
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

WIDTH, HIDDEN, BLOCKS, LR = 48, 96, 16, 5e-3
POST, PRE, SDD = "post-norm", "pre-norm", "SDD post-norm"
ARMS = (POST, PRE, SDD)
BASE, HIGH, EXTREME, SMALL, SMALL_SLOW = "base", "lr*5", "lr*20", "blocks*0.1", "blocks*0.1, lr*0.2"
ALL_SMALL, ALL_SMALL_SLOW = "init*0.1", "init*0.1, lr*0.2"
# The paper's table at two learning rates, "init" there being that of the blocks' maps, which is what decoupling is for.
JUDGED = (BASE, HIGH, EXTREME, SMALL, SMALL_SLOW)
CONDITIONS = (*JUDGED, ALL_SMALL, ALL_SMALL_SLOW)
FAILS, TRAINS = 1.5, 0.5  # losses; guessing has 2.3

TEXT_WIDTH, TEXT_BLOCKS, TEXT_BATCH = 32, 12, 8
TEXT_LRS = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    steps: int = 80
    text_steps: int = 60
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(steps=2, text_steps=2, n_jobs=1),
    "default": Plan(),
    "full": Plan(steps=400, text_steps=1000),
}

# --- digits ------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two maps with a SiLU between them, and a norm: before the first, or after the sum."""

    def __init__(self, post_norm: bool) -> None:
        super().__init__()
        self.post_norm, self.norm = post_norm, nn.RMSNorm(WIDTH, eps=1e-6)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Return Norm(x + f(x)), or x + f(Norm(x))."""
        if self.post_norm:
            normed: Tensor = self.norm(x + self.down(F.silu(self.up(x))))
            return normed
        return x + self.down(F.silu(self.up(self.norm(x))))


def digit_network(arm: str, scale: float = 1.0) -> nn.Sequential:
    """Return a fresh network of 16 blocks; its weights come from torch's global generator.

    Args:
        arm: one of ``ARMS``.
        scale: factor on the initial weights of the blocks.
    """
    blocks = nn.Sequential(*(ResidualBlock(arm != PRE) for _ in range(BLOCKS)))
    last = nn.RMSNorm(WIDTH, eps=1e-6) if arm == PRE else nn.Identity()
    net = nn.Sequential(nn.Linear(64, WIDTH), blocks, last, nn.Linear(WIDTH, 10))
    _draw(blocks, WIDTH, "down")
    if arm == SDD:
        apply_sdd(net, residual_out=("down",), n_layers=BLOCKS)
    scale_weights(blocks, scale)
    return net


def _draw(blocks: nn.Module, width: int, *ends: str) -> None:
    """Draw the maps as the paper does, those at the end of a branch smaller by sqrt(2 L)."""
    depth = len(list(blocks.children()))
    for name, module in blocks.named_modules():
        if isinstance(module, nn.Linear):
            std = (2.5 * width) ** -0.5
            nn.init.normal_(module.weight, std=std / (2 * depth) ** 0.5 if name.endswith(ends) else std)


def digit_batches() -> DataLoader[tuple[Tensor, ...]]:
    """Return the 1300 training digits in a new order, 32 a batch."""
    return DataLoader(TensorDataset(*digits(0)[:2]), 32, shuffle=True, drop_last=True)


def digit_recipe(arm: str, steps: int) -> Recipe:
    """Return the paper's recipe at this size: AdamW without decay or warm-up, cosine, clipping at 1."""
    make_model = partial(digit_network, arm)
    return Recipe(make_model, digit_batches, F.cross_entropy, _adam, LR, steps, warmup=0, clip=1.0)


def train_digits(arm: str, condition: str, steps: int, seed: int) -> Float[np.ndarray, " steps"]:
    """Train one network under one of ``CONDITIONS``; return its training losses."""
    recipe, rest = digit_recipe(arm, steps), condition.removeprefix("blocks*0.1")
    if rest != condition:
        recipe = replace(recipe, make_model=partial(digit_network, arm, 0.1))
    return recipe.train(rest.lstrip(", ") or BASE, seed)


def _adam(parameters: Sequence[nn.Parameter], lr: float) -> AdamW:
    return AdamW(parameters, lr, (0.9, 0.95), weight_decay=0.0, foreach=True)


# --- characters --------------------------------------------------------------------------------------------------


class PostNormBlock(Block):
    """Attention and MLP, each followed by a norm of the sum."""

    def __init__(self, width: int) -> None:
        super().__init__(width, qk_norm=False)
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))  # type: ignore[assignment]

    def heads(self, x: Float[Tensor, "batch time width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of what comes in, which is normalised already."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 16)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Return Norm(x + f(x)) for attention, then for the MLP."""
        mixed = F.scaled_dot_product_attention(*self.heads(x), is_causal=True)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def text_network(arm: str) -> CharacterGPT:
    """Return a fresh post-norm language model of 12 blocks, with or without decoupled maps."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ()).item()))
    net = CharacterGPT(TEXT_WIDTH, corpus().classes, qk_norm=False, generator=generator, blocks=0)
    net.blocks = nn.ModuleList(PostNormBlock(TEXT_WIDTH) for _ in range(TEXT_BLOCKS))
    net.norm = nn.Identity()  # type: ignore[assignment]
    _draw(net.blocks, TEXT_WIDTH, "out", "down")
    if arm == SDD:
        apply_sdd(net, residual_out=("out", "down"), n_layers=TEXT_BLOCKS)
    return net


def text_batches(steps: int) -> list[Tensor]:
    """Return random windows of the text."""
    train = corpus().train
    starts = torch.randint(len(train) - CONTEXT, (steps, TEXT_BATCH, 1))
    return list(train[starts + torch.arange(CONTEXT + 1)])


def text_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the cross entropy of the next character."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def text_recipe(arm: str, lr: float, steps: int) -> Recipe:
    """Return the recipe of the digits, for characters."""
    make_model, batches = partial(text_network, arm), partial(text_batches, steps)
    return Recipe(make_model, batches, text_loss, _adam, lr, steps, warmup=steps // 10, clip=1.0)


# --- the experiment ----------------------------------------------------------------------------------------------

Losses = Float[np.ndarray, "seeds steps"]


@dataclass(frozen=True, slots=True)
class Found:
    """Training losses by arm and condition, and of the language models by arm and learning rate.

    A run that diverged has the loss of guessing from then on, so that all means exist.
    """

    digits: Mapping[tuple[str, str], Losses]
    text: Mapping[tuple[str, float], Losses]

    def final(self, arm: str, condition: str) -> Float[np.ndarray, " seeds"]:
        """Return the mean of the last quarter of the steps, for each seed."""
        return np.array([final_loss(run) for run in self.digits[arm, condition]])

    def final_text(self, arm: str) -> tuple[float, Float[np.ndarray, " seeds"]]:
        """Return the learning rate that is best for this arm in the mean, and the final losses there."""
        finals = {lr: np.array([final_loss(run) for run in self.text[arm, lr]]) for lr in TEXT_LRS}
        best = min(finals, key=lambda lr: finals[lr].mean())
        return best, finals[best]


def run(plan: Plan, seeds: Sequence[int], progress: Progress) -> Found:
    """Train every arm under every condition."""
    corpus()  # once, before processes start
    texts, digits = list(product((POST, SDD), TEXT_LRS)), list(product(ARMS, CONDITIONS))
    jobs = [delayed(text_recipe(arm, lr, plan.text_steps).train)("base", s) for arm, lr in texts for s in seeds]
    jobs += [delayed(train_digits)(arm, condition, plan.steps, s) for arm, condition in digits for s in seeds]
    runs: list[np.ndarray] = []
    for losses in Parallel(plan.n_jobs, return_as="generator")(jobs):
        runs.append(losses)
        progress(len(runs) / len(jobs), "characters" if len(runs) <= len(texts) * len(seeds) else "perturbed digits")
    by_cell = [np.stack(runs[i : i + len(seeds)]) for i in range(0, len(runs), len(seeds))]
    of_text, of_digits = by_cell[: len(texts)], by_cell[len(texts) :]
    guessing = np.log(corpus().classes)
    return Found(
        digits={cell: np.nan_to_num(losses, nan=np.log(10)) for cell, losses in zip(digits, of_digits, strict=True)},
        text={cell: np.nan_to_num(losses, nan=guessing) for cell, losses in zip(texts, of_text, strict=True)},
    )


# --- the claims --------------------------------------------------------------------------------------------------


def judge_survival(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by shares of seeds."""
    if n["post_fails"] < 0.5 or n["sdd_trains"] < 0.5:
        return "refuted"
    return "reproduced" if n["both"] >= 2 / 3 - 1e-9 else "partly"


def judge_small_init(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the ratio of losses."""
    if n["ratio"] >= 1:
        return "refuted"
    return "reproduced" if n["ratio"] <= 0.6 else "partly"


def judge_pre_norm(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the number of conditions."""
    if n["better"] == n["conditions"]:
        return "reproduced"
    return "partly" if n["better"] else "refuted"


def judge_speed(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the difference of losses and how sure its sign is."""
    if n["difference"] >= 0:
        return "refuted"
    return "reproduced" if n["p_better"] >= 0.975 else "partly"


CLAIMS = (
    Claim(
        "high-lr",
        "At five times the learning rate a post-norm network does not converge; with decoupled maps it does.",
        "post-norm fails, SDD 2.81 (2.83 at the usual rate)",
        "Final training loss at learning rate 0.025: reproduced if post-norm stays at 1.5 or more and SDD comes to 0.5 "
        "or less in two thirds of the seeds; refuted if on most seeds post-norm does not stay there, or SDD does not "
        "come there.",
        judge_survival,
    ),
    Claim(
        "no-warm-up",
        "Without warm-up a post-norm network does not converge; with decoupled maps it does.",
        "post-norm fails, SDD 2.83",
        "The same losses at the usual learning rate of 0.005, where nothing here has a warm-up, by the same rule.",
        judge_survival,
    ),
    Claim(
        "small-init",
        "With initial weights a tenth of the usual, training is better with decoupled maps.",
        "post-norm fails, SDD 2.82",
        "Initial weights of the blocks times 0.1, learning rate 0.001: reproduced if SDD's loss is at most 0.6 times "
        "that of post-norm, refuted if it is not lower.",
        judge_small_init,
    ),
    Claim(
        "pre-norm",
        "Under perturbations decoupled post-norm is better than pre-norm.",
        "2.83, 2.81, 2.82, 2.83 against 2.85, 2.84, 2.86, 2.85",
        "Mean losses under five conditions (two learning rates for the small start): reproduced if SDD's is lower "
        "under all, refuted if under none.",
        judge_pre_norm,
    ),
    Claim(
        "speed",
        "With decoupled maps language models come to a lower loss in the same number of steps.",
        "2.65 against 2.69 (post-norm) at a billion parameters; 1.5 times as fast",
        "Character model of 12 post-norm blocks, 60 steps, each at its best of three learning rates: reproduced if "
        "lower with P >= 0.975, refuted if not lower.",
        judge_speed,
    ),
)


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the experiment and put what came out beside the claims."""
    plan = PLANS[budget]
    found = run(plan, seeds, progress)
    claims = {
        "high-lr": _measure_survival(found, HIGH),
        "no-warm-up": _measure_survival(found, BASE),
        "small-init": _measure_small_init(found),
        "pre-norm": _measure_pre_norm(found),
        "speed": _measure_speed(found, plan),
    }
    picture = _figure(found)
    blocks: list[Text | Table | Figure | Code] = [_digits_table(found), picture, _text_table(found), _notes(plan)]
    summary = f"At five times the learning rate: {claims['high-lr'].ours}. Against pre-norm: {claims['pre-norm'].ours}."
    return Measurement(claims, summary, blocks, picture.figure)


def _measure_survival(found: Found, condition: str) -> Measured:
    post, sdd = found.final(POST, condition), found.final(SDD, condition)
    fails, trains = post >= FAILS, sdd <= TRAINS
    ours = (
        f"final loss {post.mean():.3f} with post-norm ({_range(post)}), {sdd.mean():.3f} with SDD ({_range(sdd)}); "
        f"{int((fails & trains).sum())} of {len(post)} seeds as claimed"
    )
    numbers = {"post_fails": fails.mean(), "sdd_trains": trains.mean(), "both": (fails & trains).mean()}
    return Measured(ours, {name: float(value) for name, value in numbers.items()})


def _measure_small_init(found: Found) -> Measured:
    post, sdd = found.final(POST, SMALL_SLOW).mean(), found.final(SDD, SMALL_SLOW).mean()
    others = {
        words: [f"{found.final(arm, condition).mean():.3f}" for arm in (POST, SDD)]
        for words, condition in (
            ("at 0.005", SMALL),
            ("with first and last layer small too, at 0.001", ALL_SMALL_SLOW),
            ("and at 0.005", ALL_SMALL),
        )
    }
    ours = (
        f"at learning rate 0.001 {post:.3f} with post-norm and {sdd:.3f} with SDD, a ratio of {sdd / post:.2f}; not "
        f"judged: {'; '.join(f'{words} {a} and {b}' for words, (a, b) in others.items())}"
    )
    return Measured(ours, {"ratio": float(sdd / post)})


def _measure_pre_norm(found: Found) -> Measured:
    pairs = {c: (float(found.final(SDD, c).mean()), float(found.final(PRE, c).mean())) for c in JUDGED}
    better = sum(sdd < pre for sdd, pre in pairs.values())
    words = "; ".join(f"{c}: {sdd:.3f} against {pre:.3f}" for c, (sdd, pre) in pairs.items())
    return Measured(
        f"SDD is lower under {better} of {len(pairs)} ({words})", {"better": better, "conditions": len(pairs)}
    )


def _measure_speed(found: Found, plan: Plan) -> Measured:
    (post_lr, post), (sdd_lr, sdd) = found.final_text(POST), found.final_text(SDD)
    paired = compare_paired(post, sdd)
    ours = (
        f"after {plan.text_steps} steps {post.mean():.3f} with post-norm (learning rate {post_lr:g}), {sdd.mean():.3f} "
        f"with SDD ({sdd_lr:g}): {paired.difference:+.3f} (95 % interval {paired.interval[0]:+.3f} to "
        f"{paired.interval[1]:+.3f})"
    )
    return Measured(ours, {"difference": paired.difference, "p_better": paired.p_better})


def _range(values: Float[np.ndarray, " seeds"]) -> str:
    return f"{values.min():.3f} to {values.max():.3f}"


def _figure(found: Found) -> Figure:
    lines = {}
    for arm in ARMS:
        losses = found.digits[arm, HIGH].mean(0)
        lines[arm] = (np.arange(1, len(losses) + 1), losses)
    return line_chart("Five times the learning rate", lines, "step", "training loss, mean over seeds", log_y=True)


def _digits_table(found: Found) -> Table:
    rows: list[list[object]] = []
    for condition in CONDITIONS:
        finals = [found.final(arm, condition) for arm in ARMS]
        rows.append([condition, *(f"{final.mean():.3f} ({_range(final)})" for final in finals)])
    caption = (
        "Training loss, mean of the last quarter of the steps; mean and range over seeds. Base: learning rate 0.005. "
        "'blocks' multiplies the initial weights of the blocks, 'init' those of the first and last layer as well. "
        f"A run that diverged counts as guessing, {np.log(10):.2f}."
    )
    return Table("The perturbation table on digits", ["condition", *ARMS], rows, caption)


def _text_table(found: Found) -> Table:
    rows: list[list[object]] = []
    for (arm, lr), runs in found.text.items():
        final = np.array([final_loss(run) for run in runs])
        rows.append([arm, lr, final.mean(), final.min(), final.max()])
    columns = ["model", "learning rate", "final loss", "lowest seed", "highest seed"]
    return Table("Characters, 12 post-norm blocks", columns, rows, "Nats per character, last quarter of the steps.")


def _notes(plan: Plan) -> Text:
    return Text(
        f"Digits: {BLOCKS} residual blocks of width {WIDTH} and hidden width {HIDDEN}, SiLU, RMSNorm, AdamW (0.9, "
        f"0.95) without decay, cosine, no warm-up, batch 32, {plan.steps} steps, gradients clipped at 1. Weights start "
        "normal with variance 1 / (2.5 width); those that end a branch are smaller by sqrt(2 L), or have alpha = 1 / "
        f"sqrt(L) with decoupled maps. Characters: width {TEXT_WIDTH}, {TEXT_BLOCKS} blocks, a tenth of "
        f"{plan.text_steps} steps warm-up. What this size can test is survival; so few steps of a small model say "
        "little of the speed of a run over billions of tokens.",
        title="Set-up",
    )


STUDY = Study(
    slug="sdd",
    title="Do decoupled linear maps make post-norm networks hard to break?",
    room="nn",
    paper=Paper(
        "Scale-Distribution Decoupling: Enabling Stable and Effective Training of Large Language Models",
        "Wang et al.",
        2025,
        "2502.15499",
    ),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 5},
    measure=measure,
)

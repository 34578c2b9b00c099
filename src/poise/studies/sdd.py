"""Study of "Scale-Distribution Decoupling": whether decoupled linear maps make post-norm networks hard to break.

The paper's perturbation table on digits: residual networks of 16 blocks, without warm-up, at learning rates and
initial scales that are right and wrong. Then, for the claim on speed, a character language model of 12 blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from poise.evidence import compare_paired
from poise.nn import apply_sdd
from poise.preflight.perturbation_audit.recipe import Recipe, final_loss, scale_weights
from poise.report import Table, Text, line_chart
from poise.studies.kit import Budget, Claim, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.character_gpt import CONTEXT, Block, CharacterGPT, corpus, next_character_loss
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_grid
from poise.studies.kit.rules import Rule, all_or_none, at_least, at_most, below
from poise.studies.kit.tables import seed_table
from poise.studies.kit.words import difference, mean_and_span, span

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


def train_digits(arm: str, condition: str, steps: int, seed: int) -> Float[np.ndarray, " steps"]:
    """Train one network by the paper's recipe at this size; return its training losses.

    The recipe is AdamW without decay or warm-up, cosine, clipping at 1.

    Args:
        arm: one of ``ARMS``.
        condition: one of ``CONDITIONS``.
        steps: optimizer steps.
        seed: of the weights and the batches.
    """
    rest = condition.removeprefix("blocks*0.1")
    make_model = partial(digit_network, arm, 1.0 if rest == condition else 0.1)
    recipe = Recipe(make_model, digit_batches, F.cross_entropy, _adam, LR, steps, warmup=0, clip=1.0)
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


def train_text(arm: str, lr: float, steps: int, seed: int) -> Float[np.ndarray, " steps"]:
    """Train one language model by the recipe of the digits, a tenth of the steps warm-up; return its losses."""
    make_model, batches = partial(text_network, arm), partial(text_batches, steps)
    recipe = Recipe(make_model, batches, next_character_loss, _adam, lr, steps, warmup=steps // 10, clip=1.0)
    return recipe.train(BASE, seed)


# --- the experiment ----------------------------------------------------------------------------------------------

Losses = Float[np.ndarray, "seeds steps"]
Finals = Float[np.ndarray, " seeds"]


@dataclass(frozen=True, slots=True)
class Results:
    """Training losses by arm and condition, and of the language models by arm and learning rate.

    A run that diverged has the loss of guessing from then on, so that all means exist.
    """

    plan: Plan
    digits: Mapping[tuple[str, str], Losses]
    text: Mapping[tuple[str, float], Losses]

    def final(self, arm: str, condition: str) -> Finals:
        """Return the mean of the last quarter of the steps, for each seed."""
        return finals(self.digits[arm, condition])

    def final_text(self, arm: str) -> tuple[float, Finals]:
        """Return the learning rate that is best for this arm in the mean, and the final losses there."""
        by_lr = {lr: finals(self.text[arm, lr]) for lr in TEXT_LRS}
        best = min(by_lr, key=lambda lr: by_lr[lr].mean())
        return best, by_lr[best]


def finals(runs: Losses) -> Finals:
    """Return the mean of the last quarter of the steps, for each seed."""
    return np.array([final_loss(run) for run in runs])


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Train every arm under every condition, the longest runs first."""
    plan, classes = PLANS[budget], corpus().classes  # loads the text once, before processes start
    text = run_grid(
        lambda cell, seed: train_text(*cell, plan.text_steps, seed),
        list(product((POST, SDD), TEXT_LRS)),
        seeds,
        part_of(progress, 0, 0.2),
        plan.n_jobs,
        "characters, {0[0]}, learning rate {0[1]:g}".format,
    )
    perturbed = run_grid(
        lambda cell, seed: train_digits(*cell, plan.steps, seed),
        list(product(ARMS, CONDITIONS)),
        seeds,
        part_of(progress, 0.2, 1),
        plan.n_jobs,
        "perturbed digits, {0[0]}, {0[1]}".format,
    )
    return Results(
        plan,
        {cell: np.nan_to_num(np.stack(runs), nan=np.log(10)) for cell, runs in perturbed.items()},
        {cell: np.nan_to_num(np.stack(runs), nan=np.log(classes)) for cell, runs in text.items()},
    )


# --- the claims --------------------------------------------------------------------------------------------------


def survival_claim(id: str, text: str, paper: str, where: str, condition: str) -> Claim[Results]:
    """Return the claim that post-norm fails under a condition and SDD does not."""

    def measure(results: Results) -> Measured:
        post, sdd = results.final(POST, condition), results.final(SDD, condition)
        fails, trains = post >= FAILS, sdd <= TRAINS
        words = (
            f"final loss {post.mean():.3f} with post-norm ({span(post)}), {sdd.mean():.3f} with SDD ({span(sdd)}); "
            f"{int((fails & trains).sum())} of {len(post)} seeds as claimed"
        )
        outcomes = {"post_fails": fails, "sdd_trains": trains, "both": fails & trains}
        return Measured(words, {name: seeds.mean() for name, seeds in outcomes.items()}, outcomes)

    protocol = (
        f"Final training loss {where}, fractions of the seeds: post-norm fails (stays at {FAILS} or more), SDD trains "
        f"(comes to {TRAINS} or less), both."
    )
    refuted = below("post_fails", 0.5) | below("sdd_trains", 0.5, "SDD trains")
    rule = Rule(at_least("both", 2 / 3 - 1e-9), refuted, over_seeds=("both", "post_fails", "sdd_trains"))
    return Claim(id, text, paper, protocol, rule, measure)


high_lr = survival_claim(
    "high-lr",
    "At five times the learning rate a post-norm network does not converge; with decoupled maps it does.",
    "post-norm fails, SDD 2.81 (2.83 at the usual rate)",
    "at learning rate 0.025",
    HIGH,
)
no_warm_up = survival_claim(
    "no-warm-up",
    "Without warm-up a post-norm network does not converge; with decoupled maps it does.",
    "post-norm fails, SDD 2.83",
    "at the usual learning rate of 0.005, where nothing here has a warm-up",
    BASE,
)


@claim(
    "small-init",
    "With initial weights a tenth of the usual, training is better with decoupled maps.",
    paper="post-norm fails, SDD 2.82",
    protocol="Initial weights of the blocks times 0.1, learning rate 0.001: SDD's loss over that of post-norm.",
    reproduced=at_most("ratio", 0.6),
    refuted=at_least("ratio", 1),
    over_seeds=["ratio"],
)
def small_init(results: Results) -> Measured:
    def means(condition: str) -> tuple[float, float]:
        return results.final(POST, condition).mean(), results.final(SDD, condition).mean()

    post, sdd = means(SMALL_SLOW)
    finals = [results.final(arm, SMALL_SLOW) for arm in (SDD, POST)]
    ratio, interval = bootstrap_over_seeds(lambda a, b: a.mean() / b.mean(), *finals, positive=True)
    others = {
        "at 0.005": SMALL,
        "with first and last layer small too, at 0.001": ALL_SMALL_SLOW,
        "and at 0.005": ALL_SMALL,
    }
    beside = "; ".join("{} {:.3f} and {:.3f}".format(words, *means(condition)) for words, condition in others.items())
    words = f"at learning rate 0.001 {post:.3f} with post-norm and {sdd:.3f} with SDD, a ratio of {ratio:.2f}"
    return Measured(f"{words}; not judged: {beside}", {"ratio": ratio}, intervals={"ratio": interval})


@claim(
    "pre-norm",
    "Under perturbations decoupled post-norm is better than pre-norm.",
    paper="2.83, 2.81, 2.82, 2.83 against 2.85, 2.84, 2.86, 2.85",
    protocol="Loss of SDD minus that of pre-norm, under five conditions (two learning rates for the small start).",
    rule=all_or_none(*(below(condition, 0) for condition in JUDGED), over_seeds=JUDGED),
)
def pre_norm(results: Results) -> Measured:
    pairs = {c: (results.final(SDD, c), results.final(PRE, c)) for c in JUDGED}
    by_seed = {condition: sdd - pre for condition, (sdd, pre) in pairs.items()}
    numbers = {condition: difference.mean() for condition, difference in by_seed.items()}
    better = sum(difference < 0 for difference in numbers.values())
    words = "; ".join(f"{c}: {sdd.mean():.3f} against {pre.mean():.3f}" for c, (sdd, pre) in pairs.items())
    return Measured(f"SDD is lower under {better} of {len(pairs)} ({words})", numbers, by_seed)


@claim(
    "speed",
    "With decoupled maps language models come to a lower loss in the same number of steps.",
    paper="2.65 against 2.69 (post-norm) at a billion parameters; 1.5 times as fast",
    protocol="Character model of 12 post-norm blocks, 60 steps, each at its best of three learning rates: difference "
    "of losses.",
    reproduced=at_least("p_better", 0.975, "P(lower)"),
    refuted=at_least("difference", 0),
    over_seeds=["difference"],
)
def speed(results: Results) -> Measured:
    (post_lr, post), (sdd_lr, sdd) = results.final_text(POST), results.final_text(SDD)
    paired = compare_paired(post, sdd)
    words = (
        f"after {results.plan.text_steps} steps {post.mean():.3f} with post-norm (learning rate {post_lr:g}), "
        f"{sdd.mean():.3f} with SDD ({sdd_lr:g}): {difference(paired)}"
    )
    numbers = {"difference": paired.difference, "p_better": paired.p_better}
    return Measured(words, numbers, {"difference": sdd - post})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    losses = {arm: results.digits[arm, HIGH].mean(0) for arm in ARMS}
    lines = {arm: (np.arange(1, len(course) + 1), course) for arm, course in losses.items()}
    picture = line_chart("Five times the learning rate", lines, "step", "training loss, mean over seeds", log_y=True)
    texts = seed_table(
        "Characters, 12 post-norm blocks",
        ["model", "learning rate"],
        {cell: finals(runs) for cell, runs in results.text.items()},
        "final loss",
        "Nats per character, last quarter of the steps.",
    )
    summary = f"At five times the learning rate: {claims['high-lr'].text}. Against pre-norm: {claims['pre-norm'].text}."
    return Presentation(summary, [_digits_table(results), picture, texts, _notes(results.plan)], picture.figure)


def _digits_table(results: Results) -> Table:
    rows = [[condition, *(mean_and_span(results.final(arm, condition)) for arm in ARMS)] for condition in CONDITIONS]
    caption = (
        "Training loss, mean of the last quarter of the steps; mean and range over seeds. Base: learning rate 0.005. "
        "'blocks' multiplies the initial weights of the blocks, 'init' those of the first and last layer as well. "
        f"A run that diverged counts as guessing, {np.log(10):.2f}."
    )
    return Table("The perturbation table on digits", ["condition", *ARMS], rows, caption)


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
    seeds={"tiny": 2, "default": 10, "full": 20},
    experiment=experiment,
    claims=(high_lr, no_warm_up, small_init, pre_norm, speed),
    present=present,
)

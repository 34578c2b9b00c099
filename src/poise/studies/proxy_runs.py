"""Runs of the study of small-scale proxies: character GPTs that train side by side, and the signals they leave."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from poise.losses import cross_entropy_with_z_loss
from poise.nn import transplant_logit_scale
from poise.optim import IndependentAdamW, mu_param_groups
from poise.studies.kit.character_gpt import CONTEXT, HEAD_DIM, Block, CharacterGPT, corpus
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.side_by_side import SideBySide

BLOCKS, BATCH = 2, 8
FINAL_LR = 1e-5

Gpts = SideBySide[CharacterGPT]


# --- attention in the model -------------------------------------------------------------------------------------------


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
        return _train(setting, lrs, seeds)


def _train(setting: Setting, lrs: Sequence[float], seeds: Sequence[int]) -> list[dict[str, float]]:
    text = corpus()
    begun = [_begin(setting, seed) for _ in lrs for seed in seeds]
    stack, starts = SideBySide([model for model, _ in begun]), torch.stack([start for _, start in begun])
    models = stack.models
    optimizer, shapes = _optimizer(stack, setting, lrs, len(seeds))
    schedule = LambdaLR(optimizer, shapes)
    window, early = torch.arange(CONTEXT + 1), [dict[str, float]() for _ in models]
    out = [{"init_loss": _validate(model)[0]} for model in models]
    for step in range(setting.steps if setting.last_step is None else setting.last_step):
        ids = text.train[starts[:, step] + window]
        logits = stack(ids[..., :-1]).flatten(0, -2)
        losses = cross_entropy_with_z_loss(logits, ids[..., 1:].flatten(), coef=setting.z_coef, reduction="sum")
        stack.zero_grad()
        (losses / (setting.batch * CONTEXT)).backward()
        stack.clip_grad_norm(1.0)
        optimizer.step()
        schedule.step()
        if step + 1 == setting.probe_step:
            early = _probe(stack, optimizer, setting.eps, "early")
    for numbers, model in zip(out, models, strict=True):
        numbers["loss"], numbers["log_z"], numbers["mean_logit"] = _validate(model)
    end = _probe(stack, optimizer, setting.eps, "end")
    return [a | b | c for a, b, c in zip(out, early, end, strict=True)]


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


Shape = Callable[[int], float]


def _optimizer(stack: Gpts, setting: Setting, lrs: Sequence[float], seeds: int) -> tuple[IndependentAdamW, list[Shape]]:
    """Return the optimizer, and for each of its groups the shape of its schedule."""
    factors = _lr_factors(stack.models[0], setting)
    groups: list[dict[str, Any]] = []
    shapes: list[Shape] = []
    for i, lr in enumerate(lrs):
        for factor in sorted(set(factors.values())):
            names = [name for name, own in factors.items() if own == factor]
            leaves = [(name, stack.leaf(name, i * seeds, (i + 1) * seeds)) for name in names]
            groups.append({"params": leaves, "lr": lr * factor, "models": (i * seeds, (i + 1) * seeds)})
            shapes.append(partial(_shape, lr=lr, setting=setting))
    return IndependentAdamW(groups, lrs[0], (0.9, 0.95), setting.eps, setting.weight_decay, foreach=True), shapes


def _lr_factors(model: nn.Module, setting: Setting) -> dict[str, float]:
    """Return each parameter's share of the learning rate, by name."""
    if setting.mu_base is None:
        return {name: 1.0 for name, _ in model.named_parameters()}
    groups = mu_param_groups(model, setting.mu_base, lr=1.0, width=setting.width)
    by_id = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def _shape(step: int, lr: float, setting: Setting) -> float:
    """The schedule as a share of the peak: linear warm-up, then cosine to ``FINAL_LR``."""
    if step < setting.warm_up:
        return (step + 1) / setting.warm_up
    progress = (step - setting.warm_up) / max(1, setting.steps - setting.warm_up)
    floor = min(1.0, FINAL_LR / lr)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def _validate(model: CharacterGPT) -> tuple[float, float, float]:
    """Return cross entropy, mean log normaliser and mean logit over the validation windows."""
    windows = corpus().windows
    logits = model(windows[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    return loss.item(), logits.logsumexp(-1).mean().item(), logits.mean().item()


def _probe(stack: Gpts, optimizer: IndependentAdamW, eps: float, when: str) -> list[dict[str, float]]:
    roots: list[dict[str, Tensor]] = [{} for _ in stack.models]
    for group in optimizer.param_groups:
        for name, leaf in zip(group["param_names"], group["params"], strict=True):
            for own, square in zip(roots[slice(*group["models"])], optimizer.state[leaf]["exp_avg_sq"], strict=True):
                own[name] = square.sqrt()
    return [_signals(model, own, eps, when) for model, own in zip(stack.models, roots, strict=True)]


def _signals(model: nn.Module, roots: Mapping[str, Tensor], eps: float, when: str) -> dict[str, float]:
    assert isinstance(model, CharacterGPT)
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
    counts = torch.ones(text.classes, text.classes, dtype=torch.float64)
    pairs = Counter(zip(text.train[:-1].tolist(), text.train[1:].tolist(), strict=True))
    for (first, second), count in pairs.items():
        counts[first, second] += count
    log_p = (counts / counts.sum(1, keepdim=True)).log()
    return -log_p[text.windows[:, :-1], text.windows[:, 1:]].mean().item()

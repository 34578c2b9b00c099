"""Study of "Spike No More": small sub-layers and a large shortcut keep gradients of a pre-norm Transformer small.

A character GPT of width 32 with six blocks, AdamW, ten steps of warm-up and then a constant learning rate, clipping at
1. All weights begin as N(0, 2 / 5d); the arms differ in the maps that end a branch and in what the embeddings put out.
In a hundred steps so small a model hardly spikes: what is judged is the growth of the gradient's norm, as a proxy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import gmean
from torch import nn

from poise.evidence import compare_paired
from poise.nn import EmbeddingGradientShrink, scale_embedding, spike_free_
from poise.preflight.signal_propagation.norm_amplification import NormInput, norm_input
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.character_gpt import CONTEXT, CharacterGPT, corpus, next_character_loss
from poise.studies.kit.grid import run_grid
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to
from poise.studies.kit.words import span

WIDTH, BATCH, WARM_UP, CLIP = 32, 8, 10, 1.0
VANILLA, DEPTH, SCALED, NORMED, DETACHED = "vanilla", "depth-scaled", "scaled", "embed LN", "detach"
ARMS = (VANILLA, DEPTH, SCALED, NORMED, DETACHED)
STABLE = (SCALED, NORMED)
HIGH = 4e-2
"""The learning rate at which arms are judged."""
JUMP = 0.5
"""Rise of the training loss over the mean of the ten steps before it that counts as a spike."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    blocks: int = 6
    steps: int = 100
    lrs: tuple[float, ...] = (1e-2, HIGH)
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(blocks=2, steps=14, lrs=(HIGH,), n_jobs=1),
    "default": Plan(),
    "full": Plan(steps=400, lrs=(1e-2, HIGH, 1e-1)),
}

# --- networks ----------------------------------------------------------------------------------------------------


def network(arm: str, blocks: int, seed: int) -> CharacterGPT:
    """Return a fresh network.

    Args:
        arm: one of ``ARMS``: all weights with the small standard deviation; those that end a branch divided by the root
            of twice the depth; beside that, token embeddings scaled to 1, or a layer norm behind the embeddings, or
            their gradients shrunk to a tenth.
        blocks: depth.
        seed: of the weights, which are the same in all arms up to their scale.
    """
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation, which is replaced, draws from it
        model = CharacterGPT(WIDTH, corpus().classes, False, torch.Generator().manual_seed(seed), blocks)
    entry = {NORMED: nn.LayerNorm(WIDTH), DETACHED: EmbeddingGradientShrink(0.1)}.get(arm, nn.Identity())
    model.add_module("entry", entry)
    model.positions.register_forward_hook(lambda _, inputs, stream: entry(stream))
    ends = () if arm == VANILLA else ("out", "down")
    generator = torch.Generator().manual_seed(seed)
    spike_free_(model, WIDTH, blocks, out_proj=ends, embedding="scaled", generator=generator)
    if arm == SCALED:
        scale_embedding(model, "unit")
    return model


@torch.no_grad()
def first_norm(model: CharacterGPT) -> NormInput:
    """Measure what the first block's normalisation is given."""
    stream = model.positions(model.tokens(corpus().windows[:, :-1]))
    return norm_input("blocks.0.norm1", model.get_submodule("blocks.0.norm1"), stream)


# --- one run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One run: the gradient's norm before clipping and the training loss at each step, and the validation loss."""

    grad_norms: NDArray[np.float64]
    losses: NDArray[np.float64]
    final: float
    amplification: float
    stream_std: float

    @property
    def largest(self) -> float:
        """Largest norm of the gradient after the warm-up."""
        return float(self.grad_norms[WARM_UP:].max())

    @property
    def spikes(self) -> int:
        """Steps at which the loss is ``JUMP`` above the mean of the ten before, counted from the warm-up's end."""
        before = np.convolve(self.losses, np.full(WARM_UP, 1 / WARM_UP), "valid")[:-1]
        return int((self.losses[WARM_UP:] > before + JUMP).sum())


def train(arm: str, lr: float, seed: int, plan: Plan) -> Run:
    """Train one model and return its course."""
    with one_thread():
        text, model = corpus(), network(arm, plan.blocks, seed)
        first = first_norm(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), foreach=True)
        generator = torch.Generator().manual_seed(1000 + seed)
        starts = torch.randint(len(text.train) - CONTEXT, (plan.steps, BATCH, 1), generator=generator)
        norms, losses = [], []
        for step, start in enumerate(starts):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / WARM_UP)
            loss = next_character_loss(model, text.train[start + torch.arange(CONTEXT + 1)])
            optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True).detach())
            losses.append(loss.detach())
            optimizer.step()
        with torch.no_grad():
            final = float(next_character_loss(model, text.windows))
        grad_norms, course = (torch.stack(values).double().numpy() for values in (norms, losses))
        return Run(grad_norms, course, final, first.amplification, first.std)


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """All runs, by arm and learning rate, one per seed."""

    plan: Plan
    runs: Mapping[tuple[str, float], Sequence[Run]]

    def values(self, arm: str, attribute: str, lr: float = HIGH) -> NDArray[np.float64]:
        """Return a number of each seed's run."""
        return np.array([getattr(run, attribute) for run in self.runs[arm, lr]])

    def ratios(self, attribute: str) -> NDArray[np.float64]:
        """Return a number of the stable arms over that of the depth-scaled arm, a row for each seed."""
        return np.stack([self.values(arm, attribute) / self.values(DEPTH, attribute) for arm in STABLE], 1)

    def gain(self, arm: str) -> NDArray[np.float64]:
        """Return by how much an arm's final loss is below the depth-scaled arm's, per seed."""
        return self.values(DEPTH, "final") - self.values(arm, "final")


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Train all arms."""
    plan, name = PLANS[budget], "trained {0[0]} at lr {0[1]:g}".format
    cells = list(product(ARMS, plan.lrs))
    return Results(plan, run_grid(lambda cell, s: train(*cell, s, plan), cells, seeds, progress, plan.n_jobs, name))


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "amplification",
    "A normalisation amplifies gradients by one over the standard deviation of its input, so that small embeddings "
    "make the first blocks' gradients large.",
    paper="a bound on the Jacobian; derived",
    protocol="1 / std at the first block of fresh models, depth-scaled over scaled and over embed LN: the "
    "smaller ratio.",
    reproduced=at_least("ratio", 3),
    refuted=below("ratio", 1.5),
    over_seeds=["ratio"],
)
def amplification(results: Results) -> Measured:
    means = ", ".join(f"{arm} {results.values(arm, 'amplification').mean():.3g}" for arm in ARMS)
    ratio, interval = bootstrap_over_seeds(
        lambda ratios: gmean(1 / ratios).min(), results.ratios("amplification"), positive=True
    )
    return Measured(f"amplification at the first block: {means}", {"ratio": ratio}, intervals={"ratio": interval})


@claim(
    "gradient-norm",
    "With small sub-layers and a large shortcut the norm of the gradient stays small in training.",
    paper="350M and 1.7B parameters on C4; figures",
    protocol="Largest norm after the warm-up at learning rate 0.04, scaled and embed LN over depth-scaled (geometric "
    "mean over seeds): the larger ratio.",
    reproduced=at_most("ratio", 0.5),
    refuted=above("ratio", 0.8),
    over_seeds=["ratio"],
)
def gradient_norm(results: Results) -> Measured:
    ratios, usual = results.ratios("largest"), results.values(DEPTH, "largest").mean()
    largest, interval = bootstrap_over_seeds(lambda own: gmean(own).max(), ratios, positive=True)
    shares = ", ".join(f"{arm} {r:.2f}" for arm, r in zip(STABLE, np.atleast_1d(gmean(ratios)), strict=True))
    words = f"Largest gradient norm after the warm-up over that of the depth-scaled arm ({usual:.2f}): {shares}"
    for lr in (lr for lr in results.plan.lrs if lr != HIGH):
        means = {arm: results.values(arm, "largest", lr).mean() for arm in (DEPTH, *STABLE)}
        shares = ", ".join(f"{arm} {means[arm] / means[DEPTH]:.2f}" for arm in STABLE)
        words += f"; at learning rate {lr:g} ({means[DEPTH]:.2f}): {shares}"
    return Measured(words, {"ratio": largest}, intervals={"ratio": interval})


@claim(
    "final-loss",
    "The stable models end with a lower loss.",
    paper="lower perplexity on C4; tables",
    protocol="Gain: final validation loss at learning rate 0.04, depth-scaled minus the worse of scaled and embed LN, "
    "mean over seeds; and the fraction of seeds with at least 0.15.",
    reproduced=at_least("share", 2 / 3, "fraction"),
    refuted=at_most("gain", 0),
    over_seeds=["share", "gain"],
)
def final_loss(results: Results) -> Measured:
    worse = np.minimum(results.gain(SCALED), results.gain(NORMED))
    means = ", ".join(f"{arm} {results.values(arm, 'final').mean():.3f}" for arm in ARMS)
    by_seed = {"gain": worse, "share": worse >= 0.15}
    numbers = {name: values.mean() for name, values in by_seed.items()}
    return Measured(f"Final losses at learning rate {HIGH:g}: {means}", numbers, by_seed)


@claim(
    "detach",
    "Shrinking the embeddings' gradients does not suffice, since the shortcut stays small.",
    paper="Embed Detach still spikes; figures",
    protocol="Gap in final loss between depth-scaled and scaled, and the fraction of it that detaching closes.",
    reproduced=at_most("closed", 0.5, "fraction"),
    refuted=at_most("gap", 0) | at_least("closed", 0.8, "fraction"),
    over_seeds=["gap", "closed"],
)
def detach(results: Results) -> Measured:
    gaps, gains = results.gain(SCALED), results.gain(DETACHED)
    closed, interval = bootstrap_over_seeds(_closed, gains, gaps)
    words = f"detaching gains {gains.mean():+.3f}, scaling {gaps.mean():+.3f}"
    return Measured(words, {"gap": gaps.mean(), "closed": closed}, {"gap": gaps}, {"closed": interval})


def _closed(gained: NDArray[np.float64], gap: NDArray[np.float64]) -> float:
    """Return which fraction of a gap is gained; 0 where there is no gap to close."""
    return float(gained.mean() / gap.mean()) if gap.mean() > 0 else 0.0


@claim(
    "spikes",
    "The usual initialisation spikes, the stable ones do not.",
    paper="1.7B parameters: explodes near step 13,000",
    protocol=f"Steps with a training loss {JUMP} above the mean of the ten before, over all learning rates and seeds, "
    "in the first two arms (vanilla) and in the two stable ones; fewer: vanilla minus stable, mean over seeds. Not "
    "tested where nothing spikes.",
    reproduced=equal_to("stable", 0) & above("fewer", 0),
    refuted=at_most("fewer", 0),
    over_seeds=["fewer"],
)
def spikes(results: Results) -> Measured:
    by_seed = {arm: sum(results.values(arm, "spikes", lr) for lr in results.plan.lrs) for arm in ARMS}
    counts = {arm: int(np.sum(own)) for arm, own in by_seed.items()}
    if not any(counts.values()):
        return Measured(f"no spike in {results.plan.steps} steps in any arm; the proxy is the norm of the gradient")
    words = ", ".join(f"{arm} {count}" for arm, count in counts.items())
    vanilla, stable = (np.add(by_seed[a], by_seed[b]) for a, b in ((VANILLA, DEPTH), STABLE))
    numbers = {"vanilla": vanilla.sum(), "stable": stable.sum(), "fewer": (vanilla - stable).mean()}
    return Measured(f"steps with a spike: {words}", numbers, {"fewer": vanilla - stable})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    picture = _norm_figure(results)
    summary = f"{claims['gradient-norm'].text}. {claims['final-loss'].text}."
    return Presentation(summary, [picture, _table(results), _paired_table(results), _notes(results)], picture.figure)


def _norm_figure(results: Results) -> Figure:
    steps = np.arange(1, results.plan.steps + 1)
    norms = {arm: results.values(arm, "grad_norms") for arm in ARMS}
    lines = {arm: (steps, np.exp(np.log(own).mean(0))) for arm, own in norms.items()}
    bands = {arm: (steps, own.min(0), own.max(0)) for arm, own in norms.items()}
    title = f"Norm of the gradient before clipping, learning rate {HIGH:g}"
    return line_chart(title, lines, "step", "norm", log_y=True, markers={"end of warm-up": float(WARM_UP)}, bands=bands)


def _table(results: Results) -> Table:
    rows = []
    for arm, lr in results.runs:
        names = ("stream_std", "amplification", "grad_norms", "largest", "final", "spikes")
        std, gain, norms, largest, final, spiked = (results.values(arm, name, lr) for name in names)
        means = (values.mean() for values in (std, gain, norms[:, 0], largest, final))
        rows.append([arm, lr, *means, span(final), spiked.sum()])
    columns = ["arm", "lr", "std of stream", "amplification", "first norm", "largest norm", "final loss"]
    caption = "Means over seeds. The stream is what the first block is given; the largest norm is after the warm-up."
    return Table("Arms", [*columns, "over seeds", "spikes"], rows, caption)


def _paired_table(results: Results) -> Table:
    rows = []
    for arm in (VANILLA, *STABLE, DETACHED):
        paired = compare_paired(results.values(DEPTH, "final"), results.values(arm, "final"))
        rows.append([arm, paired.difference, *paired.interval, paired.p_better])
    columns = ["arm", "difference", "low", "high", "P(better)"]
    caption = f"Final loss at learning rate {HIGH:g} minus that of the depth-scaled arm, paired by seed."
    return Table("Against depth scaling alone", columns, rows, caption)


def _notes(results: Results) -> Text:
    return Text(
        "Depth scaling alone makes the branches small, but leaves the shortcut as small as the embeddings are: "
        "condition 1 without condition 2. Scaled embeddings multiply tokens, not positions. The paper's spikes come "
        f"after thousands of steps of models of up to 1.7 billion parameters; {results.plan.steps} steps of a model "
        "this small show the growth of gradients that it puts them down to, and no more.",
        title="What this shows, and what it does not",
    )


STUDY = Study(
    slug="spike-no-more",
    title="Do small sub-layers and a large shortcut keep gradients of Transformers small?",
    room="nn",
    paper=Paper(
        "Spike No More: Stabilizing the Pre-training of Large Language Models", "Takase et al.", 2023, "2312.16903"
    ),
    seeds={"tiny": 1, "default": 10, "full": 30},
    experiment=experiment,
    claims=(amplification, gradient_norm, final_loss, detach, spikes),
    present=present,
)

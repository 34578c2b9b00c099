"""Study of "Layer Normalization": fewer steps for recurrent networks, and no harm from tiny batches.

A character LSTM with and without layer normalisation, from the same initial weights, each at four learning rates; two
initial gains; and perceptrons on digits at batch sizes 4 and 128.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam

from poise.evidence import compare_paired
from poise.nn import LayerNormLSTM
from poise.nn.mlp import seeded_mlp
from poise.report import Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.batches import batch_indices, cross_entropies
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.character_gpt import corpus
from poise.studies.kit.digits import digits_by_seed
from poise.studies.kit.grid import part_of, run_each, run_grid
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import above, at_least, at_most
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.tables import seed_table
from poise.studies.kit.words import difference, listed

EMBEDDING, HIDDEN, TIME, BATCH = 24, 64, 50, 8
LRS, LR = (1e-3, 2e-3, 5e-3, 1e-2), 2e-3
LAST = 20  # losses are means over so many steps
PLAIN, NORMED, SMALL_GAIN = "LSTM", "LN-LSTM", "LN-LSTM, gain 0.1"

WIDTHS, TRAIN, DIGIT_LR = (64, 100, 100, 10), 1300, 1e-3
NORMS = ("batch norm", "layer norm", "no norm")
SMALL, LARGE = 4, 128


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    text_steps: int = 160
    small_steps: int = 600
    large_steps: int = 150
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {"tiny": Plan(25, 30, 10, n_jobs=1), "default": Plan(), "full": Plan(1000, 3000, 600)}

# --- characters --------------------------------------------------------------------------------------------------


class CharacterLSTM(nn.Module):
    """Embedding, one recurrent layer, and a map to the next character.

    Args:
        classes: size of the vocabulary.
        arm: with ``NORMED`` and ``SMALL_GAIN`` the LSTM's own initial weights are taken over.
    """

    def __init__(self, classes: int, arm: str) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(classes, EMBEDDING), nn.Linear(HIDDEN, classes)
        lstm = nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.recurrent = lstm if arm == PLAIN else LayerNormLSTM.from_torch(lstm)
        if arm == SMALL_GAIN:
            for name, parameter in self.recurrent.named_parameters():
                if "gain" in name:
                    nn.init.constant_(parameter, 0.1)

    def forward(self, ids: Int64[Tensor, "batch time"]) -> Float[Tensor, "batch time classes"]:
        """Return the logits of the next character; the state starts at zero."""
        logits: Tensor = self.head(self.recurrent(self.embedding(ids))[0])
        return logits


def train_characters(arm: str, lr: float, steps: int, seed: int) -> Float[np.ndarray, " steps"]:
    """Train on random windows; return the training losses. Arms of a seed see the same windows."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = corpus()
        model = CharacterLSTM(text.classes, arm)
        optimizer = Adam(model.parameters(), lr, foreach=True)
        starts = torch.randint(len(text.train) - TIME, (steps, BATCH, 1), generator=torch.Generator().manual_seed(seed))
        losses = []
        for start in starts:
            ids = text.train[start + torch.arange(TIME + 1)]
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).double().numpy()


def trailing(losses: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " later"]:
    """Return means over the last ``LAST`` steps, from the step on at which there are so many."""
    return np.lib.stride_tricks.sliding_window_view(losses, LAST).mean(-1)


def steps_ratio(losses: Float[np.ndarray, " steps"], baseline: Float[np.ndarray, " steps"]) -> float:
    """Return the fraction of the baseline's steps that a run needs to its final loss; infinite if it never gets there.

    Both losses are means over the last ``LAST`` steps.
    """
    reached = trailing(losses) <= trailing(baseline)[-1]
    return (int(reached.argmax()) + LAST) / len(baseline) if reached.any() else math.inf


# --- digits ------------------------------------------------------------------------------------------------------


def perceptron(norm: str, seed: int) -> nn.Sequential:
    """Return a ReLU network whose hidden layers, but not the output, are normalised before the nonlinearity."""
    first, _, second, _, last = seeded_mlp(WIDTHS, seed, nn.ReLU)
    kinds = {"batch norm": nn.BatchNorm1d, "layer norm": nn.LayerNorm}
    norms = [[kinds[norm](width)] if norm in kinds else [] for width in WIDTHS[1:-1]]
    return nn.Sequential(first, *norms[0], nn.ReLU(), second, *norms[1], nn.ReLU(), last)


def train_digits(norm: str, batch: int, steps: int, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Train one network a seed, all side by side; return their cross entropies on the test digits."""
    x, y, x_test, y_test = digits_by_seed(seeds, TRAIN)
    nets = SideBySide([perceptron(norm, seed) for seed in seeds], kinds={})
    optimizer, every = Adam(nets.parameters(), DIGIT_LR, foreach=True), torch.arange(len(seeds))[:, None]
    for pick in batch_indices(seeds, TRAIN, steps, batch):
        loss = cross_entropies(nets(x[every, pick]), y[every, pick])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return cross_entropies(nets.evaluate(x_test), y_test).double().numpy()


# --- the experiment ----------------------------------------------------------------------------------------------

Losses = Float[np.ndarray, "seeds steps"]


@dataclass(frozen=True, slots=True)
class Results:
    """Training losses by arm and learning rate; test losses on digits by norm and batch size."""

    plan: Plan
    text: Mapping[tuple[str, float], Losses]
    digits: Mapping[tuple[str, int], NDArray[np.float64]]

    def final(self, arm: str, lr: float) -> NDArray[np.float64]:
        """Return the mean over the last ``LAST`` steps, for each seed."""
        return np.array([trailing(run)[-1] for run in self.text[arm, lr]])

    def best_lr(self, arm: str) -> float:
        """Return the learning rate with the lowest mean final loss."""
        return min(LRS, key=lambda lr: self.final(arm, lr).mean())

    def ratios(self, lr: float) -> NDArray[np.float64]:
        """Return, for each seed, the fraction of the LSTM's steps that LN-LSTM needs at the same learning rate."""
        pairs = zip(self.text[NORMED, lr], self.text[PLAIN, lr], strict=True)
        return np.array([steps_ratio(normed, plain) for normed, plain in pairs])


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Train everything, the longest runs first."""
    plan = PLANS[budget]
    corpus()  # once, before processes start
    cells, steps = (
        [*product((NORMED, PLAIN), LRS), (SMALL_GAIN, LR)],
        {SMALL: plan.small_steps, LARGE: plan.large_steps},
    )

    def on_text(cell: tuple[str, float], seed: int) -> Losses:
        return train_characters(*cell, plan.text_steps, seed)

    def on_digits(cell: tuple[str, int]) -> NDArray[np.float64]:
        return train_digits(*cell, steps[cell[1]], seeds)

    text = run_grid(
        on_text, cells, seeds, part_of(progress, 0, 0.9), plan.n_jobs, "{0[0]}, learning rate {0[1]}".format
    )
    name = "digits, {0[0]}, batches of {0[1]}".format
    digits = run_each(on_digits, list(product(NORMS, steps)), part_of(progress, 0.9, 1), name=name)
    return Results(plan, {cell: np.stack(runs) for cell, runs in text.items()}, digits)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "speed",
    "Layer normalisation lets an LSTM come to the same loss in fewer steps.",
    paper="60 % of the time (order embeddings); almost twice as fast (DRAW)",
    protocol="Learning rate 0.002. Ratio: steps to the LSTM's final loss over its own; lead: by how many nats "
    "LN-LSTM ends lower, largest or smallest of the seeds and mean; share slow: fraction of seeds with a ratio above "
    "0.95.",
    reproduced=at_most("largest_ratio", 0.7)
    & at_most("ratio", 0.7, "mean ratio")
    & at_least("smallest_lead", 0.1)
    & at_least("lead", 0.1, "mean lead"),
    refuted=above("share_slow", 0.5),
    over_seeds=["ratio", "lead", "share_slow"],
)
def speed(results: Results) -> Measured:
    ratios, lead = results.ratios(LR), results.final(PLAIN, LR) - results.final(NORMED, LR)
    words = (
        f"LN-LSTM needs {_steps(ratios)} of the LSTM's steps and ends at {results.final(NORMED, LR).mean():.3f} "
        f"instead of {results.final(PLAIN, LR).mean():.3f} (lead by seed {listed(lead, '+.3f')})"
    )
    slow = ratios > 0.95
    numbers = {"largest_ratio": ratios.max(), "smallest_lead": lead.min(), "share_slow": slow.mean()}
    return Measured(words, numbers, {"ratio": ratios, "lead": lead, "share_slow": slow})


@claim(
    "tuned",
    "It still wins where the LSTM's learning rate is tuned.",
    paper="not tested",
    protocol="Both at the LSTM's best of four learning rates. Lead: by how much LN-LSTM's final loss is lower, mean "
    "and smallest of the seeds.",
    reproduced=above("smallest_lead", 0) & above("lead", 0),
    refuted=at_most("lead", 0),
    over_seeds=["lead"],
)
def tuned(results: Results) -> Measured:
    lr, own = results.best_lr(PLAIN), results.best_lr(NORMED)
    plain, normed = results.final(PLAIN, lr), results.final(NORMED, lr)
    paired = compare_paired(plain, normed)
    words = (
        f"at learning rate {lr:g} the LSTM ends at {plain.mean():.3f} and LN-LSTM at {normed.mean():.3f}: "
        f"{difference(paired)}, in {_steps(results.ratios(lr))} of the steps; LN-LSTM's own best is "
        f"{results.final(NORMED, own).mean():.3f} at {own:g}"
    )
    lead = plain - normed
    return Measured(words, {"lead": -paired.difference, "smallest_lead": lead.min()}, {"lead": lead})


@claim(
    "batch-size",
    "Layer normalisation stands tiny batches, which batch normalisation does not.",
    paper="MNIST, batches of 4 and 128; figures",
    protocol="Test loss on digits: batch norm's by layer norm's at batches of 4, and their distance at 128.",
    reproduced=at_least("ratio_small", 1.5) & at_most("difference_large", 0.03),
    refuted=at_most("ratio_small", 1),
    over_seeds=["ratio_small", "difference_large"],
)
def batch_size(results: Results) -> Measured:
    small, large = ({norm: float(results.digits[norm, b].mean()) for norm in NORMS} for b in (SMALL, LARGE))
    of_small, of_large = ([results.digits[norm, b] for norm in ("batch norm", "layer norm")] for b in (SMALL, LARGE))
    ratio, interval = bootstrap_over_seeds(lambda bn, ln: bn.mean() / ln.mean(), *of_small, positive=True)
    apart, interval_apart = bootstrap_over_seeds(lambda bn, ln: abs(bn.mean() - ln.mean()), *of_large)
    losses = "; ".join(
        f"batches of {batch}: {', '.join(f'{norm} {loss:.3f}' for norm, loss in of.items())}"
        for batch, of in ((SMALL, small), (LARGE, large))
    )
    words = f"test losses at {losses}; batch norm's is {ratio:.2f} times layer norm's at {SMALL}"
    numbers = {"ratio_small": ratio, "difference_large": apart}
    return Measured(words, numbers, intervals={"ratio_small": interval, "difference_large": interval_apart})


@claim(
    "gain",
    "Initial gains of 1 are better than 0.1, which recurrent batch normalisation needs.",
    paper="1.0 clearly better than 0.1; figure",
    protocol="LN-LSTM at learning rate 0.002. Lead: by how much the final loss with 1 is lower, mean and smallest of "
    "the seeds.",
    reproduced=above("smallest_lead", 0) & above("lead", 0),
    refuted=at_most("lead", 0),
    over_seeds=["lead"],
)
def gain(results: Results) -> Measured:
    large, small = results.final(NORMED, LR), results.final(SMALL_GAIN, LR)
    lead = small - large
    words = f"final loss {large.mean():.3f} with gains of 1, {small.mean():.3f} with 0.1"
    numbers = {"lead": lead.mean(), "smallest_lead": lead.min()}
    return Measured(f"{words} (lead by seed {listed(lead, '+.3f')})", numbers, {"lead": lead})


def _steps(ratios: NDArray[np.float64]) -> str:
    return listed(ratios, ".2f", "never reached")


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    lines = {}
    for arm in (PLAIN, NORMED, SMALL_GAIN):
        losses = trailing(results.text[arm, LR].mean(0))
        lines[arm] = (np.arange(LAST, LAST + len(losses)), losses)
    axes = "step", f"training loss in nats, mean of {LAST} steps and all seeds"
    picture = line_chart(f"Characters, learning rate {LR:g}", lines, *axes)
    finals = {cell: results.final(*cell) for cell in results.text}
    shares = [_steps(results.ratios(lr)) if arm == NORMED else None for arm, lr in results.text]
    caption = f"Training loss in nats per character, mean of the last {LAST} steps; the share for each seed."
    keys, more = ["model", "learning rate"], {"share of the LSTM's steps": shares}
    also = "also" if claims["tuned"].numbers["lead"] > 0 else "no longer"
    return Presentation(
        f"At learning rate {LR:g} {claims['speed'].text}. Where the LSTM's learning rate is tuned, layer normalisation "
        f"{also} helps: {claims['tuned'].text}.",
        [
            picture,
            seed_table("Learning rates", keys, finals, "final loss", caption, more),
            seed_table("Test loss on digits", ["norm", "batch"], results.digits),
            _notes(results),
        ],
        picture.figure,
    )


def _notes(results: Results) -> Text:
    none, normed = (float(results.digits[norm, SMALL].mean()) for norm in ("no norm", "layer norm"))
    return Text(
        f"Characters: embedding {EMBEDDING}, {HIDDEN} units, windows of {TIME}, batches of {BATCH}, Adam, "
        f"{results.plan.text_steps} steps; both models start from the same weights and see the same windows. Digits: "
        f"64-100-100-10, Adam at {DIGIT_LR:g}. On data this easy no norm at all ({none:.3f}) stands beside layer norm "
        f"({normed:.3f}) at batches of {SMALL}: what is shown is that batch norm is harmed, not that layer norm is "
        "needed. Wall time is not compared: a layer-normalised LSTM step costs several times that of torch's own. The "
        "paper's own negative finding, that batch norm is better in convolutional networks, is not tested.",
        title="How to read it",
    )


STUDY = Study(
    slug="layer-norm",
    title="Does layer normalisation speed up recurrent networks and work with batches of 4?",
    room="nn",
    paper=Paper("Layer Normalization", "Ba et al.", 2016, "1607.06450"),
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(speed, tuned, batch_size, gain),
    present=present,
)

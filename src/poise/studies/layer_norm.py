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
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam

from poise.evidence import compare_paired
from poise.nn import LayerNormLSTM
from poise.nn.layer_norm_cells import LayerNormLSTMCell
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.character_gpt import corpus
from poise.studies.networks import mlp
from poise.studies.side_by_side import SideBySide
from poise.studies.stacked_mlp import batch_indices, stacked_cross_entropy
from poise.studies.standard_digits import standard_digits
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study
from poise.studies.threads import one_thread

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


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(text_steps=25, small_steps=30, large_steps=10, n_jobs=1),
    "default": Plan(),
    "full": Plan(text_steps=1000, small_steps=3000, large_steps=600),
}

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
            set_gains(self.recurrent, 0.1)

    def forward(self, ids: Int64[Tensor, "batch time"]) -> Float[Tensor, "batch time classes"]:
        """Return the logits of the next character; the state starts at zero."""
        logits: Tensor = self.head(self.recurrent(self.embedding(ids))[0])
        return logits


@torch.no_grad()
def set_gains(model: nn.Module, gain: float) -> None:
    """Set all gains of layer-normalised LSTM cells."""
    for cell in model.modules():
        if isinstance(cell, LayerNormLSTMCell):
            for parameter in (cell.gain_ih, cell.gain_hh, cell.gain_c):
                if parameter is not None:
                    parameter.fill_(gain)


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
    """Return the share of the baseline's steps that a run needs to its final loss; infinite if it never gets there.

    Both losses are means over the last ``LAST`` steps.
    """
    reached = trailing(losses) <= trailing(baseline)[-1]
    return (int(reached.argmax()) + LAST) / len(baseline) if reached.any() else math.inf


# --- digits ------------------------------------------------------------------------------------------------------


def perceptron(norm: str, seed: int) -> nn.Sequential:
    """Return a ReLU network whose hidden layers, but not the output, are normalised before the nonlinearity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, _, second, _, last = mlp(WIDTHS, nn.ReLU)
    layers: list[nn.Module] = []
    for linear, width in zip((first, second), WIDTHS[1:], strict=False):
        kinds = {"batch norm": nn.BatchNorm1d, "layer norm": nn.LayerNorm}
        layers += [linear, *([kinds[norm](width)] if norm in kinds else []), nn.ReLU()]
    return nn.Sequential(*layers, last)


def train_digits(norm: str, batch: int, steps: int, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Train one network a seed, all side by side; return their cross entropies on the test digits."""
    x, y, x_test, y_test = (torch.stack(part) for part in zip(*map(standard_digits, seeds), strict=True))
    nets = SideBySide([perceptron(norm, seed) for seed in seeds])
    optimizer, every = Adam(nets.parameters(), DIGIT_LR, foreach=True), torch.arange(len(seeds))[:, None]
    for pick in batch_indices(seeds, TRAIN, steps, batch):
        loss = stacked_cross_entropy(nets(x[every, pick]), y[every, pick])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return stacked_cross_entropy(nets.evaluate(x_test), y_test).double().numpy()


# --- the experiment ----------------------------------------------------------------------------------------------

Losses = Float[np.ndarray, "seeds steps"]


@dataclass(frozen=True, slots=True)
class Found:
    """Training losses by arm and learning rate; test losses on digits by norm and batch size."""

    text: Mapping[tuple[str, float], Losses]
    digits: Mapping[tuple[str, int], NDArray[np.float64]]

    def final(self, arm: str, lr: float) -> NDArray[np.float64]:
        """Return the mean over the last ``LAST`` steps, for each seed."""
        return np.array([trailing(run)[-1] for run in self.text[arm, lr]])

    def best_lr(self, arm: str) -> float:
        """Return the learning rate with the lowest mean final loss."""
        return min(LRS, key=lambda lr: self.final(arm, lr).mean())

    def ratios(self, lr: float) -> NDArray[np.float64]:
        """Return, for each seed, the share of the LSTM's steps that LN-LSTM needs at the same learning rate."""
        pairs = zip(self.text[NORMED, lr], self.text[PLAIN, lr], strict=True)
        return np.array([steps_ratio(normed, plain) for normed, plain in pairs])


def run(plan: Plan, seeds: Sequence[int], progress: Progress) -> Found:
    """Train everything, the longest runs first."""
    corpus()  # once, before processes start
    cells = [*product((NORMED, PLAIN), LRS), (SMALL_GAIN, LR)]
    jobs = [delayed(train_characters)(arm, lr, plan.text_steps, seed) for arm, lr in cells for seed in seeds]
    runs: list[np.ndarray] = []
    for losses in Parallel(plan.n_jobs, return_as="generator")(jobs):
        runs.append(losses)
        progress(0.9 * len(runs) / len(jobs), "characters")
    text = {cell: np.stack(runs[i * len(seeds) : (i + 1) * len(seeds)]) for i, cell in enumerate(cells)}
    found: dict[tuple[str, int], NDArray[np.float64]] = {}
    for norm, (batch, steps) in product(NORMS, ((SMALL, plan.small_steps), (LARGE, plan.large_steps))):
        found[norm, batch] = train_digits(norm, batch, steps, seeds)
        progress(0.9 + 0.1 * len(found) / 6, f"digits, {norm}, batches of {batch}")
    return Found(text, found)


# --- the claims --------------------------------------------------------------------------------------------------


def judge_speed(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the largest ratio, the smallest lead, and the share of seeds without a gain."""
    if n["share_slow"] > 0.5:
        return "refuted"
    return "reproduced" if n["largest_ratio"] <= 0.7 and n["smallest_lead"] >= 0.1 else "partly"


def judge_tuned(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the lead at the learning rate that suits the baseline best."""
    if n["lead"] <= 0:
        return "refuted"
    return "reproduced" if n["smallest_lead"] > 0 else "partly"


def judge_batch(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the ratio at small batches and the difference at large ones."""
    if n["ratio_small"] <= 1:
        return "refuted"
    return "reproduced" if n["ratio_small"] >= 1.5 and n["difference_large"] <= 0.03 else "partly"


def judge_gain(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the lead of the larger gain."""
    if n["lead"] <= 0:
        return "refuted"
    return "reproduced" if n["smallest_lead"] > 0 else "partly"


CLAIMS = (
    Claim(
        "speed",
        "Layer normalisation lets an LSTM come to the same loss in fewer steps.",
        "60 % of the time (order embeddings); almost twice as fast (DRAW)",
        "Learning rate 0.002, steps to the LSTM's final loss: reproduced if at most 0.7 of its own, and the end at "
        "least 0.1 nats lower, on every seed; refuted if above 0.95 on most.",
        judge_speed,
    ),
    Claim(
        "tuned",
        "It still wins where the LSTM's learning rate is tuned.",
        "not tested",
        "Both at the LSTM's best of four learning rates: reproduced if the final loss is lower on every seed, refuted "
        "if not in the mean.",
        judge_tuned,
    ),
    Claim(
        "batch-size",
        "Layer normalisation stands tiny batches, which batch normalisation does not.",
        "MNIST, batches of 4 and 128; figures",
        "Test loss on digits: reproduced if batch norm's is at least 1.5 times layer norm's at batches of 4, and both "
        "are within 0.03 at 128; refuted if batch norm's is not higher at 4.",
        judge_batch,
    ),
    Claim(
        "gain",
        "Initial gains of 1 are better than 0.1, which recurrent batch normalisation needs.",
        "1.0 clearly better than 0.1; figure",
        "LN-LSTM at learning rate 0.002: reproduced if the final loss with 1 is lower on every seed, refuted if not in "
        "the mean.",
        judge_gain,
    ),
)


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the experiment and put what came out beside the claims."""
    plan = PLANS[budget]
    found = run(plan, seeds, progress)
    claims = {
        "speed": _measure_speed(found),
        "tuned": _measure_tuned(found),
        "batch-size": _measure_batch(found),
        "gain": _measure_gain(found),
    }
    picture = _figure(found)
    blocks: list[Text | Table | Figure | Code] = [
        picture,
        _text_table(found),
        _digits_table(found),
        _notes(found, plan),
    ]
    tuned = "also" if claims["tuned"].numbers["lead"] > 0 else "no longer"
    summary = (
        f"At learning rate {LR:g} {claims['speed'].ours}. Where the LSTM's learning rate is tuned, layer normalisation "
        f"{tuned} helps: {claims['tuned'].ours}."
    )
    return Measurement(claims, summary, blocks, picture.figure)


def _measure_speed(found: Found) -> Measured:
    ratios, lead = found.ratios(LR), found.final(PLAIN, LR) - found.final(NORMED, LR)
    ours = (
        f"LN-LSTM needs {_steps(ratios)} of the LSTM's steps and ends at {found.final(NORMED, LR).mean():.3f} instead "
        f"of {found.final(PLAIN, LR).mean():.3f} (lead by seed {_numbers(lead)})"
    )
    numbers = {"largest_ratio": ratios.max(), "smallest_lead": lead.min(), "share_slow": (ratios > 0.95).mean()}
    return Measured(ours, {name: float(value) for name, value in numbers.items()})


def _measure_tuned(found: Found) -> Measured:
    lr, own = found.best_lr(PLAIN), found.best_lr(NORMED)
    plain, normed = found.final(PLAIN, lr), found.final(NORMED, lr)
    paired = compare_paired(plain, normed)
    ours = (
        f"at learning rate {lr:g} the LSTM ends at {plain.mean():.3f} and LN-LSTM at {normed.mean():.3f}: "
        f"{paired.difference:+.3f} (95 % interval {paired.interval[0]:+.3f} to {paired.interval[1]:+.3f}), in "
        f"{_steps(found.ratios(lr))} of the steps; LN-LSTM's own best is {found.final(NORMED, own).mean():.3f} at "
        f"{own:g}"
    )
    return Measured(ours, {"lead": -paired.difference, "smallest_lead": float((plain - normed).min())})


def _measure_batch(found: Found) -> Measured:
    small, large = ({norm: float(found.digits[norm, b].mean()) for norm in NORMS} for b in (SMALL, LARGE))
    ratio, apart = small["batch norm"] / small["layer norm"], abs(large["batch norm"] - large["layer norm"])
    ours = "; ".join(
        f"batches of {batch}: {', '.join(f'{norm} {loss:.3f}' for norm, loss in losses.items())}"
        for batch, losses in ((SMALL, small), (LARGE, large))
    )
    words = f"test losses at {ours}; batch norm's is {ratio:.2f} times layer norm's at {SMALL}"
    return Measured(words, {"ratio_small": ratio, "difference_large": apart})


def _measure_gain(found: Found) -> Measured:
    large, small = found.final(NORMED, LR), found.final(SMALL_GAIN, LR)
    lead = small - large
    ours = f"final loss {large.mean():.3f} with gains of 1, {small.mean():.3f} with 0.1 (lead by seed {_numbers(lead)})"
    return Measured(ours, {"lead": float(lead.mean()), "smallest_lead": float(lead.min())})


def _numbers(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:+.3f}" for value in values)


def _steps(ratios: NDArray[np.float64]) -> str:
    return ", ".join("never reached" if math.isinf(r) else f"{r:.2f}" for r in ratios)


def _figure(found: Found) -> Figure:
    lines = {}
    for arm in (PLAIN, NORMED, SMALL_GAIN):
        losses = trailing(found.text[arm, LR].mean(0))
        lines[arm] = (np.arange(LAST, LAST + len(losses)), losses)
    return line_chart(
        f"Characters, learning rate {LR:g}", lines, "step", f"training loss in nats, mean of {LAST} steps and all seeds"
    )


def _text_table(found: Found) -> Table:
    rows: list[list[object]] = []
    for arm, lr in found.text:
        final = found.final(arm, lr)
        share = _steps(found.ratios(lr)) if arm == NORMED else None
        rows.append([arm, lr, final.mean(), final.min(), final.max(), share])
    columns = ["model", "learning rate", "final loss", "lowest seed", "highest seed", "share of the LSTM's steps"]
    caption = f"Training loss in nats per character, mean of the last {LAST} steps; the share for each seed."
    return Table("Learning rates", columns, rows, caption)


def _digits_table(found: Found) -> Table:
    rows: list[list[object]] = [
        [norm, batch, losses.mean(), losses.min(), losses.max()] for (norm, batch), losses in found.digits.items()
    ]
    return Table("Test loss on digits", ["norm", "batch", "mean", "lowest seed", "highest seed"], rows)


def _notes(found: Found, plan: Plan) -> Text:
    none, normed = (float(found.digits[norm, SMALL].mean()) for norm in ("no norm", "layer norm"))
    return Text(
        f"Characters: embedding {EMBEDDING}, {HIDDEN} units, windows of {TIME}, batches of {BATCH}, Adam, "
        f"{plan.text_steps} steps; both models start from the same weights and see the same windows. Digits: 64-100-"
        f"100-10, Adam at {DIGIT_LR:g}. On data this easy no norm at all ({none:.3f}) stands beside layer norm "
        f"({normed:.3f}) at batches of {SMALL}: what is shown is that batch norm is harmed, not that layer norm is "
        "needed. Wall time is not compared: a layer-normalised LSTM step costs several times that of torch's own. The "
        "paper's own negative finding, that batch norm is better in convolutional networks, is not tested.",
        title="How to read it",
    )


STUDY = Study(
    slug="layer-norm",
    title="Does layer normalisation speed up recurrent networks, and stand tiny batches?",
    room="nn",
    paper=Paper("Layer Normalization", "Ba et al.", 2016, "1607.06450"),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 5},
    measure=measure,
)

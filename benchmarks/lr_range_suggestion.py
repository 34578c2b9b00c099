"""Whether training works at the learning rate that a range test suggests: one set of problems to choose the rule, one
to judge it once.

Run with ``python benchmarks/lr_range_suggestion.py choose|judge [SEEDS] [FIRST]``. For every problem and seed a range
test of 100 steps from 1e-6 to 10 is made, and 200 steps are trained at each suggestion. A run *trains* if its loss over
all data is finite and below that of the start; it is *useful* if it makes at least half of the fall that the best of a
grid of thirds of a decade makes. No problem, data set and network together, is in both sets.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lr_range_development import DEVELOPMENT, clusters, friedman, layers, plain_sgd, waves
from lr_range_test import (
    CE,
    HI,
    LO,
    MSE,
    NUM_STEPS,
    PROBLEMS,
    STEPS,
    Problem,
    adam,
    adamw,
    build,
    characters,
    digits,
    patients,
    perceptron,
    sgd,
    shuffled,
    tumours,
)
from torch import Tensor, nn

from poise.preflight import LRRangeTest, NoSuggestion, lr_range_test
from poise.preflight.range_test.lr_suggestion import RULES

GRID = np.geomspace(1e-5, 10, 19)


def pictures() -> tuple[Tensor, Tensor]:
    """Digits as their own targets."""
    x, _ = digits()
    return x, x


def directions() -> tuple[Tensor, Tensor]:
    """Measurements of cell nuclei, and two unit vectors for the classes."""
    x, y = tumours()
    return x, F.one_hot(y, 4).float()


class Cosine(nn.Module):
    """Minus the cosine between prediction and target: between -1 and 1."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss."""
        return -F.cosine_similarity(prediction, target).mean()


class GaussianLikelihood(nn.Module):
    """Negative log likelihood of a normal distribution, which falls below zero."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of predictions of mean and logarithm of the deviation."""
        mean, log_deviation = prediction.chunk(2, 1)
        return (log_deviation + 0.5 * ((target - mean) * (-log_deviation).exp()) ** 2).mean()


class Attention(nn.Module):
    """A transformer layer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.place = nn.Linear(8, 32), nn.Parameter(0.1 * torch.randn(8, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.layer(self.first(x.unflatten(1, (8, 8))) + self.place).mean(1))


class Memory(nn.Module):
    """An LSTM that reads characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(64, 24), nn.LSTM(24, 48, batch_first=True), nn.Linear(48, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.cell(self.embed(x))[0][:, -1])


def embedded() -> nn.Module:
    """Embeddings of eight characters and one hidden layer of 64."""
    return nn.Sequential(nn.Embedding(64, 16), nn.Flatten(), *layers(128, 64, 64)())


CHOOSE = (
    *DEVELOPMENT,
    Problem("digits, five layers without norm, SGD", digits, layers(64, 64, 64, 64, 64, 10), sgd, CE),
    Problem("clusters, six layers without norm, SGD", clusters, layers(20, 64, 64, 64, 64, 64, 5), sgd, CE, 32),
    Problem(
        "friedman, likelihood, SGD", friedman, layers(10, 32, 2, activation=nn.Tanh), sgd, GaussianLikelihood(), 32
    ),
    Problem(
        "waves, flat MLP, plain SGD", waves, lambda: nn.Sequential(nn.Flatten(), *layers(20, 32, 1)()), plain_sgd, MSE
    ),
)
JUDGE = (
    *PROBLEMS,
    Problem("digits, seven layers without norm, SGD", digits, layers(64, *[48] * 6, 10), sgd, CE, 32),
    Problem("digits, tanh layers, plain SGD", digits, layers(64, 64, 64, 10, activation=nn.Tanh), plain_sgd, CE, 32),
    Problem("digits, attention, AdamW", digits, Attention, adamw, CE),
    Problem("digits, autoencoder, Adam", pictures, layers(64, 32, 8, 32, 64), adam, MSE),
    Problem("tumours, deep MLP, SGD", tumours, layers(30, 32, 32, 32, 32, 2), sgd, CE, 16),
    Problem("tumours, cosine loss, SGD", directions, perceptron(30, 4), sgd, Cosine(), 32),
    Problem("diabetes, likelihood, SGD", patients, layers(10, 32, 2), sgd, GaussianLikelihood(), 32),
    Problem("diabetes, deep MLP, SGD", patients, layers(10, 48, 48, 48, 1), sgd, MSE, 32),
    Problem("characters, LSTM, Adam", characters, Memory, adam, CE),
    Problem("characters, MLP, SGD", characters, embedded, sgd, CE),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One problem and seed: its range test, and how far training falls from a start at any learning rate."""

    problem: Problem
    seed: int
    test: LRRangeTest
    start: float
    train: Callable[[float], float]


def cases(problems: Sequence[Problem], seeds: Sequence[int]) -> Iterator[Case]:
    """Make the range tests, one after the other."""
    for problem in problems:
        for seed in seeds:
            model, loader, (x, y) = build(problem, seed)
            with torch.no_grad():
                start = problem.loss(model(x), y).item()
            optimizer = problem.optimizer(model)
            test = lr_range_test(model, problem.loss, loader, optimizer, LO, HI, NUM_STEPS, seed=seed)
            yield Case(problem, seed, test, start, lambda lr, p=problem, s=seed: final_loss(p, s, lr))


def final_loss(problem: Problem, seed: int, lr: float) -> float:
    """Return the loss over all data after 200 steps at one learning rate; infinite if it is not finite."""
    model, _, (x, y) = build(problem, seed)
    optimizer = problem.optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = lr
    for (inputs, targets), _ in zip(shuffled(x, y, problem.batch), range(STEPS), strict=False):
        optimizer.zero_grad()
        problem.loss(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        loss = problem.loss(model(x), y).item()
    return loss if np.isfinite(loss) else float("inf")


def compare(problems: Sequence[Problem], seeds: Sequence[int]) -> None:
    """Print, for each rule, how many suggestions were made, how many of them train, and how many are useful."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for case in cases(problems, seeds):
        best = min(case.train(float(lr)) for lr in GRID)
        words = []
        for rule in RULES:
            counts[rule][0] += 1
            try:
                lr = case.test.suggest(rule).lr_max
            except NoSuggestion:
                words.append(f"{rule} none")
                continue
            loss = case.train(lr)
            trains, useful = loss < case.start, case.start - loss >= 0.5 * (case.start - best)
            counts[rule][1:] = [a + b for a, b in zip(counts[rule][1:], (1, trains, trains and useful), strict=True)]
            words.append(f"{rule} {lr:.2g} ({loss:.3g}{'' if trains else ', does not train'})")
        print(f"{case.problem.name}, seed {case.seed}: {case.start:.3g} to {best:.3g}; {', '.join(words)}", flush=True)
    for rule, (runs, made, trains, useful) in counts.items():
        print(f"{rule}: of {runs} range tests {made} suggestions; {trains} train, {useful} are useful")


def main() -> None:
    """Run one of the sets."""
    torch.set_num_threads(1)
    which, seeds, first = [*sys.argv[1:], *["choose", "3", "10"][len(sys.argv) - 1 :]]
    compare({"choose": CHOOSE, "judge": JUDGE}[which], range(int(first), int(first) + int(seeds)))


if __name__ == "__main__":
    main()

"""How good the suggestions of a learning-rate range test are, beside torch-lr-finder, on ten small problems.

Run with ``python benchmarks/lr_range_test.py [SEEDS]``. A suggestion is good if 200 steps with it end at a training
loss within 10 % of the best of a grid of half decades. Both take 100 steps from 1e-6 to 10 with the same optimizer,
taking turns; time is CPU time, reported as the median of ratios. The peer is left out where it is not installed.

The default rule was chosen on other problems, those of ``lr_range_development.py``; these ten only judge it. How much
of the target is luck of the seed shows in the line of the grid: there the best learning rate of a whole grid is taken
from runs with another seed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from poise.data import load_breast_cancer, load_diabetes, load_digits, load_text, standardize
from poise.preflight import NoSuggestion, lr_range_test
from poise.preflight.range_test.lr_suggestion import RULES

LO, HI, NUM_STEPS, STEPS = 1e-6, 10.0, 100, 200
GRID = np.geomspace(1e-5, 10, 13)


@dataclass(frozen=True)
class Problem:
    """Data, a model and an optimizer."""

    name: str
    data: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    loss: nn.Module
    batch: int = 64


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and classes."""
    data = load_digits()
    return data.inputs / 16, data.targets


def tumours() -> tuple[torch.Tensor, torch.Tensor]:
    """Measurements of cell nuclei, and classes."""
    data = load_breast_cancer()
    return standardize(data.inputs)[0], data.targets


def patients() -> tuple[torch.Tensor, torch.Tensor]:
    """Patients, and how their diabetes went on."""
    data = load_diabetes()
    return standardize(data.inputs)[0], standardize(data.targets[:, None])[0]


def characters() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight characters, and the next."""
    ids = load_text().ids[:40_000]
    windows = ids.unfold(0, 9, 1)[::9]
    return windows[:, :8], windows[:, 8]


def sgd(model: nn.Module) -> Optimizer:
    """Nesterov SGD; its learning rate is set by the test."""
    return SGD(model.parameters(), lr=LO, momentum=0.9, nesterov=True)


def adam(model: nn.Module) -> Optimizer:
    """Adam."""
    return Adam(model.parameters(), lr=LO)


def adamw(model: nn.Module) -> Optimizer:
    """AdamW with some decay."""
    return AdamW(model.parameters(), lr=LO, weight_decay=0.1)


def perceptron(inputs: int, outputs: int, norm: bool = False) -> Callable[[], nn.Module]:
    """Two hidden layers of 64."""

    def make() -> nn.Module:
        norms = [nn.BatchNorm1d(64) if norm else nn.Identity() for _ in range(2)]
        return nn.Sequential(
            *(nn.Linear(inputs, 64), norms[0], nn.ReLU(), nn.Linear(64, 64), norms[1], nn.ReLU()),
            nn.Linear(64, outputs),
        )

    return make


def convolutions() -> nn.Module:
    """A small convolutional network for 8 x 8 images."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def reader() -> nn.Module:
    """Embeddings of eight characters and one hidden layer."""
    return nn.Sequential(nn.Embedding(64, 16), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))


CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()
PROBLEMS = (
    Problem("digits, softmax regression, SGD", digits, lambda: nn.Linear(64, 10), sgd, CE),
    Problem("digits, MLP, SGD", digits, perceptron(64, 10), sgd, CE),
    Problem("digits, MLP, Adam", digits, perceptron(64, 10), adam, CE),
    Problem("digits, MLP with batch norm, SGD", digits, perceptron(64, 10, norm=True), sgd, CE),
    Problem("digits, convolutions, SGD", digits, convolutions, sgd, CE),
    Problem("tumours, logistic regression, SGD", tumours, lambda: nn.Linear(30, 2), sgd, CE),
    Problem("tumours, MLP, AdamW", tumours, perceptron(30, 2), adamw, CE),
    Problem("diabetes, linear regression, SGD", patients, lambda: nn.Linear(10, 1), sgd, MSE),
    Problem("diabetes, MLP, Adam", patients, perceptron(10, 1), adam, MSE),
    Problem("characters, MLP, Adam", characters, reader, adam, CE),
)


def build(problem: Problem, seed: int) -> tuple[nn.Module, DataLoader, tuple[torch.Tensor, torch.Tensor]]:
    """Model and loader of a seed, and all data."""
    torch.manual_seed(seed)
    x, y = problem.data()
    return problem.model(), DataLoader(TensorDataset(x, y), problem.batch, shuffle=True, drop_last=True), (x, y)


def shuffled(x: torch.Tensor, y: torch.Tensor, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches as the loader makes them, again and again; ten times as fast as fetching row after row."""
    while True:
        for rows in torch.randperm(len(x)).split(batch)[: len(x) // batch]:
            yield x[rows], y[rows]


def final_loss(problem: Problem, seed: int, lr: float) -> float:
    """Training loss after 200 steps at one learning rate; batch norm with the statistics of the data."""
    model, _, (x, y) = build(problem, seed)
    optimizer = problem.optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = lr
    for inputs, targets in itertools.islice(shuffled(x, y, problem.batch), STEPS):
        optimizer.zero_grad()
        problem.loss(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        loss = problem.loss(model(x), y).item()
    return loss if np.isfinite(loss) else float("inf")


def here(problem: Problem, seed: int) -> tuple[dict[str, float | None], float]:
    """Suggestions of each rule, and CPU seconds."""
    model, loader, _ = build(problem, seed)
    optimizer = problem.optimizer(model)
    start = time.process_time()
    test = lr_range_test(model, problem.loss, loader, optimizer, LO, HI, NUM_STEPS, seed=seed)
    found: dict[str, float | None] = {}
    for rule in RULES:
        try:
            found[rule] = test.suggest(rule).lr_max
        except NoSuggestion:
            found[rule] = None
    return found, time.process_time() - start


def peer(problem: Problem, seed: int) -> tuple[float | None, float]:
    """Suggestion of torch-lr-finder (steepest gradient), and CPU seconds without its plot."""
    import matplotlib
    from torch_lr_finder import LRFinder

    matplotlib.use("Agg")
    model, loader, _ = build(problem, seed)
    optimizer = problem.optimizer(model)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start = time.process_time()
        finder = LRFinder(model, optimizer, problem.loss)
        finder.range_test(loader, start_lr=LO, end_lr=HI, num_iter=NUM_STEPS)
        finder.reset()
        seconds = time.process_time() - start
        drawn = finder.plot(suggest_lr=True)
    matplotlib.pyplot.close("all")
    return (float(drawn[1]) if isinstance(drawn, tuple) else None), seconds


def compare(problems: Sequence[Problem], seeds: Sequence[int]) -> None:
    """Print the share of good suggestions of each rule, of the grid of another seed, and the times."""
    with_peer = importlib.util.find_spec("torch_lr_finder") is not None
    good: dict[str, list[bool]] = {}
    ratios = []
    for problem in problems:
        grids = [np.array([final_loss(problem, seed, lr) for lr in GRID]) for seed in seeds]
        for i, (seed, grid) in enumerate(zip(seeds, grids, strict=True)):
            found, seconds = here(problem, seed)
            if with_peer:
                suggestion, peer_seconds = peer(problem, seed)
                found["torch-lr-finder"] = suggestion
                ratios.append(seconds / peer_seconds)
            words = []
            for rule, lr in found.items():
                loss = float("inf") if lr is None else final_loss(problem, seed, lr)
                good.setdefault(rule, []).append(loss <= 1.1 * grid.min())
                words.append(f"{rule} {'none' if lr is None else f'{lr:.2g}'} ({loss:.3g})")
            if len(grids) > 1:
                good.setdefault("the grid of the seed before", []).append(
                    bool(grid[grids[i - 1].argmin()] <= 1.1 * grid.min())
                )
            print(f"{problem.name}, seed {seed}: best of the grid {grid.min():.3g}; {', '.join(words)}", flush=True)
    for rule, hits in good.items():
        print(f"{rule}: {sum(hits)} of {len(hits)} within 10 % of the best (target 80 %)")
    if ratios:
        print(f"time by that of torch-lr-finder: {statistics.median(ratios):.2f} (target at most 1.05)")


def main() -> None:
    """Run the ten problems."""
    torch.set_num_threads(1)
    compare(PROBLEMS, range(int(sys.argv[1]) if len(sys.argv) > 1 else 3))


if __name__ == "__main__":
    main()

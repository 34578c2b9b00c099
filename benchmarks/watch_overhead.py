"""What watching costs: step time under poise, and under trainscope and torchmortem at their defaults, against no watch.

poise: one training in one process, in which the watch is taken off and put on again every few steps, so that a machine
whose speed drifts slows both alike. While it is off its functions fall straight through, and its clocks stand still:
its budget earns nothing from steps that it does not watch. The first step after each change is left out. A close look
is rare and long: its extra time is averaged over the looks seen and spread over all watched steps. The first seconds,
in which the loan is spent, are part of it. The interval is a bootstrap over stretches of a second.

The peers cannot be taken off and put on again: they and an unwatched run train in turn, several rounds, and the ratio
is taken within a round. That is good to a third, on a drifting machine, which is less than what they cost.
"""

from __future__ import annotations

import argparse
import contextlib
import pydoc_data.topics
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import poise
from poise.doctor.tap.tap import Tap

Tick = Callable[[float], None]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time_, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time_, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, time_, width)
        x = x + self.out(y)
        return x + self.mlp(self.norm2(x))


class CharGPT(nn.Module):
    def __init__(self, vocabulary: int, width: int = 64, depth: int = 4, context: int = 64) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.token(ids) + self.position.weight)))


def char_gpt() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    text = "\n".join(pydoc_data.topics.topics.values())
    index = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([index[c] for c in text])

    def loss(model: nn.Module) -> torch.Tensor:
        starts = torch.randint(len(ids) - 65, (8,))
        windows = torch.stack([ids[s : s + 65] for s in starts])
        return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    return CharGPT(len(index)), loss


def digits_cnn() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip

    def loss(model: nn.Module) -> torch.Tensor:
        batch = torch.randint(len(x), (32,))
        return F.cross_entropy(model(x[batch]), y[batch])

    return model, loss


def digits_mlp() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 384), nn.ReLU(), nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 10))

    def loss(model: nn.Module) -> torch.Tensor:
        batch = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[batch]), y[batch])

    return model, loss


@contextlib.contextmanager
def unwatched(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Tick]:
    yield lambda loss: None


@contextlib.contextmanager
def by_trainscope(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Tick]:
    from trainscope import TrainScope
    from trainscope.core.config import TrainScopeConfig

    with contextlib.chdir(folder):
        scope = TrainScope(model, optimizer, config=TrainScopeConfig()).attach()
        count = iter(range(10**9))
        yield lambda loss: scope.step(loss, batch_index=next(count))
        scope.detach()


@contextlib.contextmanager
def by_torchmortem(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Tick]:
    from torchmortem import Autopsy

    with Autopsy(model, optimizer=optimizer) as autopsy:
        yield lambda loss: autopsy.step(loss=loss)


ARMS = {"no watch": unwatched, "trainscope": by_trainscope, "torchmortem": by_torchmortem}


def train_step(model: nn.Module, loss_of: Callable, optimizer: torch.optim.Optimizer, tick: Tick | None = None) -> None:
    loss = loss_of(model)
    optimizer.zero_grad()
    loss.backward()
    value = loss.item()
    if tick is not None:
        tick(value)
    optimizer.step()


def step_seconds(make: Callable, arm: Callable, seconds: float) -> float:
    """Train for about ``seconds`` and return the mean seconds of a step, set-up left out."""
    torch.manual_seed(0)
    model, loss_of = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with tempfile.TemporaryDirectory() as folder, arm(model, optimizer, Path(folder)) as tick:
        steps = -5  # the first five warm up caches and allocators
        start = time.perf_counter()
        while steps < 0 or time.perf_counter() - start < seconds:
            if steps == 0:
                start = time.perf_counter()
            train_step(model, loss_of, optimizer, tick)
            steps += 1
        return (time.perf_counter() - start) / steps


class Switch:
    """Takes a running watch off and puts it on again."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self._off_since = 0.0

    def off(self) -> None:
        self._off_since = time.perf_counter()
        self.tap.off = True
        self.tap.detach_module_hooks()

    def on(self) -> None:
        gone = time.perf_counter() - self._off_since
        self.tap.budget._started += gone
        for timeline in self.tap.timelines.values():
            timeline.ended += gone
        self.tap.off = False
        if self.tap.sampling:
            self.tap.attach_module_hooks()


@dataclass(frozen=True)
class Steps:
    """Seconds of steps of one training, by what happened in them; those after a change are not among them."""

    bare: np.ndarray
    plain: np.ndarray  # watched, without a close look
    looks: np.ndarray
    share_of_looks: float  # among all watched steps

    def ratio(self) -> float:
        look = self.share_of_looks * (self.looks.mean() - self.plain.mean()) if len(self.looks) else 0.0
        return float((self.plain.mean() + look) / self.bare.mean())


def alternate(make: Callable, seconds: float) -> tuple[Steps, list[Steps], float]:
    """Train for so long; return the steps, the same in stretches, and the share that the watch says it took."""
    torch.manual_seed(0)
    model, loss_of = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    lengths = random.Random(0)  # random stretches: no rhythm of the watch can hide in them
    rows = []  # seconds, watched, looked at closely, after a change
    with tempfile.TemporaryDirectory() as folder:
        run = poise.watch(model, optimizer, out=Path(folder) / "run").start()
        tap = run._session.tap
        switch = Switch(tap)
        train_step(model, loss_of, optimizer)  # the model is found, the clock started
        watched, end = True, time.perf_counter() + seconds
        while time.perf_counter() < end:
            for i in range(lengths.randint(2, 4)):
                looking = watched and tap.sampling
                start = time.perf_counter()
                train_step(model, loss_of, optimizer)
                rows.append((time.perf_counter() - start, watched, looking, i == 0))
            (switch.off if watched else switch.on)()
            watched = not watched
        if not watched:
            switch.on()
        share = tap.budget.share
        run.stop()
    table = np.array(rows)
    return _steps(table), [_steps(part) for part in np.array_split(table, max(2, round(seconds)))], share


def _steps(table: np.ndarray) -> Steps:
    seconds, (watched, looked, changed) = table[:, 0], table[:, 1:].T.astype(bool)
    kept = ~changed
    looks = float(looked[watched].mean())
    return Steps(seconds[kept & ~watched], seconds[kept & watched & ~looked], seconds[kept & looked], looks)


def interval(stretches: list[Steps]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the ratio."""
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(1000):
        chosen = [stretches[i] for i in generator.integers(len(stretches), size=len(stretches))]
        parts = [np.concatenate([getattr(s, name) for s in chosen]) for name in ("bare", "plain", "looks")]
        ratios.append(Steps(*parts, float(np.mean([s.share_of_looks for s in chosen]))).ratio())
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=40.0, help="of training under poise, half of them watched")
    parser.add_argument("--peer-seconds", type=float, default=3.0, help="of training per peer and round")
    parser.add_argument("--rounds", type=int, default=2, help="of the peers; 0 leaves them out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for make in (char_gpt, digits_cnn, digits_mlp):
        steps, stretches, share = alternate(make, options.seconds)
        low, high = interval(stretches)
        bare, plain = steps.bare.mean(), steps.plain.mean()
        look = steps.looks.mean() - plain if len(steps.looks) else float("nan")
        print(f"\n{make.__name__}: {bare * 1e3:.2f} ms a step")
        print(f"  poise        {steps.ratio():7.3f} x no watch   (95 % interval {low:.3f} to {high:.3f})")
        print(f"    a step without a close look {plain / bare:.3f}; a look {look * 1e3:.1f} ms more, in ", end="")
        print(f"{steps.share_of_looks:.1%} of the steps; the watch itself says {share:.1%}", flush=True)
        if options.rounds:
            against_peers(make, options.peer_seconds, options.rounds)


def against_peers(make: Callable, seconds: float, rounds: int) -> None:
    """Print the ratios of the peers' step times to unwatched ones."""
    times = [{name: step_seconds(make, arm, seconds) for name, arm in ARMS.items()} for _ in range(rounds)]
    for name in list(ARMS)[1:]:
        ratios = [row[name] / row["no watch"] for row in times]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"  {name:12s} {statistics.median(ratios):7.3f} x no watch   ({spread})", flush=True)


if __name__ == "__main__":
    main()

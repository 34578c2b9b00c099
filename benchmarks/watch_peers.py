"""What watching costs a step beside its peers: poise, trainscope and torchmortem at their defaults, against no watch.

They and an unwatched training take turns within one process, several rounds, and the ratio is taken within a round.
That is good to a third, on a drifting machine, which is less than what the peers cost. What poise costs a whole run,
start and report included, is measured by `watch_overhead.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import pydoc_data.topics
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import poise

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


@contextlib.contextmanager
def by_poise(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Tick]:
    with poise.watch(model, optimizer, out=folder / "run"):
        yield lambda loss: None


ARMS = {"no watch": unwatched, "poise": by_poise, "trainscope": by_trainscope, "torchmortem": by_torchmortem}


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0, help="of training per arm and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for make in (char_gpt, digits_cnn, digits_mlp):
        print(f"\n{make.__name__}")
        against_peers(make, options.seconds, options.rounds)


def against_peers(make: Callable, seconds: float, rounds: int) -> None:
    """Print the ratios of the peers' step times to unwatched ones."""
    times = [{name: step_seconds(make, arm, seconds) for name, arm in ARMS.items()} for _ in range(rounds)]
    for name in list(ARMS)[1:]:
        ratios = [row[name] / row["no watch"] for row in times]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"  {name:12s} {statistics.median(ratios):7.3f} x no watch   ({spread})", flush=True)


if __name__ == "__main__":
    main()

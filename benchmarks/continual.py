"""What the parts for continual learning cost beside hand-written code and peers.

Run with ``python benchmarks/continual.py [NAME ...]`` (all comparisons by default), on an idle machine, one thread. The
arms of a comparison run in turn in one process, and ratios are taken within a round. avalanche-lib has
requirements that conflict with ours: in an environment of its own (``benchmarks/requirements-avalanche.txt``) its row
appears.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from poise.continual import ClassBalancedBuffer, ContinualEvaluator, Task
from poise.losses import MaskedCrossEntropyLoss, SoftTargetLoss, SpectralRegularizer
from poise.nn.mlp import seeded_mlp
from poise.optim import EMA, project_gem

Arm = Callable[[], object]


def ratios(title: str, arms: dict[str, Arm], base: str, bars: dict[str, float], rounds: int = 61) -> None:
    """Time all arms in turn and print medians, and the median of the ratios to one of them."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 3):
        for name, arm in arms.items():
            arm()  # not timed: the heap is then as this arm leaves it, not as the one before it did
            start = time.process_time()
            arm()
            times[name].append(time.process_time() - start)
    print(f"\n{title}; {rounds} rounds, {torch.get_num_threads()} thread")
    for name, all_rows in times.items():
        row = all_rows[3:]
        ratio = statistics.median(a / b for a, b in zip(row, times[base][3:], strict=True))
        best = min(row) / min(times[base][3:])
        verdict = "" if name not in bars else f"   bar {bars[name]}: {'met' if ratio <= bars[name] else 'missed'}"
        print(f"  {name:46s}{1e3 * statistics.median(row):9.3f} ms  x {ratio:.2f} (fastest {best:.2f}){verdict}")


# --- evaluation after every update -----------------------------------------------------------------------------------


def tasks(count: int = 3, train: int = 3200, test: int = 500) -> list[Task]:
    """Return random tasks of the card's size."""
    generator = torch.Generator().manual_seed(0)

    def pair(n: int, task: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(n, 784, generator=generator), torch.randint(2, (n,), generator=generator) + 2 * task

    return [Task(*pair(train, i), *pair(test, i), name=f"task {i}") for i in range(count)]


def evaluation() -> None:
    """An update with the evaluation of three tasks of 500 samples: ours, by hand, and a task at a time."""
    data = tasks()
    model = seeded_mlp((784, 200, 200, 10), 0, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    evaluator = ContinualEvaluator(data, subset=None, seen_only=False)
    evaluator.begin_task(2)
    x, y = torch.cat([t.x_test for t in data]), torch.cat([t.y_test for t in data])
    sizes = [len(t.x_test) for t in data]
    by_hand: list[list[float]] = []

    def update() -> None:
        pick = torch.arange(64)
        optimizer.zero_grad()
        F.cross_entropy(model(data[2].x[pick]), data[2].y[pick]).backward()
        optimizer.step()

    def ours() -> None:
        update()
        evaluator.after_step(model)

    def hand() -> None:
        update()
        model.eval()
        with torch.no_grad():
            right = (model(x).argmax(1) == y).double()
        by_hand.append([float(part.mean()) for part in right.split(sizes)])
        model.train()

    def separate() -> None:
        update()
        model.eval()
        with torch.no_grad():
            for t in data:
                for part in range(0, len(t.x_test), 100):
                    (model(t.x_test[part : part + 100]).argmax(1) == t.y_test[part : part + 100]).double().mean().item()
        model.train()

    arms = {
        "by hand, fused": hand,
        "ContinualEvaluator": ours,
        "a task and 100 samples at a time": separate,
        "update": update,
    }
    ratios("Update and evaluation of 3 x 500 samples", arms, "by hand, fused", {"ContinualEvaluator": 1.15})
    # The same numbers: the model as it is now, both ways.
    evaluator.after_step(model)
    hand_now = [(model(t.x_test).argmax(1) == t.y_test).double().mean().item() for t in data]
    same = np.array_equal(evaluator.history.accuracy[-1], np.array(hand_now))
    print(f"  identical numbers: {same}")
    if find_spec("avalanche") is None:
        print("  avalanche-lib is not in this environment")
    else:
        for batch in (500, 100):
            avalanche_row(data, batch)


class Anything:
    """An object that is made of anything and does nothing."""

    def __init__(self, *args: object, **settings: object) -> None:
        pass


class Stub(types.ModuleType):
    """A module that has everything and does nothing: Avalanche imports torchvision and wandb, and uses neither here."""

    __path__: list[str] = []  # noqa: RUF012
    __version__ = "0.0"

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Anything,), {})


class StubFinder(MetaPathFinder, Loader):
    """Finds a stub for each module of these packages."""

    packages = ("torchvision", "wandb")

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> Stub:
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def avalanche_row(data: list[Task], batch: int) -> None:
    """An update of Avalanche's replay with evaluation of every update in batches of so many samples, beside ours."""
    sys.meta_path.insert(0, StubFinder())
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Replay

    bench = tensors_benchmark(
        train_tensors=[(t.x[:2048], t.y[:2048]) for t in data],
        test_tensors=[(t.x_test, t.y_test) for t in data],
        task_labels=[0] * len(data),
        complete_test_set_only=False,
    )
    updates = len(data) * 2048 // 64
    times = {}
    for every in (-1, 1):
        model = seeded_mlp((784, 200, 200, 10), 0, nn.ReLU)
        strategy = Replay(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
            criterion=nn.CrossEntropyLoss(),
            mem_size=200,
            train_mb_size=64,
            eval_mb_size=batch,
            train_epochs=1,
            evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
            eval_every=every,
            **({"peval_mode": "iteration"} if every > 0 else {}),
        )
        start = time.process_time()
        for experience in bench.train_stream:
            strategy.train(experience, eval_streams=[bench.test_stream] if every > 0 else [])
        times[every] = (time.process_time() - start) / updates
    model = seeded_mlp((784, 200, 200, 10), 0, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    evaluator = ContinualEvaluator(data, subset=None, seen_only=False)
    start = time.process_time()
    memory = ClassBalancedBuffer(200)
    for i, task in enumerate(data):
        with evaluator.task(i, model):
            for pick in torch.randperm(2048).split(64):
                x, y = task.x[pick], task.y[pick]
                if len(memory):
                    x, y = (torch.cat(pair) for pair in zip((x, y), memory.sample(64), strict=True))
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                evaluator.after_step(model)
        memory.add(task.x, task.y)
    ours = (time.process_time() - start) / updates
    print(
        f"  avalanche-lib Replay, evaluation in batches of {batch}: {1e3 * times[1]:.2f} ms an evaluated update, "
        f"{1e3 * times[-1]:.2f} ms without evaluation; ours {1e3 * ours:.2f} ms: {times[1] / ours:.1f} times faster, "
        "bar 4.5"
    )


# --- losses, averages, penalties, projections ------------------------------------------------------------------------


def losses() -> None:
    """Cross entropy of 256 samples and 1000 classes, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(256, 1000, generator=generator, requires_grad=True)
    y = torch.randint(100, (256,), generator=generator) + 900
    memory = torch.arange(256) >= 128
    mask = torch.arange(1000)[None] < 900
    arms: dict[str, Arm] = {}

    def loss_arm(name: str, loss_fn: Callable[..., torch.Tensor]) -> None:
        def run() -> None:
            z.grad = None
            loss_fn(z, y).backward()

        arms[name] = run

    loss_arm("F.cross_entropy", F.cross_entropy)
    bars = {}
    for scope, value in (("current", -torch.inf), ("current", -2.0), ("own", -torch.inf), ("seen", -torch.inf)):
        loss_fn = MaskedCrossEntropyLoss([c // 100 for c in range(1000)], scope, value)
        name = f"MaskedCrossEntropyLoss {scope} {value:g}"
        loss_arm(name, lambda z, y, loss_fn=loss_fn: loss_fn(z, y, is_memory=memory))
        bars[name] = 1.15
    loss_arm("SoftTargetLoss", SoftTargetLoss(1000, range(900)))
    loss_arm("masked_fill, then F.cross_entropy", lambda z, y: F.cross_entropy(z.masked_fill(mask, -torch.inf), y))
    ratios("Loss of 256 samples, 1000 classes", arms, "F.cross_entropy", bars | {"SoftTargetLoss": 1.3}, rounds=201)


def averages() -> None:
    """An update of an average of a million parameters."""
    model = seeded_mlp((784, 800, 400, 10), 0, nn.ReLU)
    ours, torchs = EMA(model, 0.99), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    torchs.update_parameters(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x, y = torch.randn(128, 784), torch.randint(10, (128,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    arms = {"AveragedModel": lambda: torchs.update_parameters(model), "EMA": ours.update, "training step": step}
    ratios("Average of 0.95 million parameters", arms, "AveragedModel", {"EMA": 1.0})


def penalty() -> None:
    """A training step of the card's perceptron, without and with the spectral penalty."""
    model = seeded_mlp((784, 256, 256, 10), 0, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    regularizer = SpectralRegularizer(model)
    x, y = torch.randn(100, 784), torch.randint(10, (100,))

    def step(penalised: bool) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss + 1e-2 * regularizer() if penalised else loss).backward()
        optimizer.step()

    arms = {"step": lambda: step(False), "step with SpectralRegularizer": lambda: step(True)}
    ratios("Step of 784-256-256-10, batch 100, Adam", arms, "step", {"step with SpectralRegularizer": 1.45})


def projection() -> None:
    """GEM's projection of a million numbers against ten references."""
    generator = torch.Generator().manual_seed(0)
    g, references = torch.randn(10**6, generator=generator), torch.randn(10, 10**6, generator=generator)
    arms = {"G G'": lambda: references @ references.T, "project_gem": lambda: project_gem(g, references, always=True)}
    ratios("Projection against 10 references of 1e6", arms, "G G'", {"project_gem": 1.5}, rounds=15)


COMPARISONS = {f.__name__: f for f in (evaluation, losses, averages, penalty, projection)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*COMPARISONS, []])
    for name in parser.parse_args().names or COMPARISONS:
        COMPARISONS[name]()

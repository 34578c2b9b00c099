"""What an optimizer's step, an average's update and a loss cost beside their peers: time, its tail, and memory.

Run with ``python benchmarks/optim.py [NAME ...]`` (all comparisons by default), on an idle machine, one thread. All
arms of a comparison take the same gradients in turn in one process; ratios are taken within a round, so that a machine
whose speed drifts favours nobody. Another comparison is one more function in ``COMPARISONS``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import heavyball
import torch
import torch.nn.functional as F
from adamp import AdamP as AuthorsAdamP
from pytorch_optimizer import SOAP as PytorchOptimizerSOAP
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.profiler import ProfilerActivity, profile

from poise.losses import stablemax_cross_entropy
from poise.optim import EMA, SAM, SOAP, AdamP, NormalizeWeights, OrthoGrad

Shapes = Sequence[tuple[int, ...]]
Maker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class Arm:
    """One contender: ``before`` is not timed, ``step`` is; ``state`` lists the tensors that it keeps."""

    before: Callable[[], None]
    step: Callable[[], Any]
    state: Callable[[], list[Tensor]] = list


@dataclass
class Bar:
    """The most that ``arm`` may take of the time of ``peer``."""

    arm: str
    peer: str
    ratio: float


@dataclass
class Comparison:
    """Arms by name and what is asked of them."""

    title: str
    arms: dict[str, Arm]
    bars: list[Bar] = field(default_factory=list)
    rounds: int = 31


# --- measurement -------------------------------------------------------------------------------------------------


def seconds_per_round(comparison: Comparison) -> dict[str, list[float]]:
    """Time every arm once a round, in turn, after one round that is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in comparison.arms}
    for _ in range(comparison.rounds + 1):
        for name, arm in comparison.arms.items():
            arm.before()
            start = time.process_time()
            arm.step()
            times[name].append(time.process_time() - start)
    return {name: row[1:] for name, row in times.items()}


def temporary_bytes(arm: Arm) -> int:
    """Most memory that a step takes beyond what it found."""
    arm.before()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        arm.step()
    held = most = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def megabytes(tensors: Sequence[Tensor]) -> float:
    """Memory of distinct tensors."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values()) / 1e6


def report(comparison: Comparison) -> None:
    """Measure and print a table of arms and a line per bar."""
    times = seconds_per_round(comparison)
    print(f"\n{comparison.title}; {comparison.rounds} rounds, {torch.get_num_threads()} thread(s)")
    print(f"{'':34s}{'median':>10s}{'mean':>10s}{'p99':>10s}{'state':>11s}{'temporary':>11s}")
    for name, arm in comparison.arms.items():
        row = sorted(times[name])
        tail = row[min(len(row) - 1, round(0.99 * (len(row) - 1)))]
        figures = [f"{x * 1e3:7.2f} ms" for x in (statistics.median(row), statistics.mean(row), tail)]
        sizes = [f"{megabytes(arm.state()):8.1f} MB", f"{temporary_bytes(arm) / 1e6:8.1f} MB"]
        print(f"{name:34s}{''.join(figures)} {''.join(sizes)}")
    for bar in comparison.bars:
        ratio = statistics.median(a / b for a, b in zip(times[bar.arm], times[bar.peer], strict=True))
        mean = statistics.mean(times[bar.arm]) / statistics.mean(times[bar.peer])
        word = "met" if ratio <= bar.ratio else "missed"
        print(f"  {bar.arm} / {bar.peer}: {ratio:.2f} (of means {mean:.2f}), bar {bar.ratio}: {word}")


# --- arms --------------------------------------------------------------------------------------------------------


def optimizer_arm(make: Maker, shapes: Shapes) -> Arm:
    """Return an arm that steps over parameters of these shapes with random gradients, the same for every arm."""
    generator = torch.Generator().manual_seed(0)
    params = parameters(shapes, generator)
    optimizer = make(params)

    def give_gradients() -> None:
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)

    return Arm(give_gradients, optimizer.step, lambda: state_tensors(optimizer.state))


def parameters(shapes: Shapes, generator: torch.Generator) -> list[nn.Parameter]:
    """Return random parameters of these shapes."""
    return [nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes]


def sgd_arm(wrap: Callable[[SGD], torch.optim.Optimizer]) -> Arm:
    """Return an arm that trains a small network with a closure, by SGD in a wrapper."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        x, y = torch.randn(256, 256), torch.randint(10, (256,))
    optimizer = wrap(SGD(model.parameters(), 0.01, momentum=0.9))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return Arm(lambda: None, lambda: optimizer.step(closure), lambda: state_tensors(optimizer.state))


def ten_steps(arm: Arm) -> Arm:
    """Return an arm that takes ten steps at once."""
    return Arm(arm.before, lambda: [arm.step() for _ in range(10)], arm.state)


def ema_arm(shapes: Shapes, every: int) -> Arm:
    """Return an arm that averages parameters of these shapes."""
    model = nn.ParameterList(parameters(shapes, torch.Generator().manual_seed(0)))
    ema = EMA(model, every=every)
    return Arm(lambda: None, ema.update, lambda: list(ema.module.parameters()))


def loss_arm(loss_fn: Callable[[Tensor, Tensor], Tensor], scores: Tensor, classes: Tensor) -> Arm:
    """Return an arm that takes a loss of scores forward and backward."""

    def clear() -> None:
        scores.grad = None

    return Arm(clear, lambda: loss_fn(scores, classes).backward())


def state_tensors(value: Any) -> list[Tensor]:
    """Return all tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in inner for tensor in state_tensors(item)]


# --- comparisons -------------------------------------------------------------------------------------------------

ADAMW = "torch AdamW, foreach"
CONVOLUTIONS: Shapes = [
    (64, 3, 3, 3),
    *[(64, 64, 3, 3)] * 4,
    (128, 64, 3, 3),
    *[(128, 128, 3, 3)] * 3,
    (10, 128),
    (128,),
    (64,),
]
CARD_SHAPES: Shapes = [*[(256, 256)] * 4, (64, 256), (10, 256), *[(256,)] * 5]


def gpt_shapes(width: int = 320, depth: int = 8, vocabulary: int = 256, context: int = 128) -> Shapes:
    """Shapes of a GPT with tied embedding; 10 million parameters by default."""
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,), (width,)]
    return [(vocabulary, width), (context, width), *block * depth, (width,)]


def heavyball_soap(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return heavyball's SOAP, uncompiled, at the settings of the paper's code."""
    heavyball.utils.compile_mode = None
    return heavyball.SOAP(
        params, betas=(0.95, 0.95), precondition_frequency=10, merge_dims=False, max_precond_dim=10_000
    )


def compare_soap(title: str, shapes: Shapes, rounds: int) -> Comparison:
    """Compare SOAP with its peers on some shapes; refreshes every 10 steps fall on the same rounds for all."""
    makers: dict[str, Maker] = {
        "poise SOAP": SOAP,
        "poise SOAP, staggered": lambda params: SOAP(params, refresh="staggered"),
        "poise SOAP, one-sided": lambda params: SOAP(params, one_sided=True),
        "poise SOAP, factored": lambda params: SOAP(params, factored=True),
        "pytorch-optimizer SOAP": PytorchOptimizerSOAP,
        "heavyball SOAP, uncompiled": heavyball_soap,
        ADAMW: lambda params: AdamW(params, foreach=True),
    }
    bars = [
        Bar("poise SOAP", "pytorch-optimizer SOAP", 0.7),
        Bar("poise SOAP", "heavyball SOAP, uncompiled", 0.6),
        Bar("poise SOAP, one-sided", "pytorch-optimizer SOAP", 0.5),
    ]
    arms = {name: optimizer_arm(make, shapes) for name, make in makers.items()}
    return Comparison(title, arms, bars, rounds)


def soap_card() -> Comparison:
    """Four matrices of 256 x 256 and some smaller tensors."""
    return compare_soap("SOAP, six matrices of up to 256 x 256 and five vectors", CARD_SHAPES, 60)


def soap_gpt() -> Comparison:
    """A GPT of 10 million parameters."""
    return compare_soap("SOAP, a GPT of 10 million parameters (width 320, 8 blocks)", gpt_shapes(), 20)


def compare_projections(title: str, shapes: Shapes) -> Comparison:
    """Compare the optimizers that treat the parts of a step along and across the weights apart."""
    makers: dict[str, Maker] = {
        "poise AdamP": lambda params: AdamP(params, weight_decay=0.01),
        "poise AdamP, foreach": lambda params: AdamP(params, weight_decay=0.01, foreach=True),
        "adamp AdamP": lambda params: AuthorsAdamP(params, weight_decay=0.01),
        "poise OrthoGrad of AdamW": lambda params: OrthoGrad(AdamW(params, foreach=True)),
        "poise NormalizeWeights of AdamW": lambda params: NormalizeWeights(
            AdamW(params, foreach=True), [p for p in params if p.ndim > 1]
        ),
        ADAMW: lambda params: AdamW(params, foreach=True),
        "torch AdamW, fused": lambda params: AdamW(params, fused=True),
    }
    bars = [
        Bar("poise AdamP", "adamp AdamP", 0.5),
        Bar("poise AdamP", ADAMW, 1.4),
        Bar("poise OrthoGrad of AdamW", ADAMW, 1.2),
    ]
    return Comparison(title, {name: optimizer_arm(make, shapes) for name, make in makers.items()}, bars)


def adamp_gpt() -> Comparison:
    """A GPT of 10 million parameters."""
    return compare_projections("AdamP and OrthoGrad, a GPT of 10 million parameters", gpt_shapes())


def adamp_convolutions() -> Comparison:
    """Convolutions of 0.7 million parameters."""
    return compare_projections("AdamP and OrthoGrad, convolutions of 0.7 million parameters", CONVOLUTIONS)


def sam() -> Comparison:
    """A step with SAM beside one without."""
    arms = {"poise SAM of SGD": sgd_arm(SAM), "torch SGD": sgd_arm(lambda sgd: sgd)}
    return Comparison("SAM, a training step of a small network", arms, [Bar("poise SAM of SGD", "torch SGD", 2.1)])


def ema() -> Comparison:
    """Ten updates of an average beside ten steps: what is seldom counts with its share."""
    shapes = gpt_shapes()
    arms = {
        "poise EMA": ema_arm(shapes, every=1),
        "poise EMA, every 10 steps": ema_arm(shapes, every=10),
        ADAMW: optimizer_arm(lambda params: AdamW(params, foreach=True), shapes),
    }
    bars = [Bar(name, ADAMW, 0.05) for name in arms if name != ADAMW]
    title = "EMA, ten steps of a GPT of 10 million parameters"
    return Comparison(title, {name: ten_steps(arm) for name, arm in arms.items()}, bars, 20)


def stablemax() -> Comparison:
    """StableMax beside softmax, 4096 rows of 32 000 classes; takes 2 GB."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4096, 32_000, generator=generator).requires_grad_()
    classes = torch.randint(32_000, (4096,), generator=generator)
    losses = {"poise stablemax_cross_entropy": stablemax_cross_entropy, "torch cross_entropy": F.cross_entropy}
    arms = {name: loss_arm(loss_fn, scores, classes) for name, loss_fn in losses.items()}
    bars = [Bar("poise stablemax_cross_entropy", "torch cross_entropy", 1.5)]
    return Comparison("Loss of 4096 x 32 000 scores, forward and backward", arms, bars, 20)


COMPARISONS: dict[str, Callable[[], Comparison]] = {
    "soap-card": soap_card,
    "soap-gpt": soap_gpt,
    "adamp-gpt": adamp_gpt,
    "adamp-convolutions": adamp_convolutions,
    "sam": sam,
    "ema": ema,
    "stablemax": stablemax,
}


def main() -> None:
    """Run the comparisons that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(COMPARISONS)}; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="instead of each comparison's own number")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names or COMPARISONS:
        comparison = COMPARISONS[name]()
        comparison.rounds = arguments.rounds or comparison.rounds
        report(comparison)


if __name__ == "__main__":
    main()

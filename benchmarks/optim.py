"""What a step of an optimizer costs beside its peers: time, its tail, state and temporary memory.

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
from pytorch_optimizer import SOAP as PytorchOptimizerSOAP
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from poise.optim import SOAP

Shapes = Sequence[tuple[int, ...]]


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


def optimizer_arm(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], shapes: Shapes) -> Arm:
    """Return an arm that steps over parameters of these shapes with random gradients, the same for every arm."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = make(params)

    def give_gradients() -> None:
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)

    return Arm(give_gradients, optimizer.step, lambda: state_tensors(optimizer.state))


def state_tensors(value: Any) -> list[Tensor]:
    """Return all tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in inner for tensor in state_tensors(item)]


# --- comparisons -------------------------------------------------------------------------------------------------

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
    makers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "poise SOAP": SOAP,
        "poise SOAP, staggered": lambda params: SOAP(params, refresh="staggered"),
        "poise SOAP, one-sided": lambda params: SOAP(params, one_sided=True),
        "poise SOAP, factored": lambda params: SOAP(params, factored=True),
        "pytorch-optimizer SOAP": PytorchOptimizerSOAP,
        "heavyball SOAP, uncompiled": heavyball_soap,
        "torch AdamW, foreach": lambda params: torch.optim.AdamW(params, foreach=True),
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


COMPARISONS: dict[str, Callable[[], Comparison]] = {
    "soap-card": soap_card,
    "soap-gpt": soap_gpt,
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

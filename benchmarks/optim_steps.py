"""Time of one step of AdamP, OrthoGrad, NormalizeWeights and SAM beside what each is measured by, in one process.

Run with ``python benchmarks/optim_steps.py``. Contestants take turns, so that a busy machine is busy for all of them;
reported are medians of ratios of CPU time (``process_time``), step by step. ``adamp`` is the authors' package; without
it that column is left out. Peak memory is what a step allocates beyond what was there, by torch's profiler.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW
from torch.profiler import ProfilerActivity, profile

from poise.optim import SAM, AdamP, NormalizeWeights, OrthoGrad

ROUNDS, WARM_UP = 25, 4
Shapes = Sequence[tuple[int, ...]]
GPT_LAYER = [(1152, 384), (384, 384), (1536, 384), (384, 1536), (384,), (384,)]
SHAPES: Mapping[str, Shapes] = {
    "GPT, 10.7 million": [(65, 384), (256, 384), *GPT_LAYER * 6],
    "convolutions, 0.7 million": [
        (64, 3, 3, 3),
        *[(64, 64, 3, 3)] * 4,
        (128, 64, 3, 3),
        *[(128, 128, 3, 3)] * 3,
        (10, 128),
        (128,),
        (64,),
    ],
}


def parameters(shapes: Shapes) -> list[nn.Parameter]:
    """Parameters with gradients, the same for every contestant."""
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=g)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g)
    return params


def contestants(shapes: Shapes) -> dict[str, Callable[[], object]]:
    """The steps to time; the first one is what the others are divided by."""

    def steps(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Callable[[], object]:
        return make(parameters(shapes)).step

    found = {
        "torch AdamW, foreach": steps(lambda p: AdamW(p, foreach=True)),
        "torch AdamW, fused": steps(lambda p: AdamW(p, fused=True)),
        "AdamP": steps(lambda p: AdamP(p, weight_decay=0.01)),
        "AdamP, foreach": steps(lambda p: AdamP(p, weight_decay=0.01, foreach=True)),
        "OrthoGrad of AdamW, foreach": steps(lambda p: OrthoGrad(AdamW(p, foreach=True))),
        "NormalizeWeights of AdamW, foreach": steps(
            lambda p: NormalizeWeights(AdamW(p, foreach=True), [w for w in p if w.ndim > 1])
        ),
    }
    if importlib.util.find_spec("adamp") is not None:
        from adamp import AdamP as Reference

        found["adamp package"] = steps(lambda p: Reference(p, weight_decay=0.01))
    return found


def sam_contestants() -> dict[str, Callable[[], object]]:
    """A plain step of a small network, and the same with SAM around it."""

    def make(wrap: bool) -> Callable[[], object]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        base = SGD(model.parameters(), 0.01, momentum=0.9)
        optimizer = SAM(base) if wrap else base
        x, y = torch.randn(256, 256), torch.randint(10, (256,))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return lambda: optimizer.step(closure)

    return {"plain step": make(False), "SAM": make(True)}


def race(steps: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Let the contestants take turns; seconds of CPU of every round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + WARM_UP):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn >= WARM_UP:
                times[name].append(time.process_time() - start)
    return times


def peak_mib(step: Callable[[], object]) -> float:
    """Largest amount of memory that a step holds beyond what was there, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def report(title: str, steps: Mapping[str, Callable[[], object]]) -> None:
    """Print one table."""
    times = race(steps)
    names = list(times)
    packages = [name for name in names if name.endswith("package")]
    print(f"\n{title}\n{'':36}{'ms':>9}{'ratio':>8}{'by package':>12}{'peak MiB':>10}")
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(times[name], times[names[0]], strict=True))
        other = "".join(
            f"{statistics.median(a / b for a, b in zip(times[name], times[p], strict=True)):12.2f}" for p in packages
        )
        milliseconds = 1e3 * statistics.median(times[name])
        print(f"{name:36}{milliseconds:9.2f}{ratio:8.2f}{other or '-':>12}{peak_mib(steps[name]):10.1f}")


def main() -> None:
    """Print all tables."""
    for name, shapes in SHAPES.items():
        report(f"{name} ({sum(torch.Size(s).numel() for s in shapes):,} parameters)", contestants(shapes))
    report("SAM (target 2.1)", sam_contestants())


if __name__ == "__main__":
    main()

"""Time and peak memory of `poise.dynamics.audit` on ten million parameters: `python benchmarks/audit.py`."""

from __future__ import annotations

import resource
import time

import torch
from torch import nn

from poise.dynamics import audit

EXAMPLES, CLASSES = 20_000, 10


def network() -> nn.Sequential:
    """Return a network of ten million parameters."""
    return nn.Sequential(nn.Linear(784, 2700), nn.GELU(), nn.Linear(2700, 2900), nn.GELU(), nn.Linear(2900, CLASSES))


def trained(model: nn.Sequential, optimizer: torch.optim.Optimizer, data: list[tuple[torch.Tensor, ...]]) -> None:
    """Take three steps, so that an adaptive optimizer has seen gradients."""
    for inputs, targets in data[:3]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def main() -> None:
    """Print time and memory for SGD and Adam."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(EXAMPLES, 784), torch.randint(CLASSES, (EXAMPLES,))
    data = list(zip(inputs.split(128), targets.split(128), strict=True))
    for kind in (torch.optim.SGD, torch.optim.Adam):
        model = network()
        optimizer = kind(model.parameters(), lr=1e-3)
        trained(model, optimizer, data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.perf_counter()
        report = audit(model, nn.CrossEntropyLoss(), data, optimizer, batch_size=128)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{kind.__name__}: {report.meta['parameters']:,} parameters, {report.meta['examples_used']} of {EXAMPLES} "
            f"examples, {seconds:.1f} s, peak {peak:.2f} GiB (before {before:.2f} GiB, high-water marks)"
        )
        print(f"  {report.summary}")


if __name__ == "__main__":
    main()

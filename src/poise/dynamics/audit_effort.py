"""How much of an audit fits into the time there is, judged by what one Hessian product takes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from poise.curvature import Hessian
from poise.curvature.loss.objective import Objective
from poise.dynamics.sgd_noise.example_sample import two_samples

_PILOT = 64
_PRODUCTS = 60  # two spectra's tops and a density
_SHARE = 0.6  # of the time, for Hessian products; per-example gradients get the rest
_MOST_PRODUCTS = 400
_FEWEST_PRODUCTS = 24
_BASIS_BYTES = 2**30
_BYTES_PER_SECOND = 8e9  # to orthogonalise against a basis


@dataclass(frozen=True, slots=True)
class Effort:
    """What an audit can afford.

    Attributes:
        examples: how many examples to look at.
        products: most Hessian products for one eigenvalue.
        basis: vectors that a Krylov basis may hold.
        seconds: time for everything.
    """

    examples: int
    products: int
    basis: int
    seconds: float


def affordable_effort(
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Any],
    params: Sequence[str] | None,
    seconds: float,
    examples: int | None,
    generator: torch.Generator,
) -> Effort:
    """Return how many examples and products fit into ``seconds``.

    A Hessian product of 64 examples is timed; the number of examples is then a power of two, or all.

    Args:
        model: the model.
        objective: the loss.
        batches: all data.
        params: names of parameters; by default all that require gradients.
        seconds: time for everything.
        examples: a number that is wished for.
        generator: of the examples that are timed.
    """
    n = sum(objective.n_examples(batch) for batch in batches)
    pilot = min(n, _PILOT)
    sample, _ = two_samples(objective, batches, pilot, generator)
    product, numel = _timed_product(Hessian(model, objective, iter(sample), params))
    size = max(7, min(40, _BASIS_BYTES // (8 * numel)))
    overhead = 0.0 if numel < 1e6 else 4 * size * 8 * numel / _BYTES_PER_SECOND
    if examples is None:
        each = max(0.0, seconds * _SHARE / _PRODUCTS - overhead)
        affordable = max(pilot, 2 ** int(math.log2(max(1.0, pilot * each / product))))
        examples = min(n, affordable)
    step = product * examples / pilot + overhead
    products = min(_MOST_PRODUCTS, max(_FEWEST_PRODUCTS, int(seconds * _SHARE / 2 / step)))
    return Effort(min(n, examples), products, size, seconds)


def _timed_product(hessian: Hessian) -> tuple[float, int]:
    v = torch.ones(hessian.shape[0], dtype=hessian.dtype, device=hessian.device)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        float(hessian.matvec(v)[0])  # waits for an accelerator too
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-6), hessian.shape[0]

"""What mini-batch noise costs, as an audit finds it: exactly where that is affordable, else by bounds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from poise.curvature.loss.objective import Objective, Supervised
from poise.curvature.loss.per_example import mixing_layers
from poise.dynamics.sgd_noise.curvature_moments import curvature_moments, lr_bound_error
from poise.dynamics.sgd_noise.per_example_factors import PerExampleFactors, per_example_gram
from poise.dynamics.sgd_noise.sgd_stability import NotInterpolating, SGDStability, sgd_stability

_EXACT_ROWS = 400  # examples x outputs up to which the table of batch sizes takes seconds
_NUMBERS = 4e8  # of the factors that an estimate uses
_MOST_EXAMPLES, _FEWEST_EXAMPLES = 256, 12
_PROBES, _SKETCH = 4, 4093
_MAX_BYTES = 2**29


def why_no_noise_analysis(model: nn.Module, objective: Objective) -> str | None:
    """Return why the Hessians of single examples cannot be had, or ``None`` if they can.

    Args:
        model: the model.
        objective: its loss.
    """
    if not isinstance(objective, Supervised):
        return (
            "it needs the model's outputs and the loss apart, and got a function of model and batch. Give a criterion "
            "such as `nn.CrossEntropyLoss()`, or `poise.curvature.Supervised(criterion, inputs=..., targets=...)`."
        )
    if mixing := mixing_layers(model):
        return f"it needs examples that do not depend on each other; {mixing} are in train mode. Call `model.eval()`."
    return None


def audited_noise(
    model: nn.Module,
    objective: Supervised,
    sample: Sequence[Any],
    n: int,
    *,
    lr: float | None,
    batch_size: int,
    params: Sequence[str] | None,
    sharpness: float,
    generator: torch.Generator,
) -> SGDStability:
    """Return the stability of SGD, exact for up to 400 rows (examples x outputs), else from bounds.

    Args:
        model: the model.
        objective: its loss.
        sample: examples that were used.
        n: number of examples of all data.
        lr: learning rate in question.
        batch_size: examples a step.
        params: names of parameters.
        sharpness: largest eigenvalue of the Hessian, for the limit of gradient descent beside bounds.
        generator: of what is random in an estimate.
    """
    factors = PerExampleFactors(model, objective, iter(sample), params)
    rows = factors.n * factors.outputs
    if factors.n == n and rows <= _EXACT_ROWS and rows * factors.parameters * 8 <= _MAX_BYTES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotInterpolating)  # the report has a sentence for it
            return sgd_stability(
                model, objective, iter(sample), lr=lr, batch_size=batch_size, exact=True, params=params
            )
    return _bounds(factors, n, lr, batch_size, sharpness, generator)


def _bounds(
    factors: PerExampleFactors,
    n: int,
    lr: float | None,
    batch_size: int,
    sharpness: float,
    generator: torch.Generator,
) -> SGDStability:
    probes = None if factors.outputs <= _PROBES else _PROBES
    rows = probes or factors.outputs
    affordable = int(_NUMBERS / (rows * factors.parameters))
    used = min(factors.n, _MOST_EXAMPLES, max(_FEWEST_EXAMPLES, affordable))
    fits = used * rows * factors.parameters * 8 <= _MAX_BYTES
    found = per_example_gram(
        factors,
        subsample=used,
        sketch=None if fits else _SKETCH,
        probes=probes,
        max_bytes=_MAX_BYTES,
        generator=generator,
    )
    gram = replace(found, n=n)  # what was sampled from was a sample itself
    moments, gap = curvature_moments(gram), factors.mean_loss()
    return SGDStability(
        n=n,
        outputs=factors.outputs,
        lr=lr,
        batch_size=batch_size,
        sampling="without",
        trace=moments.trace,
        frobenius=moments.frobenius,
        sharpness=sharpness,
        fourth_moment_ratio=moments.fourth / moments.trace**2,
        lr_gd=2.0 / sharpness,
        lr_trace=2.0 / moments.trace if factors.outputs == 1 else None,
        lr_moment=moments.lr_bound(batch_size, "without"),
        lr_moment_se=lr_bound_error(gram, batch_size, "without"),
        lr_exact=None,
        interpolation_gap=gap,
        approximate=gap > 1e-3,
        used=gram.used,
        moments=moments,
        operator=None,
        coherence=None,
    )

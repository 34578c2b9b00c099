"""The size of the Jacobian of a model's outputs in its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.loss.objective import as_supervised
from poise.curvature.loss.per_example import mixing_layers
from poise.curvature.operators.jacobian import jacobians_of
from poise.curvature.trace_estimation.trace_estimate import TraceEstimate


def jacobian_frobenius(
    model: nn.Module,
    data: Any,
    n_probe: int | None = None,
    objective: Any = F.mse_loss,
    params: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    r"""Return the mean over examples of the squared Frobenius norm of the outputs' Jacobian in the parameters.

    With probes, :math:`|J|_F^2 = E |J^\top u|^2` over random signs u: one backward pass each, without bias.

    Args:
        model: float32 or float64. BatchNorm in train mode is measured in eval mode, with a warning.
        data: a batch or an iterable of batches; a batch may be the inputs alone.
        n_probe: number of probes, at least 2; ``None`` computes it exactly from the Jacobians of single examples.
        objective: defines inputs and outputs where they are not obvious, see :class:`poise.curvature.Supervised`.
        params: names of parameters or of modules; by default all that require gradients.
        generator: of the probes.

    Returns:
        The value, its standard error (0 if exact) and the number of backward passes over all data (0 if exact).

    Raises:
        ValueError: if ``n_probe`` is below 2.

    References:
        D'Angelo et al., "Why do we need weight decay in modern deep learning?", NeurIPS 2024, arXiv:2310.04415.
    """
    if n_probe is not None and n_probe < 2:
        raise ValueError(f"n_probe must be at least 2, or None for the exact value; got {n_probe}")
    with _without_batch_statistics(model):
        evaluation = Evaluation(model, as_supervised(objective, "jacobian_frobenius"), data, params)
        evaluation.examine(evaluation.outputs)
        n = sum(evaluation.n_examples)
        if n_probe is None:
            total = torch.stack([j.double().square().sum() for j in jacobians_of(evaluation)]).sum()
            return TraceEstimate(float(total) / n, 0.0, 0)
        with evaluation.measuring():
            samples = _probed(evaluation, n_probe, generator) / n
    return TraceEstimate(float(samples.mean()), float(samples.std()) / n_probe**0.5, n_probe)


def _probed(evaluation: Evaluation, n_probe: int, generator: torch.Generator | None) -> Tensor:
    """The sum of |J^T u|^2 over batches, for each probe."""
    flat = evaluation.flat
    totals = torch.zeros(n_probe, dtype=torch.float64, device=flat.device)
    for i in range(len(evaluation)):
        outputs = evaluation.outputs(i)
        for probe in range(n_probe):
            signs = torch.randint(0, 2, outputs.shape, generator=generator, device=_device_of(generator))
            u = (2.0 * signs - 1.0).to(flat.device, flat.dtype)
            gradient = torch.autograd.grad(outputs, flat.tensors, u, retain_graph=True, allow_unused=True)
            totals[probe] += flat.join(gradient).double().square().sum()
    return totals


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


@contextmanager
def _without_batch_statistics(model: nn.Module) -> Iterator[None]:
    mixing = [module for name, module in model.named_modules() if name in set(mixing_layers(model))]
    if mixing:
        warnings.warn(
            "BatchNorm in train mode makes examples depend on each other; it is measured in eval mode", stacklevel=4
        )
    for module in mixing:
        module.training = False
    try:
        yield
    finally:
        for module in mixing:
            module.training = True

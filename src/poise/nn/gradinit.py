"""GradInit: norms of parameters at which the first optimizer step lowers the loss most."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.nn.scaled_loss import ScaledLoss, ScalingReport, derivatives, endless, without_a_trace

Gradient = list[Tensor]


def gradinit_sgd_(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    step_size: float = 0.1,
    gamma: float = 1.0,
    lr: float = 1e-2,
    steps: int = 390,
    min_scale: float = 0.01,
    seed: int = 0,
) -> ScalingReport:
    r"""Scale every parameter so that one step of SGD leads to the smallest loss, in place.

    .. math:: \min_m L(\tilde S; \theta_m - \eta g) \quad \text{where} \quad g = \nabla L(S; \theta_m), \quad
        \lVert g \rVert_2 \le \gamma

    and :math:`\theta_m` are the parameters times one factor :math:`m \ge` ``min_scale`` per tensor. Adam moves the
    factors, along the gradient of :math:`\lVert g \rVert` where that exceeds :math:`\gamma`, else of the loss. Three
    batches make a step: :math:`S` is the first two and :math:`\tilde S` the first and the last, so that half of the
    examples are new.

    Nothing but the parameters changes. Dropout is off; a batch norm that trains uses the statistics of each batch.

    Args:
        model: float32 or float64.
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, or any ``loss_fn(model, batch)`` that returns a mean.
        data: an iterable of batches of half the size of those of training, drawn at random; or one batch, which is
            then :math:`S` and :math:`\tilde S`.
        step_size: :math:`\eta`, that of the training to come.
        gamma: bound on the gradient's norm; infinite for none.
        lr: of the factors. The paper takes 1e-3 with batch norm and up to 1e-1 without.
        steps: number of steps; 390 are an epoch of CIFAR-10 there.
        min_scale: smallest factor.
        seed: of random numbers that the data or the model draw.

    Returns:
        The norms before and after, the loss after one step, and the gradient's norm.

    Raises:
        TypeError: if a parameter is not float32 or float64.
        ValueError: if a loss is not finite (the model is then as it was) or an argument is out of range.

    References:
        Zhu et al., "GradInit: Learning to Initialize Neural Networks for Stable and Efficient Training", NeurIPS 2021,
        arXiv:2102.08098.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(6)]
        >>> report = gradinit_sgd_(model, nn.CrossEntropyLoss(), batches, steps=2)
        >>> len(report.norms)
        4
    """
    return _gradinit(model, loss_fn, data, _sgd, step_size, gamma, lr, steps, min_scale, seed)


def gradinit_adam_(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    step_size: float = 1e-3,
    gamma: float = math.inf,
    lr: float = 2.5e-3,
    steps: int = 780,
    min_scale: float = 0.01,
    seed: int = 0,
) -> ScalingReport:
    r"""Scale every parameter so that one step of Adam leads to the smallest loss, in place.

    As :func:`gradinit_sgd_`, with Adam's first step :math:`\theta_m - \eta \operatorname{sign} g` and the bound
    :math:`\lVert g \rVert_1 \le \gamma`. Defaults are those with which a Transformer was trained without warm-up.

    Args:
        model: float32 or float64.
        loss_fn: as there.
        data: as there.
        step_size: :math:`\eta`, the peak learning rate of the training to come.
        gamma: bound on the sum of the gradient's absolute entries, which grows with the model; infinite for none.
        lr: of the factors.
        steps: number of steps.
        min_scale: smallest factor.
        seed: of random numbers that the data or the model draw.

    Returns:
        The norms before and after, the loss after one step, and the gradient's 1-norm.

    Raises:
        TypeError: if a parameter is not float32 or float64.
        ValueError: if a loss is not finite (the model is then as it was) or an argument is out of range.

    References:
        Zhu et al., NeurIPS 2021, arXiv:2102.08098.
    """
    return _gradinit(model, loss_fn, data, _adam, step_size, gamma, lr, steps, min_scale, seed)


def _sgd(g: Gradient) -> tuple[Gradient, Float[Tensor, ""]]:
    """The step of a learning rate of 1, and the norm that belongs to it."""
    return g, torch.stack([x.square().sum() for x in g]).sum().sqrt()


def _adam(g: Gradient) -> tuple[Gradient, Float[Tensor, ""]]:
    return [x.sign() for x in g], torch.stack([x.abs().sum() for x in g]).sum()


def _gradinit(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    step_and_norm: Callable[[Gradient], tuple[Gradient, Tensor]],
    step_size: float,
    gamma: float,
    lr: float,
    steps: int,
    min_scale: float,
    seed: int,
) -> ScalingReport:
    _check(step_size, gamma, lr, steps, min_scale)
    loss = ScaledLoss(model, loss_fn)
    factors = torch.ones(len(loss.values), dtype=torch.float64, requires_grad=True)
    # Gradients of norm and loss differ by orders of magnitude: with common moments the larger would freeze the other.
    shrink, descend = (torch.optim.Adam([factors], lr) for _ in range(2))
    losses, norms = [], []
    with without_a_trace(model, seed):
        batches = endless(data)
        for step in range(steps):
            both, old, new = next(batches), next(batches), next(batches)
            parameters = loss.scaled([f.to(p.device) for f, p in zip(factors, loss.values, strict=True)])
            before = (loss(parameters, both) + loss(parameters, old)) / 2
            direction, norm = step_and_norm(derivatives(before, parameters, create_graph=True))
            norms.append((step, norm.item()))
            objective, optimizer = norm, shrink
            if norms[-1][1] <= gamma:
                moved = [p - step_size * d for p, d in zip(parameters, direction, strict=True)]
                objective, optimizer = (loss(moved, both) + loss(moved, new)) / 2, descend
                losses.append((step, objective.item()))
            (slope,) = derivatives(objective, [factors])
            if not slope.isfinite().all():
                raise ValueError(f"the gradient of the factors is not finite at step {step}")
            factors.grad = slope.clamp(-1, 1)
            optimizer.step()
            with torch.no_grad():
                factors.clamp_(min=min_scale)
    changed = loss.apply(factors.tolist())
    skipped = {name: "it is zero, which no factor changes" for name in loss.names if name not in changed}
    history = {"loss after one step": losses, "norm of the gradient": norms}
    return ScalingReport("GradInit", changed, skipped, history)


def _check(step_size: float, gamma: float, lr: float, steps: int, min_scale: float) -> None:
    for name, value in (("step_size", step_size), ("lr", lr)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < min_scale <= 1:
        raise ValueError(f"min_scale must lie in (0, 1], got {min_scale}")

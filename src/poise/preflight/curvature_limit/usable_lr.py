"""The largest usable learning rate at initialisation, and after a warm-up."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, Optimizer

from poise.curvature import Hessian, SharpnessTracker
from poise.curvature.loss.objective import Objective
from poise.dynamics.edge_of_stability.edge import edge
from poise.dynamics.edge_of_stability.largest_stable_lr import largest_stable_lr
from poise.dynamics.sgd_noise.example_sample import two_samples
from poise.dynamics.training_audit.sharpness import is_adaptive
from poise.nn.dropout_off import dropout_off
from poise.preflight.curvature_limit.stable_lr import stable_lr

LARGE = 30_000_000
"""Parameters beyond which the sharpness is bounded from below by a few products on one example."""
FEW_PRODUCTS = 4
WARMED = 2_000_000
"""Parameters up to which a warm-up is simulated."""
WARM_UP_STEPS = 20
_HEADROOM, _RISE = 0.8, 2.0


@dataclass(frozen=True, slots=True)
class UsableLR:
    """Largest stable learning rates on one batch.

    Attributes:
        name: of the optimizer that the limits are of.
        sharpness: largest eigenvalue of the Hessian, or a lower bound of it.
        error_bound: an eigenvalue lies this close to it.
        exact: whether ``sharpness`` is the largest one (within the bound), not a lower bound of it.
        products: Hessian products that this took, without those of the warm-up.
        examples: number of examples used.
        cold: learning rate at which the optimizer stops being stable at the first step; an upper bound of it where
            ``sharpness`` is a lower bound.
        sgd: the same of SGD without momentum.
        warmed: the limit at each step of a warm-up that was simulated on this batch; ``None`` if none was.
    """

    name: str
    sharpness: float
    error_bound: float
    exact: bool
    products: int
    examples: int
    cold: float | None
    sgd: float
    warmed: tuple[float, ...] | None

    @property
    def warm(self) -> float | None:
        """Limit after the warm-up: the median of its last five steps."""
        return None if self.warmed is None else float(np.median(self.warmed[-5:]))


def usable_lr(
    model: nn.Module, objective: Objective, batch: Any, optimizer: Optimizer | None, products: int | None, seed: int
) -> UsableLR:
    """Return the largest learning rates that are stable at the curvature at initialisation.

    Args:
        model: plain, float32 or float64.
        objective: the loss.
        batch: on the model's device.
        optimizer: that will train it; SGD if ``None``.
        products: most Hessian products; by default as many as the tolerance needs up to :data:`LARGE` parameters, and
            :data:`FEW_PRODUCTS` on one example beyond.
        seed: of start vectors.

    References:
        Gilmer et al., ICLR 2022, arXiv:2110.04369.
    """
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    name = type(optimizer).__name__ if optimizer is not None else "SGD"
    if products is not None or params > LARGE:
        return _bounded(model, objective, batch, optimizer, products or FEW_PRODUCTS, seed)
    found = stable_lr(model, objective, batch, optimizer, seed=seed)
    adaptive = optimizer is not None and is_adaptive(optimizer)
    cold = found.adam_threshold_lr if adaptive else found.threshold_lr
    sgd = 2 / found.lambda1 if found.lambda1 > 0 else math.inf
    warmed = None
    if params <= WARMED and cold is not None and math.isfinite(cold):
        warmed = warm_up(model, objective, batch, optimizer, cold, seed)
    examples = objective.n_examples(batch)
    return UsableLR(name, found.lambda1, found.error_bound, True, found.n_matvec, examples, cold, sgd, warmed)


def has_known_edge(optimizer: Optimizer) -> bool:
    """Whether the edge of stability of an optimizer is known."""
    try:
        edge(optimizer, 1.0)
    except TypeError:
        return False
    return True


def _bounded(
    model: nn.Module, objective: Objective, batch: Any, optimizer: Optimizer | None, products: int, seed: int
) -> UsableLR:
    generator = torch.Generator().manual_seed(seed)
    large = sum(p.numel() for p in model.parameters() if p.requires_grad) > LARGE
    sample = two_samples(objective, [batch], 1, generator)[0][0] if large else batch
    # Plain attention from the start: a fused kernel would fail only after half of the work.
    with dropout_off(model), sdpa_kernel(SDPBackend.MATH):
        hessian = Hessian(model, objective, sample)
        value, residual, taken = few_products(hessian, products, generator)
    name = type(optimizer).__name__ if optimizer is not None else "SGD"
    sgd = 2 / value if value > 0 else math.inf
    cold: float | None = sgd
    if optimizer is not None:
        cold = largest_stable_lr(optimizer, value) if isinstance(optimizer, SGD) and value > 0 else None
    return UsableLR(name, value, residual, False, taken, objective.n_examples(sample), cold, sgd, None)


def few_products(hessian: Hessian, products: int, generator: torch.Generator) -> tuple[float, float, int]:
    """Return a lower bound of the largest eigenvalue by Lanczos steps that keep three vectors, and its residual.

    The largest Ritz value never exceeds the largest eigenvalue, and an eigenvalue lies within the residual.

    Args:
        hessian: symmetric.
        products: most products.
        generator: of the start vector.

    Returns:
        The Ritz value, its residual, and how many products were taken.
    """
    before: Tensor | None = None
    v = torch.randn(hessian.shape[0], dtype=hessian.dtype, generator=generator).to(hessian.device)
    # One product turns noise towards the directions that are curved.
    v = hessian.matvec(v)
    v /= torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(max(1, min(products - 1, hessian.shape[0]))):
        w = hessian.matvec(v)
        alphas.append(float(w @ v))
        w -= alphas[-1] * v
        if before is not None:
            w -= betas[-1] * before
        betas.append(float(torch.linalg.vector_norm(w)))
        if betas[-1] <= 1e-6 * max(map(abs, alphas)):
            break
        before, v = v, w.div_(betas[-1])
    inner = betas[: len(alphas) - 1]
    values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(inner, 1) + np.diag(inner, -1))
    return float(values[-1]), abs(betas[len(alphas) - 1] * float(vectors[-1, -1])), hessian.n_matvec


def warm_up(
    model: nn.Module, objective: Objective, batch: Any, optimizer: Optimizer | None, cold: float, seed: int
) -> tuple[float, ...]:
    """Return the limit of the learning rate at each step of a warm-up that stays below it, simulated on copies.

    Every step takes 0.8 of the limit, at most twice the last learning rate.

    Args:
        model: to be copied.
        objective: the loss.
        batch: used in every step.
        optimizer: to be copied; SGD if ``None``.
        cold: limit before the first step.
        seed: of start vectors.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    twin, stepper = copy.deepcopy((model, optimizer or SGD(model.parameters(), lr=cold)))
    tracker = SharpnessTracker(
        tol=1e-2, precondition="optimizer" if is_adaptive(stepper) else None, generator=generator
    )
    ratios = [float(group["lr"]) / float(stepper.param_groups[0]["lr"]) for group in stepper.param_groups]
    limits, lr = [cold], _HEADROOM * cold
    with dropout_off(twin):
        for _ in range(WARM_UP_STEPS):
            for group, ratio in zip(stepper.param_groups, ratios, strict=True):
                group["lr"] = lr * ratio
            stepper.zero_grad()
            loss = objective.loss(twin, batch)
            if not bool(loss.isfinite()):
                break
            loss.backward()
            stepper.step()
            sharpness = tracker.update(twin, objective, batch, stepper).sharpness
            limits.append(largest_stable_lr(stepper, sharpness) if sharpness > 0 else math.inf)
            lr = min(_HEADROOM * limits[-1], _RISE * lr)
    return tuple(limits)

"""How the audit before the first step measures: one forward and one backward pass, and Hessian products."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from poise.curvature import as_objective
from poise.curvature.loss.batches import tensors_of, to_device
from poise.curvature.loss.objective import Objective
from poise.doctor.tap.shadow import undisturbed
from poise.nn.dropout_off import dropout_off
from poise.nn.surgery import kinds
from poise.preflight.curvature_limit.usable_lr import UsableLR, has_known_edge, usable_lr
from poise.preflight.init_audit.facts import InitFacts
from poise.preflight.signal_propagation.depth_growth import depth_growth, failing_depths
from poise.preflight.signal_propagation.hidden_state_gain import hidden_state_gain
from poise.preflight.signal_propagation.signal_propagation import depth_units, signal_propagation
from poise.preflight.signal_propagation.sublayer_bound import sublayer_bounds
from poise.tools.unwrap import unwrap


def measure(
    model: nn.Module,
    batch: Any,
    loss_fn: Any,
    optimizer: Optimizer | None,
    *,
    blocks: Sequence[str] | None,
    products: int | None,
    seed: int,
) -> InitFacts:
    """Return what the audit before the first step measures; arguments and errors are those of :func:`audit_init`."""
    plain, objective = _checked_model(model, optimizer, products), as_objective(loss_fn)
    device = next(plain.parameters()).device
    _check_batch(batch, objective)
    batch = to_device(batch, device)
    units, are_blocks = depth_units(plain, None if blocks is None else tuple(blocks))
    if not units:
        raise ValueError(f"model must have a layer with weights, got {kinds(plain)}; name its blocks with blocks=")
    passed = signal_propagation(plain, objective, batch, units, are_blocks, seed)
    if not passed.units:
        raise ValueError(f"none of {list(units.values())[:5]} put out a tensor on this batch; name others with blocks=")
    growth = depth_growth(plain, passed)
    with undisturbed([plain]), dropout_off(plain):
        gains = hidden_state_gain(plain, lambda: objective.loss(plain, batch)) if passed.finite else []
        lr, no_lr = _curvature(plain, objective, batch, optimizer, products, seed, passed.finite)
    trainable = [p for p in plain.parameters() if p.requires_grad]
    return InitFacts(
        model=type(plain).__name__,
        parameters=sum(p.numel() for p in trainable),
        dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in trainable})),
        batch=objective.n_examples(batch),
        passed=passed,
        growth=growth,
        failing=failing_depths(passed.units, growth),
        gains=gains,
        bounds=sublayer_bounds(plain, passed),
        lr=lr,
        no_lr=no_lr,
        set_lr=None if optimizer is None else float(optimizer.param_groups[0]["lr"]),
        eps=_epsilon(optimizer),
        tied=_is_tied(plain),
        seed=seed,
    )


def _checked_model(model: Any, optimizer: Any, products: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}")
    if products is not None and (not isinstance(products, int) or products < 0):
        raise ValueError(f"products must be a whole number of at least 0, got {products!r}")
    plain = unwrap(model)
    trainable = {id(p) for p in plain.parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    if optimizer is not None and not trainable & {id(p) for g in optimizer.param_groups for p in g["params"]}:
        raise ValueError("optimizer must hold parameters of the model, got one that holds none of them")
    return plain


def _check_batch(batch: Any, objective: Objective) -> None:
    tensors = list(tensors_of(batch))
    if not tensors:
        raise TypeError(
            f"batch must hold a tensor, got {type(batch).__name__}; a loader gives one by next(iter(loader))"
        )
    if objective.n_examples(batch) == 0:
        raise ValueError("batch must hold at least one example, got none")
    for i, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"batch must be finite, but tensor {i} of it has NaN or infinite entries")


def _curvature(
    model: nn.Module,
    objective: Objective,
    batch: Any,
    optimizer: Optimizer | None,
    products: int | None,
    seed: int,
    finite: bool,
) -> tuple[UsableLR | None, str | None]:
    if products == 0:
        return None, "It was not requested."
    if not finite:
        return None, "Signals or gradients are not finite on this batch."
    if any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters() if p.requires_grad):
        return None, "Hessian products need float32 or float64; audit the model before it is cast."
    if optimizer is not None and not has_known_edge(optimizer):
        return None, f"The edge of {type(optimizer).__name__} is not known."
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the fused attention kernel")
            found = usable_lr(model, objective, batch, optimizer, products, seed)
    except (ValueError, RuntimeError) as error:  # a random loss, a product that overflows, no second derivative
        return None, f"{error}."
    return (found, None) if math.isfinite(found.sharpness) else (None, "The curvature is not finite.")


def _epsilon(optimizer: Optimizer | None) -> float | None:
    """Return what the optimizer adds to its divisor; ``None`` where that is no single number (Adafactor has a pair)."""
    eps = None if optimizer is None else optimizer.param_groups[0].get("eps")
    return float(eps) if isinstance(eps, float | int | torch.Tensor) else None


def _is_tied(model: nn.Module) -> bool:
    owners: dict[int, int] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    return any(owners[id(table)] > 1 for table in tables)

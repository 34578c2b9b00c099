"""The largest learning rates that are stable at a model's present curvature, in one call and without training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adagrad, Adam, AdamW, Optimizer, RMSprop

from poise.curvature import EigenResult, FlatParameters, Hessian, LinearOperator, eigs, lanczos
from poise.curvature.eigen.eigs import DENSE
from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.operators.preconditioned import unwrapped
from poise.dynamics import edge, momentum_edge
from poise.dynamics.edge_of_stability.largest_stable_lr import largest_stable_lr
from poise.dynamics.training_audit.sharpness import is_adaptive, preconditioned_by
from poise.nn.dropout_off import dropout_off
from poise.report.words import number

_TOLERANCE = 1e-2
_MOST_PRODUCTS = 100
_DOWNWARD_PRODUCTS = 30
_BASIS_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class StableLR:
    """The largest stable learning rates of a model at its present weights.

    Args:
        lambda1: largest eigenvalue of the Hessian of the mean loss.
        threshold_lr: learning rate at which SGD stops being stable here; infinite where nothing is curved upwards.
        adam_threshold_lr: the same of Adam, or of the adaptive optimizer that was given; ``None`` if SGD was given.
        advice: the consequences, in sentences.
        error_bound: an eigenvalue lies this close to ``lambda1``.
        n_matvec: Hessian products that this took.
        negative_curvature: the most negative curvature that was found, of the mean loss; 0 if none was. Some direction
            has at least this much. Every learning rate leaves the point along it.
    """

    lambda1: float
    threshold_lr: float
    adam_threshold_lr: float | None
    advice: str
    error_bound: float
    n_matvec: int
    negative_curvature: float = 0.0


def stable_lr(
    model: nn.Module,
    loss_fn: Any,
    batch: Any,
    optimizer: Optimizer | None = None,
    momentum: float = 0.0,
    seed: int = 0,
) -> StableLR:
    r"""Return the largest stable learning rates at a model's present weights, without training.

    With :math:`\lambda_1` the largest eigenvalue of the Hessian, SGD with momentum :math:`\beta` is stable below
    :math:`2(1+\beta)/\lambda_1`. Adam is stable below :math:`2(1+\beta_1)/(1-\beta_1)` over the largest eigenvalue of
    :math:`P^{-1}H`, with P what it divides by, taken as this batch's gradient would make it if there was no step yet.
    At a saddle these are limits for the directions that are curved upwards; along negative curvature, which is searched
    for with up to 30 more products and reported, every learning rate leaves the point.

    These are limits of the present point: SGD often survives a few times its own by a jump to a flatter region, and a
    fresh Adam a hundred times, since weights with almost no gradient have a tiny divisor in the first steps only.

    Nothing of model and optimizer changes. Dropout is off; a batch norm that trains uses the statistics of the batch.

    Args:
        model: float32 or float64.
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, a :class:`poise.curvature.Supervised`, or any
            ``loss_fn(model, batch)`` that returns a mean.
        batch: a batch, or a list of batches that are averaged; some hundred examples are enough for most models.
        optimizer: what will train the model, see :func:`poise.dynamics.edge`. Parameters that it does not hold count as
            fixed. Without it the limits are of SGD and of Adam with the defaults of torch.
        momentum: of SGD, in [0, 1); to be left at 0 if ``optimizer`` is SGD, which has its own.
        seed: of the start vectors.

    Raises:
        TypeError: if the optimizer's limit is not known, or parameters are not float32 or float64.
        ValueError: if the batch is empty, the loss is not a finite scalar, nothing is trainable, the optimizer holds
            none of the parameters, or ``momentum`` is out of range or in conflict with the optimizer's.
        RuntimeError: if an operation has no second derivative.

    References:
        Gilmer et al., "A Loss Curvature Perspective on Training Instability in Deep Learning", ICLR 2022,
        arXiv:2110.04369; Cohen et al. (2022), arXiv:2207.14484.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = torch.eye(2), torch.zeros(2, 1)  # the loss has the curvature 1 in both directions
        >>> round(stable_lr(model, nn.MSELoss(), data, momentum=0.9).threshold_lr, 6)
        3.8
    """
    numerator = momentum_edge(1.0, momentum)
    params = None if optimizer is None else _moved(model, optimizer)
    sgd = optimizer if optimizer is not None and not is_adaptive(optimizer) else None
    if sgd is not None and momentum:
        raise ValueError(f"momentum must be left at 0 where the optimizer has its own, got {momentum}")
    with dropout_off(model):
        hessian = Hessian(model, loss_fn, batch, params)
        generator = torch.Generator(hessian.device).manual_seed(seed)
        top = _top(hessian, generator)
        negative = _negative_curvature(hessian, float(top.values[0]), generator)
        gradient = _gradient(model, loss_fn, batch, params)
        adam_limit = None
        if sgd is None:
            adaptive = _as_after_first_step(optimizer or Adam(hessian.flat.tensors), hessian.flat, gradient)
            seen = _top(preconditioned_by(hessian, adaptive), generator)
            adam_limit = _limit(adaptive, float(seen.values[0]))
    lambda1 = float(top.values[0])
    limit = numerator / lambda1 if lambda1 > 0 else math.inf
    if sgd is not None:
        limit = _limit(sgd, lambda1, float(gradient.double().norm()) or None)
    notes = [] if top.converged[0] else [f"The search stopped after {top.n_matvec} products: it may be larger."]
    if any(isinstance(module, _BatchNorm) and not module.training for module in model.modules()):
        notes.append("Batch norm is in evaluation mode, so this is not the loss of training.")
    if negative and lambda1 > 0:
        notes.insert(0, _saddle(negative))
    advice = " ".join([*_advice(lambda1, limit, adam_limit, optimizer, momentum), *notes])
    return StableLR(lambda1, limit, adam_limit, advice, float(top.error_bounds[0]), hessian.n_matvec, negative)


def _moved(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the names of the trainable parameters that the optimizer holds."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    edge(optimizer, grad_norm=1.0)  # an optimizer whose limit is not known is reported before the work
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    moved = [name for name, p in model.named_parameters() if p.requires_grad and id(p) in held]
    if not moved:
        raise ValueError("optimizer must hold trainable parameters of the model, got one that holds none of them")
    return moved


def _top(operator: LinearOperator, generator: torch.Generator) -> EigenResult:
    n = operator.shape[0]
    if n <= DENSE:
        return eigs(operator)
    basis = max(7, min(40, _BASIS_BYTES // (operator.dtype.itemsize * n)))
    return lanczos(operator, 1, "LA", _TOLERANCE, None, generator, _MOST_PRODUCTS, basis)


def _negative_curvature(operator: LinearOperator, largest: float, generator: torch.Generator) -> float:
    """Return the smallest Ritz value if it is negative beyond the tolerance: the curvature along its own vector."""
    n = operator.shape[0]
    if n <= DENSE:
        found = eigs(operator, 1, "SA")
    else:
        found = lanczos(operator, 1, "SA", 0.1, None, generator, _DOWNWARD_PRODUCTS, _DOWNWARD_PRODUCTS)
    smallest = float(found.values[0])
    return smallest if smallest < -_TOLERANCE * abs(largest) else 0.0


def _gradient(model: nn.Module, loss_fn: Any, batch: Any, params: list[str] | None) -> Float[Tensor, " P"]:
    evaluation = Evaluation(model, loss_fn, batch, params)
    flat = evaluation.flat
    with evaluation.measuring():
        parts = [
            flat.join(torch.autograd.grad(evaluation.loss(i), flat.tensors, allow_unused=True))
            for i in range(len(evaluation))
        ]
    return torch.stack(parts).sum(0)


# --- adaptive optimizers before their first step -----------------------------------------------------------------


def _as_after_first_step(optimizer: Optimizer, flat: FlatParameters, gradient: Float[Tensor, " P"]) -> Optimizer:
    """Return the optimizer if it has stepped; else a stand-in whose state is what this gradient leaves behind."""
    inner = unwrapped(optimizer)
    if any(int(state.get("step", 0)) for state in inner.state.values()):
        return optimizer
    groups = {id(p): group for group in inner.param_groups for p in group["params"]}
    first = _FIRST_STATES[type(inner)]
    state: dict[Tensor, Any] = defaultdict(dict)
    for p, g in zip(flat.tensors, flat.split(gradient), strict=True):
        state[p] = {"step": 1, **first(g, groups[id(p)])}
    twin: Optimizer = object.__new__(type(inner))
    twin.__dict__.update(inner.__dict__)
    twin.__dict__["state"] = state
    return twin


def _adam(g: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    second = (1 - group["betas"][1]) * g.square()
    return {"exp_avg_sq": second, "max_exp_avg_sq": second}


def _rmsprop(g: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    return {"square_avg": (1 - group["alpha"]) * g.square(), "grad_avg": (1 - group["alpha"]) * g}


def _adagrad(g: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    return {"sum": group["initial_accumulator_value"] + g.square()}


_FIRST_STATES: dict[type[Optimizer], Callable[[Tensor, dict[str, Any]], dict[str, Tensor]]] = {
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}


def _limit(optimizer: Optimizer, sharpness: float, grad_norm: float | None = None) -> float:
    return largest_stable_lr(optimizer, sharpness, grad_norm) if sharpness > 0 else math.inf


# --- text --------------------------------------------------------------------------------------------------------


def _advice(
    lambda1: float, limit: float, adam_limit: float | None, optimizer: Optimizer | None, momentum: float
) -> list[str]:
    if lambda1 <= 0:
        return [
            f"The loss is locally concave on this batch (largest eigenvalue {number(lambda1)}): no learning rate of "
            "SGD is too large for this point, but it may be for the next ones."
        ]
    if optimizer is None:
        with_momentum = f" with momentum {number(momentum)}" if momentum else ""
        adam = math.inf if adam_limit is None else adam_limit
        return [
            f"SGD{with_momentum} is stable here up to a learning rate of {number(limit)}, a fresh Adam up to "
            f"{number(adam)}, which rises within about ten steps.",
            _BEYOND,
        ]
    name, lr = type(optimizer).__name__, float(optimizer.param_groups[0]["lr"])
    ratio = lr / (limit if adam_limit is None else adam_limit)
    words = f"{name} is stable here up to a learning rate of {number(lr / ratio) if ratio else '∞'}. "
    words += f"It is set to {number(lr)}, {number(ratio)} times that."
    if ratio <= 1:
        return [words, "Noise of small batches lowers the limit, and curvature changes during training."]
    if adam_limit is not None:
        words += " Its limit rises within about ten steps, so that this alone may do no harm."
    return [words, _BEYOND]


def _saddle(negative: float) -> str:
    return (
        f"The point is a saddle: along some direction the curvature is {number(negative)}, and training leaves it "
        "along that direction at every learning rate. The limit is that of the other directions."
    )


_BEYOND = (
    "Above it, a run has to reach a flatter region before it diverges: warm the learning rate up from below the limit, "
    "clip gradients, add normalisation, or start from smaller weights."
)

"""Curvature preconditioned by an adaptive optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from poise.curvature.loss.flat import FlatParameters
from poise.curvature.operators.linear_operator import LinearOperator


class Preconditioned(LinearOperator):
    r"""A symmetric operator between the roots of a diagonal preconditioner: :math:`P^{-1/2} (A + D) P^{-1/2}`.

    It has the eigenvalues of :math:`P^{-1}(A + D)` and stays symmetric.

    Args:
        operator: A.
        diag_inv_sqrt: the diagonal of :math:`P^{-1/2}`, not negative; 0 for what does not move.
        penalty: the diagonal D of an L2 penalty that is not in A.

    Raises:
        ValueError: if the operator is not symmetric, or a diagonal does not fit, is negative or is not finite.
    """

    def __init__(
        self,
        operator: LinearOperator,
        diag_inv_sqrt: Float[Tensor, " P"],
        penalty: Float[Tensor, " P"] | None = None,
    ) -> None:
        if not operator.symmetric:
            raise ValueError(f"operator must be symmetric, {operator!r} is not")
        _check_diagonal("diag_inv_sqrt", diag_inv_sqrt, operator)
        if penalty is not None:
            _check_diagonal("penalty", penalty, operator)
        super().__init__(operator.shape, dtype=operator.dtype, device=operator.device, symmetric=True)
        self.operator = operator
        self.diag_inv_sqrt = diag_inv_sqrt.to(operator.device, operator.dtype)
        self.penalty = None if penalty is None else penalty.to(operator.device, operator.dtype)

    def _matvec(self, v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        scaled = self.diag_inv_sqrt * v
        product = self.operator.matvec(scaled)
        if self.penalty is not None:
            product = product + self.penalty * scaled
        return self.diag_inv_sqrt * product

    def _matmat(self, v: Float[Tensor, "P k"]) -> Float[Tensor, "P k"]:
        scaled = self.diag_inv_sqrt[:, None] * v
        product = self.operator.matmat(scaled)
        if self.penalty is not None:
            product = product + self.penalty[:, None] * scaled
        return self.diag_inv_sqrt[:, None] * product


def preconditioner(optimizer: Optimizer, flat: FlatParameters) -> Float[Tensor, " P"]:
    r"""Return the diagonal by which an optimizer divides, as its next step will roughly find it.

    ============== ===========================================================================
    Adam, AdamW    :math:`(1-\beta_1^t)\,(\sqrt{v / (1-\beta_2^t)} + \epsilon)`, with ``amsgrad`` the largest v
    RMSprop        :math:`\sqrt{v} + \epsilon`, with ``centered`` :math:`\sqrt{v - \bar g^2} + \epsilon`
    Adagrad        :math:`\sqrt{\sum g^2} + \epsilon`
    SGD            1
    ============== ===========================================================================

    A wrapper with an ``optimizer`` inside is unwrapped. Parameters that the optimizer does not move, because they are
    not its own or never had a gradient, get infinity.

    Args:
        optimizer: one of these or a child of theirs, after its first step.
        flat: the parameters, for example the ``flat`` of a :class:`Hessian`.

    Raises:
        TypeError: if it is another optimizer.
        ValueError: if an adaptive optimizer has taken no step, or moves none of the parameters.

    References:
        Cohen et al. (2022), "Adaptive gradient methods at the edge of stability", arXiv:2207.14484.
    """
    inner = unwrapped(optimizer)
    rule = next((rule for kind, rule in _RULES.items() if isinstance(inner, kind)), None)
    if rule is None:
        known = ", ".join(kind.__name__ for kind in _RULES)
        raise TypeError(f"optimizer must be one of {known} or a child of them, got {type(inner).__name__}")
    groups = {id(p): group for group in inner.param_groups for p in group["params"]}
    diagonals = [
        _diagonal(rule, p, inner.state.get(p, {}), groups[id(p)]) if id(p) in groups else torch.full_like(p, torch.inf)
        for p in flat.tensors
    ]
    diagonal = flat.join([d.detach() for d in diagonals])
    if diagonal.isinf().all():
        raise ValueError(
            f"{type(inner).__name__} has moved none of the parameters yet; measure after its first step, with the "
            "optimizer that holds the model's parameters"
        )
    return diagonal


def l2_penalty(optimizer: Optimizer, flat: FlatParameters) -> Float[Tensor, " P"] | None:
    """Return the ``weight_decay`` per parameter that an adaptive optimizer adds to the curvature, or ``None``.

    Decoupled decay, as in AdamW, adds nothing. Nor does that of SGD here: it moves the edge instead.

    Args:
        optimizer: as in :func:`preconditioner`.
        flat: the parameters.
    """
    inner = unwrapped(optimizer)
    if isinstance(inner, SGD | AdamW):
        return None
    decays = {
        id(p): 0.0 if group.get("decoupled_weight_decay") else group.get("weight_decay", 0.0)
        for group in inner.param_groups
        for p in group["params"]
    }
    if not any(decays.values()):
        return None
    return flat.join([torch.full_like(p, decays.get(id(p), 0.0)).detach() for p in flat.tensors])


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that takes the step inside wrappers."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


Rule = Callable[[Tensor, dict[str, Any], dict[str, Any]], Tensor]


def _diagonal(rule: Rule, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if rule is not _sgd and int(state.get("step", 0)) == 0:
        return torch.full_like(p, torch.inf)
    return rule(p, state, group)


def _adam(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    t, (beta1, beta2) = float(state["step"]), group["betas"]
    v = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    return (1 - beta1**t) * ((v / (1 - beta2**t)).sqrt() + group["eps"])


def _rmsprop(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    v = state["square_avg"]
    if group["centered"]:
        v = v - state["grad_avg"].square()
    return v.sqrt() + group["eps"]


def _adagrad(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return state["sum"].sqrt() + group["eps"]


def _sgd(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return torch.ones_like(p)


_RULES: dict[type[Optimizer], Rule] = {Adam: _adam, AdamW: _adam, RMSprop: _rmsprop, Adagrad: _adagrad, SGD: _sgd}


def _check_diagonal(name: str, diagonal: Tensor, operator: LinearOperator) -> None:
    if diagonal.shape != (operator.shape[0],):
        raise ValueError(f"{name} must have shape ({operator.shape[0]},), got {tuple(diagonal.shape)}")
    if not ((diagonal >= 0) & diagonal.isfinite()).all():
        raise ValueError(
            f"{name} must be finite and not negative, got values from {diagonal.min()} to {diagonal.max()}"
        )

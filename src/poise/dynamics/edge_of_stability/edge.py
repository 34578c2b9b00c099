"""The sharpness at which an optimizer stops being stable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from poise.dynamics.edge_of_stability.ascent import unwrap_sam

Group = Mapping[str, Any]
AT_THE_EDGE = (0.95, 1.15)
"""Sharpness over threshold where a run counts as being at its edge of stability."""


def momentum_edge(lr: float, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0) -> float:
    r"""Return the largest stable sharpness of gradient descent with momentum.

    On a quadratic of curvature :math:`\lambda`, :math:`v \leftarrow \beta v + (1-d)\lambda w`,
    :math:`w \leftarrow (1-\eta\kappa) w - \eta v` is stable below

    .. math:: \lambda^* = (2 - \eta\kappa)(1+\beta) / (\eta(1-d)).

    Plain gradient descent (:math:`2/\eta`) is ``momentum=0``; momentum as a moving average, as in Adam, is
    ``dampening=momentum`` (:math:`38/\eta` at 0.9).

    Args:
        lr: learning rate, positive.
        momentum: in [0, 1).
        dampening: fraction of the gradient that is left out of the buffer, below 1.
        weight_decay: decoupled decay :math:`\kappa`; a step removes the fraction ``lr * weight_decay`` of a weight.

    Raises:
        ValueError: if a setting is out of range.

    References:
        Cohen et al. (2021), arXiv:2103.00065; Cohen et al. (2022), arXiv:2207.14484.
    """
    _check(lr, momentum, weight_decay)
    if not -math.inf < dampening < 1.0:
        raise ValueError(f"dampening must be below 1, or no gradient reaches the buffer; got {dampening}")
    return (2.0 - lr * weight_decay) * (1.0 + momentum) / (lr * (1.0 - dampening))


def nesterov_edge(lr: float, momentum: float, weight_decay: float = 0.0) -> float:
    r"""Return the largest stable sharpness of ``torch.optim.SGD(nesterov=True)``.

    :math:`\lambda^* = (2 - \eta\kappa)(1+\beta) / (\eta(1+2\beta))`: lower than without momentum.

    Args:
        lr: learning rate, positive.
        momentum: in [0, 1).
        weight_decay: decoupled decay :math:`\kappa`.

    Raises:
        ValueError: if a setting is out of range.

    References:
        Cohen et al. (2021), appendix B, arXiv:2103.00065.
    """
    _check(lr, momentum, weight_decay)
    return (2.0 - lr * weight_decay) * (1.0 + momentum) / (lr * (1.0 + 2.0 * momentum))


def sam_edge(lr: float, rho: float, grad_norm: float | None = None, momentum: float = 0.0) -> float:
    r"""Return the largest stable sharpness of sharpness-aware minimisation.

    The solution of :math:`\eta\lambda(1+\rho\lambda) = 2(1+\beta)`. Normalised SAM moves by :math:`\rho/|g|` times the
    gradient, so its edge falls with the gradient: compare with the current one.

    Args:
        lr: learning rate, positive.
        rho: radius of the ascent step, not negative; 0 is the edge without SAM.
        grad_norm: norm of the gradient, for normalised SAM; ``None`` for the unnormalised one.
        momentum: of heavy ball, in [0, 1).

    Raises:
        ValueError: if a setting is out of range.

    References:
        Agarwala and Dauphin (2023), arXiv:2302.08692; Long and Bartlett (2023), arXiv:2309.12488.
    """
    return _with_ascent(momentum_edge(lr, momentum), _radius(rho, grad_norm))


def sam_normalized(sharpness: float, lr: float, rho: float, grad_norm: float | None = None) -> float:
    r"""Return :math:`\eta\lambda(1+\rho\lambda)`, which plain SAM keeps below 2.

    Args:
        sharpness: largest eigenvalue :math:`\lambda` of the Hessian.
        lr: learning rate, positive.
        rho: radius of the ascent step, not negative.
        grad_norm: norm of the gradient, for normalised SAM; ``None`` for the unnormalised one.

    Raises:
        ValueError: if a setting is out of range.

    References:
        Agarwala and Dauphin (2023), arXiv:2302.08692.
    """
    _check(lr, 0.0, 0.0)
    return lr * sharpness * (1.0 + _radius(rho, grad_norm) * sharpness)


def edge(optimizer: Optimizer, grad_norm: float | None = None) -> float:
    r"""Return the sharpness above which an optimizer, as it stands, is unstable.

    The sharpness to compare with is the largest eigenvalue of

    - the Hessian :math:`H` of the loss without penalty for ``SGD`` (an L2 ``weight_decay`` is subtracted here);
    - :math:`P^{-1/2}(H + \kappa I)P^{-1/2}` for ``Adam``, ``RMSprop`` and ``Adagrad``, with :math:`\kappa` their L2
      ``weight_decay`` and :math:`P` what they divide by; for ``AdamW`` the same without :math:`\kappa`.

    Several param groups: the smallest of their edges. Below it nothing can diverge; above it something may.

    Args:
        optimizer: ``SGD``, ``Adam``, ``AdamW``, ``RMSprop`` or ``Adagrad`` of torch, or a SAM around ``SGD`` (with
            its radius in the param groups, as ``poise.optim.SAM``).
        grad_norm: norm of the gradient, for normalised SAM only.

    Raises:
        TypeError: if the optimizer's edge is not known; its map can be analysed instead (:func:`optimizer_map`).
        ValueError: if a setting is out of range, the optimizer climbs, or normalised SAM comes without ``grad_norm``.

    References:
        Cohen et al. (2021), arXiv:2103.00065; Cohen et al. (2022), arXiv:2207.14484.
    """
    base, ascent = unwrap_sam(optimizer)
    rule = _RULES.get(type(base))
    if rule is None or (ascent is not None and type(base) is not SGD):
        known = ", ".join(kind.__name__ for kind in _RULES)
        raise TypeError(
            f"optimizer must be exactly one of {known}, or a SAM around SGD, got {type(optimizer).__name__}; "
            "analyse its own step with Map and stability"
        )
    for group in optimizer.param_groups:
        if group.get("maximize"):
            raise ValueError("optimizer must descend, got maximize=True; state the loss with the other sign")
    edges = [rule(group, _steps(base, group)) for group in optimizer.param_groups]
    if ascent is None:
        return min(edges)
    if ascent.normalize and grad_norm is None:
        raise ValueError("grad_norm is needed: the edge of normalised SAM moves with the norm of the gradient")
    norm = grad_norm if ascent.normalize else None
    radii = [_radius(float(group["rho"]), norm) for group in optimizer.param_groups]
    return min(_with_ascent(plain, radius) for plain, radius in zip(edges, radii, strict=True))


@dataclass(frozen=True, slots=True)
class EdgeDistance:
    """How far a sharpness is from the edge.

    Attributes:
        edge: largest stable sharpness.
        ratio: sharpness over edge.
        low: lower end of the ratio, from the error bound of the sharpness.
        high: upper end.
        where: ``"below"`` if even ``high`` is under 0.95, ``"above"`` if even ``low`` is over 1.15, else ``"at"``.
    """

    edge: float
    ratio: float
    low: float
    high: float

    @property
    def where(self) -> Literal["below", "at", "above"]:
        """Side of the edge."""
        if self.high < AT_THE_EDGE[0]:
            return "below"
        return "above" if self.low > AT_THE_EDGE[1] else "at"

    def max_stable_lr(self, lr: float) -> float:
        """Return the learning rate that puts this sharpness on the edge, for edges proportional to 1 / lr (no SAM)."""
        return math.inf if self.ratio <= 0 else lr / self.ratio


def distance_to_edge(
    optimizer: Optimizer, sharpness: float, error_bound: float = 0.0, grad_norm: float | None = None
) -> EdgeDistance:
    """Return how far a measured sharpness is from the optimizer's edge.

    Args:
        optimizer: see :func:`edge`.
        sharpness: largest eigenvalue of the (preconditioned) Hessian, as in :func:`edge`.
        error_bound: how far the true eigenvalue may be from ``sharpness``.
        grad_norm: norm of the gradient, for normalised SAM only.

    Raises:
        ValueError: if ``sharpness`` is not finite or ``error_bound`` is negative.
    """
    if not math.isfinite(sharpness) or not 0.0 <= error_bound < math.inf:
        raise ValueError(f"sharpness must be finite and error_bound at least 0, got {sharpness} and {error_bound}")
    threshold = edge(optimizer, grad_norm)
    if threshold <= 0:
        raise ValueError(f"the edge is {threshold:.4g}: weight decay alone makes this optimizer unstable")
    ends = (sharpness - error_bound) / threshold, (sharpness + error_bound) / threshold
    return EdgeDistance(threshold, sharpness / threshold, *ends)


def _sgd(group: Group, steps: int) -> float:
    lr, momentum = float(group["lr"]), group["momentum"]
    # Without momentum torch ignores dampening.
    if group["nesterov"]:
        return nesterov_edge(lr, momentum) - group["weight_decay"]
    return momentum_edge(lr, momentum, group["dampening"] if momentum else 0.0) - group["weight_decay"]


def _adam(group: Group, steps: int) -> float:
    beta1 = float(group["betas"][0])
    decoupled = group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0
    return momentum_edge(float(group["lr"]), beta1, dampening=beta1, weight_decay=decoupled)


def _rmsprop(group: Group, steps: int) -> float:
    return momentum_edge(float(group["lr"]), group["momentum"])


def _adagrad(group: Group, steps: int) -> float:
    return momentum_edge(float(group["lr"]) / (1.0 + steps * group["lr_decay"]))


# Exact types: a child may step in another way.
_RULES: dict[type[Optimizer], Callable[[Group, int], float]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}


def _steps(optimizer: Optimizer, group: Group) -> int:
    """Return how many steps the group has taken."""
    taken = [optimizer.state[p].get("step", 0) for p in group["params"] if p in optimizer.state]
    return max((int(t) for t in taken), default=0)


def _radius(rho: float, grad_norm: float | None) -> float:
    if not 0.0 <= rho < math.inf:
        raise ValueError(f"rho must be at least 0 and finite, got {rho}")
    if grad_norm is None:
        return rho
    if not 0.0 < grad_norm < math.inf:
        raise ValueError(f"grad_norm must be positive and finite, got {grad_norm}")
    return rho / grad_norm


def _with_ascent(plain: float, radius: float) -> float:
    # The positive root of radius x^2 + x = plain, without cancellation for small radii.
    return 2.0 * plain / (1.0 + math.sqrt(1.0 + 4.0 * radius * plain))


def _check(lr: float | Tensor, momentum: float, weight_decay: float) -> None:
    if not 0.0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    if not 0.0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {weight_decay}")

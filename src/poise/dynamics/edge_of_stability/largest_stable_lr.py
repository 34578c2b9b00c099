"""The learning rate that puts an optimizer on its edge of stability."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from torch.optim import Optimizer

from poise.dynamics.edge_of_stability.edge import edge

_MOST = math.log(1e12)


def largest_stable_lr(optimizer: Optimizer, sharpness: float, grad_norm: float | None = None) -> float:
    """Return the learning rate of the first param group at which ``sharpness`` is the optimizer's edge.

    Momentum, weight decay and SAM's radius are kept; the learning rates of several groups keep their ratios. The
    optimizer is left alone.

    Args:
        optimizer: see :func:`edge`.
        sharpness: largest eigenvalue of the (preconditioned) Hessian, as in :func:`edge`.
        grad_norm: norm of the gradient, for normalised SAM only.

    Returns:
        The learning rate; infinite if none up to 1e12 times the present one is unstable, 0 if none down to 1e-12 times
        it is stable.

    Raises:
        TypeError: if :func:`edge` does not support the optimizer; else as :func:`edge`.
    """

    def excess(log_factor: float) -> float:
        return edge(_scaled(optimizer, math.exp(log_factor)), grad_norm) - sharpness

    lr = float(optimizer.param_groups[0]["lr"])
    if excess(_MOST) >= 0:
        return math.inf
    if excess(-_MOST) <= 0:
        return 0.0
    return lr * math.exp(float(brentq(excess, -_MOST, _MOST, xtol=1e-13)))


def _scaled(optimizer: Optimizer, factor: float) -> Optimizer:
    """Return a stand-in with other learning rates, for :func:`edge` to read, inside wrappers too."""
    twin: Optimizer = object.__new__(type(optimizer))
    twin.__dict__.update(optimizer.__dict__)
    if isinstance(inner := optimizer.__dict__.get("optimizer"), Optimizer):
        twin.__dict__["optimizer"] = _scaled(inner, factor)
    if "param_groups" in optimizer.__dict__:
        groups = optimizer.param_groups
        twin.__dict__["param_groups"] = [{**group, "lr": float(group["lr"]) * factor} for group in groups]
    return twin

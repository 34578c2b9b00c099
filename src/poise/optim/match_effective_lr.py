"""Let the learning rate follow the effective learning rate of another run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from poise.optim.geometry import Rule, check_rule


def weight_norm(optimizer: Optimizer, group: int = 0) -> float:
    """Return the joint 2-norm of a group's parameters; on an accelerator this waits for the device.

    Args:
        optimizer: any optimizer.
        group: index of the param group.

    Returns:
        The norm, summed in float64.

    Raises:
        IndexError: if there is no such group.
    """
    params = [p.detach() for p in optimizer.param_groups[group]["params"]]
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(params)).double()))


def group_effective_lr(optimizer: Optimizer, rule: Rule, group: int = 0) -> float:
    r"""Return the effective learning rate of a param group, by the joint norm of its weights.

    It is :math:`\eta / \lVert w\rVert^2` for SGD, whose gradient shrinks as a scale-invariant weight grows, and
    :math:`\eta / \lVert w\rVert` for Adam and similar optimizers, whose step does not, as
    :func:`poise.optim.geometry.effective_lr` of one weight.

    Args:
        optimizer: any optimizer.
        rule: its update rule, see :data:`poise.optim.geometry.Rule`.
        group: index of the param group.

    Raises:
        ValueError: if ``rule`` is unknown.
        IndexError: if there is no such group.
    """
    return float(optimizer.param_groups[group]["lr"]) / weight_norm(optimizer, group) ** _power(rule)


class MatchEffectiveLR(LRScheduler):
    r"""Set the learning rate so that the effective learning rate follows a recorded trace.

    For weights whose scale does not matter, weight decay acts through :math:`\eta_t / \lVert w_t\rVert^2` (SGD) or
    :math:`\eta_t / \lVert w_t\rVert` (Adam and similar optimizers). A run without decay that follows the trace of one
    with decay shows whether decay did anything else.

    For SGD without momentum and one scale-invariant weight the directions of both runs are the same up to rounding, if
    the trace is divided by :math:`1 - \eta_t \lambda`, by which torch shrinks the weight before the step. Averages of
    past gradients (momentum, Adam) hold gradients of weights of another size, and several weights of a group share one
    norm: there the match is an approximation.

    Args:
        optimizer: its learning rates are set.
        trace: what :func:`group_effective_lr` returned before each step of the other run.
        rule: the update rule of ``optimizer``, see :data:`poise.optim.geometry.Rule`: what the norm is raised to.
        last_epoch: steps that are done already; -1 at the start.

    Raises:
        ValueError: if ``rule`` is unknown.
        IndexError: in ``step`` when the run is longer than the trace.

    References:
        D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", NeurIPS 2024, arXiv:2310.04415.
        van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", 2017, arXiv:1706.05350.

    Example:
        >>> trace.append(group_effective_lr(optimizer, "adamw"))  # before each step of the first run
        >>> schedule = MatchEffectiveLR(other_optimizer, trace, "adamw")
    """

    def __init__(self, optimizer: Optimizer, trace: Sequence[float], rule: Rule, last_epoch: int = -1) -> None:
        self.trace, self.power = list(trace), _power(rule)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Any]:
        """Return the learning rate of each group at the present step.

        Raises:
            IndexError: if the run is longer than the trace.
        """
        if self.last_epoch >= len(self.trace):
            raise IndexError(f"trace has {len(self.trace)} steps and the run is at step {self.last_epoch}")
        lr = self.trace[self.last_epoch] * weight_norm(self.optimizer) ** self.power
        return [lr * float(base) / float(self.base_lrs[0]) for base in self.base_lrs]


def _power(rule: Rule) -> int:
    check_rule(rule)
    return 2 if rule == "sgd" else 1

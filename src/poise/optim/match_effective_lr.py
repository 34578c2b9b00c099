"""Let the learning rate follow the effective learning rate of another run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


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


class MatchEffectiveLR(LRScheduler):
    r"""Set the learning rate so that :math:`\eta_t / \lVert w_t \rVert` follows a recorded trace.

    For weights whose scale does not matter, weight decay acts through this ratio alone; a run without decay that
    follows the trace of one with decay shows whether decay did anything else.

    Args:
        optimizer: its learning rates are set.
        trace: recorded :math:`\eta_t / \lVert w_t \rVert` for each step, of the first group.
        last_epoch: steps that are done already; -1 at the start.

    Raises:
        IndexError: in ``step`` when the run is longer than the trace.

    References:
        D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", NeurIPS 2024, arXiv:2310.04415.

    Example:
        >>> trace.append(optimizer.param_groups[0]["lr"] / weight_norm(optimizer))  # before each step of the first run
        >>> schedule = MatchEffectiveLR(other_optimizer, trace)
    """

    def __init__(self, optimizer: Optimizer, trace: Sequence[float], last_epoch: int = -1) -> None:
        self.trace = list(trace)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Any]:
        """Return the learning rate of each group at the present step.

        Raises:
            IndexError: if the run is longer than the trace.
        """
        if self.last_epoch >= len(self.trace):
            raise IndexError(f"trace has {len(self.trace)} steps and the run is at step {self.last_epoch}")
        lr = self.trace[self.last_epoch] * weight_norm(self.optimizer)
        return [lr * float(base) / float(self.base_lrs[0]) for base in self.base_lrs]

r"""Leave out steps whose loss is not finite or far too high.

## What it does
Before a step it compares the loss :math:`l` with the last 50 losses of the same optimizer:
:math:`z = (l - \mathrm{median}) / (1.4826\,\mathrm{MAD} + 10^{-3} |\mathrm{median}|)`. If :math:`z` is above ``VALUE``
(default 8) and the loss is at least 5 % above the median, or if the loss or any gradient is not finite, the optimizer
finds no gradients in this step and so changes neither weights nor state; the script's gradients are back right after.
The first 10 losses are only collected. How many steps were left out is counted.

## When it helps
Against ``bad_batch``: a single corrupt, mislabelled or degenerate batch, in data that cannot be cleaned right now.

## What it costs
The loss and one number of the gradients are read back in each step, which waits for an accelerator. Hard but good
examples may be left out too. If the *weights* are broken, every batch seems bad and training stops: left out losses do
enter the window, so that at most about 25 steps in a row are left out for their level. An optimizer that recomputes
gradients in a closure (LBFGS) is not reached.

## Making it permanent
Find and clean the batches that were left out; until then, guard the step as shown.

## References
Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, arXiv:2204.02311, section 5.1.
Leys et al., "Detecting outliers: Do not use standard deviation around the mean, use absolute deviation around the
median", Journal of Experimental Social Psychology 49, 2013.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.remedy import Remedy, Values

WINDOW = 50
FIRST_JUDGED = 10
SMALLEST_RISE = 0.05


class SkipBadBatches(Remedy):
    """Leave out steps whose loss has a robust z-score above ``value``, or that are not finite.

    Args:
        value: largest z-score that is stepped on, above 1. Default 8.

    Attributes:
        skipped: number of steps left out so far, over all optimizers.
    """

    name = "skip_bad_batches"
    default = 8.0
    values = Values(above=1.0)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self.skipped = 0
        self._losses: WeakKeyDictionary[Optimizer, deque[float]] = WeakKeyDictionary()
        self._hidden: WeakKeyDictionary[Optimizer, list[tuple[Tensor, Tensor]]] = WeakKeyDictionary()

    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Hide the gradients if this step is to be left out."""
        past = self._losses.setdefault(optimizer, deque(maxlen=WINDOW))
        current = None if loss is None else float(loss)
        bad = not _gradients_finite(optimizer)
        if current is not None:
            bad = bad or not math.isfinite(current) or (len(past) >= FIRST_JUDGED and self._stands_out(current, past))
            if math.isfinite(current):
                past.append(current)
        if bad:
            self.skipped += 1
            self.notes = [f"skip_bad_batches left out {self.skipped} step{'s' * (self.skipped > 1)}"]
            self._hidden[optimizer] = _hide_gradients(optimizer)

    def _stands_out(self, loss: float, past: Iterable[float]) -> bool:
        values = np.fromiter(past, dtype=np.float64)
        median = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - median))) + 1e-3 * abs(median)
        return loss - median > max(self.value * spread, SMALLEST_RISE * abs(median))

    def after_step(self, optimizer: Optimizer) -> None:
        """Give the script its gradients back."""
        for parameter, gradient in self._hidden.pop(optimizer, []):
            parameter.grad = gradient

    def code(self) -> str:
        """Return a guard around the step."""
        return _CODE.format(value=self.value)


def _gradients_finite(optimizer: Optimizer) -> bool:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    values = [v.detach() for v in values if v.numel()]
    if not values:
        return True
    largest = torch._foreach_norm(values, math.inf)
    return all(bool(torch.isfinite(torch.stack(norms)).all()) for norms in _by_device(largest))


def _by_device(norms: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for norm in norms:
        groups.setdefault((norm.device, norm.dtype), []).append(norm)
    return list(groups.values())


def _hide_gradients(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    hidden = [(p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for parameter, _ in hidden:
        parameter.grad = None
    return hidden


_CODE = """\
# once
losses = collections.deque(maxlen=50)


def is_bad(loss):
    past = torch.tensor(losses, dtype=torch.float64)
    finite = torch.isfinite(loss) and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if finite:
        losses.append(loss.item())
    if not finite or len(past) < 10:
        return not finite
    median = past.quantile(0.5)
    spread = 1.4826 * (past - median).abs().quantile(0.5) + 1e-3 * median.abs()
    return loss.item() - median > max({value!r} * spread, 0.05 * median.abs())


# in the loop, instead of optimizer.step()
if not is_bad(loss.detach()):
    optimizer.step()
"""

r"""Set the epsilon of Adam-like optimizers.

## What it does
Every parameter group that has a single number ``eps`` steps with ``eps = VALUE``. Default 1e-12. Around the step only:
checkpoints still hold the script's own value.

## When it helps
Against ``eps_dominates``: where :math:`\sqrt{\hat v}` is not much larger than :math:`\epsilon`, the update
:math:`m/(\sqrt v + \epsilon)` shrinks and the tensor stops learning. Gradients shrink with the size of a model and with
the scale of its loss, so the usual 1e-8 (and any 1e-3 taken over from elsewhere) can be too large. Raising it, on the
other hand, damps updates that rest on tiny second moments.

## What it costs
Nothing in float32. Parameters kept in float16 need an ``eps`` above 6e-8, as smaller numbers round to 0 there.

## Making it permanent
Pass ``eps=`` where the optimizer is made.

## References
Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023, arXiv:2309.14322.
Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2014, arXiv:1412.6980.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.group_values import GroupValues
from poise.doctor.remedies.remedy import Remedy, Values


class AdamEps(Remedy):
    """Step with ``eps = value`` in every group that has an ``eps``.

    Args:
        value: the new epsilon, above 0. Default 1e-12.
    """

    name = "adam_eps"
    default = 1e-12
    values = Values(above=0.0)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self._eps = GroupValues("eps")

    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Set the epsilon of every group that has one."""
        if not self._eps.apply(optimizer, self._changed):
            self.note(f"{type(optimizer).__name__} has no eps, so adam_eps changes nothing there")

    def _changed(self, eps: Any) -> float | None:
        return self.value if isinstance(eps, float | int | Tensor) else None  # Adafactor has a pair

    def after_step(self, optimizer: Optimizer) -> None:
        """Put the script's epsilon back."""
        self._eps.restore(optimizer)

    def code(self) -> str:
        """Return the change of the epsilon."""
        return (
            "# once, after the optimizer is made\n"
            "for group in optimizer.param_groups:\n"
            f'    group["eps"] = {self.value!r}\n'
        )

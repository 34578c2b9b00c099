"""SGDP: SGD with momentum without the part of the step that only makes scale-invariant weights larger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from poise.optim.closure import evaluate
from poise.optim.scale_invariant_projection import (
    ScaleInvariant,
    by_device_and_dtype,
    check_projection,
    gradients,
    projected_step,
    with_dense_gradient,
)


class SGDP(Optimizer):
    r"""SGD with momentum whose steps are tangential to scale-invariant weights.

    .. math::
        b \leftarrow \mu b + (1 - \tau) \nabla f, \qquad u = b \;\text{or, with Nesterov,}\; \nabla f + \mu b, \qquad
        w \leftarrow \left(1 - \frac{\eta r \lambda}{1 - \mu}\right) w - \eta (u - \langle n, u\rangle n)

    for the weights that :class:`AdamP` would project, with :math:`r` = ``wd_ratio``;
    :math:`w \leftarrow (1 - \eta\lambda / (1 - \mu)) w - \eta u` for the others. The buffer :math:`b` is never
    projected. It starts at zero, so that the first gradient enters with :math:`1 - \tau` too (``torch.optim.SGD`` takes
    it whole). The decay is decoupled; the division by :math:`1 - \mu` gives it the strength of an L2 penalty under
    momentum.

    Args:
        params: parameters or param groups. The group key ``scale_invariant`` takes the place of the test.
        lr: learning rate.
        momentum: :math:`\mu`.
        dampening: :math:`\tau`.
        weight_decay: :math:`\lambda`.
        nesterov: use Nesterov's momentum.
        eps: added to norms, positive.
        delta: threshold of the test; 0 never projects.
        wd_ratio: fraction of the decay that scale-invariant weights keep, in [0, 1].
        scale_invariant: ``"auto"``, ``"channel"``, ``"layer"``, ``True`` or ``False``; see
            :func:`poise.optim.scale_invariant_parameters` for a measurement.
        maximize: climb instead of descend.

    Raises:
        ValueError: if a setting is out of range, ``nesterov`` comes without momentum or with dampening, or there is
            weight decay at momentum 1.
        TypeError: if a parameter is complex.
        RuntimeError: in ``step`` if a gradient is sparse.

    References:
        Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
        arXiv:2006.08217.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        scale_invariant: ScaleInvariant = "auto",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "eps": eps,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "scale_invariant": scale_invariant,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not set is set as in the constructor.

        Raises:
            ValueError: if a setting is out of range; the group is then not added.
            TypeError: if a parameter is complex; the group is then not added.
        """
        super().add_param_group(param_group)
        try:
            check_projection(self.param_groups[-1])
            _check_momentum(self.param_groups[-1])
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.
        """
        loss = evaluate(closure)
        for group in self.param_groups:
            decay = group["weight_decay"] / (1 - group["momentum"]) if group["weight_decay"] else 0.0
            for weights in by_device_and_dtype(with_dense_gradient(group["params"], "SGDP")):
                grads = gradients(weights, group["maximize"])
                projected_step(weights, grads, self._momentum_steps(weights, grads, group), group, decay)
        return loss

    def _momentum_steps(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the buffers and return what SGD would subtract at learning rate 1, as new tensors."""
        buffers = [self._buffer_of(w) for w in weights]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
        if group["nesterov"]:
            return list(torch._foreach_add(grads, buffers, alpha=group["momentum"]))
        return [buffer.clone() for buffer in buffers]

    def _buffer_of(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _check_momentum(group: dict[str, Any]) -> None:
    if not group["momentum"] >= 0:
        raise ValueError(f"momentum must not be negative, got {group['momentum']!r}")
    if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
        raise ValueError(
            "nesterov needs a momentum and no dampening, got "
            f"momentum {group['momentum']!r} and dampening {group['dampening']!r}"
        )
    if group["weight_decay"] != 0 and group["momentum"] == 1:
        raise ValueError("momentum must not be 1 with weight decay, which is divided by 1 - momentum")

"""AdamP: Adam without the part of the step that only makes scale-invariant weights larger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
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


class AdamP(Optimizer):
    r"""Adam whose steps are tangential to scale-invariant weights.

    A weight that a normalisation follows is scale-invariant: its gradient is orthogonal to it, and only its direction
    matters. Momentum nevertheless pushes along it, so that its norm grows and its direction moves less and less. With
    :math:`u` Adam's step and :math:`n = w / (\lVert w\rVert + \epsilon)`, per output channel or per tensor,

    .. math:: w \leftarrow (1 - \eta r \lambda) w - \eta (u - \langle n, u\rangle n), \qquad r = \texttt{wd\_ratio}

    where :math:`|\cos(w, \nabla f)| < \delta / \sqrt{\dim w}` (for every channel, else for the tensor as a whole), and
    :math:`w \leftarrow (1 - \eta \lambda) w - \eta u` elsewhere, that is AdamW. Tensors of fewer than two axes are
    never projected. Which weights are is decided at every step, on the device.

    A step no longer shrinks as the weight grows, so that the learning rate needs a schedule. A ``state_dict`` of
    ``torch.optim.AdamW`` loads.

    Args:
        params: parameters or param groups. The group key ``scale_invariant`` takes the place of the test.
        lr: learning rate.
        betas: decay rates of the averages of the gradient and of its square.
        eps: added to denominators, positive.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        delta: threshold of the test; 0 never projects.
        wd_ratio: fraction of the decay that scale-invariant weights keep, in [0, 1].
        nesterov: use Nesterov's momentum.
        scale_invariant: ``"auto"``, ``"channel"``, ``"layer"``, ``True`` or ``False``; see
            :func:`poise.optim.scale_invariant_parameters` for a measurement.
        maximize: climb instead of descend.
        foreach: take the averages by multi-tensor kernels.
        fused: take the averages by torch's fused kernel; by default wherever it exists and ``foreach`` is not given.

    Raises:
        ValueError: if a setting is out of range.
        TypeError: if a parameter is complex.
        RuntimeError: in ``step`` if a gradient is sparse.

    References:
        Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
        arXiv:2006.08217.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        *,
        scale_invariant: ScaleInvariant = "auto",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        if foreach and fused:
            raise ValueError("foreach and fused exclude each other, got both")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
            "scale_invariant": scale_invariant,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not set is set as in the constructor.

        Raises:
            ValueError: if a setting is out of range; the group is then not added.
            TypeError: if a parameter is complex; the group is then not added.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_projection(group)
            if not all(0.0 <= beta < 1.0 for beta in group["betas"]):
                raise ValueError(f"betas must lie in [0, 1), got {group['betas']!r}")
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise
        if group["fused"] is None and group["foreach"] is None:
            group["fused"] = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # what a checkpoint of torch.optim.AdamW lacks
            for name in ("delta", "wd_ratio", "nesterov", "scale_invariant"):
                group.setdefault(name, self.defaults[name])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.
        """
        loss = evaluate(closure)
        for group in self.param_groups:
            weights = with_dense_gradient(group["params"], "AdamP")
            for alike in by_device_and_dtype(weights):
                grads = gradients(alike, group["maximize"])
                steps = self._adam_steps(alike, grads, group)
                projected_step(alike, grads, steps, group, group["weight_decay"])
        return loss

    def _adam_steps(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the averages and return what Adam would subtract at learning rate 1."""
        states = [self._state_of(w, group) for w in weights]
        averages, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        beta1, beta2 = group["betas"]
        updates = [torch.zeros_like(w) for w in weights]
        if group["nesterov"]:  # the step averages the gradient into the updated average once more
            torch._foreach_lerp_(averages, grads, 1 - beta1)
            averages = [average.clone() for average in averages]
        # torch's fused kernels walk through memory and mix up tensors of different layouts.
        alike = all(w.stride() == g.stride() == s.stride() for w, g, s in zip(weights, grads, squares, strict=True))
        traced = torch.compiler.is_compiling()
        fused = bool(group["fused"]) and alike and not traced
        # A traced multi-tensor kernel refuses step counters on the CPU; the compiler joins single ones itself.
        foreach = False if fused or (traced and weights[0].is_cpu) else group["foreach"]
        adam(
            updates,
            grads,
            averages,
            squares,
            [],
            [s["step"] for s in states],
            foreach=foreach,
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=-1.0,
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        return updates

    def _state_of(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            place = weight.device if group["fused"] else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=place)
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state

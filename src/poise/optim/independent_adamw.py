"""AdamW whose weight decay does not depend on the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import Adam, adam
from torch.optim.optimizer import ParamsT

from poise.optim.closure import evaluate


class IndependentAdamW(Adam):
    r"""AdamW with independent weight decay.

    .. math:: \theta \leftarrow \theta - s_t (\eta \Delta_t + \lambda \theta), \qquad s_t = \eta_t / \eta

    Here :math:`\eta` is the base learning rate, :math:`s_t` the shape of the schedule and :math:`\Delta_t`
    Adam's step. ``torch.optim.AdamW`` multiplies :math:`\lambda` by :math:`\eta` as well, so that a sweep over learning
    rates is a sweep over weight decay too. Its ``weight_decay=0.1`` at ``lr=1e-3`` is ``weight_decay=1e-4`` here.

    :math:`s_t` is read from the param group: ``lr`` over ``max_lr`` (``OneCycleLR``), else over ``initial_lr`` (any
    other ``LRScheduler``), else over the ``lr`` the group was created with.

    The state is laid out as in ``torch.optim.AdamW``. A ``state_dict`` of that class loads; its ``weight_decay`` is
    multiplied by its base learning rate, so that training goes on with the same decay.

    Args:
        params: parameters or param groups.
        lr: base learning rate, positive.
        betas: decay rates of the averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: the fraction of a weight that one step removes at the schedule's peak, in [0, 1].
        maximize: climb instead of descend.
        foreach: use the multi-tensor kernels; ``None`` lets torch decide.
        capturable: safe to capture in a CUDA graph.

    Raises:
        ValueError: if ``lr`` is not positive, ``weight_decay`` is outside [0, 1] or another setting is out of range.
        TypeError: if a parameter is complex.
        RuntimeError: in ``step`` if a gradient is sparse.

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101;
        Wortsman et al., ICLR 2024, arXiv:2309.14322.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, maximize=maximize, foreach=foreach, capturable=capturable
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its ``lr`` becomes the reference of its decay.

        Raises:
            ValueError: if ``lr`` is not positive or ``weight_decay`` is outside [0, 1].
            TypeError: if a parameter is complex.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not float(group["lr"]) > 0:
            raise ValueError(f"lr must be positive, because the decay is scaled by lr / base lr; got {group['lr']!r}")
        if not 0.0 <= group["weight_decay"] <= 1.0:
            raise ValueError(f"weight_decay must lie in [0, 1], got {group['weight_decay']!r}")
        if any(p.is_complex() for p in group["params"]):
            raise TypeError("params must be real; got a complex parameter (give torch.view_as_real of it)")
        group.setdefault("base_lr", _copied(group["lr"]))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if "base_lr" not in group:  # from torch.optim.AdamW
                group["base_lr"] = _copied(group.get("initial_lr", group["lr"]))
                group["weight_decay"] = float(group["weight_decay"] * group["base_lr"])
                group["decoupled_weight_decay"] = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.
        """
        loss = evaluate(closure)
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        if any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
            raise RuntimeError("IndependentAdamW takes dense gradients, got a sparse one; use torch.optim.SparseAdam")
        params: list[Tensor] = []
        grads: list[Tensor] = []
        averages: list[Tensor] = []
        squares: list[Tensor] = []
        steps: list[Tensor] = []
        self._init_group(group, params, grads, averages, squares, [], steps)
        if not params:
            return
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - schedule_factor(group) * group["weight_decay"])
        adam(
            params,
            grads,
            averages,
            squares,
            [],
            steps,
            foreach=group["foreach"],
            capturable=group["capturable"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=group["maximize"],
        )


def schedule_factor(group: dict[str, Any]) -> float | Tensor:
    """Return where a param group stands in its schedule: its learning rate as a fraction of the base rate."""
    base = group.get("max_lr", group.get("initial_lr", group["base_lr"]))
    return group["lr"] / base


def _copied(lr: float | Tensor) -> float | Tensor:
    return lr.clone() if isinstance(lr, Tensor) else lr

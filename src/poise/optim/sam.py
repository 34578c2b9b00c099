"""Sharpness-aware minimisation: step with the gradient of a point uphill."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from poise.optim.closure import evaluate
from poise.optim.geometry import norm
from poise.optim.wrapper import OptimizerWrapper


class SAM(OptimizerWrapper):
    r"""Let an optimizer step with the gradient at :math:`w + e` instead of at :math:`w`.

    .. math:: e = \rho \frac{g}{\lVert g\rVert} \;\text{(normalised)}, \qquad e = \rho g \;\text{(unnormalised)}, \qquad
        e = \rho \frac{w^2 g}{\lVert |w|\, g\rVert} \;\text{(adaptive)}

    with :math:`g` the gradient at :math:`w` and norms over all parameters of all groups. The weights are put back
    exactly before the optimizer steps. One step evaluates the loss twice, on the same batch and with the same random
    numbers (dropout)::

        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)


        def closure():
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()  # scaler.scale(loss).backward() with a GradScaler
            return loss


        optimizer.step(closure)  # optimizer.step(closure, scaler); scaler.update() with a GradScaler

    or, by hand, ``backward``, ``first_step()``, a second ``backward`` (after ``zero_grad``), ``second_step()``.

    Args:
        optimizer: the optimizer to wrap; its groups, state, schedulers and checkpoints stay its own.
        rho: radius, not negative; a function of the number of steps taken gives a schedule. The radius in use is the
            entry ``rho`` of every param group. About ten times as large for the adaptive kind.
        normalize: divide by the norm of the gradient. Without it the effect on curvature is predictable, see
            :func:`choose_rho`.
        adaptive: scale the move of a weight by its size, so that rescaling layers changes nothing.
        eps: added to the norm.
        model: its buffers (running statistics of normalisation layers, counters) then keep the values of the first
            evaluation; without it they take every batch in twice, once at the wrong weights.

    Raises:
        TypeError: if ``optimizer`` is no optimizer or a parameter is complex.
        ValueError: if ``rho`` is negative or not finite, ``eps`` is negative, or ``optimizer`` evaluates closures
            itself (LBFGS).
        RuntimeError: in ``step`` without a closure, and if a gradient is sparse.

    References:
        Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021,
        arXiv:2010.01412; Kwon et al., "ASAM", ICML 2021, arXiv:2102.11600; Agarwala and Dauphin, "SAM operates far from
        home", ICML 2023, arXiv:2302.08692 (unnormalised).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rho: float | Callable[[int], float] = 0.05,
        *,
        normalize: bool = True,
        adaptive: bool = False,
        eps: float = 1e-12,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(optimizer)
        if isinstance(optimizer, LBFGS):
            raise ValueError("optimizer must not be LBFGS, which evaluates the closure at points of its own")
        if not eps >= 0:
            raise ValueError(f"eps must not be negative, got {eps!r}")
        self.normalize, self.adaptive, self.eps, self.model = normalize, adaptive, eps, model
        self.schedule = rho if callable(rho) else None
        self.steps = 0
        self.saved: list[tuple[Tensor, Tensor]] | None = (
            None  # tensors that the second evaluation finds or leaves changed
        )
        self.add_group_settings(rho=rho(0) if callable(rho) else rho)

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise where a param group cannot be handled.

        Raises:
            TypeError: if a parameter is complex.
            ValueError: if its ``rho`` is negative or not finite.
        """
        super().check_group(group)
        if not 0.0 <= group.get("rho", 0.0) < math.inf:
            raise ValueError(f"rho must be finite and not negative, got {group['rho']!r}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, scaler: GradScaler | None = None) -> Any:
        """Evaluate the loss twice and step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.
            scaler: the gradient scaler whose ``scale`` the closure applies; nothing happens in a step whose first or
                second gradients overflow. Call ``scaler.update()`` afterwards, and not ``scaler.step``.

        Returns:
            The loss at the weights themselves.

        Raises:
            RuntimeError: if there is no closure, no parameter has a gradient, or a gradient is sparse.
            ValueError: if a group's ``rho``, or what its schedule returns, is negative or not finite.
        """
        if closure is None:
            raise RuntimeError(
                "SAM.step needs a closure that clears the gradients, computes the loss and calls backward; without "
                "one, call first_step() after backward and second_step() after a second backward"
            )
        random = _RandomState(self.param_groups)
        loss = evaluate(closure)
        if not self.first_step(scaler):
            return loss
        try:
            random.restore()
            evaluate(closure)
        except BaseException:
            self._put_back()
            raise
        self.second_step(scaler)
        return loss

    @torch.no_grad()
    def first_step(self, scaler: GradScaler | None = None) -> bool:
        """Move the weights uphill along the gradients that are there.

        Args:
            scaler: the gradient scaler that the loss went through.

        Returns:
            False, with nothing moved, if the gradients overflowed (only checked with a scaler): leave this step out.

        Raises:
            RuntimeError: if the weights are moved already, no parameter has a gradient, or a gradient is sparse.
            ValueError: if a group's ``rho``, or what its schedule returns, is negative or not finite.
        """
        if self.saved is not None:
            raise RuntimeError("first_step() was called twice without second_step(): the weights are moved already")
        weights = self.with_gradient()
        if not weights:
            raise RuntimeError("no parameter has a gradient; call backward before first_step()")
        if self.schedule is not None:
            for group in self.param_groups:
                group["rho"] = self.schedule(self.steps)
        for group in self.param_groups:
            self.check_group(group)
        if scaler is not None:
            scaler.unscale_(self)
        size = self._size(weights)
        if scaler is not None and scaler.is_enabled() and not torch.isfinite(size):
            return False
        buffers = [] if self.model is None else list(self.model.buffers())
        self.saved = [(x, x.clone()) for x in [*weights, *buffers]]
        for group in self.param_groups:
            self._climb([w for w in group["params"] if w.grad is not None], group, size)
        return True

    @torch.no_grad()
    def second_step(self, scaler: GradScaler | None = None) -> None:
        """Put weights and buffers back and let the wrapped optimizer step with the gradients that are there.

        Args:
            scaler: the gradient scaler that the second loss went through.

        Raises:
            RuntimeError: if ``first_step`` did not come before.
        """
        if self.saved is None:
            raise RuntimeError("second_step() must follow first_step()")
        self._put_back()
        self.steps += 1
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)

    def own_state(self) -> dict[str, Any]:
        """Return how many steps were taken."""
        return {"steps": self.steps}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back how many steps were taken."""
        self.steps = state["steps"]

    def _size(self, weights: list[Tensor]) -> Tensor:
        """The norm of the gradient, or of |w| g."""
        grads = [w.grad for w in weights if w.grad is not None]
        if self.adaptive:
            grads = list(torch._foreach_mul(weights, grads))
        return norm(grads, "global")[0].reshape(())

    def _climb(self, weights: list[Tensor], group: dict[str, Any], size: Tensor) -> None:
        if not weights:
            return
        moves = [w.grad for w in weights if w.grad is not None]
        if self.adaptive:
            moves = list(torch._foreach_mul(torch._foreach_mul(weights, weights), moves))
        rho = -group["rho"] if group.get("maximize") else group["rho"]
        if not self.normalize:
            torch._foreach_add_(weights, moves, alpha=rho)
            return
        length = rho / (size + self.eps)
        for w, move in zip(weights, moves, strict=True):
            w.addcmul_(move, length.to(w.device))

    def _put_back(self) -> None:
        assert self.saved is not None
        torch._foreach_copy_([x for x, _ in self.saved], [before for _, before in self.saved])
        self.saved = None


def choose_rho(lr: float, target_sharpness: float) -> float:
    r"""Return the radius with which unnormalised SAM settles at a given largest Hessian eigenvalue.

    Full-batch gradient descent on a squared loss settles at a largest eigenvalue of :math:`2 / \eta`; with unnormalised
    SAM it is the :math:`\lambda` with :math:`\eta\lambda(1 + \rho\lambda) = 2`, hence

    .. math:: \rho = \frac{2 / (\eta\lambda) - 1}{\lambda}

    Args:
        lr: learning rate of gradient descent.
        target_sharpness: the eigenvalue wanted, below ``2 / lr``.

    Raises:
        ValueError: if ``lr`` or ``target_sharpness`` is not positive, or ``target_sharpness`` is not below ``2 / lr``.

    References:
        Agarwala and Dauphin, "SAM operates far from home: eigenvalue regularization as a dynamical phenomenon", ICML
        2023, arXiv:2302.08692.

    Example:
        >>> round(choose_rho(0.2, 5.0), 12)
        0.2
    """
    for name, value in {"lr": lr, "target_sharpness": target_sharpness}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    if target_sharpness >= 2 / lr:
        raise ValueError(
            f"target_sharpness must be below 2 / lr = {2 / lr:g}, where descent settles by itself; "
            f"got {target_sharpness:g}"
        )
    return (2 / (lr * target_sharpness) - 1) / target_sharpness


class _RandomState:
    """The random numbers that an evaluation of the loss is about to use."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        devices = {p.device for group in groups for p in group["params"]}
        self.cpu = torch.get_rng_state()
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)

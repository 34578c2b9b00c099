"""OrthoGrad: gradients without the part that only scales the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from poise.optim.closure import evaluate
from poise.optim.geometry import View, check_view, flat, inner
from poise.optim.wrapper import OptimizerWrapper

_MUCH_LEFT = 0.25
"""Fraction of a gradient's square that is left, from which Pythagoras gives it as exactly as a sum of squares does."""


class OrthoGrad(OptimizerWrapper):
    r"""Give an optimizer gradients that are orthogonal to the weights.

    Once a classifier fits its data, the gradient of the cross entropy points along the weights: scaling all logits up
    still lowers the loss, and changes no prediction. OrthoGrad takes that direction out,

    .. math:: g_\perp = g - \frac{\langle w, g\rangle}{\lVert w\rVert^2} w, \qquad
        g \leftarrow g_\perp \frac{\lVert g\rVert}{\lVert g_\perp\rVert}

    before the wrapped optimizer steps. The gradients are changed in place. A gradient that is parallel to its weight
    up to rounding becomes zero, and a vector of a single number keeps its gradient (nothing is orthogonal to it).
    The wrapped optimizer's weight decay and momentum act as before: its *step* need not be orthogonal.

    Args:
        optimizer: the optimizer to wrap; its groups, state, schedulers and checkpoints stay its own.
        view: what is one vector: every ``"tensor"`` (as in the authors' experiments), every ``"channel"``, or
            ``"global"``, all parameters together (as in the paper's equations).
        graft: give the projected gradient the norm of the original one, as the authors' experiments do.
        params: the parameters to project; all of them by default, those of later groups included.
        noise_floor: a projected gradient below this many times rounding error counts as zero.

    Raises:
        TypeError: if ``optimizer`` is no optimizer or a parameter is complex.
        ValueError: if ``view`` is unknown, ``noise_floor`` is negative, or ``params`` holds a tensor that the optimizer
            does not have.
        RuntimeError: in ``step`` if a gradient is sparse.

    References:
        Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv:2501.04697.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = OrthoGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))
    """

    def __init__(
        self,
        optimizer: Optimizer,
        view: View = "tensor",
        graft: bool = True,
        params: Iterable[Tensor] | None = None,
        noise_floor: float = 4.0,
    ) -> None:
        super().__init__(optimizer)
        check_view(view)
        if not noise_floor >= 0:
            raise ValueError(f"noise_floor must not be negative, got {noise_floor!r}")
        self.view, self.graft, self.noise_floor = view, graft, noise_floor
        self.params = None if params is None else self.known(params)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Project the gradients and let the wrapped optimizer step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss. The wrapped
                optimizer may call it several times; each time the gradients are projected.
        """
        if closure is None:
            self.project()
            return self.optimizer.step()

        def projected() -> Any:
            loss = evaluate(closure)
            self.project()
            return loss

        return self.optimizer.step(projected)

    @torch.no_grad()
    def project(self) -> None:
        """Project the gradients that are there, in place."""
        with_gradient = self.with_gradient()
        chosen = with_gradient if self.params is None else _members(with_gradient, self.params)
        if self.view == "global":
            _project(chosen, "global", self.graft, self.noise_floor)
            return
        for w in chosen:  # one after the other: what the next operation needs is still in the cache
            if w.numel() > (w.shape[0] if self.view == "channel" and w.ndim > 1 else 1):
                if self.view == "channel":
                    _project([w], "channel", self.graft, self.noise_floor)
                else:
                    _project_tensor(w, self.graft, self.noise_floor)


def _project(weights: Sequence[Tensor], view: View, graft: bool, noise_floor: float) -> None:
    grads = [w.grad for w in weights if w.grad is not None]
    if not grads:
        return
    before = inner(grads, grads, view)
    for w, g, wg, ww in zip(weights, grads, inner(weights, grads, view), inner(weights, weights, view), strict=True):
        g.addcmul_(w, _share(wg, ww), value=-1)
    for g, old, new in zip(grads, before, inner(grads, grads, view), strict=True):
        g.mul_(_factor(old, new, graft, noise_floor * torch.finfo(g.dtype).eps))


def _project_tensor(w: Tensor, graft: bool, noise_floor: float) -> None:
    """Do the same for one tensor that is one vector, with as few operations as small tensors need."""
    g = w.grad
    assert g is not None
    a, b = flat([w, g])
    before, wg, ww = torch.dot(b, b), torch.dot(a, b), torch.dot(a, a)
    if w.is_cpu and not torch.compiler.is_compiling():  # elsewhere, reading a number would wait for the device
        size, along = float(before), float(wg)
        share = along / max(float(ww), torch.finfo(ww.dtype).tiny)
        left = size - share * along
        if left > _MUCH_LEFT * size:
            g.add_(w, alpha=-share)
            if graft:
                g.mul_(math.sqrt(size / left))
            return
    g.addcmul_(w, _share(wg, ww), value=-1)
    (b,) = flat([g])
    g.mul_(_factor(before, torch.dot(b, b), graft, noise_floor * torch.finfo(g.dtype).eps))


def _share(wg: Tensor, ww: Tensor) -> Tensor:
    """How often a gradient contains its weight, from inner products; 0 for a zero weight."""
    return wg / ww.clamp_min(torch.finfo(ww.dtype).tiny)


def _factor(before: Tensor, after: Tensor, graft: bool, noise: float) -> Tensor:
    """What a projected gradient is multiplied with, from squared norms: 0 where what is left of it is noise."""
    growth = (before / after.clamp_min(torch.finfo(after.dtype).tiny)).sqrt_()
    kept = growth * noise < 1  # not so where squares overflow either: nothing is known of that gradient
    return torch.where(kept, growth, 0.0) if graft else kept.to(growth.dtype)


def _members(tensors: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    wanted = {id(p) for p in params}
    return [t for t in tensors if id(t) in wanted]

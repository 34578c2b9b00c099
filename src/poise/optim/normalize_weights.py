"""Weights that keep their norm: an optimizer that puts them back on their sphere after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from poise.optim.geometry import VIEWS, norm
from poise.optim.wrapper import OptimizerWrapper


class NormalizeWeights(OptimizerWrapper):
    r"""Rescale weights to a fixed norm after every step of an optimizer.

    For weights that a normalisation follows, the norm changes nothing but the size of later steps. With it fixed,

    .. math:: w \leftarrow r \frac{w}{\lVert w\rVert}

    the learning rate alone decides how fast their direction moves. Weight decay then has no effect beyond a learning
    rate of :math:`\eta / (1 - \eta\lambda)` (decay that SGD adds to the gradient).

    Args:
        optimizer: the optimizer to wrap; its groups, state, schedulers and checkpoints stay its own.
        params: the weights to normalise, of the optimizer's own.
        radius: their norm; ``"init"`` keeps the norms that they have now.
        view: what has that norm: every output ``"channel"`` or every ``"layer"`` (whole tensor). Vectors are one
            channel.

    Raises:
        TypeError: if ``optimizer`` is no optimizer or a parameter is complex.
        ValueError: if ``radius`` is not positive, ``view`` is another one, a weight is not the optimizer's, or is zero
            (the message names the row).

    References:
        van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", 2017, arXiv:1706.05350.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: Iterable[Tensor],
        radius: float | Literal["init"] = "init",
        view: Literal["channel", "layer"] = "channel",
    ) -> None:
        super().__init__(optimizer)
        if view not in ("channel", "layer"):
            raise ValueError(f"view must be 'channel' or 'layer', got {view!r} (of {VIEWS})")
        if radius != "init" and not (not isinstance(radius, str) and 0 < radius < float("inf")):
            raise ValueError(f"radius must be positive and finite or 'init', got {radius!r}")
        self.view: Literal["channel", "layer"] = view
        self.params = self.known(params)
        norms = norm([p.detach() for p in self.params], view)
        _refuse_zero(norms)
        self.radii = norms if radius == "init" else [torch.full_like(n, radius) for n in norms]
        self.normalize()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let the wrapped optimizer step, then normalise.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.
        """
        loss = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self.normalize()
        return loss

    @torch.no_grad()
    def normalize(self) -> None:
        """Rescale the weights now; those that are zero stay zero, see :meth:`zero_rows`."""
        for w, radius in zip(self.params, self.radii, strict=True):
            (size,) = norm([w], self.view)
            w.mul_(torch.where(size > 0, radius / size, 1.0))

    def zero_rows(self) -> dict[int, list[int]]:
        """Return which rows have become zero and cannot be rescaled: position in ``params`` to row numbers."""
        norms = norm([p.detach() for p in self.params], self.view)
        rows = {i: torch.nonzero(n.flatten() == 0).flatten().tolist() for i, n in enumerate(norms)}
        return {i: found for i, found in rows.items() if found}

    def own_state(self) -> dict[str, Any]:
        """Return the radii."""
        return {"radii": list(self.radii)}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back the radii.

        Raises:
            ValueError: if their shapes are not those of this view of ``params``.
        """
        shapes = [tuple(r.shape) for r in state["radii"]]
        if shapes != [tuple(r.shape) for r in self.radii]:
            raise ValueError(f"state_dict must hold radii of the shapes of params in this view, got {shapes}")
        self.radii = [new.to(old, copy=True) for new, old in zip(state["radii"], self.radii, strict=True)]


def _refuse_zero(norms: list[Tensor]) -> None:
    for i, n in enumerate(norms):
        if n.is_meta:  # there are no numbers yet
            continue
        rows = torch.nonzero(n.flatten() == 0).flatten().tolist()
        if rows:
            raise ValueError(f"params[{i}] must not have zero rows, whose direction is undefined; got rows {rows[:5]}")

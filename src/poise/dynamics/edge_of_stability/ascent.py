"""The ascent step of sharpness-aware minimisation, as read from an optimizer that takes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class Ascent:
    """How far SAM climbs before it takes the gradient; the radius ``rho`` itself is in the param groups.

    Attributes:
        normalize: whether the radius is divided by the norm of the gradient.
        eps: added to that norm.
    """

    normalize: bool
    eps: float


def unwrap_sam(optimizer: Optimizer) -> tuple[Optimizer, Ascent | None]:
    """Return the optimizer inside a SAM, and its ascent step; any other optimizer as it is, and ``None``.

    A SAM is known by what it has (``optimizer``, ``normalize``, ``adaptive``, ``rho`` in its groups), not by its class.

    Raises:
        ValueError: if it is the adaptive kind, whose ascent depends on the scale of every weight.
    """
    marks = ("optimizer", "normalize", "adaptive")
    if not all(hasattr(optimizer, mark) for mark in marks) or "rho" not in optimizer.param_groups[0]:
        return optimizer, None
    if getattr(optimizer, "adaptive"):  # noqa: B009 - no class here declares it
        raise ValueError("adaptive SAM climbs by another radius for every weight; write its step as a function for Map")
    base: Optimizer = getattr(optimizer, "optimizer")  # noqa: B009
    return base, Ascent(bool(getattr(optimizer, "normalize")), float(getattr(optimizer, "eps", 1e-12)))  # noqa: B009

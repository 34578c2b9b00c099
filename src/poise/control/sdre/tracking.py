"""A tracking controller on a sampled system: simulated, with the input held over each period."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Dynamics = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Tracking:
    """What happened.

    Attributes:
        states: of shape (steps + 1, ..., n); NaN after a run left the finite numbers.
        inputs: of shape (steps, ..., m).
        reference: states of the reference, of shape (steps + 1, n).
    """

    states: Float[Tensor, "times *batch n"]
    inputs: Float[Tensor, "steps *batch m"]
    reference: Float[Tensor, "times n"]

    def rms(self, parts: slice | list[int]) -> Float[Tensor, "*batch"]:
        """Return the root mean square over time of the distance from the reference.

        Args:
            parts: which entries of the state to measure, such as the position; infinite where a run diverged.
        """
        shape = (len(self.reference), *[1] * (self.states.ndim - 2), self.reference.shape[-1])
        error = (self.states - self.reference.reshape(shape))[..., parts]
        return torch.nan_to_num(error.square().sum(-1).mean(0).sqrt(), nan=torch.inf)


def rk4_step(
    dynamics: Dynamics, x: Float[Tensor, "*batch n"], u: Float[Tensor, "*batch m"], dt: float
) -> Float[Tensor, "*batch n"]:
    """Return the state after one period with a held input, by one step of the fourth-order Runge-Kutta method.

    Args:
        dynamics: ``dynamics(x, u)``, the velocity of the state.
        x: states.
        u: inputs.
        dt: the period.
    """
    first = dynamics(x, u)
    second = dynamics(x + dt / 2 * first, u)
    third = dynamics(x + dt / 2 * second, u)
    fourth = dynamics(x + dt * third, u)
    return x + dt / 6 * (first + 2 * second + 2 * third + fourth)


def simulate_tracking(
    dynamics: Dynamics,
    controller: Callable[[Tensor, Tensor, Tensor], Tensor],
    x0: Float[Tensor, "*batch n"],
    reference: tuple[Float[Tensor, "times n"], Float[Tensor, "times m"]],
    dt: float,
) -> Tracking:
    """Follow a reference from a start, one call of the controller per period.

    Args:
        dynamics: ``dynamics(x, u)``, the velocity of the state.
        controller: ``controller(x, xr, ur)`` returns the input, such as an :class:`SDREController`.
        x0: start, of shape (..., n).
        reference: states and inputs at the times 0, dt, 2 dt, ...
        dt: sampling period.

    Raises:
        ValueError: if lengths differ, ``dt`` is not positive, or a shape does not fit.
    """
    states, inputs = reference
    if len(states) != len(inputs) or len(states) < 2:
        raise ValueError(
            f"reference must hold as many states as inputs, at least 2, got {len(states)} and {len(inputs)}"
        )
    if not 0 < dt < float("inf"):
        raise ValueError(f"dt must be positive and finite, got {dt!r}")
    if x0.shape[-1:] != states.shape[-1:]:
        raise ValueError(f"x0 must have shape (..., {states.shape[-1]}), got {tuple(x0.shape)}")
    x, visited, used = x0.to(states), [x0.to(states)], []
    for xr, ur in zip(states[:-1], inputs[:-1], strict=True):
        u = controller(x, xr.expand_as(x), ur.expand(*x.shape[:-1], -1))
        x = rk4_step(dynamics, x, u, dt)
        visited.append(x)
        used.append(u)
        if not bool(torch.isfinite(x).any()):
            missing = len(states) - len(visited)
            visited += [torch.full_like(x, torch.nan)] * missing
            used += [torch.full_like(u, torch.nan)] * missing
            break
    return Tracking(torch.stack(visited), torch.stack(used), states)

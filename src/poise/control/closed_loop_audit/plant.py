"""A user's plant and controller as functions of batches of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poise.control.sdre.tracking import rk4_step

Batched = Callable[..., Tensor]


def is_environment(plant: Any) -> bool:
    """Whether a plant is a Gymnasium environment."""
    return hasattr(plant, "step") and hasattr(plant, "reset") and hasattr(plant, "unwrapped")


def in_batches(function: Callable[..., Any], batched: bool, *example: Tensor) -> tuple[Batched, bool]:
    """Return a function of vectors as one of batches of vectors, and whether it is vectorised.

    Args:
        function: takes vectors, or batches if ``batched``.
        batched: whether it takes batches itself.
        example: arguments, as vectors.
    """
    if batched:
        return lambda *arguments: _tensor(function(*arguments)), True
    mapped = torch.func.vmap(function)
    try:
        mapped(*(argument[None] for argument in example))
    except (RuntimeError, TypeError, ValueError):  # NumPy, branches on values, numbers taken out of tensors
        return lambda *arguments: _one_by_one(function, *arguments), False
    return lambda *arguments: _tensor(mapped(*arguments)), True


def _one_by_one(function: Callable[..., Any], *arguments: Tensor) -> Tensor:
    return torch.stack([_tensor(function(*row)) for row in zip(*arguments, strict=True)])


def _tensor(value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    return tensor.detach().to(torch.float64)


class EnvironmentStep:
    """One step of a Gymnasium environment from a given state.

    Args:
        environment: its wrappers are left out.

    Raises:
        TypeError: if its state cannot be set.
    """

    def __init__(self, environment: Any) -> None:
        self._inner = environment.unwrapped
        self._inner.reset(seed=0)
        if not hasattr(self._inner, "state"):
            raise TypeError(
                f"plant must have a state that can be set (unwrapped.state), got {type(self._inner).__name__}; "
                "give f(x, u) instead"
            )
        self._space = environment.unwrapped.action_space

    @property
    def limits(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest actions; ``None`` if they are not numbers in a range."""
        low, high = getattr(self._space, "low", None), getattr(self._space, "high", None)
        return None if low is None or high is None else (_tensor(low).reshape(-1), _tensor(high).reshape(-1))

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the next state."""
        self._inner.state = x.numpy().copy()
        if hasattr(self._inner, "steps_beyond_terminated"):
            self._inner.steps_beyond_terminated = None
        discrete = hasattr(self._space, "n")
        self._inner.step(round(float(u[0])) if discrete else u.numpy().astype(self._space.dtype))
        return torch.as_tensor(np.asarray(self._inner.state, dtype=np.float64)).reshape(x.shape)


class ClosedLoop:
    """A plant and its controller, sampled.

    Args:
        plant: ``f(x, u)`` or an environment.
        controller: ``u(x)``.
        goal: state of shape (n,).
        dt: sampling period.
        limits: lowest and highest inputs, or ``None``.
        batched: whether plant and controller take batches.

    Attributes:
        velocity: f of batches; ``None`` for an environment.
        vectorised: whether a batch costs about as much as one state.
        m: dimension of the input.

    Raises:
        ValueError: if the plant or controller returns another shape, or NaN.
    """

    def __init__(
        self, plant: Any, controller: Any, goal: Tensor, dt: float, limits: tuple[Any, Any] | None, batched: bool
    ) -> None:
        self._dt, n = dt, len(goal)
        self._controller, fast = in_batches(controller, batched, goal)
        u = self._controller(goal[None])
        if u.ndim != 2 or len(u) != 1:
            raise ValueError(f"controller must return an input of shape (m,), got {tuple(u.shape[1:])}")
        if not bool(torch.isfinite(u).all()):
            raise ValueError(f"controller must return finite inputs, got {u[0].tolist()} at the goal")
        self.m = u.shape[1]
        self.velocity: Batched | None = None
        if is_environment(plant):
            one = EnvironmentStep(plant)
            self._next: Batched = lambda x, u: _one_by_one(one, x, u)
            limits, fast_plant = limits or one.limits, False
        else:
            if not callable(plant):
                raise TypeError(
                    f"plant must be a function f(x, u) or a Gymnasium environment, got {type(plant).__name__}"
                )
            self.velocity, fast_plant = in_batches(plant, batched, goal, u[0])
            velocity = self.velocity
            self._next = lambda x, u: rk4_step(velocity, x, u, dt)
        self.limits = _limits(limits, self.m)
        self.vectorised = fast and fast_plant
        x = self.velocity(goal[None], u) if self.velocity is not None else self._next(goal[None], u)
        if x.shape != (1, n):
            raise ValueError(f"plant must return a vector of the shape of the state, ({n},); got {tuple(x.shape[1:])}")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"plant must return finite numbers, got {x[0].tolist()} at the goal")

    def inputs(self, x: Tensor) -> Tensor:
        """Return the inputs at states, within their limits."""
        u = self._controller(x)
        return u if self.limits is None else u.clamp(*self.limits)

    def next(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the states after one period of held inputs."""
        return self._next(x, u)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the states after one period of the closed loop."""
        return self._next(x, self.inputs(x))

    def saturated(self, u: Tensor) -> Tensor:
        """Return which input values are at their limits."""
        assert self.limits is not None
        low, high = self.limits
        slack = 1e-9 * (high - low)
        return (u <= low + slack) | (u >= high - slack)


def _limits(limits: tuple[Any, Any] | None, m: int) -> tuple[Tensor, Tensor] | None:
    if limits is None:
        return None
    low, high = (torch.as_tensor(value).to(torch.float64).expand(m) for value in limits)
    if not bool((low < high).all()):
        raise ValueError(f"input_limits must be (lowest, highest), got {low.tolist()} and {high.tolist()}")
    return low, high

"""What gradient descent did on a least-squares problem: residuals and the largest kernel eigenvalue, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

DIVERGED = 1e6
"""Norm of the residual above which a run has diverged."""

Phase = Literal["pure sharpening", "edge of stability", "catapult", "diverged"]
State = tuple[Tensor, Tensor]
"""Residuals of shape (..., outputs), and what else the model needs to go on."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Gradient descent on a least-squares problem, as it was recorded.

    Leading dimensions (...) are independent runs. A run that has converged rests; one that has diverged rests where it
    was one step before.

    Args:
        steps: steps at which the rest was recorded, shape (records,); the last one is the end.
        z: residuals, shape (records, ..., outputs).
        ntk_max: largest eigenvalue of ``J J^T``, shape (records, ...).
        loss: ``|z|^2 / 2``, shape (records, ...).
        lr: learning rate; the edge of stability is ``lr * ntk_max = 2``.
        diverged_at: first step with a residual above 1e6 or not finite, -1 if there was none, shape (...).
        converged_at: first step with a residual of at most the tolerance, -1 if there was none, shape (...).
        end: what the model needs to go on from the end: the Jacobian of a quadratic model, shape
            (..., outputs, parameters), or the move of the weights of a surrogate, shape (parameters,).
    """

    steps: Int64[Tensor, " records"]
    z: Float[Tensor, "records ... outputs"]
    ntk_max: Float[Tensor, "records ..."]
    loss: Float[Tensor, "records ..."]
    lr: float
    diverged_at: Int64[Tensor, "..."]
    converged_at: Int64[Tensor, "..."]
    end: Tensor

    @property
    def diverged(self) -> Bool[Tensor, "..."]:
        """Which runs diverged."""
        return self.diverged_at >= 0

    @property
    def converged(self) -> Bool[Tensor, "..."]:
        """Which runs reached the tolerance."""
        return self.converged_at >= 0

    def __getitem__(self, run: int) -> Trajectory:
        """Return one run of several (an index into the first of the leading dimensions)."""
        if self.diverged_at.ndim == 0:
            raise IndexError("this trajectory is of a single run")
        parts = (self.z[:, run], self.ntk_max[:, run], self.loss[:, run])
        return Trajectory(self.steps, *parts, self.lr, self.diverged_at[run], self.converged_at[run], self.end[run])


def classify(trajectory: Trajectory, *, settled: tuple[float, float] = (1.85, 2.05), burst: float = 3.0) -> Phase:
    """Name what a single run did, by ``lr * ntk_max``.

    - *diverged*: the residual grew beyond all bounds;
    - *pure sharpening*: the edge at 2 was never reached;
    - *catapult*: it overshot ``burst`` and ended below the ``settled`` band, well off the edge;
    - *edge of stability*: it exceeded 2 and came to rest in that band. A run that is still above the band at its last
      record, or that ended below it after an overshoot smaller than ``burst``, counts here too.

    Args:
        trajectory: of one run; pick one of several by its index.
        settled: where a run at the edge ends.
        burst: overshoot that makes a catapult.

    Raises:
        ValueError: if the trajectory holds several runs.
    """
    if trajectory.ntk_max.ndim != 1:
        raise ValueError(
            f"trajectory must hold one run, got runs of shape {tuple(trajectory.ntk_max.shape[1:])}; index it first"
        )
    if trajectory.diverged:
        return "diverged"
    sharpness = trajectory.lr * trajectory.ntk_max
    if sharpness.max() < 2.0:
        return "pure sharpening"
    if sharpness.max() > burst and sharpness[-1] < settled[0]:
        return "catapult"
    return "edge of stability"


def follow(
    state: State,
    descend: Callable[[State], State],
    ntk_max: Callable[[State], Float[Tensor, "..."]],
    *,
    n_steps: int,
    lr: float,
    tol: float,
    every: int,
) -> Trajectory:
    """Repeat ``descend`` until every run has converged or diverged, or ``n_steps`` are over.

    Args:
        state: where to start.
        descend: one step of gradient descent.
        ntk_max: largest kernel eigenvalue of a state.
        n_steps: most steps.
        lr: learning rate, for the record.
        tol: norm of the residual at which a run has converged.
        every: how many steps lie between two records; an odd number records both phases of an oscillation.

    Raises:
        ValueError: if ``n_steps`` is negative, ``every`` below 1, or ``lr`` or ``tol`` not positive.
    """
    if n_steps < 0 or every < 1 or not lr > 0 or not tol > 0:
        raise ValueError(
            f"n_steps must be at least 0, every at least 1, lr and tol positive; got {n_steps}, {every}, {lr}, {tol}"
        )
    size = torch.linalg.vector_norm(state[0], dim=-1)
    diverged_at = torch.where(size <= DIVERGED, -1, 0)
    converged_at = torch.where(size <= tol, 0, -1)
    running = (size <= DIVERGED) & (size > tol)
    records, step = [(0, state[0], ntk_max(state))], 0
    while step < n_steps and running.any():
        step += 1
        new = descend(state)
        size = torch.linalg.vector_norm(new[0], dim=-1)
        sane, small = size <= DIVERGED, size <= tol  # both false for NaN
        diverged_at = diverged_at.masked_fill(running & ~sane, step)
        converged_at = converged_at.masked_fill(running & small, step)
        state = (_where(running & sane, new[0], state[0]), _where(running & sane, new[1], state[1]))
        running = running & sane & ~small
        if step % every == 0:
            records.append((step, state[0], ntk_max(state)))
    if records[-1][0] < step:
        records.append((step, state[0], ntk_max(state)))
    z = torch.stack([record[1] for record in records])
    steps = torch.tensor([record[0] for record in records])
    largest = torch.stack([record[2] for record in records])
    return Trajectory(steps, z, largest, 0.5 * z.square().sum(-1), lr, diverged_at, converged_at, state[1])


def _where(mask: Bool[Tensor, "..."], new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)

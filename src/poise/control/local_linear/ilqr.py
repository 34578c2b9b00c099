"""Iterative LQR on linear models that are estimated around the present trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from sklearn.base import BaseEstimator
from torch import Tensor

from poise.control.local_linear.estimate import closed_loop_markov, explosion, local_models
from poise.control.local_linear.oracle import Oracle
from poise.control.riccati.weights import quadratic_problem

_STEPS = tuple(0.5**i for i in range(8))  # of the line search
_MOST_DAMPING = 1e8


class QuadraticCost:
    r"""The cost :math:`\tfrac12 e_K' Q_f e_K + \tfrac{dt}2 \sum_k (e_k' Q e_k + u_k' R u_k)` with e = x - goal.

    Args:
        Q: weight of the state, symmetric positive semidefinite, of shape (n, n).
        R: weight of the input, positive definite, of shape (m, m).
        Qf: weight of the last state, of shape (n, n).
        goal: of shape (n,).
        dt: sampling period.

    Raises:
        ValueError: if a weight is out of range or ``dt`` is not positive.
    """

    def __init__(self, Q: Any, R: Any, Qf: Any, goal: Any, dt: float) -> None:
        self.goal = torch.as_tensor(goal).to(torch.float64)
        n, m = len(self.goal), len(torch.as_tensor(R))
        empty = torch.zeros(n, n), torch.zeros(n, m)
        checked = quadratic_problem(*empty, Q, R)
        self.Q, self.R, self.Qf = checked.Q, checked.R, quadratic_problem(*empty, Qf, R).Q
        if not 0 < dt < float("inf"):
            raise ValueError(f"dt must be positive and finite, got {dt!r}")
        self.dt = dt

    def __call__(
        self, X: Float64[Tensor, "*runs times n"], U: Float64[Tensor, "*runs K m"]
    ) -> Float64[Tensor, "*runs"]:
        """Return the cost of each run; NaN where a state is."""
        e = X - self.goal
        running = ((e[..., :-1, :] @ self.Q) * e[..., :-1, :]).sum((-1, -2)) + ((U @ self.R) * U).sum((-1, -2))
        return 0.5 * (((e[..., -1, :] @ self.Qf) * e[..., -1, :]).sum(-1) + self.dt * running)


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration.

    Attributes:
        cost: after it.
        step: factor on the feed-forward part that was taken; 0 if none lowered the cost.
        explosion: most that a perturbation of an input grew in its roll-outs.
        rollouts: trajectories asked for so far.
    """

    cost: float
    step: float
    explosion: float
    rollouts: int


class LocalLinearILQR(BaseEstimator):
    """Iterative LQR of a system that only returns trajectories.

    Each iteration perturbs the inputs of the present policy, regresses linear models along its trajectory, solves the
    linear quadratic problem for new inputs and gains, and searches along them. The perturbed roll-outs run under the
    gains of the iteration before, so that perturbations of an unstable system do not grow with the horizon.

    Args:
        cost: a :class:`QuadraticCost`.
        n_rollouts: perturbed roll-outs an iteration, at least n + m.
        sigma: size of the perturbations, of random sign.
        n_iter: iterations.
        use_gains: whether roll-outs and policy use feedback. Without it the method is the one that fails on long
            horizons; it is here for comparison.
        random_state: seed of the perturbations.

    Attributes:
        u_: inputs of the nominal trajectory, of shape (K, m).
        x_: its states, of shape (K + 1, n).
        K_: gains of u = u_k + K_k (x - x_k), of shape (K, m, n).
        history_: one :class:`Iteration` each.

    References:
        Pfrommer et al. (2023), arXiv:2305.09619; Li and Todorov (2004). Iterative linear quadratic regulator design.
    """

    def __init__(
        self,
        cost: QuadraticCost,
        n_rollouts: int = 80,
        sigma: float = 1e-2,
        n_iter: int = 25,
        use_gains: bool = True,
        random_state: int = 0,
    ) -> None:
        self.cost = cost
        self.n_rollouts = n_rollouts
        self.sigma = sigma
        self.n_iter = n_iter
        self.use_gains = use_gains
        self.random_state = random_state

    def fit(self, oracle: Oracle, u0: Any) -> LocalLinearILQR:
        """Improve inputs.

        Args:
            oracle: ``oracle(ubar, gains)`` returns states of shape (runs, K + 1, n), always from the same start.
            u0: first inputs, of shape (K, m).

        Raises:
            ValueError: if a setting is out of range, the oracle returns another shape or another start, or the first
                roll-out is not finite.
        """
        if not self.sigma > 0 or self.n_iter < 1:
            raise ValueError(f"sigma must be positive and n_iter at least 1, got {self.sigma!r} and {self.n_iter!r}")
        u = torch.as_tensor(u0).to(torch.float64)
        if u.ndim != 2:
            raise ValueError(f"u0 must have shape (K, m), got {tuple(u.shape)}")
        n = len(self.cost.goal)
        gains = u.new_zeros(*u.shape, n)
        x = _asked(oracle, u[None], gains)[0]
        if not bool(torch.isfinite(x).all()):
            raise ValueError("u0 must give a finite trajectory, got one that diverges")
        generator = torch.Generator().manual_seed(self.random_state)
        value, damping, rollouts = float(self.cost(x, u)), 0.0, 1
        self.history_: list[Iteration] = []
        for _ in range(self.n_iter):
            signs = torch.randint(2, (self.n_rollouts, *u.shape), generator=generator).double() * 2 - 1
            W = self.sigma * signs
            nominal = u - (gains @ x[:-1, :, None])[..., 0]
            dX = _asked(oracle, nominal + W, gains) - x
            if not bool((dX[:, 0] == 0).all()):
                raise ValueError("oracle must always start from the same state, got starts that differ")
            A, B = local_models(dX, W + (gains @ dX[:, :-1, :, None])[..., 0])
            grown = explosion(closed_loop_markov(A, B, gains))
            ahead, feedback = backward_pass(self.cost, A, B, x, u, damping)
            used = feedback if self.use_gains else torch.zeros_like(feedback)
            steps = torch.tensor(_STEPS, dtype=torch.float64)[:, None, None]
            tried = u + steps * ahead - (used @ x[:-1, :, None])[..., 0]
            states = _asked(oracle, tried, used)
            inputs = tried + (used @ states[:, :-1, :, None])[..., 0]
            values = torch.nan_to_num(self.cost(states, inputs), nan=torch.inf)
            best = int(values.argmin())
            rollouts += self.n_rollouts + len(_STEPS)
            if float(values[best]) < value:
                value, x, u, gains = float(values[best]), states[best], inputs[best], used
                damping = damping / 10 if damping > 1e-8 else 0.0
                taken = _STEPS[best]
            else:
                damping, taken = max(10 * damping, 1e-6), 0.0
            self.history_.append(Iteration(value, taken, grown, rollouts))
            if damping > _MOST_DAMPING:
                break
        self.u_, self.x_, self.K_ = u, x, gains
        return self

    def policy(self, k: int, x: Float64[Tensor, "*batch n"]) -> Float64[Tensor, "*batch m"]:
        """Return the input at step ``k`` in state ``x``."""
        return self.u_[k] + (x - self.x_[k]) @ self.K_[k].mT


def backward_pass(
    cost: QuadraticCost,
    A: Float64[Tensor, "K n n"],
    B: Float64[Tensor, "K n m"],
    x: Float64[Tensor, "times n"],
    u: Float64[Tensor, "K m"],
    damping: float = 0.0,
) -> tuple[Float64[Tensor, "K m"], Float64[Tensor, "K m n"]]:
    """Return feed-forward inputs and gains of the linear quadratic problem around a trajectory.

    Args:
        cost: the cost.
        A: Jacobians in the state, of shape (K, n, n).
        B: Jacobians in the input, of shape (K, n, m).
        x: nominal states, of shape (K + 1, n).
        u: nominal inputs, of shape (K, m).
        damping: added to the curvature in the input (Levenberg).
    """
    K, _, m = B.shape
    identity = torch.eye(m, dtype=torch.float64)
    slope, curvature = cost.Qf @ (x[-1] - cost.goal), cost.Qf
    ahead, gains = u.new_zeros(K, m), u.new_zeros(K, m, A.shape[-1])
    for k in reversed(range(K)):
        q_x = cost.dt * cost.Q @ (x[k] - cost.goal) + A[k].mT @ slope
        q_u = cost.dt * cost.R @ u[k] + B[k].mT @ slope
        q_xx = cost.dt * cost.Q + A[k].mT @ curvature @ A[k]
        q_uu = cost.dt * cost.R + B[k].mT @ curvature @ B[k]
        q_ux = B[k].mT @ curvature @ A[k]
        solved = torch.linalg.solve(q_uu + damping * identity, torch.cat([q_u[:, None], q_ux], 1))
        ahead[k], gains[k] = -solved[:, 0], -solved[:, 1:]
        slope = q_x + gains[k].mT @ (q_uu @ ahead[k] + q_u) + q_ux.mT @ ahead[k]
        curvature = q_xx + gains[k].mT @ q_uu @ gains[k] + gains[k].mT @ q_ux + q_ux.mT @ gains[k]
        curvature = (curvature + curvature.mT) / 2
    return ahead, gains


def _asked(oracle: Oracle, ubar: Tensor, gains: Tensor) -> Tensor:
    states = torch.as_tensor(oracle(ubar, gains)).to(torch.float64)
    wanted = (len(ubar), ubar.shape[1] + 1, gains.shape[-1])
    if states.shape != wanted:
        raise ValueError(f"oracle must return states of shape {wanted}, got {tuple(states.shape)}")
    return states

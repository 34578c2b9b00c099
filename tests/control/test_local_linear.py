"""Local linear models and iterative LQR on them: exact on linear systems, true derivatives on a pendulum."""

import pytest
import torch

from poise.control import FunctionOracle, LocalLinearILQR, QuadraticCost, local_models, markov_operators
from poise.control.local_linear.estimate import closed_loop_markov, explosion
from poise.control.local_linear.ilqr import backward_pass

A = torch.tensor([[1.1, 0.2], [-0.1, 0.9]], dtype=torch.float64)
B = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
START = torch.tensor([1.0, -0.5], dtype=torch.float64)


def linear(ubar, gains):
    x = START.expand(len(ubar), 2)
    states = [x]
    for k in range(ubar.shape[1]):
        x = x @ A.T + (ubar[:, k] + x @ gains[k].T) @ B.T
        states.append(x)
    return torch.stack(states, 1)


def pendulum(x, u):
    return torch.stack([x[..., 1], 10 * torch.sin(x[..., 0]) - 0.1 * x[..., 1] + u[..., 0]], -1)


def perturbed(oracle, K, sigma, runs, gains, seed=0):
    W = sigma * torch.randn(runs, K, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    nominal = oracle(torch.zeros(1, K, 1, dtype=torch.float64), gains)
    return oracle(W, gains) - nominal, W


def test_a_linear_system_is_recovered():
    K, gains = 6, torch.full((6, 1, 2), -0.3, dtype=torch.float64)
    dX, W = perturbed(linear, K, 1.0, 20, gains)
    dU = W + torch.einsum("kmn,rkn->rkm", gains, dX[:, :-1])
    a, b = local_models(dX, dU)
    torch.testing.assert_close(a[2:], A.expand(K - 2, 2, 2), rtol=0, atol=1e-9)  # before, not all states are reached
    torch.testing.assert_close(b, B.expand(K, 2, 1), rtol=0, atol=1e-9)
    psi = markov_operators(dX, W)
    closed = A + B @ gains[0]
    for j in range(1, K + 1):
        for k in range(K):
            exact = torch.linalg.matrix_power(closed, j - k - 1) @ B if j > k else torch.zeros_like(B)
            torch.testing.assert_close(psi[j, k], exact, rtol=0, atol=1e-9)
    exact = closed_loop_markov(A.expand(K, 2, 2), B.expand(K, 2, 1), gains)
    torch.testing.assert_close(psi, exact, rtol=0, atol=1e-9)


def test_models_of_a_pendulum_are_its_jacobians():
    dt, K = 0.05, 8
    oracle = FunctionOracle(pendulum, torch.tensor([0.4, 0.0]), dt, substeps=4)
    none = torch.zeros(K, 1, 2, dtype=torch.float64)
    dX, W = perturbed(oracle, K, 1e-3, 40, none)
    a, b = local_models(dX, W)
    x = oracle(torch.zeros(1, K, 1, dtype=torch.float64), none)[0]
    for k in range(2, K):

        def step(start, u):
            return FunctionOracle(pendulum, start, dt, 4)(u[None, None], none[:1])[0, -1]

        width, unit = 1e-5, torch.eye(2, dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        exact = torch.stack(
            [(step(x[k] + width * e, zero) - step(x[k] - width * e, zero)) / (2 * width) for e in unit], 1
        )
        torch.testing.assert_close(a[k], exact, rtol=0, atol=1e-3)
        exact = (step(x[k], zero + width) - step(x[k], zero - width)) / (2 * width)
        torch.testing.assert_close(b[k, :, 0], exact, rtol=0, atol=1e-4)


def test_feedback_keeps_perturbations_from_growing():
    K, a, b = 12, torch.tensor([[1.5]]).double(), torch.tensor([[0.2]]).double()
    free = closed_loop_markov(a.expand(K, 1, 1), b.expand(K, 1, 1), torch.zeros(K, 1, 1).double())
    assert explosion(free) == pytest.approx(1.5 ** (K - 1) * 0.2)
    held = closed_loop_markov(a.expand(K, 1, 1), b.expand(K, 1, 1), torch.full((K, 1, 1), -5.0).double())
    assert explosion(held) == pytest.approx(0.2)


def test_one_iteration_solves_a_linear_quadratic_problem():
    K = 10
    cost = QuadraticCost(torch.eye(2), torch.eye(1), 5 * torch.eye(2), [0.0, 0.0], dt=0.1)
    found = LocalLinearILQR(cost, n_rollouts=30, sigma=0.5, n_iter=1).fit(linear, torch.zeros(K, 1))
    # The open-loop optimum: least squares over all inputs.
    u = torch.zeros(K, 1, dtype=torch.float64, requires_grad=True)
    none = torch.zeros(K, 1, 2, dtype=torch.float64)

    def total(inputs):
        return cost(linear(inputs.reshape(1, K, 1), none)[0], inputs.reshape(K, 1))

    (gradient,) = torch.autograd.grad(total(u), u)
    hessian = torch.autograd.functional.hessian(total, torch.zeros(K, dtype=torch.float64))
    best = -torch.linalg.solve(hessian, gradient.reshape(-1))
    torch.testing.assert_close(found.u_[:, 0], best, rtol=1e-7, atol=1e-9)
    assert found.history_[0].step == 1.0
    assert found.history_[0].rollouts == 1 + 30 + 8
    torch.testing.assert_close(found.policy(3, found.x_[3]), found.u_[3])


def test_gains_far_from_the_end_are_those_of_the_regulator():
    from poise.control import dlqr

    K, dt = 200, 0.1
    cost = QuadraticCost(torch.eye(2), torch.eye(1), torch.eye(2), [0.0, 0.0], dt)
    zero = torch.zeros(K + 1, 2, dtype=torch.float64)
    _, gains = backward_pass(cost, A.expand(K, 2, 2), B.expand(K, 2, 1), zero, zero[:-1, :1])
    torch.testing.assert_close(-gains[0], dlqr(A, B, dt * torch.eye(2), dt * torch.eye(1)), rtol=1e-9, atol=1e-12)


def test_a_pendulum_swings_up_to_a_stationary_point():
    dt, K = 0.05, 20
    oracle = FunctionOracle(pendulum, torch.tensor([torch.pi, 0.0]), dt, substeps=2)
    cost = QuadraticCost(
        torch.diag(torch.tensor([1.0, 0.1])), [[0.01]], torch.diag(torch.tensor([10.0, 1.0])), [0, 0], dt
    )
    u0 = torch.full((K, 1), 0.1, dtype=torch.float64)
    found = LocalLinearILQR(cost, n_rollouts=10, sigma=1e-3, n_iter=15).fit(oracle, u0)
    costs = [step.cost for step in found.history_]
    assert costs == sorted(costs, reverse=True)
    none = torch.zeros(K, 1, 2, dtype=torch.float64)

    def slope(u):
        u = u.clone().requires_grad_()
        return torch.autograd.grad(cost(oracle(u[None], none)[0], u), u)[0].norm()

    assert float(slope(found.u_)) < 0.02 * float(slope(u0))
    # Nominal trajectory and inputs belong together, with and without feedback.
    torch.testing.assert_close(oracle(found.u_[None], none)[0], found.x_, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("oracle", "settings", "message"),
    [
        (lambda u, K: linear(u, K)[:, 1:], {}, "oracle must return states of shape"),
        (linear, {"n_rollouts": 2}, r"at least n \+ m = 3, got 2"),
        (linear, {"sigma": 0.0}, "sigma must be positive"),
        (lambda u, K: linear(u, K) * torch.nan, {}, "diverges"),
        (lambda u, K: linear(u, K) + torch.rand(len(u), 1, 1), {}, "always start from the same state"),
    ],
)
def test_bad_input(oracle, settings, message):
    cost = QuadraticCost(torch.eye(2), torch.eye(1), torch.eye(2), [0.0, 0.0], 0.1)
    with pytest.raises(ValueError, match=message):
        LocalLinearILQR(cost, **settings).fit(oracle, torch.zeros(4, 1))

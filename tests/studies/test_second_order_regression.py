import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from poise.curvature import Hessian
from poise.dynamics import QuadraticModel
from poise.studies import second_order_regression as study


def test_starts_of_two_parameters_have_the_rest_they_are_made_for():
    runs = study.run_two_parameters(0.05, (1.0,))
    assert runs.converged.all()
    assert (runs.highest > 2).all()
    np.testing.assert_allclose(runs.end, runs.formula, rtol=0, atol=1e-8)
    assert runs.formula.min() >= 2 - 1.0 * 0.05 - 1e-12


def test_derivatives_of_the_kernel_by_small_steps_of_gradient_flow():
    g = torch.Generator().manual_seed(0)
    J, z = torch.randn(3, 5, generator=g, dtype=torch.float64), torch.randn(3, generator=g, dtype=torch.float64)
    A = torch.randn(3, 5, 5, generator=g, dtype=torch.float64)
    Q, h = (A + A.mT) / 2, 1e-3

    def flow(time, steps=200):  # Runge-Kutta on J' = -Q(J^T z), z' = -J J^T z
        def velocity(J, z):
            return -Q @ (J.T @ z), -J @ (J.T @ z)

        a, b, dt = J, z, time / steps
        for _ in range(steps):
            k1 = velocity(a, b)
            k2 = velocity(a + dt / 2 * k1[0], b + dt / 2 * k1[1])
            k3 = velocity(a + dt / 2 * k2[0], b + dt / 2 * k2[1])
            k4 = velocity(a + dt * k3[0], b + dt * k3[1])
            a = a + dt / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
            b = b + dt / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
        return a @ a.T

    before, now, after = flow(-h), J @ J.T, flow(h)
    first, second = study.kernel_derivatives(Q, J, z)
    torch.testing.assert_close((after - before) / (2 * h), first, rtol=0, atol=1e-3)
    torch.testing.assert_close((after - 2 * now + before) / h**2, second, rtol=0, atol=1e-2)


def test_the_random_model_of_a_seed_is_the_same_alone_and_in_a_scan():
    plan = replace(study.PLANS["tiny"], steps=100)
    scan = study.run_random(plan, torch.tensor([0.005, 0.01], dtype=torch.float64), 0)
    alone = study.run_random(plan, 0.01, 0)
    assert scan.ntk_max[-1, 1].item() == pytest.approx(alone.ntk_max[-1].item(), rel=1e-10)


def test_the_network_starts_below_the_edge_and_its_sharpness_is_that_of_the_hessian():
    run = study.run_network(0.6, 20, 10, seed=0)
    assert run.steps.tolist() == [0, 10, 20]
    assert run.ratio[0] < 1
    assert not run.diverged
    again = study.run_network(0.6, 20, 10, seed=0)
    assert again.ratio.tolist() == run.ratio.tolist()
    model = study.seeded_mlp((64, 32, 32, 10), 0)
    hessian = Hessian(model, study.half_squared_error, study.digits_batch())
    v = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(0))
    for _ in range(100):
        v = hessian.matvec(v / v.norm())
    assert run.ratio[0] == pytest.approx(0.3 * v.norm().item(), rel=2e-3)


def test_a_network_that_diverges_is_infinitely_far_from_the_edge():
    run = study.run_network(50.0, 100, 20, seed=0)
    assert run.diverged
    assert run.late == math.inf


def test_without_second_derivatives_nothing_moves():
    assert study.linear_drift(study.PLANS["tiny"], 0) <= 1e-12
    moving = QuadraticModel.random(15, 30, study.START, 0.02, torch.Generator().manual_seed(0)).run(200)
    assert (moving.ntk_max - study.START).abs().max() > 0.01

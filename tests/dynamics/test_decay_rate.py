import numpy as np
import pytest
import torch

from poise.dynamics import Flow, Map, decay_rate

A = torch.tensor([[-0.3, 1.0, 0.0], [0.0, -2.0, 0.5], [0.0, 0.0, -5.0]], dtype=torch.float64)
ZERO = torch.zeros(3, dtype=torch.float64)


def test_a_linear_flow_decays_at_its_slowest_eigenvalue():
    fit = decay_rate(Flow(lambda x: A @ x), ZERO)
    assert fit.rate == pytest.approx(0.3, rel=1e-5)
    assert fit.ci[0] <= fit.rate <= fit.ci[1]
    assert fit.r2 > 1 - 1e-8


def test_a_nonlinear_flow_too_and_a_repelling_one_has_a_negative_rate():
    logistic = Flow(lambda x: 0.7 * x * (1 - x))
    one = torch.ones(1, dtype=torch.float64)
    assert decay_rate(logistic, one, one).rate == pytest.approx(0.7, rel=1e-3)
    assert decay_rate(logistic, 0 * one, one).rate == pytest.approx(-0.7, rel=1e-2)


def test_a_direction_decays_at_its_own_rate():
    flow = Flow(lambda x: torch.diag(torch.tensor([-1.0, -3.0]).double()) @ x)
    fit = decay_rate(flow, ZERO[:2], torch.tensor([0.0, 1.0]).double(), t_max=2.0)
    assert fit.rate == pytest.approx(3.0, rel=1e-4)


def test_a_mixture_is_too_fast_and_its_interval_says_that_it_is_not_exponential():
    flow = Flow(lambda x: torch.diag(torch.tensor([-0.05, -0.5]).double()) @ x)
    mixture = decay_rate(flow, ZERO[:2], torch.tensor([0.1, 1.0]).double(), t_max=8.0)
    pure = decay_rate(flow, ZERO[:2])
    assert mixture.rate > 1.2 * 0.05
    assert mixture.ci[1] - mixture.ci[0] > 1e3 * (pure.ci[1] - pure.ci[0])


def test_maps_are_fitted_per_step():
    b = torch.tensor([[0.9, 0.2], [0.0, -0.5]], dtype=torch.float64)
    fit = decay_rate(Map(lambda x: b @ x + 0.1 * x**2), ZERO[:2])
    assert fit.rate == pytest.approx(-np.log(0.9), rel=1e-4)


def test_a_mass_matrix_slows_the_flow():
    flow = Flow(lambda x: -x, jac=lambda x: -np.eye(3), mass=4 * np.eye(3))
    assert decay_rate(flow, ZERO).rate == pytest.approx(0.25, rel=1e-4)


def test_bad_input():
    flow = Flow(lambda x: A @ x)
    with pytest.raises(ValueError, match="t_max must be positive"):
        decay_rate(flow, ZERO, t_max=0.0)
    with pytest.raises(ValueError, match="direction must be a nonzero vector"):
        decay_rate(flow, ZERO, ZERO)
    with pytest.raises(ValueError, match="direction must be a nonzero vector"):
        decay_rate(flow, ZERO, torch.ones(2).double())
    with pytest.raises(ValueError, match=r"into rounding.*lower t_max"):
        decay_rate(Map(lambda x: 0.1 * x), ZERO, t_max=100)
    with pytest.raises(ValueError, match="not an equilibrium"):
        decay_rate(flow, ZERO + 1)
    with pytest.raises(ValueError, match="no computed direction"):
        decay_rate(Flow(lambda x: 0 * x), ZERO)

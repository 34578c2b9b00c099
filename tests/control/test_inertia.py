"""Inertial parameters: closed forms, point masses, round trips."""

import math

import pytest
import torch

from poise.control import (
    from_log_cholesky,
    inertial_parameters,
    is_physically_consistent,
    pseudo_inertia,
    to_log_cholesky,
)

THETA = torch.arange(1, 11, dtype=torch.float64) / 10


def test_principal_moments():
    for moments, consistent in (((1, 1, 3), False), ((1, 1, 1.9), True), ((3, 1, 1), False), ((-1, 1, 1), False)):
        parameters = [2.0, 0, 0, 0, moments[0], 0, moments[1], 0, 0, moments[2]]
        assert bool(is_physically_consistent(parameters)) is consistent
    assert not is_physically_consistent([-1.0, 0, 0, 0, 1, 0, 1, 0, 0, 1])


def test_closed_form():
    J = from_log_cholesky(THETA)
    m = math.exp(0.2)
    assert float(J[3, 3]) == pytest.approx(m)
    torch.testing.assert_close(J[:3, 3], m * torch.tensor([0.8, 0.9, 1.0], dtype=torch.float64))
    first = math.exp(0.4) + 0.5**2 + 0.7**2 + 0.8**2
    assert float(J[0, 0]) == pytest.approx(m * first) == pytest.approx(3.50765461)
    assert float(torch.linalg.det(J)) == pytest.approx(math.exp(2 * (0.4 + 0.2 + 0.3 + 0.4)))


def test_round_trips():
    J = from_log_cholesky(torch.stack([THETA, -THETA]))
    torch.testing.assert_close(to_log_cholesky(J), torch.stack([THETA, -THETA]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pseudo_inertia(inertial_parameters(J)), J, rtol=1e-13, atol=1e-13)


def test_every_theta_is_a_body():
    theta = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = inertial_parameters(from_log_cholesky(theta))
    assert bool(is_physically_consistent(parameters).all())
    ixx, iyy, izz = parameters[:, 4], parameters[:, 6], parameters[:, 9]
    for a, b, c in ((ixx, iyy, izz), (iyy, izz, ixx), (izz, ixx, iyy)):
        assert bool((a + b >= c).all())


def test_point_masses():
    generator = torch.Generator().manual_seed(1)
    points, masses = torch.randn(6, 3, generator=generator).double(), torch.rand(6, generator=generator).double()
    ones = torch.cat([points, torch.ones(6, 1)], 1)
    J = (masses[:, None, None] * ones[:, :, None] * ones[:, None, :]).sum(0)
    square = points.square().sum(1)[:, None, None] * torch.eye(3)
    inertia = (masses[:, None, None] * (square - points[:, :, None] * points[:, None, :])).sum(0)
    p = inertial_parameters(J)
    torch.testing.assert_close(p[0], masses.sum())
    expected = torch.stack([inertia[i, j] for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))])
    torch.testing.assert_close(p[4:], expected)


def test_gradients():
    assert torch.autograd.gradcheck(from_log_cholesky, THETA.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda J: to_log_cholesky((J + J.mT) / 2), from_log_cholesky(THETA).detach().requires_grad_()
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pseudo_inertia([1.0, 2.0]), r"parameters must have shape \(\.\.\., 10\)"),
        (lambda: pseudo_inertia([math.nan] * 10), "finite"),
        (lambda: from_log_cholesky([1.0]), "theta must have shape"),
        (lambda: to_log_cholesky(-torch.eye(4, dtype=torch.float64)), "smallest eigenvalue of -1"),
        (lambda: inertial_parameters(torch.eye(3)), "pseudo must have shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

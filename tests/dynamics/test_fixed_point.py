import numpy as np
import pytest
import scipy.sparse
import torch

from poise.dynamics import Flow, Map, NotConverged, find_fixed_point

METHODS = ["newton-krylov", "newton", "iterate", "anderson"]


def cosine(x):
    return torch.cos(x)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_fixed_point_of_the_cosine(method):
    found = find_fixed_point(Map(cosine), torch.tensor([0.2, 1.4], dtype=torch.float64), method)
    torch.testing.assert_close(found.x, torch.full((2,), 0.7390851332151607, dtype=torch.float64), rtol=0, atol=1e-9)
    assert found.residual <= 1e-10 * max(1, found.x.norm().item())


def test_acceleration_and_newton_need_fewer_steps():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(20, 20, generator=g, dtype=torch.float64)
    a = 0.95 * a / torch.linalg.matrix_norm(a, 2)
    slow = Map(lambda x: torch.tanh(a @ x + 0.3))
    start = torch.zeros(20, dtype=torch.float64)
    steps = {m: find_fixed_point(slow, start, m, max_steps=500).n_steps for m in METHODS}
    assert steps["newton"] <= steps["newton-krylov"] < steps["anderson"] <= steps["iterate"]


@pytest.mark.parametrize("method", ["newton-krylov", "newton"])
def test_newton_finds_points_that_repel(method):
    logistic = Map(lambda x: 3.8 * x * (1 - x))
    found = find_fixed_point(logistic, torch.tensor([0.7], dtype=torch.float64), method)
    assert found.x.item() == pytest.approx(1 - 1 / 3.8, abs=1e-9)


def test_orbit_of_period_two():
    logistic, r = Map(lambda x: 3.2 * x * (1 - x)), 3.2
    found = find_fixed_point(logistic @ logistic, torch.tensor([0.5], dtype=torch.float64))
    root = np.sqrt((r - 3) * (r + 1))
    assert found.x.item() == pytest.approx((r + 1 - root) / (2 * r), abs=1e-9)


@pytest.mark.parametrize("method", ["newton-krylov", "newton", "iterate"])
def test_equilibrium_of_a_flow_with_a_sparse_jacobian(method):
    n = 40
    laplacian = scipy.sparse.diags_array([np.ones(n - 1), -2 * np.ones(n), np.ones(n - 1)], offsets=[-1, 0, 1]).tocsc()
    flow = Flow(lambda x: torch.as_tensor(laplacian @ x.numpy()) + 0.01, jac=lambda x: laplacian)
    found = find_fixed_point(flow, torch.zeros(n, dtype=torch.float64), method, tol=1e-9)
    i = torch.arange(1, n + 1, dtype=torch.float64)
    torch.testing.assert_close(found.x, 0.005 * i * (n + 1 - i), rtol=1e-5, atol=1e-5)


def test_newton_krylov_keeps_what_is_conserved():
    # x1 + x2 never changes; equilibria are x1^3 = x2.
    flow = Flow(lambda x: torch.stack([x[1] - x[0] ** 3, x[0] ** 3 - x[1]]))
    found = find_fixed_point(flow, torch.tensor([1.5, 0.4], dtype=torch.float64))
    assert found.x.sum().item() == pytest.approx(1.9, abs=1e-12)
    with pytest.raises(NotConverged, match="singular"):
        find_fixed_point(flow, torch.tensor([1.5, 0.4], dtype=torch.float64), "newton")


def test_no_fixed_point_is_said_with_the_residual():
    with pytest.raises(NotConverged, match="residual") as error:
        find_fixed_point(Map(lambda x: x + 1), torch.zeros(1, dtype=torch.float64), "iterate", max_steps=3)
    assert error.value.residual == pytest.approx(1)
    with pytest.raises(NotConverged, match="left the finite numbers"):
        find_fixed_point(Map(lambda x: x**3), torch.tensor([10.0], dtype=torch.float64), "iterate")
    with pytest.raises(NotConverged, match="no step from here lowers"):
        find_fixed_point(Flow(lambda x: x**2 + 1), torch.tensor([0.0], dtype=torch.float64))


def test_bad_input():
    x = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"method must be one of .* got 'secant'"):
        find_fixed_point(Map(cosine), x, "secant")
    with pytest.raises(ValueError, match="'anderson' accelerates the steps of a Map"):
        find_fixed_point(Flow(cosine), x, "anderson")
    with pytest.raises(ValueError, match="tol must be positive"):
        find_fixed_point(Map(cosine), x, tol=0)
    with pytest.raises(ValueError, match="x0 must be finite; entry 1 is not"):
        find_fixed_point(Map(cosine), torch.tensor([0.0, float("nan")]))
    with pytest.raises(TypeError, match="x0 must hold real floating-point numbers"):
        find_fixed_point(Map(cosine), torch.zeros(2, dtype=torch.complex64))

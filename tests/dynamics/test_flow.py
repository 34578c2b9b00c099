import numpy as np
import pytest
import scipy.sparse
import torch

from poise.dynamics import Flow, integrate

A = torch.tensor([[-1.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
X = torch.tensor([0.4, -1.2], dtype=torch.float64)


def field(x):
    return A @ x - x**3


def jacobian(x):
    return A - torch.diag(3 * x**2)


@pytest.mark.parametrize("jac", [None, jacobian, lambda x: scipy.sparse.csr_matrix(jacobian(x).numpy())])
def test_derivatives_agree_however_they_are_given(jac):
    flow = Flow(field, jac=jac)
    v = torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(flow.jvp(X, v), jacobian(X) @ v)
    matrix = flow.jacobian(X)
    dense = matrix.toarray() if scipy.sparse.issparse(matrix) else matrix
    np.testing.assert_allclose(dense, jacobian(X).numpy())


def test_the_jacobian_is_taken_anew_at_another_state():
    flow = Flow(field, jac=jacobian)
    v = torch.ones(2, dtype=torch.float64)
    flow.jvp(X, v)
    torch.testing.assert_close(flow.jvp(2 * X, v), jacobian(2 * X) @ v)


@pytest.mark.parametrize("mass", [None, torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))])
def test_integration_follows_the_matrix_exponential(mass):
    flow = Flow(lambda x: A @ x, jac=lambda x: A, mass=mass)
    rate = A if mass is None else torch.linalg.solve(mass, A)
    torch.testing.assert_close(integrate(flow, X, 1.5), torch.linalg.matrix_exp(1.5 * rate) @ X, rtol=1e-6, atol=1e-8)


def test_a_singular_mass_matrix_cannot_be_followed():
    flow = Flow(lambda x: A @ x, mass=np.diag([1.0, 0.0]))
    with pytest.raises(ValueError, match="mass must be invertible"):
        integrate(flow, X, 1.0)


def test_bad_jacobian():
    with pytest.raises(ValueError, match=r"jac must return a matrix of shape \(2, 2\), got \(3, 3\)"):
        Flow(field, jac=lambda x: np.eye(3)).jacobian(X)

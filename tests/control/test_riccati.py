"""Riccati equations: closed forms, SciPy as the independent computation, and errors that name the mode."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from poise.control import NotStabilizable, dlqr, lqr, solve_care, solve_dare

EYE = torch.eye(2, dtype=torch.float64)


def problems(batch, n, m, seed, size=1.0):
    rng = np.random.default_rng(seed)
    A, B = size * rng.standard_normal((batch, n, n)), rng.standard_normal((batch, n, m))
    root = rng.standard_normal((batch, n + m, n + m))
    W = root @ root.transpose(0, 2, 1)
    return A, B, W[:, :n, :n], W[:, n:, n:], W[:, :n, n:]


def rotated(diagonal, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(diagonal),) * 2))
    return q @ np.diag(diagonal) @ q.T, q


def test_double_integrator():
    A, B = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0], [1.0]])
    root = math.sqrt(3)
    torch.testing.assert_close(
        solve_care(A, B, EYE, [[1.0]]), torch.tensor([[root, 1], [1, root]], dtype=torch.float64), rtol=1e-14, atol=0
    )
    torch.testing.assert_close(lqr(A, B, EYE, [[1.0]]), torch.tensor([[1, root]], dtype=torch.float64))


@pytest.mark.parametrize(("a", "b", "q", "r"), [(1.0, 2.0, 3.0, 0.5), (-4.0, 1.0, 0.0, 1.0), (2.0, 1e-3, 1.0, 1e3)])
def test_scalar_closed_form(a, b, q, r):
    P = solve_care([[a]], [[b]], [[q]], [[r]])
    assert float(P) == pytest.approx((a + math.sqrt(a * a + q * b * b / r)) * r / b**2, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 2), (7, 3)])
def test_care_agrees_with_schur_method(n, m):
    A, B, Q, R, M = problems(8, n, m, seed=n)
    P = solve_care(A, B, Q, R, M)
    assert P.dtype == torch.float64
    for i in range(8):
        exact = scipy.linalg.solve_continuous_are(A[i], B[i], Q[i], R[i], s=M[i])
        assert np.linalg.norm(P[i].numpy() - exact) <= 1e-10 * np.linalg.norm(exact)
    closed = torch.as_tensor(A) - torch.as_tensor(B) @ lqr(A, B, Q, R, M)
    assert bool((torch.linalg.eigvals(closed).real < 0).all())


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 2), (7, 3)])
def test_dare_agrees_with_qz_method(n, m):
    A, B, Q, R, M = problems(8, n, m, seed=10 + n)
    A[0] = 0.0 if n == 1 else A[0] @ np.diag([0.0] + [1.0] * (n - 1))  # a singular one
    P = solve_dare(A, B, Q, R, M)
    for i in range(8):
        exact = scipy.linalg.solve_discrete_are(A[i], B[i], Q[i], R[i], s=M[i])
        assert np.linalg.norm(P[i].numpy() - exact) <= 1e-9 * np.linalg.norm(exact)
    closed = torch.as_tensor(A) - torch.as_tensor(B) @ dlqr(A, B, Q, R, M)
    assert bool((torch.linalg.eigvals(closed).abs() < 1).all())


def test_the_stabilising_one_of_two_solutions():
    """With Q = 0, P = 0 solves both equations as well, and leaves an unstable system as it is."""
    assert float(solve_dare([[2.0]], [[1.0]], [[0.0]], [[1.0]])) == pytest.approx(3.0, rel=1e-12)
    assert float(solve_care([[2.0]], [[1.0]], [[0.0]], [[1.0]])) == pytest.approx(4.0, rel=1e-12)


def test_dependent_eigenvectors():
    """A chain of integrators, weighted so that the closed loop is defective: all four eigenvalues at -1."""
    A, B = np.diag(np.ones(3), 1), np.eye(4)[:, 3:]
    K = np.array([[1.0, 4.0, 6.0, 4.0]])  # of (s + 1)^4
    # |1 + L|^2 = (1 - s^2)^4 / s^8 is that of diag(1, 4, 6, 4).
    P = solve_care(A, B, np.diag([1.0, 4.0, 6.0, 4.0]), [[1.0]])
    np.testing.assert_allclose((B.T @ P.numpy()), K, rtol=1e-9)


def test_batch_shapes_broadcast():
    A, B, Q, R, _ = problems(3, 2, 1, seed=5)
    P = solve_care(A[:, None], B[None], Q[0], R[0])
    assert P.shape == (3, 3, 2, 2)
    torch.testing.assert_close(P[1, 2], solve_care(A[1], B[2], Q[0], R[0]), rtol=1e-9, atol=1e-12)


def test_gradients_of_care():
    A, B, Q, R, _ = (torch.as_tensor(x) for x in problems(2, 3, 2, seed=3))
    arguments = [x.clone().requires_grad_() for x in (A, B, Q, R)]

    def solved(A, B, Q, R):
        return solve_care(A, B, (Q + Q.mT) / 2, (R + R.mT) / 2)

    assert torch.autograd.gradcheck(solved, arguments, atol=1e-6)


def test_nothing_moves_and_nothing_decays():
    zero, column = torch.zeros(2, 2), torch.zeros(2, 1)
    for solve in (solve_care, solve_dare):
        A = zero if solve is solve_care else EYE
        with pytest.raises(NotStabilizable, match=f"eigenvalue {0 if solve is solve_care else 1},"):
            solve(A, column, EYE, [[1.0]])


@pytest.mark.parametrize(
    ("solve", "values", "named"), [(solve_care, [0.7, -1.0, -2.0], "0.7"), (solve_dare, [1.3, 0.5, -0.2], "1.3")]
)
def test_the_unreachable_mode_is_named(solve, values, named):
    A, q = rotated(values)
    B = q @ np.array([[0.0], [1.0], [1.0]])
    with pytest.raises(NotStabilizable, match=f"no input moves the mode with eigenvalue {named}, which does not"):
        solve(A, B, np.eye(3), [[1.0]])
    fine, q = rotated([-0.7, -1.0, -2.0] if solve is solve_care else [0.3, 0.5, -0.2])
    solve(fine, q @ np.array([[0.0], [1.0], [1.0]]), np.eye(3), [[1.0]])  # it decays: nothing has to move it


def test_the_unseen_mode_is_named():
    turning = [[0.0, 2.0], [-2.0, 0.0]]
    with pytest.raises(NotStabilizable, match=r"does not see the mode with eigenvalue [-0]*\+?-?.*2j"):
        solve_care(turning, [[0.0], [1.0]], np.zeros((2, 2)), [[1.0]])
    with pytest.raises(NotStabilizable, match=r"entry \(1,\) of the batch"):
        solve_dare([[[0.5]], [[1.0]]], [[1.0]], [[0.0]], [[1.0]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"Q": [[1.0, 0.0], [0.0, -1.0]]}, r"positive semidefinite, got a smallest eigenvalue of -1"),
        ({"M": [[0.0], [1.1]]}, r"\[\[Q, M\], \[M', R\]\] must be positive semidefinite"),
        ({"R": [[0.0]]}, "R must be positive definite, got a smallest eigenvalue of 0"),
        ({"Q": [[1.0, 0.3], [0.0, 1.0]]}, "Q must be symmetric"),
        ({"A": [[1.0, math.nan], [0.0, 1.0]]}, "A must be finite"),
        ({"B": [[1.0, 0.0]]}, r"B must have shape \(\.\.\., 2, 2\), got \(1, 2\)"),
        ({"A": [1.0, 2.0]}, "A must be a matrix"),
    ],
)
@pytest.mark.parametrize("solve", [solve_care, solve_dare])
def test_bad_input(solve, changed, message):
    given = {"A": [[0.0, 1.0], [0.0, 0.0]], "B": [[0.0], [1.0]], "Q": np.eye(2), "R": [[1.0]], "M": [[0.0], [0.0]]}
    with pytest.raises(ValueError, match=message):
        solve(**(given | changed))

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.curvature import (
    DenseOperator,
    FunctionOperator,
    block_davidson,
    eigs,
    krylov_schur,
    lanczos,
    numerical_abscissa,
    spectral_norm,
)
from poise.curvature.eigen.eigs import DENSE
from poise.curvature.eigen.orthogonal import orthogonalize

SYMMETRIC_METHODS = ("lanczos", "block")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def with_spectrum(values, seed=0, dtype=torch.float64):
    """A symmetric matrix with these eigenvalues in random directions."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator(seed))).Q
    matrix = q * values @ q.T
    return ((matrix + matrix.T) / 2).to(dtype)


def top(matrix, k):
    return torch.linalg.eigvalsh(matrix.double()).flip(0)[:k]


@pytest.mark.parametrize("method", SYMMETRIC_METHODS)
def test_top_of_one_to_a_hundred_lies_within_its_bound(method):
    op = DenseOperator(torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64)))
    found = eigs(op, 1, method=method, generator=generator())
    assert abs(found.values[0] - 100) <= found.error_bounds[0] <= 1e-3 * 100 * (1 + 1e-9)
    assert found.converged.all()
    assert found.n_matvec == op.n_matvec


def test_lanczos_on_the_whole_space_is_the_dense_solution():
    matrix = with_spectrum(torch.randn(60, dtype=torch.float64, generator=generator(1)))
    found = lanczos(DenseOperator(matrix), 60, tol=1e-12, basis_size=60, generator=generator())
    torch.testing.assert_close(found.values, top(matrix, 60), rtol=0, atol=1e-10)
    torch.testing.assert_close(matrix @ found.vectors, found.vectors * found.values, rtol=0, atol=1e-10)


def test_block_finds_all_copies_of_multiple_eigenvalues():
    values = torch.cat([torch.tensor([5.0, 5, 5, 3, 3, 2]), torch.linspace(-1, 1, 74)])
    matrix = with_spectrum(values)
    found = eigs(DenseOperator(matrix), 6, tol=1e-11, method="block", generator=generator())
    torch.testing.assert_close(found.values, values[:6].double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [30, 90])
@pytest.mark.parametrize("method", SYMMETRIC_METHODS)
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_ends_of_the_spectrum(which, method, n):
    values = torch.cat([torch.tensor([9.0, 6, 4]), torch.linspace(-1, 1, n - 6), torch.tensor([-5.0, -7, -11])])
    found = eigs(DenseOperator(with_spectrum(values)), 3, which, 1e-9, method=method, generator=generator())
    expected = {"LA": [9, 6, 4], "SA": [-11, -7, -5], "LM": [-11, 9, -7], "BE": [9, 6, -11]}[which]
    torch.testing.assert_close(found.values, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)


def test_restarts_keep_what_was_learnt():
    matrix = with_spectrum(torch.linspace(0, 1, 300, dtype=torch.float64))
    found = lanczos(DenseOperator(matrix), 2, tol=1e-6, basis_size=15, generator=generator())
    assert found.n_matvec > 2 * 15
    assert found.converged.all()
    torch.testing.assert_close(found.values, top(matrix, 2), rtol=1e-6, atol=0)


def test_warm_start_takes_fewer_products():
    matrix = with_spectrum(torch.cat([torch.tensor([3.0, 2.5, 2.2]), torch.linspace(-1, 2, 197)]))
    cold = eigs(DenseOperator(matrix), generator=generator())
    nearby = DenseOperator(matrix + 1e-3 * with_spectrum(torch.ones(200).neg().cumsum(0) / 200, seed=3))
    cold_again = eigs(nearby, generator=generator(1))
    for method in SYMMETRIC_METHODS:
        warm = eigs(nearby, v0=cold.vectors[:, 0], method=method, generator=generator())
        assert warm.n_matvec < cold_again.n_matvec
        assert abs(warm.values[0] - top(nearby.matrix, 1)[0]) <= warm.error_bounds[0]


def test_a_known_edge_makes_the_bound_quadratic_and_saves_products():
    matrix = with_spectrum(torch.cat([torch.tensor([3.0, 2.0]), torch.linspace(-1, 1.5, 198)]))
    start = lanczos(DenseOperator(matrix), tol=3e-2, generator=generator()).vectors
    plain = block_davidson(DenseOperator(matrix), v0=start, tol=1e-4)
    with_edge = block_davidson(DenseOperator(matrix), v0=start, tol=1e-4, edge=2.0)
    assert with_edge.n_matvec < plain.n_matvec
    error, residual = abs(with_edge.values[0] - 3), with_edge.residuals[0]
    assert error <= with_edge.error_bounds[0] < residual
    # Kato and Temple: residual^2 / gap.
    assert with_edge.error_bounds[0] <= residual**2 / (with_edge.values[0] - 2) + 1e-12


@pytest.mark.parametrize("method", SYMMETRIC_METHODS)
def test_identity_and_zero(method):
    for scale in (0.0, 2.0):
        found = eigs(DenseOperator(scale * torch.eye(50)), 3, method=method, generator=generator())
        assert found.values.tolist() == pytest.approx([scale] * 3)
        assert found.converged.all()


def test_low_rank_gives_the_zeros_too():
    matrix = with_spectrum([3.0, 2.0] + [0.0] * 58)
    found = eigs(DenseOperator(matrix), 5, generator=generator())
    assert found.values.tolist() == pytest.approx([3, 2, 0, 0, 0], abs=1e-9)
    assert found.converged.all()


def test_few_products_are_not_called_converged():
    op = DenseOperator(with_spectrum(torch.linspace(0, 1, 200)))
    for method in (*SYMMETRIC_METHODS, "arnoldi"):
        found = eigs(op, 1, tol=1e-8, method=method, max_matvecs=6, generator=generator())
        assert found.n_matvec <= 6
        assert not found.converged.any()
        assert torch.linalg.eigvalsh(op.matrix).sub(found.values[0].real).abs().min() <= found.error_bounds[0]


@pytest.mark.parametrize("method", [*SYMMETRIC_METHODS, "arnoldi"])
def test_same_seed_same_result(method):
    op = DenseOperator(with_spectrum(torch.linspace(-1, 1, 80)))
    first, second = (eigs(op, 2, method=method, generator=generator(7)) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_scaling_the_operator_scales_values_and_bounds(seed, scale):
    matrix = with_spectrum(torch.randn(60, dtype=torch.float64, generator=generator(seed)), seed)
    plain, scaled = (eigs(DenseOperator(m), 2, generator=generator(seed)) for m in (matrix, scale * matrix))
    torch.testing.assert_close(scaled.values, scale * plain.values, rtol=1e-8, atol=0)
    torch.testing.assert_close(scaled.error_bounds, scale * plain.error_bounds, rtol=1e-6, atol=1e-12 * scale)


def spectra(seed):
    """Random spectra of 120 values: spread, clustered, multiple, in turn."""
    g = generator(seed)
    values = torch.randn(120, dtype=torch.float64, generator=g)
    if seed % 3 == 1:  # clusters of three, far narrower than their distance
        values[:9] = torch.tensor([6.0, 5.0, 4.0]).repeat_interleave(3)
        values[:9] += 1e-4 * torch.randn(9, dtype=torch.float64, generator=g)
    if seed % 3 == 2:
        values[:6] = torch.tensor([6.0, 6, 5, 5, 4, 4])
    return values


@pytest.mark.slow
@pytest.mark.parametrize(("method", "dtype"), [("lanczos", torch.float64), ("block", torch.float32)])
def test_bounds_hold_in_at_least_99_of_100_random_problems(method, dtype):
    held = 0
    for seed in range(200):
        matrix = with_spectrum(spectra(seed), seed, dtype)
        found = eigs(DenseOperator(matrix), 1 + seed % 5, method=method, generator=generator(seed + 10**6))
        truth = torch.linalg.eigvalsh(matrix.double())
        if method == "block":  # sorted, copies counted
            errors = (found.values - truth.flip(0)[: len(found.values)]).abs()
        else:  # one vector sees one copy: each value is near some eigenvalue
            errors = (found.values[:, None] - truth[None, :]).abs().min(1).values
        held += bool((errors <= found.error_bounds).all())
    assert held >= 198


@pytest.mark.slow
def test_no_cold_start_misses_the_top_of_random_matrices():
    wrong = 0
    for seed in range(200):
        matrix = torch.randn(100, 100, dtype=torch.float64, generator=generator(seed))
        matrix = matrix + matrix.T
        truth = top(matrix, 1)[0]
        found = eigs(DenseOperator(matrix), generator=generator(seed + 10**6))
        wrong += bool(abs(found.values[0] - truth) > 1e-3 * truth)
    assert wrong == 0


def test_start_without_the_top_vector_is_found_out():
    """The second eigenvector with a hundredth of the first in it: the residual alone would stop too early."""
    values = torch.cat([torch.tensor([2.0, 1.5]), torch.linspace(-0.2, 0.2, 198)]).double()
    matrix = torch.diag(values)
    found = lanczos(DenseOperator(matrix), v0=torch.eye(200, dtype=torch.float64)[1], generator=generator(), tol=1e-3)
    assert found.values[0].item() == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("n", [25, 130])
def test_arnoldi_finds_eigenvalues_of_a_random_matrix(which, n):
    matrix = torch.randn(n, n, dtype=torch.float64, generator=generator(n)) / math.sqrt(n)
    found = eigs(DenseOperator(matrix), 4, which, 1e-9, method="arnoldi", generator=generator())
    truth = torch.linalg.eigvals(matrix)
    key = {"LM": -truth.abs(), "LA": -truth.real, "SA": truth.real}[which]
    expected = truth[key.argsort()][:4]
    distance = (found.values[:, None] - expected[None, :]).abs().min(1).values
    assert (distance <= 1e-7).all()
    residuals = torch.linalg.vector_norm(
        matrix.to(torch.complex128) @ found.vectors - found.vectors * found.values, dim=0
    )
    torch.testing.assert_close(residuals, found.residuals, rtol=0, atol=1e-8)
    assert found.converged.all()


def test_arnoldi_on_the_map_of_momentum_has_the_roots_of_its_quadratics():
    """(w, m) -> (w - eta (beta m + H w), beta m + H w) for every eigenvalue of H."""
    eta, beta = 0.1, 0.9
    curvatures = torch.linspace(0.5, 30, 30, dtype=torch.float64)
    hessian = with_spectrum(curvatures)

    def step(state):
        w, m = state.chunk(2)
        m = beta * m + hessian @ w
        return torch.cat([w - eta * m, m])

    op = FunctionOperator(step, 60, symmetric=False, dtype=torch.float64)
    found = krylov_schur(op, 60, "LM", 1e-10, basis_size=60, generator=generator())
    half = (1 + beta - eta * curvatures.to(torch.complex128)) / 2
    shift = (half**2 - beta).sqrt()
    roots = torch.cat([half + shift, half - shift])
    distance = (found.values[:, None] - roots[None, :]).abs()
    assert distance.min(1).values.max() < 1e-7
    assert distance.min(0).values.max() < 1e-7


def test_arnoldi_of_a_rotation_gives_the_pair():
    angle = 0.3
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    matrix = torch.block_diag(torch.tensor(turn, dtype=torch.float64), 0.5 * torch.eye(60, dtype=torch.float64))
    found = eigs(DenseOperator(matrix), 2, "LM", 1e-10, method="arnoldi", generator=generator())
    expected = torch.polar(torch.ones(2, dtype=torch.float64), torch.tensor([angle, -angle], dtype=torch.float64))
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-9)


def test_non_normal_growth():
    matrix = torch.diag(torch.full((60,), 0.5, dtype=torch.float64)) + torch.diag(torch.full((59,), 3.0), 1).double()
    norm = spectral_norm(DenseOperator(matrix), tol=1e-6, generator=generator())
    assert norm.values[0] == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-5)
    assert abs(norm.values[0] - torch.linalg.matrix_norm(matrix, 2)) <= norm.error_bounds[0]
    abscissa = numerical_abscissa(DenseOperator(matrix), tol=1e-6, generator=generator())
    # Eigenvalues of the path graph: 0.5 + 3 cos(pi / 61).
    assert abscissa.values[0] == pytest.approx(0.5 + 3 * math.cos(math.pi / 61), rel=1e-5)
    assert spectral_norm(DenseOperator(torch.zeros(50, 50))).values[0] == 0


@pytest.mark.parametrize("n", [DENSE, DENSE + 20])
@pytest.mark.parametrize("method", SYMMETRIC_METHODS)
def test_an_operator_that_only_claims_to_be_symmetric_is_found_out(method, n):
    matrix = torch.randn(n, n, dtype=torch.float64, generator=generator())
    op = FunctionOperator(lambda v: matrix @ v, n, symmetric=True, dtype=torch.float64)
    with pytest.raises(ValueError, match=r'must be symmetric.*use method="arnoldi"'):
        eigs(op, method=method, generator=generator())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"k must lie in \[1, 50\].*got 0"),
        ({"k": 51}, r"k must lie in \[1, 50\].*got 51"),
        ({"which": "SR"}, "which must be one of LA, SA, BE, LM; got 'SR'"),
        ({"method": "qr"}, "method must be one of lanczos, block, arnoldi"),
        ({"method": "arnoldi", "which": "BE"}, 'which="BE" needs a symmetric operator'),
        ({"tol": 0.0}, r"tol must lie in \(0, 1\)"),
        ({"max_matvecs": 0}, "max_matvecs must be at least 1"),
        ({"v0": torch.ones(49)}, r"v0 must have shape \(50,\), got \(49,\)"),
        ({"v0": torch.zeros(50)}, "v0 must be finite and not zero"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        eigs(DenseOperator(torch.eye(50)), **arguments)


def test_bad_operators():
    with pytest.raises(ValueError, match="must be square"):
        eigs(DenseOperator(torch.ones(50, 49)))
    with pytest.raises(ValueError, match=r'must be symmetric.*use method="arnoldi"'):
        eigs(DenseOperator(torch.ones(50, 50).triu()))
    broken = FunctionOperator(lambda v: v * math.nan, 50)
    for method in (*SYMMETRIC_METHODS, "arnoldi"):
        with pytest.raises(ValueError, match="not finite"):
            eigs(broken, method=method)
    with pytest.raises(ValueError, match="basis_size must be at least"):
        lanczos(DenseOperator(torch.eye(50)), 5, basis_size=8)
    with pytest.raises(ValueError, match='edge needs which="LA" or "SA"'):
        block_davidson(DenseOperator(torch.eye(50)), which="LM", edge=1.0)


def test_scalar_products_of_long_float32_vectors_do_not_look_like_asymmetry():
    n = 3_000_000
    row = torch.rand(1, n, generator=generator(), dtype=torch.float64) + 0.5
    basis = (row / row.norm()).float()
    w = torch.rand(n, generator=generator(1)) + 0.5
    _, found, _ = orthogonalize(w, basis)
    exact = float(basis[0].double() @ w.double())
    assert abs(found[0] - exact) < 1e-6 * exact


class Counting:
    """An operator, and how often it and its transpose were applied to a vector."""

    def __init__(self, matrix):
        self.count = 0

        def times(m):
            def product(v):
                self.count += 1 if v.ndim == 1 else v.shape[1]
                return m @ v

            return product

        self.op = FunctionOperator(
            times(matrix),
            len(matrix),
            rmatvec=times(matrix.T),
            symmetric=bool((matrix == matrix.T).all()),
            dtype=torch.float64,
        )


@pytest.mark.parametrize("n", [12, 40, 60, 300])
@pytest.mark.parametrize("most", [1, 2, 7, 15, 39, 61])
@pytest.mark.parametrize("method", ["lanczos", "block", "arnoldi"])
def test_no_product_is_taken_beyond_the_limit(n, most, method):
    counting = Counting(with_spectrum(torch.linspace(-1, 1, n)))
    for start in (None, torch.ones(n).double()):
        counting.count = 0
        found = eigs(counting.op, 3, "LA", 1e-9, start, method, generator(), max_matvecs=most)
        assert found.n_matvec == counting.count <= most
        assert len(found.values) <= 3
        assert found.values.real.max() <= 1 + 1e-12


@pytest.mark.parametrize("most", [2, 3, 10, 41])
@pytest.mark.parametrize("measure", [spectral_norm, numerical_abscissa])
def test_products_with_the_transpose_count_too(measure, most):
    for n in (12, 60):
        counting = Counting(torch.randn(n, n, generator=generator(), dtype=torch.float64))
        found = measure(counting.op, generator=generator(), max_matvecs=most)
        assert found.n_matvec == counting.count <= most
    with pytest.raises(ValueError, match="at least 2"):
        measure(counting.op, max_matvecs=1)


@pytest.mark.parametrize(
    ("method", "which"), [("lanczos", "SA"), ("lanczos", "BE"), ("block", "SA"), ("arnoldi", "SA")]
)
def test_a_small_operator_needs_no_more_products_than_columns(method, which):
    matrix = with_spectrum(torch.linspace(-1, 1, 90) ** 3)  # the values in the middle are dense
    counting = Counting(matrix)
    found = eigs(counting.op, 4, which, 1e-12, None, method, generator())
    assert found.n_matvec == counting.count <= 90
    assert found.converged.all()

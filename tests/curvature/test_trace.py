import math

import pytest
import torch

from poise.curvature import DenseOperator, deflated, eigs, hutch_plus_plus, hutchinson, trace, xtrace

METHODS = {"hutchinson": hutchinson, "hutch++": hutch_plus_plus, "xtrace": xtrace}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def decaying(n=120, seed=0):
    """A symmetric matrix with eigenvalues 1 / i^2, some of them negative."""
    values = torch.arange(1, n + 1, dtype=torch.float64) ** -2.0
    values[3::4] *= -1
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator(seed))).Q
    return q * values @ q.T


@pytest.mark.parametrize("method", METHODS)
def test_mean_is_the_trace_and_the_standard_error_its_spread(method):
    matrix = decaying()
    estimates = [trace(DenseOperator(matrix), 24, method, generator=generator(seed)) for seed in range(300)]
    values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
    spread = float(values.std())
    assert abs(float(values.mean()) - float(matrix.trace())) < 4 * spread / math.sqrt(300)
    typical = math.sqrt(sum(e.se**2 for e in estimates) / 300)
    assert 0.6 < typical / spread < 1.4
    assert all(e.n_matvec == 24 for e in estimates)


def test_sketches_beat_signs_where_few_eigenvalues_dominate():
    matrix = decaying()

    def rmse(method):
        errors = [
            trace(DenseOperator(matrix), 30, method, generator=generator(s)).value - matrix.trace() for s in range(60)
        ]
        return float(torch.stack(errors).square().mean().sqrt())

    assert rmse("xtrace") < rmse("hutch++") < rmse("hutchinson")


@pytest.mark.parametrize(("method", "rank"), [("hutch++", 10), ("xtrace", 14)])
def test_exact_where_the_sketch_holds_the_range(method, rank):
    factor = torch.randn(100, rank, dtype=torch.float64, generator=generator())
    matrix = factor @ factor.T
    found = trace(DenseOperator(matrix), 30, method, generator=generator(1))
    assert found.value == pytest.approx(float(matrix.trace()), rel=1e-10)
    assert found.se <= 1e-10 * float(matrix.trace())
    assert found.n_matvec <= 30


def test_zero_has_trace_zero():
    for method in METHODS:
        found = trace(DenseOperator(torch.zeros(50, 50)), 12, method, generator=generator())
        assert (found.value, found.se) == (0.0, 0.0)


def test_signs_are_exact_on_diagonal_matrices():
    matrix = torch.diag(torch.randn(80, dtype=torch.float64, generator=generator()))
    assert hutchinson(DenseOperator(matrix), 2, generator()).value == pytest.approx(float(matrix.trace()), rel=1e-12)


def test_deflation_takes_the_known_part_out_exactly():
    matrix = decaying()
    op = DenseOperator(matrix)
    known = eigs(op, 10, "LM", 1e-8, generator=generator())
    plain, with_known = ([trace(op, 20, deflate=d, method=m, generator=generator(s)).value for s in range(40)]
                         for d, m in ((None, "hutchinson"), (known, "auto")))  # fmt: skip
    truth = float(matrix.trace())
    rough, fine = (max(abs(v - truth) for v in values) for values in (plain, with_known))
    assert fine < rough / 5
    everything = eigs(DenseOperator(matrix[:30, :30]), 30)
    whole = deflated(DenseOperator(matrix[:30, :30]), everything, 3, generator())
    assert whole.value == pytest.approx(float(matrix[:30, :30].trace()), rel=1e-8)


def test_rough_eigenvectors_leave_no_bias():
    matrix = decaying()
    op = DenseOperator(matrix)
    rough = eigs(op, 3, max_matvecs=5, generator=generator())
    assert not rough.converged.all()
    values = torch.tensor([deflated(op, rough, 10, generator(s)).value for s in range(400)])
    assert abs(float(values.mean()) - float(matrix.trace())) < 4 * float(values.std()) / 20


def test_as_many_products_as_columns_are_exact():
    matrix = decaying(20)
    for m in (20, 100):
        found = trace(DenseOperator(matrix), m)
        assert found.value == pytest.approx(float(matrix.trace()), rel=1e-12)
        assert (found.se, found.n_matvec) == (0.0, 20)


def test_same_seed_same_trace():
    op = DenseOperator(decaying())
    for method in METHODS:
        assert trace(op, 12, method, generator=generator(3)) == trace(op, 12, method, generator=generator(3))


def test_one_vector_has_no_standard_error():
    assert trace(DenseOperator(decaying()), 1).se == math.inf


def test_bad_arguments():
    op = DenseOperator(decaying())
    with pytest.raises(ValueError, match="m must be at least 1, got 0"):
        trace(op, 0)
    with pytest.raises(ValueError, match=r"m must be at least 3.*got 2"):
        trace(op, 2, "hutch++")
    with pytest.raises(ValueError, match=r"m must be at least 4.*got 3"):
        trace(op, 3, "xtrace")
    with pytest.raises(ValueError, match="method must be one of auto, hutchinson"):
        trace(op, method="slq")
    with pytest.raises(ValueError, match="deflate belongs to"):
        trace(op, method="deflated")
    with pytest.raises(ValueError, match="must be square"):
        trace(DenseOperator(torch.ones(3, 2)))
    known = eigs(DenseOperator(torch.eye(30)), 2)
    with pytest.raises(ValueError, match="deflate must hold real vectors of 120 entries"):
        trace(op, deflate=known)

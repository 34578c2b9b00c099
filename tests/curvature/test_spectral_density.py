import math

import pytest
import torch

from poise.curvature import DenseOperator, FunctionOperator, spectral_density


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def semicircle(n=200):
    """A symmetric Gaussian matrix whose eigenvalues fill the half circle of radius 2."""
    matrix = torch.randn(n, n, dtype=torch.float64, generator=generator())
    return (matrix + matrix.T) / math.sqrt(2 * n)


def test_weights_sum_to_one_and_moments_are_those_of_the_start_vector():
    matrix = semicircle()
    found = spectral_density(DenseOperator(matrix), 3, 5, generator(1))
    assert found.weights.sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    g = generator(1)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        z = torch.randn(200, dtype=torch.float64, generator=g)
        v = z / z.norm()
        for power in range(10):  # 2 m - 1 and below
            assert float((weights * nodes**power).sum()) == pytest.approx(float(z @ v / z.norm()), rel=1e-9)
            v = matrix @ v
    assert found.n_matvec == 15


def test_density_integrates_to_one_and_follows_the_half_circle():
    found = spectral_density(DenseOperator(semicircle()), 20, 30, generator(1))
    grid = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    density = found.density(grid, sigma=0.2)
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)
    at = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    expected = (4 - at**2).sqrt() / (2 * math.pi)
    assert ((found.density(at, 0.2) - expected).abs() < 5 * found.density_se(at, 0.2) + 0.02).all()


def test_moments_estimate_traces():
    matrix = semicircle() + torch.eye(200, dtype=torch.float64)
    found = spectral_density(DenseOperator(matrix), 40, 10, generator(2))
    for power, truth in ((1, matrix.trace()), (2, (matrix @ matrix).trace())):
        moment = found.moment(power)
        assert abs(200 * moment.value - float(truth)) < 4 * 200 * moment.se


def test_standard_error_is_the_spread_between_runs():
    op = DenseOperator(semicircle())
    at = torch.tensor([0.5], dtype=torch.float64)
    runs = [spectral_density(op, 6, 12, generator(seed)) for seed in range(80)]
    spread = torch.stack([run.density(at, 0.3) for run in runs]).std()
    typical = torch.stack([run.density_se(at, 0.3) for run in runs]).square().mean().sqrt()
    assert 0.7 < float(typical / spread) < 1.3


def test_all_steps_give_all_eigenvalues_and_few_values_end_early():
    values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat_interleave(20)
    op = FunctionOperator(lambda v: values * v, 60, dtype=torch.float64)
    found = spectral_density(op, 2, 30, generator())
    assert found.n_matvec == 6
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        assert nodes[weights > 0].tolist() == pytest.approx([1, 2, 5], abs=1e-9)
    single = spectral_density(DenseOperator(torch.eye(10)), 2, 5, generator())
    assert single.sigma > 0
    assert single.density(torch.tensor([1.0])).isfinite().all()


def test_figure_shows_the_density():
    found = spectral_density(DenseOperator(semicircle()), 4, 20, generator())
    figure = found.figure()
    (series, *_) = [s for s in figure.series() if s.in_legend]
    drawn = [i for i, y in enumerate(series.y) if y == y]
    grid = torch.as_tensor(series.x[drawn].astype(float))
    torch.testing.assert_close(found.density(grid), torch.as_tensor(series.y[drawn].astype(float)))
    assert "eigenvalue" in figure.alt
    spectral_density(DenseOperator(semicircle()), 1, 5, generator()).figure()


def test_one_probe_has_no_standard_error():
    found = spectral_density(DenseOperator(semicircle()), 1, 5, generator())
    assert found.moment(1).se == math.inf
    assert found.density_se(torch.zeros(1)).isinf().all()


def test_bad_arguments():
    op = DenseOperator(semicircle())
    with pytest.raises(ValueError, match="n_probes and m must be at least 1"):
        spectral_density(op, 0)
    with pytest.raises(ValueError, match="must be symmetric"):
        spectral_density(DenseOperator(semicircle().triu()))
    matrix = semicircle().triu()
    with pytest.raises(ValueError, match="must be symmetric"):
        spectral_density(FunctionOperator(lambda v: matrix @ v, 200, dtype=torch.float64))
    with pytest.raises(ValueError, match="sigma must be positive"):
        spectral_density(op, 2, 5, generator()).density(torch.zeros(1), 0.0)

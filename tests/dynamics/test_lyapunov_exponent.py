import math

import pytest
import torch

from poise.dynamics import Map, lyapunov_exponent, lyapunov_of_product

SHORT = {"steps": 100, "burn_in": 20, "repeats": 4}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_equal_examples_and_the_whole_batch_give_the_logarithm_of_the_step():
    lr, lam = 0.3, 8.0
    x = torch.zeros(3, dtype=torch.float64)
    estimate = lyapunov_exponent(Map(lambda w: w - lr * lam * w), x, **SHORT)
    assert estimate.value == pytest.approx(math.log(abs(1 - lr * lam)), abs=1e-12)
    assert estimate.se < 1e-12
    assert estimate.sign == 1


def test_a_fixed_matrix_has_its_spectral_radius():
    a = torch.tensor([[0.5, 3.0], [0.0, -0.8]], dtype=torch.float64)
    estimate = lyapunov_exponent(Map(lambda x: a @ x), torch.ones(2).double(), steps=200, burn_in=60, repeats=2)
    assert estimate.value == pytest.approx(math.log(0.8), abs=1e-3)


def test_the_logistic_map_at_four_has_the_logarithm_of_two():
    x = torch.tensor([0.1234], dtype=torch.float64)
    estimate = lyapunov_exponent(Map(lambda x: 4 * x * (1 - x)), x, steps=500, burn_in=20, repeats=3)
    assert estimate.value == pytest.approx(math.log(2), abs=0.03)


def random_factor(x, generator):
    return x * (0.2 if torch.rand((), generator=generator) < 0.5 else 2.4)


def test_typical_runs_return_where_the_mean_square_explodes():
    # E log = log(0.2 * 2.4) / 2 < 0, while E of the square = (0.04 + 5.76) / 2 > 1.
    exact = math.log(0.2 * 2.4) / 2
    one = torch.ones(1, dtype=torch.float64)
    estimate = lyapunov_exponent(random_factor, 0 * one, steps=150, burn_in=0, repeats=8, generator=seeded())
    assert abs(estimate.value - exact) < 4 * estimate.se
    assert 0 < estimate.se < 0.2
    assert estimate.sign == -1


def test_products_of_many_repeats_at_once():
    def multiply(v, generator):
        factor = torch.where(torch.rand(len(v), 1, generator=generator, dtype=v.dtype) < 0.5, 0.2, 2.4)
        return v * factor

    like = torch.ones(2, dtype=torch.float64)
    first = lyapunov_of_product(multiply, like, repeats=32, generator=seeded(1))
    again = lyapunov_of_product(multiply, like, repeats=32, generator=seeded(1))
    assert first == again != lyapunov_of_product(multiply, like, repeats=32, generator=seeded(2))
    assert abs(first.value - math.log(0.48) / 2) < 4 * first.se


def test_the_scale_of_a_matrix_adds_its_logarithm():
    def gaussian(scale):
        return lambda v, g: scale * torch.einsum("rij,rj->ri", torch.randn(len(v), 3, 3, generator=g, dtype=v.dtype), v)

    like = torch.ones(3, dtype=torch.float64)
    one, three = (lyapunov_of_product(gaussian(s), like, steps=1000, generator=seeded(3)) for s in (1.0, 3.0))
    assert three.value - one.value == pytest.approx(math.log(3), abs=1e-9)
    # Ginibre matrices: the exponent is E log of a chi variable with 3 degrees of freedom.
    exact = 0.5 * (math.log(2) + torch.digamma(torch.tensor(1.5)).item())
    assert abs(one.value - exact) < 4 * one.se + 0.01


def test_a_product_that_vanishes_has_minus_infinity():
    x = torch.zeros(2, dtype=torch.float64)
    estimate = lyapunov_exponent(Map(lambda w: 0 * w), x, **SHORT)
    assert (estimate.value, estimate.sign) == (-math.inf, -1)


@pytest.mark.parametrize("change", [{"steps": 0}, {"burn_in": -1}, {"repeats": 1}])
def test_bad_counts(change):
    with pytest.raises(ValueError, match="steps must be at least 1, burn_in at least 0 and repeats at least 2"):
        lyapunov_exponent(Map(lambda x: x / 2), torch.ones(1).double(), **(SHORT | change))


def test_a_diverging_orbit_is_an_error():
    with pytest.raises(ValueError, match="orbit diverged"):
        lyapunov_exponent(Map(lambda x: x**2 + 1), torch.ones(1).double(), **SHORT)

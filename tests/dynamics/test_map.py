import numpy as np
import pytest
import torch

from poise.dynamics import Map, central_difference

X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
V = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)


def step(x):
    return torch.sin(x) + 0.5 * x.roll(1) ** 2


def by_hand(x, v):
    return torch.cos(x) * v + x.roll(1) * v.roll(1)


def test_jvp_is_the_derivative_also_by_differences():
    torch.testing.assert_close(Map(step).jvp(X, V), by_hand(X, V))
    torch.testing.assert_close(Map(step, central_difference(step)).jvp(X, V), by_hand(X, V), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(Map(step, by_hand).jvp(X, V), by_hand(X, V))


def test_jacobian_and_operator_hold_the_same_matrix():
    map_ = Map(step)
    expected = torch.func.jacrev(step)(X)
    np.testing.assert_allclose(map_.jacobian(X), expected.numpy())
    operator = map_.operator(X)
    torch.testing.assert_close(operator.to_dense(), expected)
    torch.testing.assert_close(operator.rmatvec(V), expected.T @ V)


def test_residual_is_the_step():
    map_ = Map(step)
    torch.testing.assert_close(map_.residual(X), step(X) - X)
    torch.testing.assert_close(map_.residual_jvp(X, V), by_hand(X, V) - V)


def other(x):
    return x**3 - x.flip(0)


@pytest.mark.parametrize("given", [False, True])
def test_composition_does_the_right_one_first(given):
    first = Map(other, central_difference(other)) if given else Map(other)
    both = Map(step) @ first
    torch.testing.assert_close(both(X), step(other(X)))
    torch.testing.assert_close(
        both.jvp(X, V), torch.func.jvp(lambda x: step(other(x)), (X,), (V,))[1], rtol=1e-8, atol=0
    )


def test_growth_rates_are_logarithms_of_absolute_multipliers():
    rates = Map(step).growth_rates(np.array([1.0, -1.0, 1j, 0.5, 0.0]))
    np.testing.assert_allclose(rates, [0, 0, 0, np.log(0.5), -np.inf])


def test_black_boxes_say_what_to_do():
    box = Map(lambda x: torch.from_numpy(np.sin(x.numpy())))
    with pytest.raises(TypeError, match="give jvp, for example central_difference"):
        box.jvp(X, V)
    with pytest.raises(ValueError, match=r"must return the shape it takes, \(3,\); got \(2,\)"):
        Map(lambda x: x[:2])(X)


def test_central_difference_takes_arrays_and_the_zero_direction():
    jvp = central_difference(lambda x: np.sin(x.numpy()))
    torch.testing.assert_close(jvp(X, V), torch.cos(X) * V, rtol=1e-9, atol=1e-9)
    assert torch.equal(jvp(X, torch.zeros_like(X)), torch.zeros_like(X))

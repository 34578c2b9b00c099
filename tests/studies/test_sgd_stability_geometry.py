import numpy as np
import pytest
import torch

from poise.studies import sgd_stability_geometry as study


def small():
    generator = torch.Generator().manual_seed(0)
    net = study.digits_of_two_kinds(10, generator)
    return net, net.initial(generator), generator


def reference(net, theta):
    """The same network from its equation."""
    w, b, a, c = theta.split(net.sizes)
    return (net.x @ w.view(study.WIDTH, -1).T + b).tanh() @ a + c


def test_network_gradient_and_jacobian_are_those_of_autograd():
    net, theta, _ = small()
    error, jacobian = net.residual_and_jacobian(theta[None])
    torch.testing.assert_close(error[0], reference(net, theta) - net.y)
    torch.testing.assert_close(jacobian[0], torch.func.jacrev(lambda t: reference(net, t))(theta))
    weights = torch.rand(1, 10, dtype=torch.float64)
    expected = torch.func.grad(lambda t: (weights[0] * (reference(net, t) - net.y).square()).sum() / 2)(theta)
    torch.testing.assert_close(net.gradient(theta[None], weights)[0], expected)
    assert net.loss(theta[None]).item() == pytest.approx((reference(net, theta) - net.y).square().mean().item() / 2)


def test_data_are_those_of_the_protocol():
    net, _, _ = small()
    torch.testing.assert_close(net.x.norm(dim=1), torch.full((10,), 8.0, dtype=torch.float64))
    assert set(net.y.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("size", "batch_size", "lr"), [(1, 1, 1.0), (3, 1, 6 / 7), (4, 4, 2.0), (12, 1, 12 / 23)])
def test_closed_form_of_the_tight_family(size, batch_size, lr):
    factors = study.groups_of_copies(12, size)
    assert study.SecondMomentOperator(factors, 1.0, batch_size, "bernoulli").critical_lr() == pytest.approx(
        lr, rel=1e-10
    )
    assert study.coherence_of_gram(study.gram_of(factors)).lr_coherence(batch_size) == pytest.approx(lr, rel=1e-10)


def test_random_ensembles_keep_to_the_theorem():
    violations, ratios = study.divergence_violations(40, seed=5)
    assert violations == 0
    assert 0.7 < min(ratios) <= np.median(ratios) < 1.3


def test_training_that_does_not_come_to_rest_is_an_error():
    net, _, generator = small()
    with pytest.raises(RuntimeError, match="in 100 steps, not 1e-20"):
        study.minimum(net, generator, steps=100, lr=1e-6)


@pytest.mark.slow
def test_runs_leave_a_minimum_only_above_its_limit():
    net, _, generator = small()
    at = study.minimum(net, generator, steps=40_000)
    factors = net.residual_and_jacobian(at[None])[1][0][:, None]
    exact = study.SecondMomentOperator(factors, 1.0, 1).critical_lr()
    assert study.escapes(net, at, [0.5 * exact, 4 * exact], 1, 4, 300, generator) == [0, 4]

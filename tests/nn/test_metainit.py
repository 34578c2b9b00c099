import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.nn import gaussian_batches, gradient_quotient, metainit_

from .badly_scaled import accuracy_after_training, deep

EPS = 1e-5
LR = 0.1


def by_hand(g, hg, eps=EPS):
    """The definition, entry by entry."""
    terms = [abs((a - b) / (a + (eps if a >= 0 else -eps)) - 1) for a, b in zip(g.tolist(), hg.tolist(), strict=True)]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("seed", range(3))
def test_quotient_of_a_quadratic_by_hand(seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    a, b = a + a.T, torch.randn(6, dtype=torch.float64, generator=generator)
    x = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True)
    g = a @ x.detach() + b
    found = gradient_quotient(x @ a @ x / 2 + b @ x, [x], EPS)
    assert found.item() == pytest.approx(by_hand(g, a @ g))


def test_quotient_of_linear_regression_by_hand():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, dtype=torch.float64, generator=generator), torch.ones(20, dtype=torch.float64)
    w = torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True)
    g = x.T @ (x @ w.detach() - y) / 20
    assert gradient_quotient((x @ w - y).square().mean() / 2, [w]).item() == pytest.approx(by_hand(g, x.T @ x @ g / 20))


def test_a_linear_loss_has_none_but_that_of_eps_and_an_unused_parameter_counts_as_one():
    x, unused = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = (torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64) * x).sum()
    assert gradient_quotient(loss, [x], 1e-12).item() == pytest.approx(0, abs=1e-11)
    assert gradient_quotient(loss, [x, unused], 1e-12).item() == pytest.approx(0.5, abs=1e-11)


def test_quotient_scales_with_the_loss_and_falls_with_the_square_of_scale_invariant_weights():
    x = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def quotient(scale, factor):
        v = (scale * w).requires_grad_()
        return gradient_quotient(factor * (x @ (v / v.norm()) - x[:, 0]).square().mean(), [v], 1e-14).item()

    assert quotient(1, 7) == pytest.approx(7 * quotient(1, 1), rel=1e-6)  # H g / g is of the order of the loss
    assert quotient(3, 1) == pytest.approx(quotient(1, 1) / 9, rel=1e-6)  # g is of degree -1 and H of degree -2


def test_quotient_can_be_differentiated():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: gradient_quotient((v**4).sum(), [v]), (x,))


def test_one_step_moves_every_norm_by_the_learning_rate_against_the_slope():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    batch = next(gaussian_batches((16, 6), 3))
    batch = batch[0].double(), batch[1]
    report = metainit_(model, F.cross_entropy, batch, lr=0.01, steps=1)

    def quotient(name, change):
        torch.manual_seed(0)
        other = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()
        w = other.get_parameter(name)
        with torch.no_grad():
            w.mul_(1 + change / w.norm())
        return gradient_quotient(F.cross_entropy(other(batch[0]), batch[1]), list(other.parameters())).item()

    for name, (before, after) in report.norms.items():
        slope = quotient(name, 1e-6) - quotient(name, -1e-6)
        assert after - before == pytest.approx(-0.01 if slope > 0 else 0.01)
    assert report.history["gradient quotient"] == [(0, pytest.approx(quotient("0.weight", 0.0)))]


def test_momentum_adds_up_and_a_norm_at_most_halves():
    model = nn.Linear(4, 1, bias=False).double()
    batch = torch.eye(4).double(), 100 * torch.ones(4, 1).double()

    def steep(m, b):
        return (m(b[0]) ** 4).sum()  # steeper the longer: H g / g falls with every norm

    norm = model.weight.norm().item()
    report = metainit_(model, steep, batch, lr=0.01 * norm, momentum=0.5, steps=3)
    assert report.norms["weight"][1] == pytest.approx(norm * (1 - 0.01 - 0.015 - 0.0175))
    norm = model.weight.norm().item()
    assert metainit_(model, steep, batch, lr=10 * norm, steps=2).norms["weight"][1] == pytest.approx(norm / 4)


def test_gaussian_batches_are_seeded_and_endless():
    first, second = (list(itertools.islice(gaussian_batches((5, 2, 3), 4, seed), 3)) for seed in (0, 0))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert first[0][0].shape == (5, 2, 3)
    assert not torch.equal(first[0][0], first[1][0])
    with pytest.raises(ValueError, match="classes must be at least 1"):
        next(gaussian_batches((5, 2), 0))


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "lr"), [(10.0, 0.5), (0.1, 0.03)])
def test_badly_scaled_networks_train_again(scale, lr):
    for seed in range(2):
        assert accuracy_after_training(deep(scale, seed), steps=120, lr=LR) < 0.3
        model = deep(scale, seed)
        report = metainit_(model, nn.CrossEntropyLoss(), gaussian_batches((64, 64), 10), lr=lr, steps=150)
        history = [value for _, value in report.history["gradient quotient"]]
        assert history[-1] < 0.6 * history[0]
        assert accuracy_after_training(model, steps=120, lr=LR) > 0.8


@pytest.mark.parametrize(
    "arguments", [{"lr": 0.0}, {"lr": float("inf")}, {"momentum": 1.0}, {"eps": 0.0}, {"steps": 0}]
)
def test_bad_settings(arguments):
    with pytest.raises(ValueError, match="lr and eps must be positive"):
        metainit_(nn.Linear(2, 2), nn.MSELoss(), (torch.ones(1, 2), torch.ones(1, 2)), **arguments)


def test_without_a_matrix_there_is_nothing_to_tune():
    with pytest.raises(ValueError, match="no trainable tensor of two dimensions"):
        metainit_(nn.LayerNorm(4), nn.MSELoss(), (torch.ones(1, 4), torch.ones(1, 4)))

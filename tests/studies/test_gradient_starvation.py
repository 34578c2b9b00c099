import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD

from poise.studies import gradient_starvation as study


@pytest.mark.slow
def test_descent_comes_to_the_solved_responses():
    solved = np.array([study.solved_toy(strong) for strong in study.STRONG])
    ridge, decoupled = study.descended_toy(4000)
    np.testing.assert_allclose(ridge, solved[:, 0], atol=0.05)
    np.testing.assert_allclose(decoupled, solved[:, 1], atol=0.01)


def test_solved_responses_are_those_of_the_papers_toy():
    np.testing.assert_allclose(study.solved_toy(2.0)[0], [6.1204, 1.6400], atol=1e-3)
    ridge, decoupled = study.solved_toy(6.0)
    np.testing.assert_allclose(ridge, [9.0710, 1.1853], atol=1e-4)
    np.testing.assert_allclose(decoupled, 4.66512041 * np.array([0.75**0.5 + 0.5, 0.75**0.5 - 0.5]), rtol=1e-8)


@pytest.mark.parametrize("margin", [0.1, 0.3])
def test_a_positive_margin_is_a_gap_and_a_negative_one_an_overlap(margin):
    x, y = study.moons(400, margin, seed=0)
    assert (-(x[:, 0] * y) >= margin - 1e-6).all()
    assert set(y.tolist()) == {-1.0, 1.0}
    overlap, labels = study.moons(400, -margin, seed=0)
    assert (-(overlap[:, 0] * labels) < 0).any()
    torch.testing.assert_close(-(overlap[:, 0] * labels) + margin, -(x[:, 0] * y) - margin)


def test_networks_that_are_trained_side_by_side_do_not_feel_each_other():
    x, y = study.stacked_moons(50, 0.1, (3, 4))
    ends = []
    for chosen in ((3, 4), (4,)):
        nets = study.networks((2, 16, 1), chosen)
        optimizer = SGD(nets.parameters(), lr=0.1, momentum=0.9)
        study.train(nets, x[-len(chosen) :], y[-len(chosen) :], study.decoupled(0.1), optimizer, 20)
        ends.append(nets.named_parameters)
    for name, together in ends[0].items():
        torch.testing.assert_close(together[1], ends[1][name][0])


def test_losses_are_their_formulas():
    logits, y = torch.tensor([[0.5, -2.0, 3.0]]), torch.tensor([[1.0, 1.0, -1.0]])
    plain = F.binary_cross_entropy_with_logits(logits, (y + 1) / 2, reduction="none")
    torch.testing.assert_close(study.logistic(logits, y), plain)
    torch.testing.assert_close(study.decoupled(0.1)(logits, y), plain + 0.1 * logits.square().mean())
    torch.testing.assert_close(study.focal(logits, y), (1 - torch.exp(-plain)) ** 2 * plain)
    torch.testing.assert_close(study.smoothed(logits, y), 0.95 * plain + 0.05 * study.logistic(logits, -y))


def test_the_boundary_of_a_linear_network_is_its_line():
    nets = study.networks((2, 1), (0,))
    with torch.no_grad():
        nets.named_parameters["0.weight"].copy_(torch.tensor([[[2.0, 1.0]]]))
        nets.named_parameters["0.bias"].copy_(torch.tensor([[0.5]]))
    heights = np.linspace(-1.2, 1.2, 49)
    np.testing.assert_allclose(study.boundary(nets)[0], -(heights + 0.5) / 2, atol=1e-5)
    with torch.no_grad():
        nets.named_parameters["0.bias"].copy_(torch.tensor([[100.0]]))
    assert np.isnan(study.boundary(nets)).all()


def test_the_bit_agrees_as_often_as_said():
    x, y = study.digits_with_bit(0.98, seed=0)
    assert x.shape == (1797, 65)
    assert (x[:, -1] == y).double().mean().item() == pytest.approx(0.98, abs=4 * math.sqrt(0.98 * 0.02 / 1797))
    x, y = study.digits_with_bit(1.0, seed=0)
    assert torch.equal(x[:, -1], y)

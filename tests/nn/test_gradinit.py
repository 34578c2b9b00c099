import math

import pytest
import torch
from torch import nn

from poise.nn import gradinit_adam_, gradinit_sgd_

from .badly_scaled import accuracy_after_training, deep, digits

LR = 0.05


class Scalar(nn.Module):
    """f(x) = w x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def forward(self, x):
        return self.w * x


def half_square(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().mean()


def points(x, y):
    return torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)


def test_first_loss_and_norm_by_hand_with_half_of_the_examples_in_common():
    # L = (w x - y)^2 / 2 at three single points; the gradient is the mean of the first two, the loss of 1 and 3.
    model, eta = Scalar(2.0), 0.1
    a, b, c = points(1.0, 1.0), points(2.0, 0.0), points(0.5, 3.0)
    g = (1 * (2 - 1) + 2 * (4 - 0)) / 2
    moved = 2 - eta * g
    expected = (0.5 * (moved - 1) ** 2 + 0.5 * (0.5 * moved - 3) ** 2) / 2
    report = gradinit_sgd_(model, half_square, [a, b, c], step_size=eta, gamma=10, lr=1e-3, steps=1)
    assert report.history == {
        "loss after one step": [(0, pytest.approx(expected))],
        "norm of the gradient": [(0, pytest.approx(g))],
    }
    other = gradinit_adam_(Scalar(2.0), half_square, [a, b, c], step_size=eta, steps=1)
    expected = (0.5 * (1.9 - 1) ** 2 + 0.5 * (0.5 * 1.9 - 3) ** 2) / 2
    assert other.history["loss after one step"] == [(0, pytest.approx(expected))]


@pytest.mark.parametrize(
    ("initialise", "best"),
    [(gradinit_sgd_, 1.0), (gradinit_adam_, 1.1)],  # SGD stands still at the minimum; Adam's step of 0.1 ends there
)
def test_optimum_of_one_weight_is_where_a_step_ends_in_the_minimum(initialise, best):
    model = Scalar(2.0)
    initialise(model, half_square, points(1.0, 1.0), step_size=0.1, gamma=math.inf, lr=0.01, steps=300)
    assert model.w.item() == pytest.approx(best, abs=0.02)


def test_differentiates_through_the_step():
    # With step size 1 / curvature one step solves it from anywhere: the loss does not depend on the factor.
    model = Scalar(2.0)
    report = gradinit_sgd_(model, half_square, points(1.0, 1.0), step_size=1.0, gamma=math.inf, steps=5)
    assert model.w.item() == pytest.approx(2.0)
    assert max(value for _, value in report.history["loss after one step"]) < 1e-12


def test_the_norm_is_brought_under_its_bound_first():
    model = Scalar(5.0)  # gradient w x^2 = 5
    report = gradinit_sgd_(model, half_square, points(1.0, 0.0), step_size=0.01, gamma=3.0, lr=0.02, steps=100)
    norms = [value for _, value in report.history["norm of the gradient"]]
    first = report.history["loss after one step"][0][0]
    assert norms[0] == pytest.approx(5)
    assert all(norm > 3 for norm in norms[:first])
    assert norms[first] <= 3
    assert 0 < first < 100


def test_factors_stay_above_their_least():
    model = Scalar(1.0)
    report = gradinit_sgd_(model, half_square, points(1.0, 0.0), step_size=0.1, lr=0.5, steps=20, min_scale=0.2)
    assert report.norms["w"] == pytest.approx((1.0, 0.2))


@pytest.mark.slow
def test_networks_that_are_ten_times_too_large_train_again():
    halves = list(zip(*(part.split(32) for part in digits()), strict=True))[:-1]
    for seed in range(2):
        assert accuracy_after_training(deep(10.0, seed), steps=120, lr=LR) < 0.3
        model = deep(10.0, seed)
        report = gradinit_sgd_(model, nn.CrossEntropyLoss(), halves, lr=0.03, steps=200)
        assert report.history["loss after one step"][-1][1] < 2.303
        assert accuracy_after_training(model, steps=120, lr=LR) > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"gamma": math.nan}, "gamma must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"min_scale": 0.0}, "min_scale must lie in"),
        ({"min_scale": 1.5}, "min_scale must lie in"),
    ],
)
@pytest.mark.parametrize("initialise", [gradinit_sgd_, gradinit_adam_])
def test_bad_settings(initialise, arguments, message):
    with pytest.raises(ValueError, match=message):
        initialise(Scalar(1.0), half_square, points(1.0, 1.0), **arguments)

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from poise.dynamics import distance_to_edge, edge, momentum_edge, nesterov_edge, sam_edge, sam_normalized

LR = st.floats(1e-4, 10.0)
MOMENTUM = st.floats(0.0, 0.99)


def radius_after_training(make, sharpness, steps=400):
    """Growth per step of torch's own optimizer on sharpness * w^2 / 2, late in the run."""
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = make([w])
    sizes = []
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * sharpness * w**2).sum().backward()
        optimizer.step()
        sizes.append(abs(w.item()))
    return (max(sizes[-20:]) / max(sizes[steps // 2 : steps // 2 + 20])) ** (1 / (steps / 2 - 20))


SGDS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.9},
    {"lr": 0.3, "momentum": 0.9, "nesterov": True},
    {"lr": 0.3, "momentum": 0.5, "nesterov": True, "weight_decay": 0.5},
    {"lr": 0.1, "weight_decay": 1.5},
    {"lr": 0.1, "dampening": 0.5},
]


@pytest.mark.parametrize("settings", SGDS)
def test_torch_sgd_shrinks_just_below_its_edge_and_grows_just_above(settings):
    def make(params):
        return torch.optim.SGD(params, **settings)

    threshold = edge(make([nn.Parameter(torch.zeros(1))]))
    assert radius_after_training(make, 0.98 * threshold) < 1 < radius_after_training(make, 1.02 * threshold)


def test_values_of_the_literature():
    assert momentum_edge(0.1) == pytest.approx(20)
    assert momentum_edge(1.0, 0.9) == pytest.approx(3.8)
    assert momentum_edge(1.0, 0.9, dampening=0.9) == pytest.approx(38)
    assert nesterov_edge(0.1, 0.9) == pytest.approx(13.5714, abs=1e-4)
    params = [nn.Parameter(torch.zeros(2))]
    assert edge(torch.optim.Adam(params, lr=0.01)) == pytest.approx(3800)
    assert edge(torch.optim.RMSprop(params, lr=0.01)) == pytest.approx(200)
    assert edge(torch.optim.RMSprop(params, lr=0.01, momentum=0.9)) == pytest.approx(380)


@given(LR, MOMENTUM, st.floats(-1.0, 0.99), st.floats(0.0, 0.1))
def test_at_the_edge_the_step_matrix_has_the_eigenvalue_minus_one(lr, beta, dampening, decay):
    lam = momentum_edge(lr, beta, dampening, decay)
    kept = 1 - lr * decay
    step = torch.tensor(
        [[kept - lr * (1 - dampening) * lam, -lr * beta], [(1 - dampening) * lam, beta]], dtype=torch.float64
    )
    scale = 1 + step.abs().max().item() ** 2
    assert torch.linalg.det(step + torch.eye(2, dtype=torch.float64)).item() / scale == pytest.approx(0, abs=1e-9)


@given(LR, MOMENTUM, st.floats(0.0, 0.1))
def test_at_the_nesterov_edge_too(lr, beta, decay):
    lam = nesterov_edge(lr, beta, decay)
    step = torch.tensor([[1 - lr * decay - lr * (1 + beta) * lam, -lr * beta**2], [lam, beta]], dtype=torch.float64)
    scale = 1 + step.abs().max().item() ** 2
    assert torch.linalg.det(step + torch.eye(2, dtype=torch.float64)).item() / scale == pytest.approx(0, abs=1e-9)


def test_adamw_decay_is_decoupled_and_adam_decay_is_not():
    params = [nn.Parameter(torch.zeros(1))]
    assert edge(torch.optim.Adam(params, lr=0.1, weight_decay=0.5)) == edge(torch.optim.Adam(params, lr=0.1))
    assert edge(torch.optim.AdamW(params, lr=0.1, weight_decay=0.5)) == pytest.approx((2 - 0.05) * 1.9 / (0.1 * 0.1))


def test_adagrads_rate_falls_with_its_steps():
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adagrad([w], lr=0.1, lr_decay=0.5)
    assert edge(optimizer) == pytest.approx(20)
    for _ in range(4):
        w.grad = torch.ones(1)
        optimizer.step()
    assert edge(optimizer) == pytest.approx(20 * (1 + 4 * 0.5))


def test_several_groups_give_the_smallest_edge():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.4}], lr=0.1)
    assert edge(optimizer) == pytest.approx(5)


@given(LR, st.floats(0.0, 10.0), MOMENTUM)
def test_sam_edge_solves_its_equation(lr, rho, momentum):
    lam = sam_edge(lr, rho, momentum=momentum)
    assert sam_normalized(lam, lr, rho) == pytest.approx(2 * (1 + momentum), rel=1e-12)
    assert lam <= momentum_edge(lr, momentum) * (1 + 1e-12)


@given(LR, st.floats(1e-3, 1.0), st.floats(1e-3, 100.0))
def test_normalised_sam_has_the_published_edge(lr, rho, norm):
    expected = norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (lr * norm)) - 1)
    assert sam_edge(lr, rho, norm) == pytest.approx(expected, rel=1e-9)


def test_sam_edge_at_the_cards_values_and_limits():
    assert sam_edge(0.3, 0.0) == 2 / 0.3
    assert sam_edge(0.3, 0.3) == pytest.approx(10 / 3)
    assert sam_edge(0.2, 0.2) == pytest.approx(5)
    assert sam_edge(1e-6, 1e3) == pytest.approx(math.sqrt(2 / (1e-6 * 1e3)), rel=1e-3)
    assert sam_edge(0.1, 1e-14) == pytest.approx(20, rel=1e-12)


def test_sam_on_a_parabola_neither_grows_nor_shrinks_at_its_edge():
    lr, rho = 0.3, 0.2
    for factor, outcome in ((1.0, 1.0), (1.01, 2.0)):
        lam, w = factor * sam_edge(lr, rho), 1.0
        for _ in range(200):
            w -= lr * lam * (w + rho * lam * w)
        assert abs(w) == pytest.approx(1.0, rel=1e-9) if outcome == 1.0 else abs(w) > outcome


class Sam(torch.optim.Optimizer):
    """Stands for any wrapper that shares the groups of what it wraps and puts rho into them."""

    def __init__(self, optimizer, rho, normalize):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.normalize, self.adaptive = normalize, False
        for group in self.param_groups:
            group["rho"] = rho


def test_edge_reads_sam_from_the_groups():
    params = [nn.Parameter(torch.zeros(1))]
    plain = Sam(torch.optim.SGD(params, lr=0.2, momentum=0.5), 0.2, normalize=False)
    assert edge(plain) == pytest.approx(sam_edge(0.2, 0.2, momentum=0.5))
    normalised = Sam(torch.optim.SGD(params, lr=0.2), 0.2, normalize=True)
    assert edge(normalised, grad_norm=3.0) == pytest.approx(sam_edge(0.2, 0.2, 3.0))
    with pytest.raises(ValueError, match="grad_norm is needed"):
        edge(normalised)


def test_distance_says_on_which_side_and_how_sure():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    below = distance_to_edge(optimizer, 10.0, error_bound=1.0)
    assert (below.ratio, below.low, below.high) == pytest.approx((0.5, 0.45, 0.55))
    assert below.where == "below"
    assert below.max_stable_lr(0.1) == pytest.approx(2 / 10)
    assert distance_to_edge(optimizer, 18.0, error_bound=2.0).where == "at"
    assert distance_to_edge(optimizer, 20.5).where == "at"
    assert distance_to_edge(optimizer, 40.0, error_bound=1.0).where == "above"
    assert distance_to_edge(optimizer, -1.0).max_stable_lr(0.1) == math.inf


def test_unknown_optimizers_are_refused_by_name():
    params = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(TypeError, match=r"exactly one of SGD, Adam.*got NAdam"):
        edge(torch.optim.NAdam(params))

    class Mine(torch.optim.SGD):
        """Could step in any way."""

    with pytest.raises(TypeError, match="got Mine"):
        edge(Mine(params, lr=0.1))
    with pytest.raises(ValueError, match="maximize"):
        edge(torch.optim.SGD(params, lr=0.1, maximize=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: momentum_edge(0.0), "lr must be positive"),
        (lambda: momentum_edge(math.nan), "lr must be positive"),
        (lambda: momentum_edge(0.1, 1.0), "momentum must lie in"),
        (lambda: momentum_edge(0.1, 0.9, dampening=1.0), "dampening must be below 1"),
        (lambda: nesterov_edge(0.1, 0.9, weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: sam_edge(-0.1, 0.1), "lr must be positive"),
        (lambda: sam_edge(0.1, -0.1), "rho must be at least 0"),
        (lambda: sam_edge(0.1, 0.1, grad_norm=0.0), "grad_norm must be positive"),
        (lambda: distance_to_edge(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), math.nan), "finite"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()

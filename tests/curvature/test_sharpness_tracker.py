import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from poise.curvature import FlatParameters, Hessian, Preconditioned, SharpnessTracker, l2_penalty, preconditioner
from poise.data import load_digits
from poise.nn.mlp import mlp


def digits(n=200):
    data = load_digits()
    return data.inputs[:n] / data.inputs.max(), data.targets[:n]


def problem(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = mlp((4, 7, 3)).to(dtype)
    return model, (torch.randn(20, 4, dtype=dtype), torch.randint(0, 3, (20,)))


def train(model, optimizer, batch, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()


CE = nn.CrossEntropyLoss()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}),
        (Adam, {"lr": 0.01, "amsgrad": True}),
        (AdamW, {"lr": 0.01, "weight_decay": 0.3}),
        (RMSprop, {"lr": 0.01}),
        (RMSprop, {"lr": 0.01, "centered": True, "eps": 1e-2}),
        (Adagrad, {"lr": 0.01, "lr_decay": 0.0, "eps": 1e-4}),
    ],
)
def test_preconditioner_is_what_the_optimizer_divides_by(kind, settings):
    """After steps, a new gradient that changes no average: the step from a fresh buffer is lr * (share of g) / P."""
    model, batch = problem()
    optimizer = kind(model.parameters(), **settings)
    train(model, optimizer, batch, 5)
    found = preconditioner(optimizer, FlatParameters(model))
    expected = []
    for p in model.parameters():
        s = optimizer.state[p]
        if kind in (Adam, AdamW):
            beta1, beta2 = optimizer.defaults["betas"]
            t = int(s["step"])
            v = s["max_exp_avg_sq"] if settings.get("amsgrad") else s["exp_avg_sq"]
            root = (v / (1 - beta2**t)) ** 0.5 + optimizer.defaults["eps"]
            expected.append((1 - beta1**t) * root)
        elif kind is RMSprop:
            v = s["square_avg"] - (s["grad_avg"] ** 2 if settings.get("centered") else 0)
            expected.append(v**0.5 + optimizer.defaults["eps"])
        else:
            expected.append(s["sum"] ** 0.5 + settings["eps"])
    torch.testing.assert_close(found, torch.cat([e.flatten() for e in expected]))


def test_adam_moves_by_its_momentum_over_the_preconditioner():
    model, batch = problem()
    optimizer = Adam(model.parameters(), lr=0.01, betas=(0.9, 0.9))
    train(model, optimizer, batch, 3)
    before = FlatParameters(model).vector()
    train(model, optimizer, batch, 1)
    flat = FlatParameters(model)
    momentum = flat.join([optimizer.state[p]["exp_avg"] for p in flat.tensors])
    torch.testing.assert_close(flat.vector(), before - 0.01 * momentum / preconditioner(optimizer, flat))


def test_preconditioned_operator_has_the_spectrum_of_the_quotient():
    model, batch = problem()
    optimizer = Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    train(model, optimizer, batch, 3)
    hessian = Hessian(model, CE, batch)
    p = preconditioner(optimizer, hessian.flat)
    penalty = l2_penalty(optimizer, hessian.flat)
    operator = Preconditioned(hessian, p.rsqrt(), penalty)
    dense = operator.to_dense()
    torch.testing.assert_close(dense, dense.T)
    torch.testing.assert_close(operator.matvec(p), dense @ p)
    quotient = torch.linalg.eigvals((hessian.to_dense() + 0.1 * torch.eye(len(p))) / p[:, None])
    torch.testing.assert_close(quotient.real.sort().values, torch.linalg.eigvalsh(dense), rtol=1e-6, atol=1e-6)


def test_decoupled_decay_and_that_of_sgd_add_no_curvature():
    model, _ = problem()
    flat = FlatParameters(model)
    for optimizer in (
        AdamW(model.parameters(), weight_decay=0.1),
        SGD(model.parameters(), lr=0.1, weight_decay=0.1),
        Adam(model.parameters()),
    ):
        assert l2_penalty(optimizer, flat) is None


def test_what_the_optimizer_does_not_move_has_no_curvature_for_it():
    model, batch = problem()
    optimizer = Adam(model[2].parameters(), lr=0.01)
    train(model, optimizer, batch, 2)
    hessian = Hessian(model, CE, batch)
    dense = Preconditioned(hessian, preconditioner(optimizer, hessian.flat).rsqrt()).to_dense()
    assert dense[:35].abs().max() == 0
    assert dense[35:, 35:].abs().max() > 0


def test_wrappers_are_looked_through():
    model, batch = problem()
    optimizer = Adam(model.parameters(), lr=0.01)
    train(model, optimizer, batch, 2)

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.optimizer = inner

    flat = FlatParameters(model)
    assert torch.equal(preconditioner(Wrapper(optimizer), flat), preconditioner(optimizer, flat))


def test_bad_preconditioning():
    model, batch = problem()
    flat = FlatParameters(model)
    with pytest.raises(ValueError, match="has moved none of the parameters yet"):
        preconditioner(Adam(model.parameters()), flat)
    with pytest.raises(TypeError, match=r"one of Adam.*got Rprop"):
        preconditioner(torch.optim.Rprop(model.parameters()), flat)
    hessian = Hessian(model, CE, batch)
    n = hessian.shape[0]
    with pytest.raises(ValueError, match="diag_inv_sqrt must have shape"):
        Preconditioned(hessian, torch.ones(3))
    with pytest.raises(ValueError, match="finite and not negative"):
        Preconditioned(hessian, -torch.ones(n))
    with pytest.raises(ValueError, match="penalty must be finite"):
        Preconditioned(hessian, torch.ones(n), torch.full((n,), math.inf))


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.2, 0.8])
def test_tracking_is_right_and_takes_at_most_three_products_a_step(lr):
    torch.manual_seed(0)
    model, batch = mlp((64, 32, 10)), digits()
    optimizer = SGD(model.parameters(), lr=lr)
    tracker = SharpnessTracker(threshold=lambda o: 2 / o.param_groups[0]["lr"])
    products = []
    for step in range(60):
        now = tracker.update(model, CE, batch, optimizer)
        products.append(now.n_matvec)
        assert now.ratio == pytest.approx(now.sharpness * lr / 2)
        if step % 6 == 0:
            fresh = SharpnessTracker(tol=1e-5).update(model, CE, batch)
            assert abs(now.sharpness - fresh.sharpness) <= 1e-3 * fresh.sharpness
            assert fresh.threshold is None
        train(model, optimizer, batch, 1)
    warm = [n for i, n in enumerate(products) if i % (tracker.refresh + 1)]
    assert sum(warm) / len(warm) <= 3
    assert products[0] > 3


def test_preconditioned_tracking_against_the_dense_spectrum():
    model, batch = problem(dtype=torch.float32)
    optimizer = Adam(model.parameters(), lr=0.01, weight_decay=0.05)
    tracker = SharpnessTracker(k=2, precondition="optimizer")
    for _ in range(6):
        train(model, optimizer, batch, 1)
        now = tracker.update(model, nn.CrossEntropyLoss(), batch, optimizer)
        hessian = Hessian(copy.deepcopy(model).double(), CE, (batch[0].double(), batch[1]))
        p = preconditioner(optimizer, FlatParameters(model)).double()
        dense = hessian.to_dense() + 0.05 * torch.eye(len(p), dtype=torch.float64)
        exact = torch.linalg.eigvalsh(dense / (p[:, None] * p).sqrt()).flip(0)[:2]
        torch.testing.assert_close(now.eigen.values, exact, rtol=2e-3, atol=0.0)
        assert now.sharpness == pytest.approx(float(exact[0]), rel=1e-3)


def test_tracking_leaves_the_random_numbers_of_the_run_alone():
    model, batch = problem()
    optimizer = SGD(model.parameters(), lr=0.1)
    tracker = SharpnessTracker()
    state = torch.get_rng_state()
    for _ in range(2):
        tracker.update(model, CE, batch, optimizer)
        train(model, optimizer, batch, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_model_starts_cold():
    model, batch = problem()
    tracker = SharpnessTracker(tol=1e-6)
    tracker.update(model, CE, batch)
    other = nn.Linear(4, 3).double()
    exact = torch.linalg.eigvalsh(Hessian(other, CE, batch).to_dense())[-1]
    assert tracker.update(other, CE, batch).sharpness == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"tol": 0.0}, "tol must lie in"),
        ({"refresh": 0}, "refresh must be at least 1"),
        ({"precondition": "adam"}, "precondition must be None or 'optimizer'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SharpnessTracker(**settings)


def test_a_threshold_needs_the_optimizer():
    model, batch = problem()
    with pytest.raises(ValueError, match="optimizer is needed"):
        SharpnessTracker(threshold=lambda o: 1.0).update(model, CE, batch)

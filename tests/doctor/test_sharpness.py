"""The sharpness of a live run against dense Hessians, and when the probe keeps its hands off."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.live_curvature import PRODUCTS, LiveCurvature
from poise.doctor.probes import SharpnessProbe
from poise.dynamics import edge

EIGENVALUES = torch.tensor([9.0, 4.0, 1.0, 0.5, -2.0], dtype=torch.float64)


def symmetric(eigenvalues=EIGENVALUES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    return basis @ torch.diag(eigenvalues) @ basis.T


class Quadratic(nn.Module):
    """0.5 w'Aw, whose Hessian is A everywhere."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix
        self.w = nn.Parameter(torch.ones(5, dtype=torch.float64))

    def forward(self):
        return 0.5 * self.w @ self.matrix @ self.w


def descend(optimizer_of, steps=30, loss_of=lambda model: model(), before_step=lambda model: None, parts=1):
    model = Quadratic(symmetric())
    optimizer = optimizer_of(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(parts):
            (loss_of(model) / parts).backward()
        before_step(model)
        optimizer.step()
    return model, optimizer


def sgd(parameters, lr=0.01):
    return torch.optim.SGD(parameters, lr=lr)


def test_a_quadratic_has_the_sharpness_of_its_matrix_and_the_edge_of_its_optimizer(watching):
    with watching() as watched:
        descend(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5))
    sharpness, at = watched["sharpness"], watched["edge"].values
    assert sharpness.values[-1] == pytest.approx(9.0, rel=0.01)
    assert (sharpness.values <= 9.0 * (1 + 1e-9)).all()  # a Ritz value is never above the top
    assert at == pytest.approx([2 * 1.5 / 0.01] * len(at))
    assert watched["edge_ratio"].values == pytest.approx(sharpness.values / at)
    assert len(sharpness.steps) >= 6
    assert sharpness.steps[0] == 1  # what the model is, the first step shows


def test_measurements_become_rarer_and_take_at_most_three_products(watching):
    with watching(probes=[SharpnessProbe]) as watched:
        descend(sgd, steps=60)
    steps = watched["sharpness"].steps
    assert (steps[1:] >= 1.25 * steps[:-1] + 1).all()
    model = Quadratic(symmetric())
    curvature, optimizer = LiveCurvature(), sgd(model.parameters())
    taken = [curvature.measure(model(), [model.w], optimizer).n_matvec for _ in range(6)]
    assert max(taken) <= PRODUCTS
    assert taken[-1] == 1  # the eigenvector is known by then
    assert model.w.grad is None


def test_adam_is_judged_by_its_preconditioned_hessian(watching):
    steps = 20
    with watching() as watched:
        model, optimizer = descend(lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1), steps)
    state, (beta1, beta2) = optimizer.state[model.w], (0.9, 0.999)
    last = int(watched["sharpness"].steps[-1])
    with watching():  # the moments as they were before the last measured step
        model, optimizer = descend(lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1), last)
    state = optimizer.state[model.w]
    v = state["exp_avg_sq"] / (1 - beta2**last)
    p = (1 - beta1**last) * (v.sqrt() + 1e-8)
    dense = torch.linalg.eigvalsh(symmetric() / (p[:, None] * p).sqrt())[-1]
    assert watched["sharpness"].values[-1] == pytest.approx(float(dense), rel=0.02)
    assert watched["sharpness"].values[-1] <= float(dense) * (1 + 1e-9)
    assert watched["edge"].values[-1] == pytest.approx(edge(optimizer))


def test_gradient_accumulation_and_clipping_count(watching):
    with watching() as plain:
        descend(sgd)
    with watching() as parts:
        descend(sgd, parts=4)
    assert parts["sharpness"].values == pytest.approx(plain["sharpness"].values)
    norms = []
    with watching() as clipped:
        descend(sgd, before_step=lambda model: norms.append(float(nn.utils.clip_grad_norm_([model.w], 0.5))))
    expected = [200 * max(1.0, norms[step] / 0.5) for step in clipped["edge"].steps]
    assert clipped["edge"].values == pytest.approx(expected, rel=1e-6)
    assert expected[0] > 400


def test_a_scaled_loss_has_the_sharpness_of_the_loss(watching):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def scaled(model):
        return scaler.scale(model())

    with watching() as watched:
        model = Quadratic(symmetric())
        optimizer = sgd(model.parameters())
        for _ in range(6):
            optimizer.zero_grad()
            scaled(model).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watched["sharpness"].values[-1] == pytest.approx(9.0, rel=1e-3)


def test_a_remedy_that_changes_the_rate_changes_the_edge(watching):
    from poise.doctor.remedies import parse_remedy

    with watching(remedies=[parse_remedy("lr_scale=0.25")]) as watched:
        descend(sgd)
    assert watched["edge"].values == pytest.approx([800.0] * len(watched["edge"].values))


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


def hooked(model):
    loss = model()
    loss.register_hook(lambda gradient: gradient)
    return loss


@pytest.mark.parametrize(
    ("loss_of", "optimizer_of", "reason"),
    [
        (lambda model: OnceDifferentiable.apply(model.w) ** 2, sgd, "once_differentiable"),
        (hooked, sgd, "hooks of the script"),
        (lambda model: model(), lambda p: torch.optim.Rprop(p), "Rprop"),
    ],
)
def test_where_it_cannot_measure_it_says_so_once(loss_of, optimizer_of, reason, watching):
    with watching() as watched:
        descend(optimizer_of, loss_of=loss_of)
    (event,) = watched.record.events("sharpness_off")
    assert reason in event.payload["reason"]
    assert "sharpness" not in watched.record
    assert watched.tap.fault is None
    assert len(watched["loss"]) == 30


def test_gradients_that_the_script_keeps_are_its_own(watching):
    def kept(model):
        loss = model()
        loss.retain_grad()
        seen.append(loss)
        return loss

    seen = []
    with watching():
        descend(sgd, loss_of=kept)
    assert {float(loss.grad) for loss in seen} == {1.0}


def test_hooks_of_modules_are_not_called_once_more(watching):
    calls = []
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[1].register_full_backward_hook(lambda *_: calls.append(1))
    optimizer = sgd(model.parameters())
    with watching() as watched:
        for _ in range(10):
            F.cross_entropy(model(torch.randn(8, 3)), torch.randint(2, (8,))).backward()
            optimizer.step()
    assert len(calls) == 10
    assert len(watched.record.events("sharpness_off")) == 1


def test_competing_networks_are_left_alone(watching):
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizers = [sgd(first.parameters()), sgd(second.parameters())]
    with watching() as watched:
        for _ in range(10):
            for model, optimizer in zip((first, second), optimizers, strict=True):
                optimizer.zero_grad()
                model(torch.ones(3, 2)).square().mean().backward()
                optimizer.step()
    assert "several optimizers" in watched.record.events("sharpness_off")[0].payload["reason"]


def test_a_tight_budget_leaves_it_out(watching, monkeypatch):
    monkeypatch.setattr("poise.doctor.probes.sharpness._FRACTION", 1e-9)
    with watching() as watched:
        descend(sgd)
    assert "sharpness" not in watched.record
    assert watched.record.events("sharpness_off") == []


def test_checkpointed_layers_are_run_again_without_a_trace(watching):
    from torch.utils.checkpoint import checkpoint

    def train():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh())
        model = nn.ModuleList([inner, nn.Linear(4, 2)])
        optimizer = sgd(model.parameters(), 0.1)
        for _ in range(12):
            x, y = torch.randn(8, 4), torch.randint(2, (8,))
            optimizer.zero_grad()
            F.cross_entropy(model[1](checkpoint(inner, x, use_reentrant=False)), y).backward()
            optimizer.step()
        return {**model.state_dict(), "random": torch.rand(2)}

    bare = train()
    with watching() as watched:
        seen = train()
    assert watched.tap.fault is None
    assert "sharpness" in watched.record
    assert all(torch.equal(bare[name], seen[name]) for name in bare)

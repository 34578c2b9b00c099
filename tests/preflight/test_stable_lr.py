import math

import pytest
import torch
from torch import nn

from poise.dynamics import edge
from poise.preflight import stable_lr
from poise.report.words import number


class Quadratic(nn.Module):
    """A point whose loss is half of x' A x."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(x.clone())


def half_quadratic(model, a):
    return 0.5 * model.x @ a @ model.x


def matrix(n=60, seed=0, shift=0.0):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (a + a.T) / 2 + shift * torch.eye(n, dtype=torch.float64)


def positive(n=60):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return a @ a.T / n


def digits_like(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def net(seed=0, *middle):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), *middle, nn.ReLU(), nn.Linear(16, 3))


def dense_hessian(model, batch, criterion):
    names, values = zip(*model.named_parameters(), strict=True)
    sizes = [v.numel() for v in values]

    def loss(flat):
        parts = [p.view_as(v) for p, v in zip(flat.split(sizes), values, strict=True)]
        return criterion(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), batch[0]), batch[1])

    flat = torch.cat([v.detach().reshape(-1) for v in values])
    return torch.func.hessian(loss)(flat), torch.func.grad(loss)(flat)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_limit_is_where_descent_on_a_quadratic_begins_to_diverge(momentum):
    a = positive()
    found = stable_lr(Quadratic(torch.ones(60, dtype=torch.float64)), half_quadratic, a, momentum=momentum)
    top = torch.linalg.eigvalsh(a)[-1].item()
    assert found.lambda1 == pytest.approx(top, rel=1e-2)
    assert abs(found.lambda1 - top) <= found.error_bound
    assert found.threshold_lr * found.lambda1 == pytest.approx(2 * (1 + momentum))
    assert found.n_matvec > 0
    for factor, stable in ((0.97, True), (1.03, False)):
        x = Quadratic(torch.ones(60, dtype=torch.float64))
        optimizer = torch.optim.SGD(x.parameters(), factor * 2 * (1 + momentum) / top, momentum=momentum)
        for _ in range(600):
            optimizer.zero_grad()
            half_quadratic(x, a).backward()
            optimizer.step()
        assert (x.x.norm() < 1) == stable


def test_largest_algebraic_eigenvalue_counts_not_the_largest_modulus():
    a = matrix(shift=-15.0)  # all eigenvalues of this one lie between about -26 and -4
    found = stable_lr(Quadratic(torch.ones(60, dtype=torch.float64)), half_quadratic, a)
    assert found.lambda1 == pytest.approx(torch.linalg.eigvalsh(a)[-1].item(), rel=0.02)
    assert found.threshold_lr == math.inf
    assert "locally concave" in found.advice
    b = matrix(shift=-5.0)
    values = torch.linalg.eigvalsh(b)
    assert -values[0] > values[-1] > 0
    assert stable_lr(Quadratic(torch.ones(60, dtype=torch.float64)), half_quadratic, b).lambda1 == pytest.approx(
        values[-1].item(), rel=1e-2
    )


@pytest.mark.parametrize("n", [2, 30, 200])
def test_a_saddle_is_said_with_its_negative_curvature(n):
    values = torch.linspace(0.5, 4.0, n, dtype=torch.float64)
    values[0] = -10.0
    q = torch.linalg.qr(matrix(n)).Q
    found = stable_lr(Quadratic(torch.ones(n, dtype=torch.float64)), half_quadratic, q * values @ q.T)
    assert found.threshold_lr == pytest.approx(2 / 4.0, rel=1e-2)
    assert found.negative_curvature == pytest.approx(-10.0, rel=0.05)
    assert "saddle" in found.advice
    assert f"curvature is {number(found.negative_curvature)}," in found.advice
    upwards = stable_lr(Quadratic(torch.ones(n, dtype=torch.float64)), half_quadratic, q * values.abs() @ q.T)
    assert upwards.negative_curvature == 0
    assert "saddle" not in upwards.advice


def test_negative_curvature_is_one_that_the_loss_has():
    x, y = digits_like()
    model = net().double()
    found = stable_lr(model, nn.CrossEntropyLoss(), (x.double(), y))
    hessian, _ = dense_hessian(model, (x.double(), y), nn.CrossEntropyLoss())
    least = torch.linalg.eigvalsh(hessian)[0].item()
    assert least * (1 + 1e-9) <= found.negative_curvature < 0.5 * least


def test_softmax_regression_at_zero_has_its_closed_form():
    x, y = (t.double() if t.is_floating_point() else t for t in digits_like())
    model = nn.Linear(8, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    closed = torch.kron(torch.eye(3, dtype=torch.float64) / 3 - 1 / 9, x.T @ x / 64)
    assert stable_lr(model, nn.CrossEntropyLoss(), (x, y)).lambda1 == pytest.approx(
        torch.linalg.eigvalsh(closed)[-1].item(), rel=1e-6
    )


def test_scales_with_the_loss_and_not_with_copies_of_the_data():
    model, (x, y) = net(), digits_like()
    one = stable_lr(model, nn.CrossEntropyLoss(), (x, y))
    scaled = stable_lr(model, lambda m, b: 7 * nn.functional.cross_entropy(m(b[0]), b[1]), (x, y))
    assert scaled.threshold_lr == pytest.approx(one.threshold_lr / 7, rel=0.02)
    assert scaled.adam_threshold_lr == pytest.approx(one.adam_threshold_lr, rel=0.02)  # Adam divides the scale out
    twice = stable_lr(model, nn.CrossEntropyLoss(), (torch.cat([x, x]), torch.cat([y, y])))
    assert twice.lambda1 == pytest.approx(one.lambda1, rel=0.02)


def test_scale_invariant_weights_are_flatter_where_they_are_longer():
    class Normed(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(w)

        def forward(self, x):
            return x @ (self.w / self.w.norm())

    x = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    near, far = (stable_lr(Normed(k * w), nn.MSELoss(), (x, x[:, 0])).lambda1 for k in (1, 3))
    assert far == pytest.approx(near / 9, rel=1e-6)


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(("make", "power"), [(torch.optim.Adam, 1), (torch.optim.RMSprop, 2), (torch.optim.Adagrad, 3)])
def test_adaptive_limit_is_that_of_the_preconditioned_hessian(make, power, stepped):
    model = net().double()
    x, y = digits_like()
    batch, criterion = (x.double(), y), nn.CrossEntropyLoss()
    optimizer = make(model.parameters(), lr=1e-3, eps=1e-2)
    _, g = dense_hessian(model, batch, criterion)
    if stepped:
        criterion(model(batch[0]), y).backward()
        optimizer.step()
    hessian, _ = dense_hessian(model, batch, criterion)
    divisor = {1: 0.1 * (g.abs() + 1e-2), 2: 0.1 * g.abs() + 1e-2, 3: g.abs() + 1e-2}[power]
    top = torch.linalg.eigvals(hessian / divisor[:, None]).real.max().item()
    found = stable_lr(model, criterion, batch, optimizer)
    assert found.adam_threshold_lr == pytest.approx(1e-3 * edge(optimizer) / top, rel=0.02)
    assert type(optimizer).__name__ in found.advice


def test_limit_of_an_sgd_is_its_own():
    model, batch = net(), digits_like()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    found = stable_lr(model, nn.CrossEntropyLoss(), batch, optimizer)
    assert found.adam_threshold_lr is None
    assert (found.lambda1 + 0.01) * found.threshold_lr == pytest.approx(2 * 1.9 / 2.8)
    optimizer.param_groups[0]["lr"] = 5 * found.threshold_lr
    assert "5 times that" in stable_lr(model, nn.CrossEntropyLoss(), batch, optimizer).advice


@pytest.mark.parametrize("seed", range(4))
def test_takes_few_products(seed):
    model = net(seed)
    assert (
        stable_lr(model, nn.CrossEntropyLoss(), digits_like(), torch.optim.SGD(model.parameters(), 0.1)).n_matvec
        <= 25 + 30
    )


def test_parameters_that_the_optimizer_does_not_hold_are_fixed():
    model, batch = net(), digits_like()
    last = torch.optim.SGD(model[-1].parameters(), 0.1)
    for p in model[0].parameters():
        p.requires_grad_(False)
    frozen = stable_lr(model, nn.CrossEntropyLoss(), batch)
    for p in model[0].parameters():
        p.requires_grad_(True)
    assert stable_lr(model, nn.CrossEntropyLoss(), batch, last).lambda1 == pytest.approx(frozen.lambda1)


def test_nothing_is_touched_and_dropout_is_off():
    model, batch = net(0, nn.BatchNorm1d(16), nn.Dropout(0.5)), digits_like()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    optimizer = torch.optim.AdamW(model.parameters())
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first, second = (stable_lr(model, nn.CrossEntropyLoss(), batch, optimizer) for _ in range(2))
    assert first == second
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state


def test_batch_norm_in_evaluation_mode_is_said():
    model = net(0, nn.BatchNorm1d(16)).eval()
    assert "evaluation mode" in stable_lr(model, nn.CrossEntropyLoss(), digits_like()).advice


def test_a_batch_may_be_a_mapping_or_a_list_of_batches():
    model, (x, y) = net(), digits_like()
    whole = stable_lr(model, nn.CrossEntropyLoss(), (x, y))
    parts = stable_lr(model, nn.CrossEntropyLoss(), [(x[:50], y[:50]), (x[50:], y[50:])])
    paired = stable_lr(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), (x, y))
    named = stable_lr(model, lambda m, b: nn.functional.cross_entropy(m(b["x"]), b["y"]), {"x": x, "y": y})
    assert parts.lambda1 == pytest.approx(whole.lambda1, rel=0.02)
    assert parts.adam_threshold_lr == pytest.approx(whole.adam_threshold_lr, rel=0.02)
    assert paired.lambda1 == pytest.approx(whole.lambda1, rel=1e-6)  # a criterion's own curvature is rounded otherwise
    assert named == paired


def nan_loss(model, batch):
    return model(batch[0]).sum() * math.nan


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch": (torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))}, ValueError, "batch 0 is empty"),
        ({"loss_fn": nan_loss}, ValueError, "is nan"),
        ({"loss_fn": lambda m, b: m(b[0])}, ValueError, "return a scalar"),
        ({"momentum": 1.0}, ValueError, "momentum must lie in"),
        ({"optimizer": "Adam"}, TypeError, r"must be a torch\.optim\.Optimizer"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)}, ValueError, "holds none of them"),
        ({"optimizer": torch.optim.Adadelta([torch.zeros(1, requires_grad=True)])}, TypeError, "Adadelta"),
        ({"model": net().half()}, TypeError, "float32 or float64"),
        ({"model": net().requires_grad_(False)}, ValueError, "no parameter of the model requires a gradient"),
    ],
)
def test_bad_input(arguments, error, message):
    given = {"model": net(), "loss_fn": nn.CrossEntropyLoss(), "batch": digits_like()} | arguments
    with pytest.raises(error, match=message):
        stable_lr(**given)


def test_momentum_beside_an_sgd_is_refused():
    model = net()
    with pytest.raises(ValueError, match="the optimizer has its own"):
        stable_lr(model, nn.CrossEntropyLoss(), digits_like(), torch.optim.SGD(model.parameters(), 0.1), momentum=0.9)

import copy

import numpy as np
import pytest
import torch
from torch import nn

from poise.dynamics import edge, find_fixed_point, momentum_edge, optimizer_map, sam_edge, stability
from poise.optim import SAM

G = torch.Generator().manual_seed(0)
X = torch.randn(24, 4, generator=G, dtype=torch.float64)
Y = torch.randn(24, 2, generator=G, dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def line():
    torch.manual_seed(0)
    return nn.Linear(4, 2, bias=False).double()


def train(model, optimizer, steps):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(X), Y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def groups(model):
    a, b = model[0].parameters(), model[2].parameters()
    return [{"params": list(b)}, {"params": list(a), "lr": 0.02, "weight_decay": 0.3}]


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "heavy ball": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "groups": lambda m: torch.optim.SGD(groups(m), lr=0.1, momentum=0.5),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, weight_decay=0.1),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.5),
    "adamw groups": lambda m: torch.optim.AdamW(groups(m), lr=0.01),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5, weight_decay=0.1),
    "sam": lambda m: SAM(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), rho=0.2),
    "plain sam": lambda m: SAM(torch.optim.SGD(m.parameters(), lr=0.1), rho=0.2, normalize=False),
    "sam adam": lambda m: SAM(torch.optim.AdamW(m.parameters(), lr=0.01), rho=0.2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_map_takes_the_step_that_the_optimizer_takes(name):
    model = network()
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, 3)
    map_ = optimizer_map(optimizer, model, nn.MSELoss(), (X, Y))
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])
    after = map_(map_.start)
    assert str(before) == str([model.state_dict(), optimizer.state_dict()["state"]])  # nothing was touched
    train(model, optimizer, 1)
    expected = optimizer_map(optimizer, model, nn.MSELoss(), (X, Y)).start
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-12)
    assert expected.numel() == weights(model).numel() * (1 + len(map_.slots))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_derivative_is_that_of_differences(name):
    model = network()
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, 3)
    map_ = optimizer_map(optimizer, model, nn.MSELoss(), (X, Y))
    x = map_.start
    v = torch.randn(len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v = v * x.abs().clamp(max=1.0)  # second moments stay positive
    h = 1e-5
    numeric = (map_(x + h * v) - map_(x - h * v)) / (2 * h)
    torch.testing.assert_close(map_.jvp(x, v), numeric, rtol=1e-5, atol=1e-7)
    u = torch.randn(len(x), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    operator = map_.operator(x)
    torch.testing.assert_close(operator.rmatvec(u) @ v, u @ operator.matvec(v))


def test_batches_are_averaged_by_their_sizes():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    whole = optimizer_map(optimizer, model, nn.MSELoss(), (X, Y))
    ragged = optimizer_map(optimizer, model, nn.MSELoss(), [(X[:5], Y[:5]), (X[5:], Y[5:])])
    torch.testing.assert_close(ragged(ragged.start), whole(whole.start), rtol=1e-12, atol=0)


def test_the_momentum_map_has_the_roots_of_its_polynomial_for_every_curvature():
    model, lr, beta = line(), 0.1, 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=beta)
    map_ = optimizer_map(optimizer, model, nn.MSELoss(), (X, Y))
    minimum = find_fixed_point(map_, map_.start).x
    result = stability(map_, minimum, k=16)
    hessian = X.T @ X / len(X)  # of the mean over 2 outputs, once per output
    roots = [np.roots([1, -(1 + beta - lr * lam), beta]) for lam in torch.linalg.eigvalsh(hessian).repeat(2).tolist()]
    found, expected = result.eigenvalues, np.concatenate(roots)
    for values, others in ((found, expected), (expected, found)):
        assert all(np.abs(others - value).min() < 1e-7 for value in values)


def sharpness():
    return torch.linalg.eigvalsh(X.T @ X / len(X)).max().item()


@pytest.mark.parametrize(
    ("settings", "threshold"),
    [
        ({}, lambda lr: momentum_edge(lr)),
        ({"momentum": 0.9}, lambda lr: momentum_edge(lr, 0.9)),
        ({"momentum": 0.9, "dampening": 0.9}, lambda lr: momentum_edge(lr, 0.9, 0.9)),
        ({"momentum": 0.9, "nesterov": True}, None),
    ],
)
def test_the_map_loses_stability_at_the_edge(settings, threshold):
    model = line()
    unit = edge(torch.optim.SGD(model.parameters(), lr=1.0, **settings))
    critical = unit / sharpness()
    if threshold is not None:
        assert threshold(critical) == pytest.approx(sharpness())
    for factor, verdict in ((0.99, "stable"), (1.01, "unstable")):
        optimizer = torch.optim.SGD(model.parameters(), lr=factor * critical, **settings)
        map_ = optimizer_map(optimizer, model, nn.MSELoss(), (X, Y))
        minimum = find_fixed_point(map_, map_.start).x
        assert stability(map_, minimum).verdict == verdict


def test_unnormalised_sam_loses_stability_at_its_edge():
    model, rho, lam = line(), 0.3, sharpness()
    critical = 2 / (lam * (1 + rho * lam))
    assert sam_edge(critical, rho) == pytest.approx(lam)
    for factor, verdict in ((0.99, "stable"), (1.01, "unstable")):
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=factor * critical), rho=rho, normalize=False)
        assert edge(optimizer) == pytest.approx(sam_edge(factor * critical, rho))
        map_ = optimizer_map(optimizer, model, nn.MSELoss(), (X, Y))
        assert stability(map_, find_fixed_point(map_, map_.start).x).verdict == verdict


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_held_preconditioner_gives_the_edge_on_the_preconditioned_sharpness(kind):
    model = line()
    slot = "square_avg" if kind is torch.optim.RMSprop else "exp_avg_sq"
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.0)
    train(model, optimizer, 5)
    p = next(model.parameters())
    root = optimizer.state[p][slot].sqrt()
    if kind is torch.optim.RMSprop:
        preconditioner = root + 1e-8
    else:
        preconditioner = (root / (1 - 0.999**5) ** 0.5 + 1e-8) * (1 - 0.9**6)
    scale = preconditioner.reshape(-1).rsqrt()
    hessian = torch.block_diag(X.T @ X / len(X), X.T @ X / len(X))
    lam = torch.linalg.eigvalsh(scale[:, None] * hessian * scale).max().item()
    critical = 0.01 * edge(optimizer) / lam
    for factor, verdict in ((0.99, "stable"), (1.01, "unstable")):
        optimizer.param_groups[0]["lr"] = factor * critical
        map_ = optimizer_map(optimizer, model, nn.MSELoss(), (X, Y), hold=[slot])
        assert slot not in map_.slots
        assert stability(map_, find_fixed_point(map_, map_.start).x).verdict == verdict


def test_states_are_put_together_by_name():
    model = line()
    map_ = optimizer_map(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, nn.MSELoss(), (X, Y))
    w, v = torch.arange(8.0).double(), torch.ones(8).double()
    assert map_.slots == ("momentum_buffer",)
    torch.testing.assert_close(map_.state(w, momentum_buffer=v), torch.cat([w, v]))
    torch.testing.assert_close(map_.state(w), torch.cat([w, 0 * v]))
    with pytest.raises(ValueError, match="slots must be among"):
        map_.state(w, exp_avg=v)
    with pytest.raises(ValueError, match="momentum_buffer must have shape"):
        map_.state(w, momentum_buffer=v[:3])


def test_parameters_that_are_not_trained_stay_fixed():
    model = network()
    map_ = optimizer_map(torch.optim.SGD(model[2].parameters(), lr=0.1), model, nn.MSELoss(), (X, Y))
    assert map_.start.numel() == sum(p.numel() for p in model[2].parameters())


def test_bad_input():
    model = network()
    data = (X, Y)
    with pytest.raises(TypeError, match="got NAdam"):
        optimizer_map(torch.optim.NAdam(model.parameters()), model, nn.MSELoss(), data)
    with pytest.raises(ValueError, match="amsgrad=True is not supported"):
        optimizer_map(torch.optim.Adam(model.parameters(), amsgrad=True), model, nn.MSELoss(), data)
    with pytest.raises(ValueError, match="of the model only; 4 of its parameters are not"):
        optimizer_map(torch.optim.SGD(network().parameters(), lr=0.1), model, nn.MSELoss(), data)
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"hold must be a list of names among \['exp_avg_sq'\]"):
        optimizer_map(adam, model, nn.MSELoss(), data, hold=["exp_avg"])
    with pytest.raises(ValueError, match="exp_avg_sq is all zero"):
        optimizer_map(adam, model, nn.MSELoss(), data, hold=["exp_avg_sq"])
    noisy = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)).double()
    with pytest.raises(ValueError, match="differ"):
        optimizer_map(torch.optim.SGD(noisy.parameters(), lr=0.1), noisy, nn.MSELoss(), data)
    with pytest.raises(ValueError, match="adaptive SAM"):
        edge(SAM(torch.optim.SGD(model.parameters(), lr=0.1), adaptive=True))

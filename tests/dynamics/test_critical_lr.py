import pytest
import torch
from torch import nn

from poise.dynamics import critical_lr
from poise.dynamics.sgd_noise.critical_lr import METHODS


def problem(n=10):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    return model, nn.MSELoss(), (torch.randn(n, 4, dtype=torch.float64), torch.randn(n, 1, dtype=torch.float64))


def test_all_methods_are_the_single_ones():
    every = critical_lr(*problem(), batch_size=3, method="all")
    assert every == {m: pytest.approx(critical_lr(*problem(), batch_size=3, method=m), rel=1e-9) for m in METHODS}
    assert every["exact"] <= every["divergence"] <= every["gd"]


@pytest.mark.parametrize("sampling", ["bernoulli", "without"])
def test_full_batches_are_gradient_descent(sampling):
    every = critical_lr(*problem(), batch_size=10, method="all", sampling=sampling)
    assert all(value == pytest.approx(every["gd"], rel=1e-9) for value in every.values())


def test_one_feature_has_a_closed_form():
    x = torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False).double()
    h = 2 * x.square()  # nn.MSELoss has no factor of one half
    beta = (3 - 2) / (3 * 2)
    expected = 2 * h.mean() / (h.mean() ** 2 + beta * h.square().mean())
    assert critical_lr(model, nn.MSELoss(), (x, x), batch_size=2) == pytest.approx(expected.item(), rel=1e-9)


def test_it_is_where_gradient_descent_on_a_linear_model_diverges():
    torch.manual_seed(0)
    x = torch.randn(8, 3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    data = (x, x @ torch.ones(3, 1, dtype=torch.float64))
    limit = critical_lr(model, nn.MSELoss(), data, batch_size=8, method="exact")

    def loss_after(lr):
        net = nn.Linear(3, 1, bias=False).double()
        net.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(data[0]), data[1]).backward()
            optimizer.step()
        return nn.functional.mse_loss(net(data[0]), data[1]).item()

    assert loss_after(0.98 * limit) < 1e-3
    assert loss_after(1.02 * limit) > 1e2


def test_one_example():
    model, loss_fn, (x, y) = problem(1)
    every = critical_lr(model, loss_fn, (x, y), batch_size=1, method="all", sampling="without")
    assert all(value == pytest.approx(every["gd"], rel=1e-9) for value in every.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 11}, "from 1 to the number of examples 10, got 11"),
        ({"batch_size": 1, "method": "trace"}, "'exact', 'coherence', 'divergence', 'gd', 'all'"),
        ({"batch_size": 1, "sampling": "all"}, "sampling must be one of"),
        ({"batch_size": 1, "max_bytes": 10}, "give subsample or sketch"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=message):
        critical_lr(*problem(), **settings)

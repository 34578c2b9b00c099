"""Scalar networks, squared regression and any model: where gradient flow ends, and how sharp it is there."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.dynamics import (
    STABLE_SET_LIMIT,
    GFSSharpness,
    ScalarNetwork,
    SquaredRegression,
    gfs_sharpness,
    gradient_flow_limit,
    gradient_flow_solution,
    stability_regime,
)

F64 = torch.float64


def weights(*shape, seed=0, low=0.2, high=2.2):
    return low + (high - low) * torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def regression(seed=0, n=4, features=8):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, features, generator=g, dtype=F64), torch.randn(n, generator=g, dtype=F64)
    u, v = (0.6 + 0.2 * torch.randn(features, generator=g, dtype=F64) for _ in range(2))
    return SquaredRegression(u, v, x, y)


# --- scalar networks ---------------------------------------------------------------------------------------------


def test_two_layers_have_the_closed_form():
    net = ScalarNetwork(torch.tensor([2.0, 0.3], dtype=F64))
    assert net.gfs_sharpness().item() == pytest.approx(math.sqrt(3.91**2 + 4), rel=1e-14)
    w = weights(500, 2)
    exact = ((w[:, 0] ** 2 - w[:, 1] ** 2) ** 2 + 4).sqrt()
    torch.testing.assert_close(ScalarNetwork(w).gfs_sharpness(), exact, rtol=1e-12, atol=0)


@given(st.lists(st.floats(1e-3, 30.0), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_the_limit_has_product_one_and_keeps_every_imbalance(values):
    w = torch.tensor(values, dtype=F64)
    x = ScalarNetwork(w).flow_limit()
    assert x.log().sum().item() == pytest.approx(0.0, abs=1e-12)
    scale = max(1.0, (w**2).max().item(), (x**2).max().item())
    assert ((x[0] ** 2 - x**2) - (w[0] ** 2 - w**2)).abs().max().item() <= 1e-12 * scale


@given(st.lists(st.floats(0.01, 10.0), min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_gfs_sharpness_is_blind_to_order_and_at_least_the_depth(values, random):
    net = ScalarNetwork(torch.tensor(values, dtype=F64))
    shuffled = random.sample(values, len(values))
    phi = net.gfs_sharpness().item()
    assert ScalarNetwork(torch.tensor(shuffled, dtype=F64)).gfs_sharpness().item() == pytest.approx(phi, rel=1e-12)
    assert phi >= net.depth * (1 - 1e-12)


def test_balanced_weights_and_only_they_have_the_flattest_minimum():
    w = torch.full((5,), 0.4, dtype=F64)
    assert ScalarNetwork(w).gfs_sharpness().item() == pytest.approx(5.0, rel=1e-14)
    w[0] = 0.41
    assert ScalarNetwork(w).gfs_sharpness().item() > 5.0 + 1e-6


def test_gfs_sharpness_does_not_change_along_the_flow():
    w = weights(4)
    limit = ScalarNetwork(w).flow_limit()
    for c in (-0.5, 0.3, 0.9):  # points on the flow's curve: the same imbalances, another common offset
        on_the_way = (limit**2 + c * (limit**2).min()).sqrt()
        torch.testing.assert_close(ScalarNetwork(on_the_way).flow_limit(), limit, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        ScalarNetwork(limit).gfs_sharpness(), ScalarNetwork(w).gfs_sharpness(), rtol=1e-12, atol=0
    )


def test_gradient_and_hessian_are_those_of_autograd():
    def loss(w):
        return 0.5 * (w.prod() - 1) ** 2

    for w in (weights(4), -weights(4), torch.tensor([0.0, 1.5, 0.7], dtype=F64)):
        net = ScalarNetwork(w)
        assert net.loss().item() == pytest.approx(loss(w).item(), rel=1e-14)
        torch.testing.assert_close(net.gradient(), torch.func.grad(loss)(w))
        torch.testing.assert_close(net.hessian(), torch.func.hessian(loss)(w))


def test_at_the_minimum_it_is_the_largest_eigenvalue_of_the_hessian():
    w = weights(100, 5)
    net = ScalarNetwork(w)
    at_limit = ScalarNetwork(net.flow_limit())
    torch.testing.assert_close(at_limit.sharpness(), net.gfs_sharpness(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 6])
def test_no_step_in_the_stable_set_raises_it(depth):
    w = weights(4000, depth, seed=depth, low=0.05, high=2.5)
    for lr in (0.02, 0.1, 0.3, 0.6):
        net = ScalarNetwork(w)
        inside = net.in_stable_set(lr)
        before, after = net.gfs_sharpness()[inside], ScalarNetwork(net.gd_step(lr).w[inside]).gfs_sharpness()
        assert (after <= before * (1 + 1e-10)).all()
        if lr * depth < 1:
            assert inside.sum() >= 200


def test_the_certificate_without_a_root_is_sound():
    w = weights(20000, 4, seed=7, low=0.05, high=2.5)
    net, off = ScalarNetwork(w), ~torch.eye(4, dtype=torch.bool)
    for lr in (0.1, 0.5, 1.0):
        step = net.gd_step(lr)
        kept = (step.w > 0).all(-1)
        certified = kept & (net.imbalance_factors(lr).abs()[:, off] <= 1).all(-1)
        before, after = net.gfs_sharpness()[certified], ScalarNetwork(step.w[certified]).gfs_sharpness()
        assert (after <= before * (1 + 1e-10)).all()
        assert certified.any()


def test_beyond_the_stable_set_it_can_rise():
    w = weights(20000, 5, seed=1, low=0.05, high=2.5)
    net = ScalarNetwork(w)
    step = net.gd_step(1.0)
    kept = (step.w > 0).all(-1)
    assert (ScalarNetwork(step.w[kept]).gfs_sharpness() > 1.01 * net.gfs_sharpness()[kept]).any()


@pytest.mark.parametrize("lr", [0.05, 0.5, 1.0])
def test_imbalance_factor_is_exact(lr):
    w = weights(300, 2, seed=3)
    net = ScalarNetwork(w)
    after = net.gd_step(lr).w
    expected = (w[:, 0] ** 2 - w[:, 1] ** 2) * (1 - lr**2 * (1 - net.product()) ** 2)
    scale = 1 + after.square().amax(-1)
    assert ((after[:, 0] ** 2 - after[:, 1] ** 2 - expected).abs() / scale).max().item() <= 1e-14
    torch.testing.assert_close(net.imbalance_factors(lr)[:, 0, 1], 1 - lr**2 * (1 - net.product()) ** 2)
    deep = ScalarNetwork(weights(50, 4, seed=4))
    pairs = deep.w[:, :, None] ** 2 - deep.w[:, None, :] ** 2
    after = deep.gd_step(lr).w
    scale = 1 + after.square().amax(-1)[:, None, None]
    new = (after[:, :, None] ** 2 - after[:, None, :] ** 2) / scale
    torch.testing.assert_close(new, pairs * deep.imbalance_factors(lr) / scale, rtol=0, atol=1e-13)


def test_a_small_step_changes_it_by_the_square_of_the_rate():
    net = ScalarNetwork(weights(3, seed=5))
    phi = net.gfs_sharpness().item()
    changes = [phi - net.gd_step(lr).gfs_sharpness().item() for lr in (1e-2, 5e-3, 2.5e-3)]
    assert all(c > 0 for c in changes)
    assert changes[0] / changes[1] == pytest.approx(4.0, rel=0.05)
    assert changes[1] / changes[2] == pytest.approx(4.0, rel=0.03)


def test_at_the_edge_gradient_descent_ends_just_below_it():
    net = ScalarNetwork(torch.tensor([1.9, 0.55], dtype=F64))
    lr = 2.4 / net.gfs_sharpness().item()
    losses = []
    for _ in range(3000):
        losses.append(net.loss().item())
        net = net.gd_step(lr)
    assert losses[-1] < 1e-20
    assert any(b > a for a, b in pairwise(losses[:50]))
    assert 1.6 < lr * net.gfs_sharpness().item() < 2.0


def test_signs_are_carried_along():
    w = torch.tensor([-1.3, 0.4, -2.0], dtype=F64)
    mirrored = ScalarNetwork(w)
    assert mirrored.gfs_sharpness() == ScalarNetwork(w.abs()).gfs_sharpness()
    torch.testing.assert_close(mirrored.flow_limit(), ScalarNetwork(w.abs()).flow_limit() * w.sign())


@pytest.mark.parametrize(
    ("w", "words"),
    [
        ([1.0, 0.0], "stalls at a saddle when a weight is zero"),
        ([1.0, -0.5], "gradient_flow_limit"),
    ],
)
def test_no_closed_form_where_there_is_none(w, words):
    net = ScalarNetwork(torch.tensor(w, dtype=F64))
    for ask in (net.flow_limit, net.gfs_sharpness, lambda: net.in_stable_set(0.1)):
        with pytest.raises(ValueError, match=words):
            ask()


@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan])
def test_a_rate_must_be_positive(lr):
    net = ScalarNetwork(weights(2))
    for ask in (net.gd_step, net.in_stable_set, net.imbalance_factors, regression().gd_step):
        with pytest.raises(ValueError, match="lr must be positive"):
            ask(lr)


def test_weights_must_be_finite_and_have_layers():
    with pytest.raises(ValueError, match="finite"):
        ScalarNetwork(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match=r"\(\.\.\., depth\)"):
        ScalarNetwork(torch.tensor(1.0))


# --- squared regression ------------------------------------------------------------------------------------------


def test_the_convex_problem_gives_the_limit_of_the_integrated_flow():
    model = regression()

    def at(w):
        return SquaredRegression(w[:8], w[8:], model.inputs, model.targets)

    flow = gradient_flow_limit(
        lambda w: torch.cat(at(w).gradient()), torch.cat([model.u, model.v]), hess=lambda w: at(w).hessian(), tol=1e-10
    )
    limit = model.flow_limit()
    assert flow.converged
    torch.testing.assert_close(flow.x, torch.cat([limit.u, limit.v]), rtol=0, atol=3e-6)
    assert limit.loss().item() < 1e-25


@pytest.mark.parametrize("seed", range(5))
def test_the_limit_keeps_what_the_flow_conserves(seed):
    model = regression(seed)
    limit = model.flow_limit()
    torch.testing.assert_close(limit.u * limit.v, model.u * model.v, rtol=1e-12, atol=0)
    # log(u / u_0) lies in the span of the inputs.
    move = (limit.u / model.u).log()
    inside = model.inputs.T @ torch.linalg.lstsq(model.inputs.T, move[:, None]).solution[:, 0]
    torch.testing.assert_close(inside, move, rtol=0, atol=1e-10)
    torch.testing.assert_close(limit.sharpness(), model.gfs_sharpness(), rtol=1e-10, atol=0)


def test_derivatives_of_the_squared_regression_are_those_of_autograd():
    model = regression(1)

    def loss(w):
        beta = w[:8] ** 2 - w[8:] ** 2
        return 0.5 * (model.inputs @ beta - model.targets).square().mean()

    w = torch.cat([model.u, model.v])
    assert model.loss().item() == pytest.approx(loss(w).item(), rel=1e-14)
    torch.testing.assert_close(torch.cat(model.gradient()), torch.func.grad(loss)(w))
    torch.testing.assert_close(model.hessian(), torch.func.hessian(loss)(w))


@pytest.mark.parametrize("edge", [1.5, 2.2, 2.5])
def test_gradient_descent_never_raises_it_in_the_squared_regression(edge):
    model = regression(2)
    phi = model.gfs_sharpness().item()
    lr = edge / phi
    for _ in range(100):
        model = model.gd_step(lr)
        new = model.gfs_sharpness().item()
        assert new <= phi * (1 + 1e-12)
        phi = new


def test_bad_input_of_the_squared_regression():
    m = regression()
    with pytest.raises(ValueError, match="zero entry"):
        SquaredRegression(torch.zeros(8), m.v, m.inputs, m.targets).flow_limit()
    with pytest.raises(ValueError, match="independent rows"):
        SquaredRegression(m.u, m.v, m.inputs[[0, 0]], m.targets[:2])
    with pytest.raises(ValueError, match=r"got \(8,\), \(7,\)"):
        SquaredRegression(m.u, m.v[:7], m.inputs, m.targets)
    with pytest.raises(ValueError, match="finite"):
        SquaredRegression(m.u * math.inf, m.v, m.inputs, m.targets)


# --- the flow, integrated ----------------------------------------------------------------------------------------


def test_products_over_depth_do_not_leave_the_range_of_floats():
    large, small = 2.0**600, 2.0**-600
    net = ScalarNetwork(torch.tensor([large, large, large, small, small, small], dtype=F64))
    assert net.product() == 1.0
    assert net.loss() == 0.0
    deep = ScalarNetwork(torch.cat([torch.full((1500,), 0.5), torch.full((1500,), 2.0), torch.tensor([-3.0])]))
    assert deep.product() == -3.0
    assert (deep.gradient()[:1500] == -4.0 * -6.0).all()
    assert ScalarNetwork(torch.full((3000,), 2.0)).product().isposinf()
    assert ScalarNetwork(torch.full((3000,), 0.5)).product() == 0.0
    w = torch.randn(50, 7, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ScalarNetwork(w).product(), w.prod(-1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("with_hessian", [True, False])
def test_implicit_integration_meets_the_closed_form(depth, with_hessian):
    w = weights(depth, seed=depth, low=0.4)
    hess = (lambda x: ScalarNetwork(x).hessian()) if with_hessian else None
    flow = gradient_flow_limit(lambda x: ScalarNetwork(x).gradient(), w, hess=hess)
    assert flow.converged
    assert flow.grad_norm < 1e-8
    torch.testing.assert_close(flow.x, ScalarNetwork(w).flow_limit(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rtol", "atol"), [(1e-4, 1e-3), (1e-7, 1e-6), (1e-10, 1e-8)])
def test_explicit_integration_meets_the_closed_form_as_closely_as_it_is_asked_to(seed, rtol, atol):
    w = weights(4, seed=seed, low=0.4)
    flow = gradient_flow_limit(lambda x: ScalarNetwork(x).gradient(), w, method="rk45", rtol=rtol)
    assert flow.converged
    torch.testing.assert_close(flow.x, ScalarNetwork(w).flow_limit(), rtol=0, atol=atol)


def test_explicit_integration_comes_to_rest_where_curvature_limits_the_step():
    curvature = torch.logspace(0, 2, 20, dtype=F64)
    flow = gradient_flow_limit(lambda x: curvature * (x - 1), torch.zeros(20), method="rk45")
    assert flow.converged
    torch.testing.assert_close(flow.x, torch.ones(20, dtype=F64), rtol=0, atol=1e-8)


def test_stiff_flow_needs_few_gradients():
    curvature = torch.logspace(0, 6, 20, dtype=F64)
    flow = gradient_flow_limit(lambda x: curvature * x, torch.ones(20, dtype=F64), hess=lambda x: torch.diag(curvature))
    assert flow.converged
    # Euler's method with a tenth of the largest stable step would take 18 / (0.1 / 1e6) steps.
    assert flow.n_evals < 18 / (0.1 / 1e6) / 1e4


def test_a_start_at_rest_stays():
    flow = gradient_flow_limit(lambda x: x, torch.zeros(3))
    assert flow.converged
    assert flow.n_evals == 1
    assert flow.x.dtype == F64


@pytest.mark.parametrize("method", ["bdf", "rk45"])
def test_a_flow_without_end_says_so(method):
    # exp(-x) has no minimum: x grows like the logarithm of time.
    flow = gradient_flow_limit(lambda x: -torch.exp(-x), torch.zeros(1, dtype=F64), method=method, t_max=50.0)
    assert not flow.converged
    assert flow.reason == "t_max"
    assert flow.x.item() == pytest.approx(math.log(51.0), rel=1e-3)


@pytest.mark.parametrize("method", ["bdf", "rk45"])
def test_the_budget_of_gradients_is_kept(method):
    w = weights(3)
    flow = gradient_flow_limit(lambda x: ScalarNetwork(x).gradient(), w, method=method, max_evals=40)
    assert not flow.converged
    assert flow.reason == "max_evals"
    assert 40 <= flow.n_evals < 100


def test_the_caller_can_stop_the_flow():
    flow = gradient_flow_limit(lambda x: x, torch.ones(2), stop=lambda x, g: "half way" if x[0] < 0.5 else None)
    assert flow.reason == "half way"
    assert not flow.converged


def test_bad_input_of_the_flow():
    w = torch.ones(2)
    with pytest.raises(ValueError, match="method must be one of"):
        gradient_flow_limit(lambda x: x, w, method="euler")
    with pytest.raises(ValueError, match=r"got shape \(2, 1\)"):
        gradient_flow_limit(lambda x: x, w[:, None])
    for name in ("tol", "rtol", "t_max", "max_evals"):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            gradient_flow_limit(lambda x: x, w, **{name: 0})
    with pytest.raises(ValueError, match="finite"):
        gradient_flow_limit(lambda x: x / 0, torch.zeros(2))


# --- any model ---------------------------------------------------------------------------------------------------


def tiny_net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))


def points(seed=0, n=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g), torch.randn(n, 1, generator=g)


def half_mse(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().mean()


def test_solution_of_a_model_against_dense_algebra():
    net, (x, y) = tiny_net(), points()
    solution = gradient_flow_solution(net, (x, y), loss=half_mse)
    assert solution.converged
    assert solution.loss < 1e-10
    shapes = {name: p.shape for name, p in net.named_parameters()}

    def loss(w):
        parts = w.split([s.numel() for s in shapes.values()])
        named = {name: part.view(s) for (name, s), part in zip(shapes.items(), parts, strict=True)}
        return 0.5 * (torch.func.functional_call(net, named, (x.double(),)) - y.double()).square().mean()

    assert torch.func.grad(loss)(solution.flow.x).norm().item() == pytest.approx(solution.flow.grad_norm, rel=1e-6)
    top = torch.linalg.eigvalsh(torch.func.hessian(loss)(solution.flow.x))[-1].item()
    assert abs(solution.sharpness - top) <= max(solution.error_bound, 1e-12 * top)
    assert gfs_sharpness(net, (x, y), loss=half_mse) == solution.sharpness


def test_both_integrators_find_the_same_sharpness():
    net, data = tiny_net(1), points(1)
    implicit, explicit = (gradient_flow_solution(net, data, loss=half_mse, method=m, tol=1e-4) for m in ("bdf", "rk45"))
    assert implicit.converged
    assert explicit.converged
    assert explicit.sharpness == pytest.approx(implicit.sharpness, rel=1e-3)


def test_batches_of_uneven_size_are_one_data_set():
    net, (x, y) = tiny_net(), points()
    whole = gfs_sharpness(net, (x, y), loss=nn.MSELoss())
    parts = gfs_sharpness(net, [(x[:1], y[:1]), (x[1:], y[1:])], loss=nn.MSELoss())
    assert parts == pytest.approx(whole, rel=1e-6)


def test_the_model_is_not_touched():
    net, data = tiny_net(), points()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    gfs_sharpness(net, data, loss=half_mse)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_cross_entropy_is_cut_off_and_says_so():
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.zero_()
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [2.0, 1, 0], [-2.0, 0, 1]])
    y = torch.tensor([0, 1, 0, 1])
    with pytest.warns(UserWarning, match=r"did not come to rest \(truncated at a loss of 0.001"):
        gfs_sharpness(net, (x, y), loss=nn.CrossEntropyLoss())
    solution = gradient_flow_solution(net, (x, y), loss=nn.CrossEntropyLoss())
    assert not solution.converged
    assert 1e-4 < solution.loss < 1e-3


class Chain(nn.Module):
    """A scalar network as a module, for which the sharpness of the solution is known."""

    def __init__(self, *w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=F64))

    def forward(self, x):
        return x * self.w.prod()


ONE = (torch.ones(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64))


def test_the_monitor_follows_gradient_descent():
    net, monitor = Chain(1.9, 0.55), GFSSharpness(every=5, budget_seconds=1e9)
    lr = 2.4 / ScalarNetwork(net.w.detach()).gfs_sharpness().item()
    readings = []
    for _ in range(21):
        expected = ScalarNetwork(net.w.detach()).gfs_sharpness().item()
        reading = monitor.update(net, ONE, loss=half_mse, lr=lr)
        if reading is not None:
            readings.append(reading)
            assert reading.sharpness == pytest.approx(expected, rel=1e-5)
        with torch.no_grad():
            net.w.copy_(ScalarNetwork(net.w).gd_step(lr).w)
    assert [r.step for r in readings] == [0, 5, 10, 15, 20]
    assert readings[0].ratio == pytest.approx(2.4, rel=1e-5)
    assert readings[0].regime == "edge of stability"
    assert all(r.monotone for r in readings)
    assert readings[-1].ratio < 2.1


def test_the_monitor_notes_a_rise():
    monitor = GFSSharpness(every=1, budget_seconds=1e9)
    readings = [monitor.update(Chain(*w), ONE, loss=half_mse, lr=0.01) for w in ((1.5, 0.5), (2.5, 0.5), (1.5, 0.5))]
    assert [r.monotone for r in readings] == [True, False, False]
    assert readings[1].sharpness > readings[0].sharpness


def test_the_monitor_gives_up_when_its_time_is_over():
    reading = GFSSharpness(every=1, budget_seconds=1e-9).update(Chain(1.5, 0.2), ONE, loss=half_mse, lr=0.01)
    assert not reading.solution.converged
    assert "seconds are over" in reading.solution.flow.reason


def test_the_monitor_wants_sane_numbers():
    with pytest.raises(ValueError, match="every must be at least 1"):
        GFSSharpness(every=0)
    with pytest.raises(ValueError, match="budget_seconds must be positive"):
        GFSSharpness(budget_seconds=0)
    with pytest.raises(ValueError, match="lr must be positive"):
        GFSSharpness(every=1).update(tiny_net(), points(), loss=half_mse, lr=0.0)


def test_regimes_of_the_learning_rate():
    assert stability_regime(1.99) == "stable"
    assert stability_regime(2.5) == stability_regime(STABLE_SET_LIMIT) == "edge of stability"
    assert stability_regime(2.83) == "no guarantee"

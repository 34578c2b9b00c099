"""Quadratic regression models: the closed recursion, its invariant, its phases, and surrogates of networks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.dynamics import QuadraticModel, QuadraticSurrogate, Trajectory, classify, expected_ntk_acceleration

F64 = torch.float64


def random_model(seed=0, D=3, P=5, lam0=0.5, rz=0.01):
    return QuadraticModel.random(D, P, lam0, rz, torch.Generator().manual_seed(seed))


def one_output(eigenvalues, J, z):
    """A model with one output whose Q has these eigenvalues in a rotated basis."""
    g = torch.Generator().manual_seed(9)
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=g, dtype=F64)).Q
    w = torch.tensor(eigenvalues, dtype=F64)
    return QuadraticModel(
        (basis * w @ basis.T)[None], (torch.tensor(J, dtype=F64) @ basis.T)[None], torch.tensor([z], dtype=F64)
    )


# --- the recursion -----------------------------------------------------------------------------------------------


def test_the_recursion_is_gradient_descent_on_the_parameters():
    model, lr = random_model(rz=0.1), 0.3
    Q, J0, z0 = model.Q, model.J, model.z

    def residuals(theta):
        return z0 + J0 @ theta + 0.5 * torch.einsum("dij,i,j->d", Q, theta, theta)

    theta = torch.zeros(5, dtype=F64)
    for _ in range(50):
        torch.testing.assert_close(model.z, residuals(theta), rtol=0, atol=1e-12)
        torch.testing.assert_close(model.J, torch.func.jacrev(residuals)(theta), rtol=0, atol=1e-12)
        theta = theta - lr * torch.func.grad(lambda t: 0.5 * residuals(t).square().sum())(theta)
        model = model.step(lr)


@pytest.mark.parametrize("lr", [0.05, 0.7])
def test_the_rate_can_be_scaled_away(lr):
    model = random_model(rz=0.05)
    scaled = QuadraticModel(model.Q, math.sqrt(lr) * model.J, lr * model.z)
    ours, rescaled = model.run(100, lr=lr, tol=1e-300), scaled.run(100, tol=1e-300)
    torch.testing.assert_close(lr * ours.z, rescaled.z, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(lr * ours.ntk_max, rescaled.ntk_max, rtol=1e-10, atol=0)


def test_without_second_derivatives_the_kernel_rests_and_residuals_shrink_linearly():
    model = random_model(rz=1.0)
    linear = QuadraticModel(torch.zeros_like(model.Q), model.J, model.z)
    run = linear.run(40, every=1)
    assert (run.ntk_max - run.ntk_max[0]).abs().max() <= 1e-12
    factor = torch.eye(3, dtype=F64) - model.J @ model.J.T
    for t in (1, 7, 40):
        torch.testing.assert_close(run.z[t], torch.linalg.matrix_power(factor, t) @ model.z, rtol=1e-10, atol=1e-14)


def test_no_residual_is_a_fixed_line():
    model = random_model(rz=0.0)
    moved = model.step(1.7)
    assert torch.equal(moved.z, model.z)
    assert torch.equal(moved.J, model.J)
    run = model.run(10)
    assert run.converged
    assert run.steps.tolist() == [0]


def test_near_the_line_the_multiplier_is_one_minus_the_kernel():
    for kernel in (0.5, 1.9, 2.0, 2.1):
        model = one_output([1.0, -0.1], [math.sqrt(kernel), 0.0], 1e-9)
        assert (model.step().z / model.z).item() == pytest.approx(1 - kernel, abs=1e-7)
    before, after = (one_output([1.0, -0.1], [math.sqrt(k), 0.0], 1e-9) for k in (1.99, 2.01))
    assert abs(before.step().z) < 1e-9 < abs(after.step().z)


def test_independent_runs_are_those_one_by_one():
    rz = torch.tensor([1e-3, 4e-3, 0.05], dtype=F64)
    together = QuadraticModel.random(6, 12, 0.5, rz, torch.Generator().manual_seed(3)).run(400)
    for i, each in enumerate(rz):
        alone = QuadraticModel.random(6, 12, 0.5, float(each), torch.Generator().manual_seed(3)).run(400)
        one = together[i]
        assert (one.diverged_at, one.converged_at) == (alone.diverged_at, alone.converged_at)
        n = len(alone.steps)
        common = int((together.steps[:n] == alone.steps).sum())
        assert common >= n - 1
        torch.testing.assert_close(one.z[:common], alone.z[:common], rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(one.ntk_max[-1], alone.ntk_max[-1], rtol=1e-8, atol=0)


def test_records_are_as_asked_and_end_with_the_end():
    run = random_model(rz=0.01).run(23, every=7)
    assert run.steps.tolist() == [0, 7, 14, 21, 23]
    torch.testing.assert_close(run.loss, 0.5 * run.z.square().sum(-1))
    assert random_model(rz=0.01).run(0).steps.tolist() == [0]


# --- one output --------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([1.0, -0.7, 0.4, -0.05, 2.0]), min_size=1, max_size=5),
    st.floats(-0.1, 0.1),
    st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_the_invariant_never_changes(eigenvalues, z, seed):
    J = 0.3 * torch.randn(len(eigenvalues), generator=torch.Generator().manual_seed(seed), dtype=F64)
    model = one_output(eigenvalues, J.tolist(), z)
    first = model.invariant()
    for _ in range(30):
        model = model.step()
    assert (model.invariant() - first).abs().item() <= 1e-12 * (1 + first.abs().item())


def test_the_invariant_holds_over_a_thousand_steps_at_the_edge():
    model = QuadraticModel.two_parameter(0.05, 0.5, 1.4, -0.1)
    first, largest = model.invariant(), 0.0
    for _ in range(1000):
        model = model.step()
        largest = max(largest, (model.invariant() - first).abs().item())
    assert largest <= 1e-12


def test_moments_follow_their_recursion():
    model = one_output([1.0, -0.3, 0.5], [0.8, 0.9, -0.4], 0.07)
    new, z = model.step(), model.z[0]
    assert new.z[0].item() == pytest.approx(
        (z * (1 - model.moment(0)) + 0.5 * z**2 * model.moment(1)).item(), rel=1e-12
    )
    for k in range(4):
        expected = model.moment(k) - 2 * z * model.moment(k + 1) + z**2 * model.moment(k + 2)
        torch.testing.assert_close(new.moment(k), expected, rtol=1e-12, atol=0)
    assert model.moment(0).item() == pytest.approx(model.ntk_max().item(), rel=1e-12)


def test_with_one_eigenvalue_the_system_is_a_map_of_two_numbers():
    w, J, z = 0.6, [0.5, -0.9], 0.05
    model, T = one_output([w, w], J, z), sum(j * j for j in J)
    for _ in range(20):
        for k in range(3):
            assert model.moment(k).item() == pytest.approx(w**k * T, rel=1e-11)
        assert model.z.item() == pytest.approx(z, rel=1e-9, abs=1e-15)
        z, T = z * (1 - T) + 0.5 * z * z * w * T, T * (1 - w * z) ** 2
        model = model.step()


@pytest.mark.parametrize("eps", [0.02, 0.05])
@pytest.mark.parametrize("k", [0.25, 1.0])
@pytest.mark.parametrize(("a2", "z"), [(0.15, 0.01), (0.3, -0.1)])
def test_two_parameters_come_to_rest_just_below_the_edge(eps, k, a2, z):
    floor = 2 - k * eps
    b = math.sqrt(floor + eps * a2 - 2 * eps * z)
    model = QuadraticModel.two_parameter(eps, math.sqrt(a2), b, z)
    assert (-2 * eps * model.invariant()).item() == pytest.approx(floor, rel=1e-12)
    assert model.ntk_max() > 2.0
    run = model.run(50_000)
    assert run.converged
    assert 2 - 3 * eps <= run.ntk_max[-1].item() <= 2.0
    assert classify(run) == "edge of stability"
    a_final = run.end[0, 0].item()
    assert run.ntk_max[-1].item() == pytest.approx(floor + (1 + eps) * a_final**2, abs=1e-8)


def test_the_end_of_a_run_is_where_its_steps_lead():
    model = random_model()
    run = model.run(17)
    for _ in range(17):
        model = model.step()
    torch.testing.assert_close(run.end, model.J)
    torch.testing.assert_close(run.z[-1], model.z)


# --- many outputs ------------------------------------------------------------------------------------------------


def test_the_random_model_is_what_it_says():
    model = QuadraticModel.random(30, 40, 0.7, 0.01, torch.Generator().manual_seed(0))
    assert model.ntk_max().item() == pytest.approx(0.7, rel=1e-12)
    assert torch.equal(model.Q, model.Q.mT)
    diagonal = torch.eye(40, dtype=torch.bool)
    assert model.Q[:, diagonal].var().item() == pytest.approx(2.0, rel=0.15)
    assert model.Q[:, ~diagonal].var().item() == pytest.approx(1.0, rel=0.05)
    assert model.z.std().item() == pytest.approx(0.01, rel=0.5)
    same = QuadraticModel.random(30, 40, 0.7, 0.01, torch.Generator().manual_seed(0))
    assert torch.equal(same.Q, model.Q)


def test_mean_second_derivative_of_the_kernel_by_sampling():
    D, P, draws = 4, 8, 20_000
    g = torch.Generator().manual_seed(0)
    J, z = torch.randn(D, P, generator=g, dtype=F64), torch.randn(D, generator=g, dtype=F64)
    A = torch.randn(draws, D, P, P, generator=g, dtype=F64)
    Q = (A + A.mT) / math.sqrt(2)
    first = []
    second = []
    for q in Q.split(5000):
        # Gradient flow: J' = -Q(s), s = J^T z, z' = -J s, s' = J'^T z + J^T z', J'' = -Q(s').
        s = J.T @ z
        dJ = -(q @ s)
        ds = dJ.mT @ z - J.T @ (J @ s)
        ddJ = -torch.einsum("ndij,nj->ndi", q, ds)
        first.append(dJ @ J.T + J @ dJ.mT)
        second.append(ddJ @ J.T + 2 * dJ @ dJ.mT + J @ ddJ.mT)
    expected = expected_ntk_acceleration(J, z)
    assert torch.cat(first).mean(0).norm() < 0.05 * torch.cat(first).norm(dim=(1, 2)).mean()
    assert (torch.cat(second).mean(0) - expected).norm() / expected.norm() < 0.04
    assert torch.linalg.eigvalsh(expected)[0] > 0


# --- phases ------------------------------------------------------------------------------------------------------


def trajectory(values, lr=1.0, diverged_at=-1):
    ntk = torch.tensor(values, dtype=F64)
    n = len(values)
    return Trajectory(
        torch.arange(n), torch.zeros(n, 1), ntk, torch.zeros(n), lr, torch.tensor(diverged_at), torch.tensor(-1), ntk
    )


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([0.5, 1.0, 1.9], "pure sharpening"),
        ([0.5, 2.4, 1.95], "edge of stability"),
        ([0.5, 3.4, 1.95], "edge of stability"),
        ([0.5, 2.2, 2.3], "edge of stability"),
        ([0.5, 3.4, 1.2], "catapult"),
    ],
)
def test_phases(values, label):
    assert classify(trajectory(values)) == label
    assert classify(trajectory([v / 0.1 for v in values], lr=0.1)) == label
    assert classify(trajectory(values, diverged_at=2)) == "diverged"


def test_thresholds_of_the_phases_can_be_set():
    assert classify(trajectory([0.5, 2.4, 1.2]), burst=2.2) == "catapult"
    assert classify(trajectory([0.5, 3.4, 1.7]), settled=(1.6, 2.0)) == "edge of stability"
    several = random_model(rz=torch.tensor([0.1, 0.2])).run(3)
    with pytest.raises(ValueError, match=r"one run, got runs of shape \(2,\)"):
        classify(several)
    assert classify(several[1]) == "pure sharpening"
    with pytest.raises(IndexError, match="single run"):
        several[0][0]


def test_large_residuals_diverge_without_an_exception():
    run = random_model(rz=torch.tensor([1e-3, 50.0, 1e200], dtype=F64)).run(300)
    assert run.diverged.tolist() == [False, True, True]
    assert run.diverged_at[1] > 0
    assert run.diverged_at[2] == 0
    assert classify(run[1]) == "diverged"
    assert run.z[:, 1].isfinite().all()
    assert run.converged_at[0] > 0


# --- networks ----------------------------------------------------------------------------------------------------


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batch(seed=0, n=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g, dtype=F64), torch.randn(n, 2, generator=g, dtype=F64)


def dense(net, data):
    """The network's residuals as a function of flat weights, and its second-order model as tensors."""
    named = dict(net.named_parameters())

    def residuals(w):
        parts = w.split([p.numel() for p in named.values()])
        weights = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        return (torch.func.functional_call(net, weights, (data[0],)) - data[1]).flatten()

    w = torch.cat([p.detach().flatten() for p in named.values()])
    J = torch.func.jacrev(residuals)(w)
    return w, residuals, QuadraticModel(torch.func.hessian(residuals)(w), J, residuals(w), symmetrise=True)


def test_the_surrogate_is_the_taylor_model():
    net, data = network(), batch()
    surrogate = QuadraticModel.from_model(net, data)
    assert isinstance(surrogate, QuadraticSurrogate)
    w, residuals, model = dense(net, data)
    g = torch.Generator().manual_seed(1)
    delta, v = (torch.randn(len(w), generator=g, dtype=F64) for _ in range(2))
    u = torch.randn(10, generator=g, dtype=F64)
    J = model.J + model.Q @ delta
    torch.testing.assert_close(surrogate.z0, model.z)
    torch.testing.assert_close(surrogate.residuals(delta), model.z + 0.5 * (model.J + J) @ delta)
    torch.testing.assert_close(surrogate.jvp(delta, v), J @ v)
    torch.testing.assert_close(surrogate.vjp(delta, u), J.T @ u)
    assert surrogate.ntk_max(delta, tol=1e-8) == pytest.approx(torch.linalg.matrix_norm(J, 2).item() ** 2, rel=1e-7)
    # The error of the model is of third order.
    errors = [(surrogate.residuals(h * delta) - residuals(w + h * delta)).norm().item() for h in (1e-2, 5e-3)]
    assert errors[0] / errors[1] == pytest.approx(8.0, rel=0.1)


def test_the_surrogate_runs_as_its_dense_twin():
    net, data = network(1), batch(1)
    surrogate, (_, _, model) = QuadraticModel.from_model(net, data), dense(net, data)
    lr = 0.5 / model.ntk_max().item()
    ours, exact = surrogate.run(40, lr=lr, ntk_tol=1e-6), model.run(40, lr=lr)
    torch.testing.assert_close(ours.z, exact.z, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ours.ntk_max, exact.ntk_max, rtol=1e-5, atol=0)
    assert ours.steps.tolist() == exact.steps.tolist()


def test_the_surrogate_stacks_batches_and_leaves_the_network_alone():
    net, (x, y) = network(), batch()
    whole, parts = QuadraticSurrogate(net, (x, y)), QuadraticSurrogate(net, [(x[:2], y[:2]), (x[2:], y[2:])])
    delta = torch.ones_like(whole.vjp(torch.zeros(26, dtype=F64), whole.z0))
    torch.testing.assert_close(whole.residuals(delta), parts.residuals(delta))
    only_last = QuadraticSurrogate(net, (x, y), params=["2"])
    # The outputs are linear in the last layer.
    move = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(only_last.jvp(move, move), only_last.residuals(move) - only_last.z0)
    assert all(p.grad is None for p in net.parameters())


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape of the model's outputs, \(5, 2\), got \(5,\).*one-hot"):
        QuadraticSurrogate(network(), (batch()[0], torch.zeros(5, dtype=torch.long)))


# --- bad input ---------------------------------------------------------------------------------------------------


def test_shapes_must_fit():
    m = random_model()
    for Q, J, z in ((m.Q[:, :4], m.J, m.z), (m.Q, m.J.T, m.z), (m.Q, m.J, m.z[:2]), (m.Q[0], m.J, m.z)):
        with pytest.raises(ValueError, match="Q, J0 and z0 must have shapes") as error:
            QuadraticModel(Q, J, z)
        assert all(str(tuple(x.shape)) in str(error.value) for x in (Q, J, z))


def test_types_must_agree():
    m = random_model()
    with pytest.raises(ValueError, match=r"one floating type, got torch\.float64, torch\.float64 and torch\.float32"):
        QuadraticModel(m.Q, m.J, m.z.float())


def test_q_must_be_symmetric_or_be_made_so():
    m = random_model()
    skewed = m.Q + torch.triu(torch.ones(5, 5, dtype=F64), 1)
    with pytest.raises(ValueError, match="symmetrise=True"):
        QuadraticModel(skewed, m.J, m.z)
    made = QuadraticModel(skewed, m.J, m.z, symmetrise=True)
    torch.testing.assert_close(made.Q, 0.5 * (skewed + skewed.mT))


@pytest.mark.parametrize("eps", [0.0, -0.1, math.nan])
def test_eps_must_be_positive(eps):
    with pytest.raises(ValueError, match="eps must be positive"):
        QuadraticModel.two_parameter(eps, 1.0, 1.0, 0.1)


def test_the_invariant_has_conditions():
    with pytest.raises(ValueError, match="no eigenvalue of zero"):
        one_output([1.0, 0.0], [1.0, 1.0], 0.1).invariant()
    for ask in (lambda m: m.invariant(), lambda m: m.moment(1)):
        with pytest.raises(ValueError, match="one output, got 3"):
            ask(random_model())


def test_single_precision_and_a_fine_tolerance_do_not_go_together():
    m = random_model()
    single = QuadraticModel(m.Q.float(), m.J.float(), m.z.float())
    with pytest.warns(UserWarning, match="use float64"):
        single.run(1)
    assert single.run(1, tol=1e-5).z.dtype == torch.float32


def test_memory_is_refused_before_it_is_taken():
    with pytest.raises(ValueError, match=r"800,000,000,000 bytes.*from_model"):
        QuadraticModel.random(1000, 10_000, 0.5, 0.1, torch.Generator())
    with pytest.raises(ValueError, match="lam0 positive"):
        QuadraticModel.random(2, 2, 0.0, 0.1, torch.Generator())


@pytest.mark.parametrize("bad", [{"n_steps": -1}, {"lr": 0.0}, {"tol": 0.0}, {"every": 0}])
def test_bad_numbers_of_a_run(bad):
    with pytest.raises(ValueError, match="n_steps must be at least 0"):
        random_model().run(**{"n_steps": 5, **bad})

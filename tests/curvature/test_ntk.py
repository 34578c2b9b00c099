import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.curvature import (
    GGN,
    NTK,
    Hessian,
    flatten,
    hessian_trace,
    jacobian_frobenius,
    ntk_max,
    per_example_jacobians,
    sharpening_rate,
    unflatten,
)
from poise.nn.mlp import mlp


def problem(n=9, widths=(4, 6, 2), seed=0):
    torch.manual_seed(seed)
    model = mlp(widths).double()
    return model, (torch.randn(n, widths[0], dtype=torch.float64), torch.randn(n, widths[-1], dtype=torch.float64))


def ragged(batch, sizes):
    return list(zip(*(part.split(list(sizes)) for part in batch), strict=True))


def outputs_at(model, x):
    named = dict(model.named_parameters())

    def outputs(theta):
        parts = dict(zip(named, unflatten(theta, list(named.values())), strict=True))
        return torch.func.functional_call(model, parts, (x,)).flatten()

    return outputs, flatten([p.detach() for p in named.values()])


@pytest.mark.parametrize("mode", ["retained", "rebuild"])
def test_kernel_is_jacobian_times_its_transpose(mode):
    model, batch = problem()
    outputs, theta = outputs_at(model, batch[0])
    jacobian = torch.func.jacrev(outputs)(theta)
    for data in (batch, batch[0], ragged(batch, (2, 7))):
        kernel = NTK(model, data, mode=mode)
        torch.testing.assert_close(kernel.matmat(torch.eye(18).double()), jacobian @ jacobian.T)
        torch.testing.assert_close(kernel.to_dense(), jacobian @ jacobian.T)
        torch.testing.assert_close(NTK(model, data, mode=mode, max_bytes=10).to_dense(), jacobian @ jacobian.T)


def test_jacobians_of_examples_come_in_the_order_of_the_data():
    model, batch = problem()
    outputs, theta = outputs_at(model, batch[0])
    expected = torch.func.jacrev(outputs)(theta).view(9, 2, -1)
    chunks = list(per_example_jacobians(model, ragged(batch, (5, 4)), nn.MSELoss(), chunk_size=3))
    assert [len(c) for c in chunks] == [3, 2, 3, 1]
    torch.testing.assert_close(torch.cat(chunks), expected)
    part = torch.cat(list(per_example_jacobians(model, batch, nn.MSELoss(), params=["2"])))
    torch.testing.assert_close(part, expected[..., 30:])


def test_trace_of_the_kernel_is_that_of_the_gauss_newton_matrix():
    model, batch = problem()
    kernel, ggn = NTK(model, batch).to_dense(), GGN(model, nn.MSELoss(), batch).to_dense()
    torch.testing.assert_close(2 / 18 * kernel.trace(), ggn.trace())
    torch.testing.assert_close(2 / 18 * torch.linalg.eigvalsh(kernel).flip(0), torch.linalg.eigvalsh(ggn).flip(0)[:18])


def test_largest_eigenvalue_of_the_kernel_and_its_bound():
    model, batch = problem(n=30)
    exact = torch.linalg.eigvalsh(NTK(model, batch).to_dense())[-1]
    found = ntk_max(model, batch, tol=1e-6, generator=torch.Generator().manual_seed(0))
    assert abs(found.values[0] - exact) <= found.error_bounds[0]
    torch.testing.assert_close(found.values[0], exact, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("data", ["whole", "ragged"])
def test_sharpening_rate_is_the_derivative_of_the_eigenvalue(data):
    model, (x, y) = problem()
    outputs, theta = outputs_at(model, x)

    def top(theta):
        jacobian = torch.func.jacrev(outputs)(theta)
        return torch.linalg.eigvalsh(jacobian @ jacobian.T)[-1]

    residual = outputs(theta) - y.flatten()
    descent = -torch.func.jacrev(outputs)(theta).T @ residual
    batches = (x, y) if data == "whole" else ragged((x, y), (4, 5))
    for direction, along in (("gd", descent), (torch.ones_like(theta), torch.ones_like(theta))):
        _, expected = torch.func.jvp(top, (theta,), (along,))
        found = sharpening_rate(model, batches, direction=direction, tol=1e-9)
        assert found == pytest.approx(float(expected), rel=1e-6)


def test_sharpening_rate_of_a_linear_model_is_zero():
    model = nn.Linear(4, 2).double()
    assert sharpening_rate(model, problem()[1]) == 0


def test_sharpening_rate_needs_a_direction_and_targets():
    model, (x, y) = problem()
    with pytest.raises(ValueError, match="direction must be 'gd'"):
        sharpening_rate(model, (x, y), direction="sgd")
    with pytest.raises(ValueError, match=r"direction must have shape \(44,\), got \(3,\)"):
        sharpening_rate(model, (x, y), direction=torch.ones(3).double())
    with pytest.raises(ValueError, match="targets must have the outputs' shape"):
        sharpening_rate(model, (x, torch.zeros(9, dtype=torch.long)), objective=F.cross_entropy)


def test_frobenius_norm_of_a_linear_model():
    model, (x, _) = nn.Linear(4, 3).double(), problem()[1]
    expected = float((3 * (x.square().sum(1) + 1)).mean())
    exact = jacobian_frobenius(model, x)
    assert exact.value == pytest.approx(expected, rel=1e-12)
    assert exact.se == 0
    for data in (x, [(x[:2], x[:2]), (x[2:], x[2:])]):
        probed = jacobian_frobenius(model, data, n_probe=400, generator=torch.Generator().manual_seed(0))
        assert abs(probed.value - expected) < 4 * probed.se
        assert 0 < probed.se < 0.1 * expected
    with pytest.raises(ValueError, match="n_probe must be at least 2"):
        jacobian_frobenius(model, x, n_probe=1)


def test_frobenius_norm_with_batch_norm_is_that_of_eval_mode():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().train()
    x = problem()[1][0]
    with pytest.warns(UserWarning, match="measured in eval mode"):
        found = jacobian_frobenius(model, x)
    assert all(m.training for m in model.modules())
    assert found.value == pytest.approx(jacobian_frobenius(model.eval(), x).value)


def test_trace_of_the_hessian_of_a_quadratic():
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(6, dtype=torch.float64))

    def loss(model, batch):
        return 0.5 * model.w @ batch[0] @ model.w

    data = matrix[None]
    torch.testing.assert_close(Hessian(Point(), loss, data).to_dense(), matrix)
    found = hessian_trace(Point(), loss, data, probes=40, generator=torch.Generator().manual_seed(0))
    assert abs(found.value - float(matrix.trace())) <= 4 * found.se + 1e-9

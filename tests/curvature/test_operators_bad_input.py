import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.curvature import (
    GGN,
    NTK,
    DenseOperator,
    EmpiricalFisher,
    FunctionOperator,
    Hessian,
    per_example_gradients,
)
from poise.nn.mlp import mlp

MODES = ["retained", "linearize", "rebuild", "forward_over_reverse", "finite_difference"]


def problem(n=10, dtype=torch.float64):
    torch.manual_seed(0)
    return mlp((4, 3, 2)).to(dtype), (torch.randn(n, 4, dtype=dtype), torch.randint(0, 2, (n,)))


CE = nn.CrossEntropyLoss()


def state_of(model):
    return (
        [p.detach().clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        [m.training for m in model.modules()],
        [p.grad for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [m for m in MODES if m != "linearize"])
def test_nothing_of_the_model_or_of_chance_is_touched(mode, training):
    class Drawing(nn.Module):
        """Draws numbers of all kinds, as layers that are skipped at random do, and uses none."""

        def forward(self, x):
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(())
            return x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), Drawing(), nn.Linear(6, 2)).double()
    model.train(training)
    batch = problem()[1]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=5, shuffle=True)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = state_of(model)
    chance = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    kinds = [lambda: Hessian(model, CE, loader, mode=mode)]
    if mode in ("retained", "rebuild"):
        kinds += [lambda: GGN(model, CE, loader, mode=mode), lambda: NTK(model, loader, mode=mode)]
        if not training:
            kinds += [lambda: EmpiricalFisher(model, CE, loader, mode=mode)]
    for kind in kinds:
        operator = kind()
        operator.matvec(torch.ones(operator.shape[1], dtype=torch.float64))
    after = state_of(model)
    for old, new in zip(before[:2], after[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    assert before[2] == after[2]
    assert before[4] == after[4]
    assert all(a is b for a, b in zip(before[3], after[3], strict=True))
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert random.getstate() == chance[0]
    assert np.random.get_state()[1].tolist() == chance[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), chance[2])


@pytest.mark.parametrize("kind", [Hessian, GGN, EmpiricalFisher])
def test_a_loss_of_chance_is_refused(kind):
    model, batch = problem(200)
    model = nn.Sequential(model, nn.Dropout(0.5)).train()
    with pytest.raises(ValueError, match=r"without chance.*model.eval\(\)"):
        kind(model, CE, batch)
    kind(model.eval(), CE, batch)


@pytest.mark.parametrize("kind", [Hessian, GGN, EmpiricalFisher])
@pytest.mark.parametrize("mode", ["retained", "rebuild"])
def test_changed_parameters_are_noticed(kind, mode):
    model, batch = problem()
    operator = kind(model, CE, batch, mode=mode)
    v = torch.ones(operator.shape[0], dtype=torch.float64)
    operator.matvec(v)
    model[2].bias.data = model[2].bias.data + 1
    with pytest.raises(RuntimeError, match="parameters changed since the operator was built"):
        operator.matvec(v)
    operator = kind(model, CE, batch, mode=mode)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="build it again"):
        operator.matvec(v)


@pytest.mark.parametrize("mode", ["retained", "rebuild"])
def test_a_loss_that_is_not_finite_names_its_batch(mode):
    model, (x, y) = problem()
    spoilt = x.clone()
    spoilt[0] = math.nan
    with pytest.raises(ValueError, match="loss of batch 1 is nan"):
        Hessian(model, CE, [(x, y), (spoilt, y), (x, y)], mode=mode).to_dense()
    with pytest.raises(ValueError, match="outputs of batch 1 have NaN"):
        NTK(model, [(x, y), (spoilt, y)], mode=mode)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), ValueError, r"scalar, got shape \(10,\)"),
        (lambda m, b: 3.0, TypeError, "must return a tensor, got float"),
        (lambda m, b: m(b[0]).detach().mean(), ValueError, "depends on none of the parameters"),
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "must be 'mean' or 'sum', got 'none'"),
        ("cross_entropy", TypeError, "loss_fn must be a criterion.*got str"),
    ],
)
def test_bad_losses(loss, error, message):
    model, batch = problem()
    with pytest.raises(error, match=message):
        Hessian(model, loss, batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_advice(dtype):
    model, batch = problem(dtype=torch.float32)
    with pytest.raises(TypeError, match=r"'0.weight' is torch.*float\(\)"):
        Hessian(model.to(dtype), CE, batch)


def test_mixed_types_and_devices_are_refused():
    model, batch = problem()
    model[0].float()
    with pytest.raises(ValueError, match=r"one dtype, got torch.float32 \(0.weight\), torch.float64 \(2.weight\)"):
        Hessian(model, CE, batch)
    model, batch = problem()
    model[2].to("meta")
    with pytest.raises(ValueError, match=r"one device, got cpu \(0.weight\), meta \(2.weight\)"):
        Hessian(model, CE, batch)
    assert Hessian(model[0], nn.MSELoss(), (batch[0], torch.zeros(10, 3).double())).shape == (15, 15)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], "params is empty"),
        (["0.wieght"], "no parameter '0.wieght'; did you mean 0.weight"),
        (["2.bias"], "'2.bias'.*frozen"),
    ],
)
def test_bad_names(params, message):
    model, batch = problem()
    model[2].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        Hessian(model, CE, batch, params=params)
    with pytest.raises(TypeError, match="list of names"):
        Hessian(model, CE, batch, params="0")
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        Hessian(model.requires_grad_(False), CE, batch)


def test_empty_data():
    model, (x, y) = problem()
    with pytest.raises(ValueError, match="at least one batch"):
        Hessian(model, CE, [])
    with pytest.raises(ValueError, match="batch 1 is empty"):
        Hessian(model, CE, [(x, y), (x[:0], y[:0])])
    with pytest.raises(TypeError, match="must be a batch or an iterable"):
        Hessian(model, CE, 3)


def test_unknown_modes():
    model, batch = problem()
    with pytest.raises(ValueError, match=r"mode must be one of auto, retained.*'fast'"):
        Hessian(model, CE, batch, mode="fast")
    with pytest.raises(ValueError, match="mode must be one of auto, retained, rebuild; got 'linearize'"):
        GGN(model, CE, batch, mode="linearize")


def test_gauss_newton_needs_outputs_apart_from_the_loss():
    model, batch = problem()
    with pytest.raises(TypeError, match=r"GGN needs the model's outputs.*Supervised"):
        GGN(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), batch)


def test_examples_that_depend_on_each_other_are_refused():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).double()
    batch = problem()[1]
    for build in (EmpiricalFisher, lambda m, c, b: per_example_gradients(m, b, c)):
        with pytest.raises(ValueError, match=r"\['1'\] normalise over the batch"):
            build(model, CE, batch)


def test_squared_errors_do_not_broadcast():
    model, (x, _) = problem()
    with pytest.raises(ValueError, match=r"one shape; got \(10, 2\) and \(10,\)"):
        Hessian(model, nn.MSELoss(), (x, torch.zeros(10).double()))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Cube(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_without_a_second_derivative_finite_differences_are_advised_and_work():
    x = torch.randn(10, 4, dtype=torch.float64)
    model = nn.Linear(4, 2).double()
    for mode in ("retained", "rebuild"):
        with pytest.raises(RuntimeError, match="finite_difference"):
            Hessian(model, lambda m, b: Once.apply(m(b)).square().mean(), x, mode=mode).to_dense()
    with pytest.raises(RuntimeError, match="no derivative that is needed"):
        GGN(nn.Sequential(model, Cube()), nn.MSELoss(), (x, x[:, :2]))
    exact = Hessian(model, lambda m, b: (m(b) ** 6).mean(), x).to_dense()
    found = Hessian(model, lambda m, b: Once.apply(m(b)).square().mean(), x, mode="finite_difference").to_dense()
    assert (found - exact).abs().max() < 1e-7 * exact.abs().max()


def test_fused_attention_is_replaced_and_the_user_told_once():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            return F.scaled_dot_product_attention(q, k, v).mean((1, 2))

    model, batch = Attention().double(), (torch.randn(3, 5, 8).double(), torch.randn(3, 4).double())
    for mode in ("retained", "rebuild", "forward_over_reverse"):
        operator = Hessian(model, nn.MSELoss(), batch, mode=mode)
        v = torch.randn(operator.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with pytest.warns(UserWarning, match="fused attention kernel") as told:
            products = operator.matmat(torch.stack([v, v], dim=1))
        assert len(told) == 1
        first = products[:, 0]
        torch.testing.assert_close(first, products[:, 1])
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            plain = Hessian(model, nn.MSELoss(), batch, mode=mode)
            torch.testing.assert_close(plain.matvec(v), first)


def test_linearize_refuses_what_would_crash_the_process():
    model, (x, _) = problem()
    with pytest.raises(ValueError, match=r"does not survive F.mse_loss"):
        Hessian(model, lambda m, b: F.mse_loss(m(b), torch.zeros(10, 2).double()), x, mode="linearize")


def test_vectors_that_do_not_fit():
    model, batch = problem()
    operator = Hessian(model, CE, batch)
    for v in (torch.ones(5).double(), torch.ones(23), torch.ones(23, 1).double()):
        with pytest.raises(ValueError, match=r"v must have shape \(23,\), dtype torch.float64"):
            operator.matvec(v)
    assert operator.matmat(torch.ones(23, 0).double()).shape == (23, 0)


def test_operators_of_matrices_and_functions():
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    dense = DenseOperator(matrix)
    assert not dense.symmetric
    assert torch.equal(dense.to_dense(), matrix)
    assert torch.equal(dense.rmatvec(torch.tensor([1.0, 0.0, 1.0])), torch.tensor([6.0, 8.0]))
    assert DenseOperator(matrix.T @ matrix).symmetric
    one_way = FunctionOperator(lambda v: matrix @ v, (3, 2), symmetric=False)
    assert torch.equal(one_way.to_dense(), matrix)
    assert one_way.n_matvec == 2
    with pytest.raises(NotImplementedError, match="transpose"):
        one_way.rmatvec(torch.ones(3))
    with pytest.raises(ValueError, match="symmetric operator is square"):
        FunctionOperator(lambda v: v, (3, 2))
    with pytest.raises(ValueError, match="finite"):
        DenseOperator(torch.tensor([[math.nan]]))
    array = dense.to_scipy() @ np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(array, matrix.numpy())
    np.testing.assert_allclose(dense.to_scipy().rmatvec(np.ones(3, np.float32)), matrix.sum(0).numpy())

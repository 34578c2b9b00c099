import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.losses import StableMaxCrossEntropy, log_stablemax, stablemax, stablemax_cross_entropy


def scores(*shape, seed=0, scale=3.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def log_s(x):
    """Log of StableMax's term, straight from its definition."""
    return torch.where(x >= 0, torch.log1p(x.abs()), -torch.log1p(x.abs()))


def oracle(x, *args, **kwargs):
    return F.cross_entropy(log_s(x), *args, **kwargs)


def test_terms_are_those_of_the_definition():
    p = stablemax(torch.tensor([0.0, -1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(p, torch.tensor([1, 0.5, 3], dtype=torch.float64) / 4.5)


def test_worked_example():
    x = torch.tensor([[1.0, 2.0, -3.0]], dtype=torch.float64, requires_grad=True)
    loss = stablemax_cross_entropy(x, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(0.96508090, abs=1e-8)
    expected = torch.tensor([[-0.30952381, 0.19047619, 0.01190476]], dtype=torch.float64)
    torch.testing.assert_close(x.grad, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(7, 5), (2, 5, 3), (2, 5, 3, 4)])
def test_equals_cross_entropy_of_the_log_terms(reduction, weighted, smoothing, shape):
    generator = torch.Generator().manual_seed(1)
    x = scores(*shape)
    target = torch.randint(5, (shape[0], *shape[2:]), generator=generator)
    target.view(-1)[::4] = -100
    weight = torch.rand(5, generator=generator, dtype=torch.float64) if weighted else None
    options = {"reduction": reduction, "label_smoothing": smoothing}
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = stablemax_cross_entropy(ours, target, weight, **options), oracle(theirs, target, weight, **options)
    torch.testing.assert_close(a, b)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_class_probabilities_and_a_single_row():
    x, p = scores(6, 5), scores(6, 5, seed=2).softmax(1)
    torch.testing.assert_close(stablemax_cross_entropy(x, p), oracle(x, p))
    torch.testing.assert_close(stablemax_cross_entropy(x[0], torch.tensor(3)), oracle(x[0], torch.tensor(3)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_first_and_second_derivatives_by_finite_differences(seed, scale):
    x = scores(3, 4, seed=seed, scale=scale)
    x = torch.where(x.abs() < 1e-5, 1e-4, x).requires_grad_()  # a difference across the kink is no derivative
    y = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(
        lambda z: stablemax_cross_entropy(z, y, reduction="none"), x, check_forward_ad=True, eps=1e-6, atol=1e-5
    )
    if scale == 1.0 and float(x.detach().abs().min()) > 1e-3:
        assert torch.autograd.gradgradcheck(lambda z: stablemax_cross_entropy(z, y), x)


def test_function_transforms_see_the_same_function():
    x, y = scores(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    plain = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(stablemax_cross_entropy(plain, y), plain)
    per_sample = torch.func.vmap(torch.func.grad(lambda z, t: stablemax_cross_entropy(z[None], t[None])))(x, y)
    torch.testing.assert_close(per_sample / 6, gradient)
    torch.testing.assert_close(
        torch.func.hessian(lambda z: stablemax_cross_entropy(z, y))(x), torch.func.hessian(lambda z: oracle(z, y))(x)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_is_finite_at_every_input_and_never_zero_for_the_right_class(dtype):
    limit = float(torch.finfo(dtype).max)
    values = [0.0, 1.0, -1.0, 7.5, -7.5, 16.7, 37.0, 1e4, -1e4, limit, -limit]
    for right in range(len(values)):
        x = torch.tensor([values], dtype=dtype, requires_grad=True)
        loss = stablemax_cross_entropy(x, torch.tensor([right]), compute_dtype=torch.float64)
        loss.backward()
        assert x.grad.dtype == dtype
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(loss)
        assert loss > 0


def test_a_zero_head_starts_as_under_softmax():
    x = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3])
    (ours,) = torch.autograd.grad(stablemax_cross_entropy(x, y), x)
    (softmax,) = torch.autograd.grad(F.cross_entropy(x, y), x)
    torch.testing.assert_close(ours, softmax)
    z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    log_stablemax(z)[0].backward()
    torch.testing.assert_close(z.grad, torch.tensor([2 / 3, -1 / 3, -1 / 3], dtype=torch.float64))


def test_does_not_collapse_where_softmax_does():
    x = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    y = torch.tensor([0])
    (softmax,) = torch.autograd.grad(F.cross_entropy(x, y), x)
    (ours,) = torch.autograd.grad(stablemax_cross_entropy(x, y), x)
    assert softmax[0, 0] == 0
    assert ours[0, 0] == pytest.approx(-(2 / 103) / 101)


def test_sees_a_common_shift_that_softmax_does_not():
    x, y = scores(4, 5), torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(F.cross_entropy(x + 3, y), F.cross_entropy(x, y))
    assert abs(stablemax_cross_entropy(x + 3, y) - stablemax_cross_entropy(x, y)) > 0.01


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    x, y = scores(9, 5), torch.arange(9) % 5
    whole = x.clone().requires_grad_()
    stablemax_cross_entropy(whole, y).backward()
    monkeypatch.setattr(sys.modules["poise.losses.stablemax"], "_CPU_BLOCK", 10)
    parts = x.clone().requires_grad_()
    stablemax_cross_entropy(parts, y).backward()
    torch.testing.assert_close(parts.grad, whole.grad, atol=0, rtol=0)


@pytest.mark.slow
def test_compiled_without_a_graph_break():
    x, y = scores(6, 5, dtype=torch.float32), torch.tensor([0, 1, 2, -100, 4, 0])
    compiled = torch.compile(stablemax_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), stablemax_cross_entropy(x, y))


def test_module_keeps_its_settings_and_moves_its_weight():
    weight = torch.tensor([1.0, 2.0, 3.0])
    loss = StableMaxCrossEntropy(weight, ignore_index=1, reduction="sum").to(torch.float64)
    x, y = scores(4, 3), torch.tensor([0, 1, 2, 2])
    expected = oracle(x, y, weight.double(), ignore_index=1, reduction="sum")
    torch.testing.assert_close(loss(x, y), expected)
    assert "sum" in repr(loss)


def test_empty_batch_and_everything_ignored_are_as_in_torch():
    x = scores(0, 3)
    empty = torch.zeros(0, dtype=torch.long)
    assert stablemax_cross_entropy(x, empty, reduction="sum") == 0
    assert stablemax_cross_entropy(x, empty).isnan()
    assert F.cross_entropy(x, empty).isnan()
    assert stablemax_cross_entropy(scores(2, 3), torch.tensor([-100, -100])).isnan()


def test_bad_input_is_named():
    x, y = scores(4, 5, dtype=torch.float32), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"target must lie in 0..4 .* got 5"):
        stablemax_cross_entropy(x, torch.tensor([0, 1, 2, 5]))
    with pytest.raises(ValueError, match=r"target must have shape \(4,\)"):
        stablemax_cross_entropy(x, y[:3])
    with pytest.raises(TypeError, match="input must be floating point"):
        stablemax_cross_entropy(x.long(), y)
    with pytest.raises(ValueError, match="reduction must be"):
        stablemax_cross_entropy(x, y, reduction="average")
    with pytest.raises(ValueError, match="compute_dtype must be"):
        stablemax_cross_entropy(x, y, compute_dtype=torch.float16)
    with pytest.raises(ValueError, match="compute_dtype must be"):
        stablemax_cross_entropy(x.double(), y, compute_dtype=torch.float32)

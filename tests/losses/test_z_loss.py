import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.losses import ZLoss, cross_entropy_with_z_loss, z_loss


def scores(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), coef=st.floats(1e-6, 1), scale=st.floats(0.01, 20))
def test_gradient_is_twice_coef_times_log_z_times_probability(seed, coef, scale):
    y = scores(5, 7, seed=seed, scale=scale).requires_grad_()
    (gradient,) = torch.autograd.grad(z_loss(y, coef), y)
    expected = 2 * coef * torch.logsumexp(y, -1, keepdim=True) * y.softmax(-1) / len(y)
    torch.testing.assert_close(gradient, expected.detach())


def test_is_zero_for_normalised_log_probabilities():
    assert z_loss(scores(4, 9).log_softmax(-1)).item() == pytest.approx(0, abs=1e-30)


def test_a_common_shift_is_all_it_sees():
    y = scores(1, 6)
    log_z = torch.logsumexp(y, -1)
    for shift in (-3.0, 0.0, 10.0):
        assert z_loss(y + shift, 0.5).item() == pytest.approx(0.5 * (log_z + shift).item() ** 2)


def test_descent_reaches_log_z_zero_and_leaves_the_softmax_where_it_was():
    start = scores(3, 5, scale=0.1)
    y = start.clone().requires_grad_()
    # The gradient is along p, so only for equal logits is the path a pure shift: use the minimiser over the shift.
    shift = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([shift], max_iter=100, tolerance_grad=1e-14, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        loss = z_loss(y.detach() + shift, 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    best = start + shift.detach()
    torch.testing.assert_close(torch.logsumexp(best, -1), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(best.softmax(-1), start.softmax(-1))


def test_module_and_function_agree_for_any_class_dimension():
    y = scores(2, 5, 3, 4)
    torch.testing.assert_close(ZLoss(0.3, dim=1)(y), z_loss(y.movedim(1, -1), 0.3))


def test_half_precision_is_summed_in_float32():
    y = torch.full((2, 70_000), 3.0, dtype=torch.float16)
    assert z_loss(y, 1.0).item() == pytest.approx((3 + math.log(70_000)) ** 2, rel=1e-5)


def targets(*shape, classes, seed=1):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3), (5,)])
def test_is_cross_entropy_plus_the_mean_over_kept_positions(reduction, smoothing, weighted, shape):
    y = scores(*shape)
    dim = 0 if len(shape) == 1 else 1
    target = targets(*(shape[:dim] + shape[dim + 1 :]), classes=5)
    if target.ndim:
        target.view(-1)[::3] = 2
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    settings = {"ignore_index": 2 if target.ndim else -100, "reduction": reduction, "label_smoothing": smoothing}
    got = cross_entropy_with_z_loss(y, target, weight, coef=0.01, **settings)
    plain = F.cross_entropy(y, target, weight, **settings)
    term = 0.01 * torch.logsumexp(y, dim) ** 2
    kept = target != settings["ignore_index"]
    expected = {"none": term * kept, "sum": term[kept].sum(), "mean": term[kept].mean()}[reduction]
    torch.testing.assert_close(got, plain + expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_probabilities_as_target(reduction):
    y, target = scores(6, 5), scores(6, 5, seed=3).softmax(-1)
    term = 0.01 * torch.logsumexp(y, 1) ** 2
    expected = {"none": term, "sum": term.sum(), "mean": term.mean()}[reduction]
    got = cross_entropy_with_z_loss(y, target, reduction=reduction, coef=0.01)
    torch.testing.assert_close(got, F.cross_entropy(y, target, reduction=reduction) + expected)


def test_coefficient_zero_is_plain_cross_entropy():
    y, target = scores(6, 5), targets(6, classes=5)
    torch.testing.assert_close(cross_entropy_with_z_loss(y, target, coef=0.0), F.cross_entropy(y, target))


def test_ignored_positions_get_no_gradient():
    y = scores(4, 5).requires_grad_()
    cross_entropy_with_z_loss(y, torch.tensor([1, -100, 2, -100]), coef=1.0).backward()
    assert (y.grad[[1, 3]] == 0).all()
    assert (y.grad[[0, 2]] != 0).all()


def test_compiles_without_graph_breaks():
    def loss(y, target):
        return cross_entropy_with_z_loss(y, target, ignore_index=0)

    y, target = scores(6, 5), targets(6, classes=5)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, target), loss(y, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_called_out(dtype):
    p = scores(6, 5).softmax(-1).to(dtype)
    with pytest.warns(UserWarning, match="seem to be probabilities, not logits"):
        z_loss(p)
    with pytest.warns(UserWarning, match="seem to be probabilities, not logits"):
        cross_entropy_with_z_loss(p, targets(6, classes=5))


def test_logits_are_not_called_out_even_if_one_row_could_be_probabilities():
    y = scores(6, 5)
    y[0] = y[0].softmax(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z_loss(y)
        z_loss(torch.zeros(6, 5))
        z_loss(y.log_softmax(-1))


@pytest.mark.parametrize("coef", [-1.0, math.nan, math.inf])
def test_bad_coefficient(coef):
    for call in (lambda: z_loss(scores(2, 3), coef), lambda: ZLoss(coef)):
        with pytest.raises(ValueError, match="coef must be finite and not negative"):
            call()
    with pytest.raises(ValueError, match="coef must be finite"):
        cross_entropy_with_z_loss(scores(2, 3), targets(2, classes=3), coef=coef)

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq

from poise.losses import SpectralDecoupling, class_centered_decoupling, spectral_decoupling


def scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradient_of_the_penalty():
    y = scores(7).requires_grad_()
    spectral_decoupling(y, 0.3).backward()
    torch.testing.assert_close(y.grad, 2 * 0.3 * y.detach() / 7)


def test_reductions_differ_by_the_number_of_classes():
    y = scores(6, 4)
    torch.testing.assert_close(spectral_decoupling(y, reduction="sum_classes"), 4 * spectral_decoupling(y))


def test_coefficient_zero_is_the_plain_loss():
    y, target = scores(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    assert SpectralDecoupling("ce", coef=0)(y, target) == F.cross_entropy(y, target)
    bits = torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(y[:, 0], bits)
    assert SpectralDecoupling("bce", coef=0)(y[:, :1], bits) == expected


@pytest.mark.parametrize("lam", [1.0, 0.1, 0.002])
def test_every_margin_settles_at_the_same_root_whatever_the_features(lam):
    # n <= p random features of very different strength: the margins of the minimiser do not depend on them.
    n = 4
    u = torch.linalg.qr(scores(n, n)).Q
    features = u @ torch.diag(torch.tensor([5.0, 1.0, 0.5, 0.3], dtype=torch.float64))
    labels = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    theta = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    loss = SpectralDecoupling("bce", coef=lam / 2)
    optimizer = torch.optim.LBFGS([theta], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, history_size=20,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = loss(features @ theta, (labels > 0).double())
        value.backward()
        return value

    optimizer.step(closure)
    root = brentq(lambda r: lam * r * (1 + torch.tensor(r).exp().item()) - 1, 0, 50)
    margins = labels * (features @ theta.detach())
    torch.testing.assert_close(margins, torch.full_like(margins, root), atol=1e-4, rtol=0)


def test_centers_and_a_class_that_the_batch_lacks():
    y, ones = scores(5), torch.ones(5)
    expected = 0.1 * (y - 2.5).square().mean()
    torch.testing.assert_close(class_centered_decoupling(y, ones, (0.44, 2.5)), expected)
    both = torch.tensor([0.0, 0, 1, 1, 1])
    expected = 0.1 * ((y[:2] - 0.44).square().mean() + (y[2:] - 2.5).square().mean())
    torch.testing.assert_close(class_centered_decoupling(y, both, (0.44, 2.5)), expected)
    loss = SpectralDecoupling("bce", center=(0.44, 2.5))
    total = loss(y, both)
    torch.testing.assert_close(loss.last[1], expected)
    torch.testing.assert_close(total.detach(), loss.last[0] + loss.last[1])


def test_large_logits_are_finite():
    y = torch.tensor([1e4, -1e4], requires_grad=True)
    value = SpectralDecoupling("bce")(y, torch.tensor([0.0, 1.0]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(y.grad).all()


def test_half_precision_penalty_does_not_overflow():
    assert torch.isfinite(spectral_decoupling(torch.full((4,), 300.0, dtype=torch.float16)))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="coef must be finite"):
        spectral_decoupling(scores(3), -1)
    with pytest.raises(ValueError, match="reduction must be"):
        spectral_decoupling(scores(3), reduction="sum")
    with pytest.raises(ValueError, match="center must have one number per column"):
        spectral_decoupling(scores(3, 4), center=[0.0, 1.0])
    with pytest.raises(ValueError, match="base must be"):
        SpectralDecoupling("hinge")
    with pytest.raises(ValueError, match="one logit and one target per sample"):
        SpectralDecoupling("bce")(scores(3, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="target must hold 0 and 1 only"):
        SpectralDecoupling("bce")(scores(3), torch.tensor([-1, 1, 1]))
    with pytest.raises(ValueError, match="target must have the shape of logits"):
        class_centered_decoupling(scores(3), torch.ones(2), (0.0, 1.0))

import pytest
import torch

from poise.studies.spectral_regularization import WassersteinToStart, penalty_of


def test_the_wasserstein_penalty_compares_sorted_weights():
    torch.manual_seed(0)
    p = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    start = p.detach().clone()
    penalty = WassersteinToStart([p], every=1)
    assert penalty().item() == 0
    with torch.no_grad():
        p.copy_(start.flatten()[torch.randperm(30)].view(6, 5))
    assert penalty().item() == pytest.approx(0, abs=1e-20)  # a permutation is not far in this distance
    with torch.no_grad():
        p.copy_(start + 0.3)
    assert penalty().item() == pytest.approx(30 * 0.3**2)
    with torch.no_grad():
        p.copy_(torch.randn(6, 5, dtype=torch.float64))
    assert penalty() <= (p - start).square().sum()
    penalty().backward()
    ranks = p.detach().flatten().argsort().argsort()
    wanted = 2 * (p.detach().flatten() - start.flatten().sort().values[ranks])
    torch.testing.assert_close(p.grad.flatten(), wanted)


def test_the_order_is_kept_between_two_sorts():
    p = torch.tensor([[1.0, 2.0]], requires_grad=True)
    penalty = WassersteinToStart([p], every=2)
    penalty()
    with torch.no_grad():
        p.copy_(torch.tensor([[2.0, 1.0]]))
    assert penalty().item() == 2  # by the old order
    assert penalty().item() == 0


def test_penalties_to_the_start_are_zero_there():
    model = torch.nn.Linear(3, 2)
    assert penalty_of("L2 to the start", model, 0)().item() == 0
    assert penalty_of("L2", model, 0)().item() == pytest.approx(
        sum(p.square().sum().item() for p in model.parameters())
    )

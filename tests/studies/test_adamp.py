import pytest
import torch
from torch.optim import SGD

from poise.optim import SGDP, scale_invariant_parameters
from poise.studies import adamp as study
from poise.studies.kit.digits import digits


@pytest.mark.parametrize("kind", [SGD, SGDP])
def test_the_laws_hold_and_would_not_hold_by_accident(kind):
    assert study.law_error(kind, 40, seed=1) < 1e-8
    assert study.law_error(kind, 40, seed=1) == study.law_error(kind, 40, seed=1)


def test_the_growth_factor_follows_the_geometric_series():
    # after t steps of constant length: 1 + 2 (b + b^2 + ... + b^(t-1)); the mean over the last step of five
    assert study.growth_factor(5, seed=0) == pytest.approx(1 + 2 * sum(0.9**k for k in range(1, 5)), rel=1e-6)
    assert study.growth_factor(400, seed=0) == pytest.approx(19, rel=1e-3)


def test_the_toy_loss_is_scale_invariant_and_zero_at_its_minimum():
    w = torch.tensor([[0.3, -0.2, 0.7]])
    torch.testing.assert_close(study.toy_loss(5 * w), study.toy_loss(w))
    assert study.toy_loss(torch.full((1, 3), 0.4)).item() == pytest.approx(0)


def test_the_hidden_layers_of_the_network_are_scale_invariant_and_the_head_is_not():
    found = scale_invariant_parameters(study.network(0), digits(train=1000, scale="unit").x[:64])
    assert {found[name] for name in study.HIDDEN} == {"channel"}
    assert "6.weight" not in found


def test_same_seed_same_run_and_the_callers_state_is_untouched():
    state = torch.get_rng_state()
    make, lr, _ = study.ARMS["SGDP"]
    first, second = (study.train(make, lr, True, 5, seed=3) for _ in range(2))
    assert (first.norms == second.norms).all()
    assert (first.norms != study.train(make, lr, True, 5, seed=4).norms).any()
    assert torch.equal(state, torch.get_rng_state())

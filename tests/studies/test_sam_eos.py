import pytest
import torch

from poise.dynamics import sam_edge
from poise.nn.mlp import seeded_mlp
from poise.studies import sam_eos as study

SHORT = study.Plan(steps=4, every=2, hidden=8)


def test_predicted_levels_are_those_of_the_card():
    assert [sam_edge(study.LR, rho) for rho in study.RADII] == pytest.approx([6.6667, 4.5743, 3.3333], abs=1e-3)


def test_the_loss_is_half_the_squared_error_of_300_centred_digits():
    x, y = study.labelled_digits()
    assert x.shape == (300, 64)
    assert x.mean(0).abs().max() < 1e-6
    assert study.half_squared_error(torch.nn.Linear(64, 10, bias=False).requires_grad_(False), (0 * x, y)).item() == 0.5


def test_measures_the_largest_eigenvalue_of_the_full_hessian():
    run = study.train(study.Setting(0.1), SHORT, seed=0)
    model = seeded_mlp((64, 8, 8, 10), 0)
    params = dict(model.named_parameters())

    def loss(flat):
        parts = dict(zip(params, flat.split([p.numel() for p in params.values()]), strict=True))
        weights = {name: part.view(params[name].shape) for name, part in parts.items()}
        x, y = study.labelled_digits()
        return 0.5 * (torch.func.functional_call(model, weights, (x,)) - y).square().sum(1).mean()

    start = torch.cat([p.detach().flatten() for p in params.values()])
    top = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, start))[-1]
    assert run.sharpness[0] == pytest.approx(float(top), rel=study.TOLERANCE)
    assert run.steps.tolist() == [0, 2, 4]
    assert run.losses[-1] < run.losses[0]


def test_the_level_of_normalised_sam_moves_with_the_gradient():
    run = study.train(study.NORMALIZED, SHORT, seed=0)
    assert len(set(run.edges)) == 3
    assert (run.edges < 2 / study.LR).all()


def test_same_seed_same_run():
    first, second, other = (study.train(study.SMALL, SHORT, seed) for seed in (0, 0, 1))
    assert (first.sharpness == second.sharpness).all()
    assert (first.sharpness != other.sharpness).all()

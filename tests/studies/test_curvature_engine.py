import numpy as np
import pytest
import torch

from poise.curvature import SharpnessTracker
from poise.dynamics import edge
from poise.studies import curvature_engine as study
from poise.studies.kit.batches import half_squared_error


@pytest.mark.parametrize("kind", ["Gaussian", "clusters", "multiple"])
def test_random_matrices_have_the_spectrum_they_are_named_after(kind):
    matrix = study.random_matrix(kind, 3)
    assert torch.equal(matrix, matrix.T)
    values = torch.linalg.eigvalsh(matrix).flip(0)
    if kind == "multiple":
        torch.testing.assert_close(values[:6], torch.tensor([8.0, 8, 7, 7, 6, 6]).double(), rtol=0, atol=1e-12)
    elif kind == "clusters":
        widths = values[:9].view(3, 3)
        assert (widths[:, 0] - widths[:, 2]).max() < 1e-3
        assert (widths[:, 0] - widths[:, 2]).min() > 1e-7
    else:
        assert values.diff().abs().min() > 0
    assert torch.equal(matrix, study.random_matrix(kind, 3))
    assert not torch.equal(matrix, study.random_matrix(kind, 4))


def test_a_case_sees_broken_bounds_and_wrong_values():
    truth = torch.tensor([2.0, 1.0])
    assert study._case(truth + 1e-4, torch.tensor([1e-3, 1e-3]), truth, 5) == (True, False, 5)
    assert study._case(truth + 1e-4, torch.tensor([1e-3, 1e-5]), truth, 5) == (False, False, 5)
    assert study._case(truth - 5e-3, torch.tensor([1e-2, 1e-2]), truth, 5) == (True, True, 5)


def test_truth_is_the_top_of_the_written_out_hessian():
    net = study.trained_net(0)
    params = [p.detach().double().requires_grad_() for p in net.model.parameters()]
    w1, b1, w2, b2 = params
    x, y = net.data[0].double(), net.data[1]
    loss = study.CRITERION(torch.tanh(x @ w1.T + b1) @ w2.T + b2, y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params, create_graph=True)])
    hessian = net.hessian()
    v = torch.randn(hessian.shape[0], dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    parts = torch.autograd.grad(gradient @ v.double(), params)
    exact = torch.cat([p.reshape(-1) for p in parts])
    torch.testing.assert_close(hessian.matvec(v).double(), exact, rtol=1e-4, atol=1e-5)
    for method in ("lanczos", "block"):
        found = study.eigs(hessian, 10, tol=1e-5, method=method, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(found.values, net.truth, rtol=1e-4, atol=0)
    assert all(p.grad is None for p in net.model.parameters())


def test_run_records_what_a_tracker_says():
    run = study.train(study.GD, 6, 3, seed=0)
    assert run.steps.tolist() == [3, 6]
    again = study.train(study.GD, 6, 3, seed=0)
    np.testing.assert_array_equal(run.ratio, again.ratio)
    np.testing.assert_array_equal(run.loss, again.loss)
    assert (run.bound <= 2e-3 * run.ratio).all()
    assert run.late == run.ratio[1]


def test_thresholds_are_those_of_the_literature():
    weight = torch.nn.Parameter(torch.zeros(2))
    assert edge(study.OPTIMIZERS[study.GD]([weight])) == pytest.approx(2 / 0.6)
    assert edge(study.OPTIMIZERS[study.ADAM]([weight])) == pytest.approx(38 / 0.01)


def test_adam_is_measured_as_adam_sees_it():
    model = torch.nn.Linear(3, 1, bias=False)
    batch = torch.eye(3), torch.zeros(3, 1)
    optimizer = study.OPTIMIZERS[study.ADAM](model.parameters())
    half_squared_error(model, batch).backward()
    optimizer.step()
    # After one step v / (1 - beta2) = g^2; the Hessian of mean 0.5 w^2 is I / 3.
    g = model.weight.grad.abs()
    expected = ((1 / 3) / (0.1 * (g + 1e-7))).max().item()
    found = SharpnessTracker(precondition="optimizer").update(model, half_squared_error, batch, optimizer)
    assert found.sharpness == pytest.approx(expected, rel=1e-3)

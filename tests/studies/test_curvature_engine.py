import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from poise.curvature import SharpnessTracker
from poise.dynamics import edge
from poise.studies import curvature_engine as study
from poise.studies import load_study


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


def test_loss_is_half_the_squared_distance():
    outputs = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    targets = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert study.half_squared_error(torch.nn.Identity(), (outputs, targets)).item() == pytest.approx(0.5 * (1 + 4) / 2)


def test_run_records_what_a_tracker_says():
    run = study.train(study.gradient_descent, 6, 3, seed=0)
    assert run.steps.tolist() == [3, 6]
    again = study.train(study.gradient_descent, 6, 3, seed=0)
    np.testing.assert_array_equal(run.ratio, again.ratio)
    np.testing.assert_array_equal(run.loss, again.loss)
    assert (run.bound <= 2e-3 * run.ratio).all()
    assert run.late == run.ratio[1]


def test_thresholds_are_those_of_the_literature():
    weight = torch.nn.Parameter(torch.zeros(2))
    assert edge(study.gradient_descent([weight])) == pytest.approx(2 / 0.6)
    assert edge(study.adam([weight])) == pytest.approx(38 / 0.01)


def test_adam_is_measured_as_adam_sees_it():
    model = torch.nn.Linear(3, 1, bias=False)
    batch = torch.eye(3), torch.zeros(3, 1)
    optimizer = study.adam(model.parameters())
    study.half_squared_error(model, batch).backward()
    optimizer.step()
    # After one step v / (1 - beta2) = g^2; the Hessian of mean 0.5 w^2 is I / 3.
    g = model.weight.grad.abs()
    expected = ((1 / 3) / (0.1 * (g + 1e-7))).max().item()
    found = SharpnessTracker(precondition="optimizer").update(model, study.half_squared_error, batch, optimizer)
    assert found.sharpness == pytest.approx(expected, rel=1e-3)


def test_peers_take_the_cheapest_setting_that_always_arrives():
    net = study.trained_net(0)
    truth = net.truth[:1].numpy()

    def solver(net, k, setting, seed):
        return truth * (1 + setting * (seed + 1) / 3)

    assert study._cheapest(solver, (1e-1, 1e-2, 1e-3, 1e-4), net, 1, 3) == 1e-3
    assert study._cheapest(solver, (1e-1, 1e-2), net, 1, 3) is None


@pytest.mark.skipif(any(find_spec(module) for module, _, _ in study.PEERS.values()), reason="a peer is installed")
def test_without_peers_nothing_is_compared():
    assert study.compare_with_peers([0]) == {}
    assert study._speed_claim({}).numbers == {}


@pytest.mark.parametrize(
    ("claim", "numbers", "verdict"),
    [
        ("edge-gd", {"least": 1.01, "most": 1.11}, "reproduced"),
        ("edge-gd", {"least": 0.5, "most": 1.05}, "partly"),
        ("edge-gd", {"least": 0.5, "most": 0.9}, "refuted"),
        ("edge-gd", {"least": 1.2, "most": math.inf}, "refuted"),
        ("edge-adam", {"least": 0.96, "most": 1.03}, "reproduced"),
        ("edge-adam", {"least": 0.96, "most": 1.1}, "partly"),
        ("edge-adam", {"least": 0.3, "most": 0.4}, "refuted"),
        ("bounds", {"least_share": 0.99}, "reproduced"),
        ("bounds", {"least_share": 0.97}, "partly"),
        ("bounds", {"least_share": 0.9}, "refuted"),
        ("cold-starts", {"wrong": 0, "starts": 1000}, "reproduced"),
        ("cold-starts", {"wrong": 3, "starts": 1000}, "partly"),
        ("cold-starts", {"wrong": 20, "starts": 1000}, "refuted"),
        ("tracking", {"products": 2.2}, "reproduced"),
        ("tracking", {"products": 4.0}, "partly"),
        ("tracking", {"products": 9.0}, "refuted"),
        ("speed", {"PyHessian": 5.5, "curvlinops + eigsh": 8, "hessian-eigenthings": 1.6}, "reproduced"),
        ("speed", {"PyHessian": 2.0, "curvlinops + eigsh": 8, "hessian-eigenthings": 1.6}, "partly"),
        ("speed", {"PyHessian": 5.5, "curvlinops + eigsh": 8, "hessian-eigenthings": 0.9}, "refuted"),
        ("speed", {"PyHessian": math.inf, "curvlinops + eigsh": 8, "hessian-eigenthings": 1.6}, "reproduced"),
    ],
)
def test_judges(claim, numbers, verdict):
    (found,) = [c for c in study.CLAIMS if c.id == claim]
    assert found.judge(numbers) == verdict


@pytest.mark.slow
def test_tiny_run_is_whole_and_repeats():
    first, second = (load_study("curvature-engine").run("tiny") for _ in range(2))
    assert [r.numbers for r in first.results] == [r.numbers for r in second.results]
    verdicts = {r.claim.id: r.verdict for r in first.results}
    assert verdicts["speed"] == "not tested"
    assert verdicts["bounds"] == "reproduced"
    assert verdicts["cold-starts"] == "reproduced"
    html = first.report().to_html()
    assert "Sharpness over the threshold of stability" in html

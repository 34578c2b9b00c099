import math

import numpy as np
import pytest
import torch

from poise.dynamics import STABLE_SET_LIMIT, ScalarNetwork
from poise.studies import gfs_sharpness as study


def test_a_rise_is_relative_to_the_value_before():
    assert study.rise(np.array([4.0, 3.0, 3.3, 1.0])) == pytest.approx(0.1)
    assert study.rise(np.array([3.0, 2.0, 1.0])) == 0
    assert study.rise(np.array([3.0])) == 0


def test_derivatives_of_the_network_are_those_of_autograd():
    network, w = study.draw_network(0)
    assert network.size == len(w) == 100
    torch.testing.assert_close(network.gradient(w), torch.func.grad(network.loss)(w))
    torch.testing.assert_close(network.hessian(w), torch.func.hessian(network.loss)(w))


def test_data_of_the_network():
    network, _ = study.draw_network(0)
    assert network.inputs.shape == (24, 8)
    assert network.inputs.std(correction=0).item() == pytest.approx(1.0)
    assert set(network.targets.tolist()) == {-1.0, 1.0}
    gram = network.inputs.T @ network.inputs
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-10)


def test_scalar_networks_start_in_the_stable_set_at_the_edges_asked_for():
    w, lr = study.draw_scalar(4, 10, torch.Generator().manual_seed(0))
    edges = lr * ScalarNetwork(w).gfs_sharpness()
    assert (edges >= 1.5).all()
    assert (edges <= STABLE_SET_LIMIT).all()
    assert all(ScalarNetwork(w[i]).in_stable_set(float(lr[i])) for i in range(10))


def test_scalar_runs_are_those_of_single_networks():
    runs = study.run_scalar(1, 3, study.Plan(nets_per_depth=4, scalar_steps=50))
    w, lr = study.draw_scalar(3, 4, torch.Generator().manual_seed(3001))
    for i in range(4):
        net, phi = ScalarNetwork(w[i]), [ScalarNetwork(w[i]).gfs_sharpness().item()]
        for _ in range(50):
            net = net.gd_step(float(lr[i]))
            phi.append(net.gfs_sharpness().item())
        assert runs.edges[i] == pytest.approx(lr[i].item() * phi[0], rel=1e-12)
        if np.isfinite(runs.ends[i]):
            assert runs.ends[i] == pytest.approx(lr[i].item() * phi[-1], rel=1e-9)
        assert study.rise(np.array(phi)) <= max(runs.largest_rise, 1e-15) * 2


def test_a_run_that_explodes_is_no_progress():
    run = study.run_network(0, 30.0, study.Plan(network_steps=20))
    assert run.exploded
    assert run.largest_rise == math.inf
    assert len(run.loss) < 21

import numpy as np
import pytest
import torch

from poise.nn import DiagonalLinear, path_norm
from poise.studies import sgd_dynamical_stability as study

TASKS = [study.diagonal_task, study.teacher_task, study.digits_task]


def problem(task, copies=2):
    tasks = [task(seed) for seed in range(copies)]
    starts = (np.stack([t.start[k] for t in tasks]) for k in range(2))
    return tasks[0].make(np.stack([t.x for t in tasks]), np.stack([t.y for t in tasks]), *starts)


def module_of(p, copy=0):
    """The same network in torch."""
    if isinstance(p, study.Diagonal):
        net = DiagonalLinear(p.x.shape[2], dtype=torch.float64)
        net.weight.data = torch.from_numpy(np.stack([p.a[copy], p.b[copy]]))
        return net
    first, last = torch.nn.Linear(*p.w.shape[:0:-1], bias=False), torch.nn.Linear(p.w.shape[1], 1, bias=False)
    first.weight.data, last.weight.data = torch.from_numpy(p.w[copy]), torch.from_numpy(p.a[copy])[None]
    return torch.nn.Sequential(first, torch.nn.ReLU(), last)


@pytest.mark.parametrize("task", TASKS)
def test_networks_and_norms_are_those_of_torch(task):
    p = problem(task)
    for copy in range(2):
        net, x = module_of(p, copy), torch.from_numpy(p.x[copy])
        np.testing.assert_allclose(p.outputs(p.x)[copy], net(x)[:, 0].detach().numpy())
        assert p.norm()[copy] == pytest.approx(path_norm(net), rel=1e-12)
        rows = torch.func.jacrev(lambda q, net=net, x=x: torch.func.functional_call(net, q, (x,))[:, 0])(
            {name: w.detach() for name, w in net.named_parameters()}
        )
        squares = sum(r.flatten(1).square().sum(1) for r in rows.values())
        np.testing.assert_allclose(np.square(p.gradients()[copy]).sum(1), squares.numpy())


@pytest.mark.parametrize("task", TASKS)
def test_steps_are_gradient_steps(task):
    lr, i = 1e-3, np.array([3, 7])
    for method in ("sgd", "gd"):
        p = problem(task)
        nets = [module_of(p, copy) for copy in range(2)]
        nets = [(net.double(), torch.from_numpy(p.x[k]), torch.from_numpy(p.y[k])) for k, net in enumerate(nets)]
        expected = []
        for k, (net, x, y) in enumerate(nets):
            error = net(x)[:, 0] - y
            loss = error[i[k]].square() / 2 if method == "sgd" else error.square().mean() / 2
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for w, g in zip(net.parameters(), gradients, strict=True):
                    w.copy_(w.clone() - lr * g)  # not in place: the weights are views of the arrays
            expected.append(net(x)[:, 0].detach().numpy())
        p = problem(task)
        step = np.full((2, 1), lr)
        p.sgd_step(i, step) if method == "sgd" else p.gd_step(step)
        np.testing.assert_allclose(p.outputs(p.x), np.stack(expected), rtol=1e-9)


def test_trace_of_the_diagonal_network_has_a_closed_form():
    p = problem(study.diagonal_task)
    closed = (np.square(p.x).mean(1) * (np.square(p.a) + np.square(p.b))).sum(1)
    np.testing.assert_allclose(np.square(p.gradients()).sum(2).mean(1), closed, rtol=1e-12)


def test_data_are_those_of_the_protocol():
    a, b, c = (task(0) for task in TASKS)
    assert a.x.shape == (60, 200)
    assert np.abs(a.x).max() <= 1
    np.testing.assert_allclose(a.y, a.x[:, :3].sum(1))
    assert b.x.shape == (120, 30)
    np.testing.assert_allclose(np.linalg.norm(b.x_test, axis=1), 30**0.5)
    assert c.x.shape == (100, 64)
    assert set(c.y) == {-1.0, 1.0}
    np.testing.assert_allclose(np.linalg.norm(c.x_test, axis=1), 8)
    assert a.start[0].std() == pytest.approx(1, abs=0.2)
    assert b.start[1].std() == pytest.approx(30**-0.25, rel=0.1)

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.optim import SGD

from poise.optim import AGEM, GEM, project_agem, project_gem


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_worked_projection():
    new = project_agem(vector(1, 0), vector(-1, 1), eps=0)
    assert new.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("seed", range(5))
def test_a_projection_is_shorter_idempotent_and_free_of_conflict(seed):
    g, r = random(7, seed=seed), random(7, seed=seed + 100)
    r = -r if torch.dot(g, r) > 0 else r
    new = project_agem(g, r, eps=0)
    assert torch.dot(new, r).abs() < 1e-12
    assert new.norm() <= g.norm()
    assert torch.dot(new, g) >= 0
    torch.testing.assert_close(project_agem(new - 1e-15 * r, r, eps=0), new, rtol=0, atol=1e-12)
    torch.testing.assert_close(project_agem(g, 7 * r, eps=0), new)
    assert project_agem(-g, r) is not None
    kept = g if torch.dot(g, -r) >= 0 else -g
    assert project_agem(kept, -r) is kept


def test_gem_with_one_reference_and_no_strength_is_agem():
    g, r = vector(1, 0, 2), vector(-1, 1, -1)
    torch.testing.assert_close(project_gem(g, r[None], 0.0, 1e-12), project_agem(g, r, 1e-12))


def test_strength_adds_the_reference_where_nothing_is_opposed():
    g, r = vector(1, 1), vector(1, 2)
    torch.testing.assert_close(project_gem(g, r[None], 0.5, always=True), g + 0.5 * r)
    assert project_gem(g, r[None], 0.5) is g


def test_orthogonal_references_are_solved_one_by_one():
    references = torch.diag(vector(1, 2, 3))
    g = vector(-4, 1, -0.5)
    v = torch.maximum(torch.tensor(0.5), -(references @ g) / (references.square().sum(1) + 1e-3))
    torch.testing.assert_close(project_gem(g, references, 0.5), g + references.T @ v)


@pytest.mark.parametrize("seed", range(4))
def test_the_dual_is_solved_and_the_order_of_tasks_does_not_matter(seed):
    g, references = random(20, seed=seed), random(5, 20, seed=seed + 50)
    new = project_gem(g, references, 0.5, always=True)
    p = (references @ references.T + 1e-3 * torch.eye(5)).numpy()
    q = (references @ g).numpy()
    best = minimize(
        lambda v: v @ p @ v / 2 + q @ v, np.ones(5), jac=lambda v: p @ v + q, bounds=[(0.5, None)] * 5, tol=1e-14
    )
    torch.testing.assert_close(new, g + references.T @ torch.from_numpy(best.x), rtol=0, atol=1e-4)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(project_gem(g, references[order], 0.5, always=True), new)


def two_losses(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = random(16, 3), random(16, 1, seed=1)
    pretrain = SGD(model.parameters(), 0.1)
    for _ in range(30):  # on the old data
        pretrain.zero_grad()
        (model(x) + y).square().mean().backward()
        pretrain.step()
    pretrain.zero_grad()
    return model, lambda: (model(x) - y).square().mean(), lambda: (model(x) + y).square().mean()


@pytest.mark.parametrize("make", [AGEM, lambda o: GEM(o, strength=0.0, eps=1e-9)])
def test_a_small_step_does_not_raise_the_old_loss(make):
    model, new, old = two_losses()
    optimizer = make(SGD(model.parameters(), 1e-4))
    conflicts = 0
    for _ in range(20):
        before = old().item()
        optimizer.reference(old())
        optimizer.zero_grad()
        new().backward()
        optimizer.step()
        assert old().item() <= before + 1e-9
        conflicts = optimizer.fired
    assert conflicts > 5
    assert -1 <= optimizer.cosine < 0
    assert optimizer.steps == 20


def test_without_conflict_the_step_is_the_plain_one_bit_for_bit():
    model, new, _ = two_losses()
    twin, new_twin, _ = two_losses()
    optimizer, plain = AGEM(SGD(model.parameters(), 0.1, momentum=0.9)), SGD(twin.parameters(), 0.1, momentum=0.9)
    for _ in range(5):
        optimizer.reference(new())
        for opt, loss in ((optimizer, new), (plain, new_twin)):
            opt.zero_grad()
            loss().backward()
            opt.step()
    assert optimizer.fired == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_momentum_may_oppose_the_reference_unless_the_update_is_projected():
    rises = {}
    for project in ("grad", "update"):
        model, new, old = two_losses()
        optimizer = AGEM(SGD(model.parameters(), 1e-3, momentum=0.9), project=project)
        for _ in range(10):  # momentum against the old loss
            optimizer.reference([])
            optimizer.zero_grad()
            new().backward()
            optimizer.step()
        before = old().item()
        optimizer.reference(old())
        optimizer.zero_grad()
        new().backward()
        optimizer.step()
        rises[project] = old().item() - before
    assert rises["grad"] > 0
    assert rises["update"] < 0.05 * rises["grad"]  # what is left is of second order in the step


def test_counts_survive_a_checkpoint_and_a_closure_is_called_once():
    model, new, old = two_losses()
    optimizer = GEM(SGD(model.parameters(), 1e-3), always=True)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = new()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.reference([old(), new()])
        assert optimizer.step(closure).item() > 0
    assert len(calls) == 3
    again = GEM(SGD(model.parameters(), 1e-3))
    again.load_state_dict(optimizer.state_dict())
    assert (again.steps, again.fired) == (3, 3)


def test_a_reference_of_zero_is_counted_and_changes_nothing():
    model, new, _ = two_losses()
    optimizer = AGEM(SGD(model.parameters(), 0.1))
    optimizer.reference(sum((p - p.detach()).square().sum() for p in model.parameters()))
    new().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert optimizer.zero_references == 1
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert math.isnan(optimizer.cosine)


def test_bad_input_is_named():
    model, new, _ = two_losses()
    optimizer = AGEM(SGD(model.parameters(), 0.1))
    new().backward()
    with pytest.raises(RuntimeError, match=r"reference\(\) must be called"):
        optimizer.step()
    with pytest.raises(ValueError, match="must depend on a parameter"):
        optimizer.reference(torch.tensor(1.0))
    with pytest.raises(ValueError, match="project must be"):
        AGEM(SGD(model.parameters(), 0.1), project="step")
    with pytest.raises(ValueError, match="strength must not be negative"):
        GEM(SGD(model.parameters(), 0.1), strength=-1)
    with pytest.raises(ValueError, match="must have 2 columns"):
        project_agem(vector(1, 0), vector(1, 0, 0))
    with pytest.raises(ValueError, match="must be finite"):
        project_gem(vector(1, math.nan), vector(-1, 1)[None])
    same = torch.stack([vector(-1, 0)] * 2)
    with pytest.raises(ValueError, match="eps must be above 0"):
        project_gem(vector(1, 0), same, eps=0.0)
    assert torch.isfinite(project_gem(vector(1, 0), same)).all()
    with pytest.raises(ValueError, match="at most 64"):
        project_gem(vector(1, 0), torch.ones(65, 2, dtype=torch.float64))

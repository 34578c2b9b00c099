"""The study of SOAP: its baseline and its runs."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from poise.studies import soap


def gradient_steps(optimizer, p, gradients):
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()


def random_gradients(count, shape, seed=0):
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("shape", [(6, 4), (5,)])
def test_the_baseline_steps_as_far_as_adam(shape):
    ours, theirs = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
    a, b = soap.Shampoo([ours], 0.1, 2), torch.optim.Adam([theirs], 0.1, (soap.BETA, soap.BETA))
    for g in random_gradients(5, shape):
        before = ours.detach().clone(), theirs.detach().clone()
        gradient_steps(a, ours, [g])
        gradient_steps(b, theirs, [g])
        moved = [(p.detach() - start).norm() for p, start in zip((ours, theirs), before, strict=True)]
        torch.testing.assert_close(*moved)


def test_the_baseline_takes_an_orthogonal_direction_at_first():
    # With L = G G' and R = G' G the direction L^-1/2 G R^-1/2 is G's orthogonal factor over its singular values:
    # the inverse's transpose.
    p, (g,) = nn.Parameter(torch.zeros(4, 4)), random_gradients(1, (4, 4))
    gradient_steps(soap.Shampoo([p], 1.0, 1), p, [g])
    expected = torch.linalg.inv(g).T
    torch.testing.assert_close(p.detach() / p.detach().norm(), -expected / expected.norm(), rtol=1e-3, atol=1e-3)


def test_stale_roots_are_kept_between_refreshes():
    p = nn.Parameter(torch.zeros(4, 4))
    optimizer = soap.Shampoo([p], 0.1, 3)
    roots = []
    for g in random_gradients(6, (4, 4)):
        gradient_steps(optimizer, p, [g])
        roots.append(optimizer.state[p]["roots"][0].clone())
    same = [torch.equal(a, b) for a, b in pairwise(roots)]
    assert same == [True, True, False, True, True]


@pytest.mark.parametrize("method", [soap.ADAMW, soap.SOAP_10, soap.FACTORED, soap.Method("Shampoo")])
def test_same_seed_same_run_and_the_callers_state_is_untouched(method):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second, other = (soap.train(method, 32, 5, 0.01, seed) for seed in (1, 1, 2))
    assert first == second != other
    assert first["loss"] < first["init_loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_methods_start_alike_and_see_the_same_batches():
    a, b = (soap.Training(method, 16, 4, 0.01, seed=3) for method in (soap.ADAMW, soap.SOAP_10))
    assert a.loss() == b.loss()
    assert all(torch.equal(x, y) for x, y in zip(a.batches, b.batches, strict=True))


def test_the_rate_warms_up_and_ends_near_zero():
    shape = [soap._shape(step, 50) for step in range(50)]
    assert shape[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(shape) == 1
    assert shape[5:] == sorted(shape[5:], reverse=True)
    assert shape[-1] < 0.01

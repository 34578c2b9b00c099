"""The study of SOAP: its baseline, its runs, its judges."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from poise.studies import load_study, soap


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


CASES = [
    ("fewer-steps", {"worst": 0.9, "worst_at_most": 0.7}, "reproduced"),
    ("fewer-steps", {"worst": 1.1, "worst_at_most": 0.9}, "partly"),
    ("fewer-steps", {"worst": 1.3, "worst_at_most": 1.1}, "refuted"),
    ("small-batch", {"worst": 1.3, "worst_at_most": 1.3}, "refuted"),
    ("every-frequency", {"ratio_1": 0.5, "ratio_10": 0.6, "ratio_100": 0.9}, "reproduced"),
    ("every-frequency", {"ratio_1": 0.5, "ratio_10": 0.6, "ratio_100": 1.1}, "partly"),
    ("every-frequency", {"ratio_1": 1.5, "ratio_10": 1.6, "ratio_100": 1.1}, "refuted"),
    ("stale-basis", {"ratio": 1.4, "p_worse": 0.99}, "reproduced"),
    ("stale-basis", {"ratio": 1.1, "p_worse": 0.8}, "partly"),
    ("stale-basis", {"ratio": 0.99, "p_worse": 0.3}, "refuted"),
    ("slower-decline", {"soap": 1.4, "shampoo": 3.0, "p_less": 0.99}, "reproduced"),
    ("slower-decline", {"soap": 1.4, "shampoo": 1.5, "p_less": 0.7}, "partly"),
    ("slower-decline", {"soap": 1.4, "shampoo": 1.2, "p_less": 0.2}, "refuted"),
    ("variants", {"full": 0.5, "one_sided": 0.7, "factored": 0.8}, "reproduced"),
    ("variants", {"full": 0.5, "one_sided": 0.7, "factored": 1.8}, "partly"),
    ("variants", {"full": 0.5, "one_sided": 1.7, "factored": 1.8}, "refuted"),
    ("wall-time", {"large": 0.6, "small": math.inf}, "reproduced"),
    ("wall-time", {"large": 0.9, "small": 1.2}, "partly"),
    ("wall-time", {"large": 1.1, "small": 1.2}, "refuted"),
]


@pytest.mark.parametrize(("claim", "numbers", "verdict"), CASES)
def test_a_verdict_follows_from_the_numbers(claim, numbers, verdict):
    judge = {c.id: c.judge for c in soap.CLAIMS}[claim]
    assert judge(numbers) == verdict


@pytest.mark.slow
def test_the_tiny_study_runs_and_reports():
    shares = []
    outcome = load_study("soap").run("tiny", progress=lambda share, words: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0, abs=0.02)  # steps of a share are rounded
    assert not [r for r in outcome.results if r.verdict == "not tested"]
    assert "Final loss over the steps between two refreshes" in outcome.report().to_html()

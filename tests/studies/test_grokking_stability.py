import math

import pytest
import torch
import torch.nn.functional as F

from poise.studies import grokking_stability as study


def test_addition_holds_all_pairs_and_their_sums():
    task = study.addition(7, 0.4, seed=0)
    assert task.x.shape == (49, 14)
    a, b = task.x[:, :7].argmax(1), task.x[:, 7:].argmax(1)
    assert torch.equal(task.y, (a + b) % 7)
    assert len({(int(i), int(j)) for i, j in zip(a, b, strict=True)}) == 49
    assert len(task.train) == 20
    assert sorted([*task.train.tolist(), *task.test.tolist()]) == list(range(49))


def test_parity_depends_on_its_bits_alone():
    task = study.sparse_parity(seed=1, samples=400)
    assert task.x.shape == (400, 43)
    flipped = task.x[:, 0].bool() ^ task.x[:, 1].bool() ^ task.x[:, 2].bool()
    assert torch.equal(task.y.bool(), flipped)
    assert len(task.train) == len(task.test) == 200


@pytest.mark.parametrize(
    ("gap", "dtype", "fraction"),
    [
        (16.63, torch.float32, 0.0),
        (16.64, torch.float32, 1.0),
        (16.64, torch.float64, 0.0),
        (36.8, torch.float64, 1.0),
    ],
)
def test_a_sample_collapses_where_its_competitor_is_absorbed(gap, dtype, fraction):
    assert study.collapsed(torch.tensor([[gap, 0.0]], dtype=dtype)) == fraction


def test_a_collapsed_sample_has_no_gradient_in_float32_and_one_in_float64():
    y = torch.tensor([0])
    gradients = []
    for loss in (F.cross_entropy, study.cross_entropy64):
        logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
        loss(logits, y).backward()
        gradients.append(logits.grad[0, 0].item())
    assert gradients[0] == 0
    assert gradients[1] == pytest.approx(-math.exp(-20), rel=1e-5)


def test_a_run_measures_what_it_says():
    task = study.addition(7, 0.5, seed=0)
    run = study.train(task, study.ORTHO_ARMS["AdamW"], F.cross_entropy, 35, seed=0, every=10)
    assert run.epochs.tolist() == [0, 10, 20, 30, 34]
    assert run.collapse.shape == (35,)
    assert run.train[-1] == 1
    assert -1 <= run.alignment.min() <= run.alignment.max() <= 1
    fitted = run.train == 1
    assert run.alignment_after_fit == run.alignment[fitted.argmax() :].max()

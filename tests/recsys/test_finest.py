"""The loss that keeps the order of recommendations, its references and its perturbed copies."""

import numpy as np
import pytest
import torch

from poise.recsys import (
    Finest,
    PerturbationSampler,
    RankPreservingLoss,
    ReferenceRanks,
    SASRec,
    fit_recommender,
    score_users,
)

EVERY = torch.ones(2, 3, dtype=torch.bool)


def _table(k=3, items=8):
    order = torch.stack([torch.stack([torch.randperm(items) for _ in range(3)]) for _ in range(2)])
    return order[..., :k], order[..., k : 2 * k]


def _spaced(reference, competitors, items=8, step=0.1):
    scores = torch.zeros(2, 3, items)
    order = torch.cat([reference, competitors], -1)
    return scores.scatter(2, order, -step * torch.arange(order.shape[-1]).expand(order.shape).float())


def test_a_kept_order_costs_nothing():
    torch.manual_seed(0)
    reference, competitors = _table()
    scores = _spaced(reference, competitors, step=0.11).requires_grad_()
    loss = RankPreservingLoss(0.1)(scores, reference, competitors, EVERY)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, scores)[0].any()


def test_equal_scores_cost_the_margin_twice():
    loss = RankPreservingLoss(0.25)(torch.ones(2, 3, 8), *_table(), EVERY)
    assert loss.item() == pytest.approx(0.5)
    assert RankPreservingLoss(0.25)(torch.ones(2, 3, 8), *_table(k=1), EVERY).item() == pytest.approx(0.25)


def test_the_loss_equals_a_loop_over_positions():
    torch.manual_seed(1)
    scores, (reference, competitors) = torch.randn(2, 3, 8), _table()
    mask = torch.tensor([[True, False, True], [False, True, False]])
    each = {}
    for b, t in mask.nonzero().tolist():
        kept = scores[b, t, reference[b, t]]
        rivals = scores[b, t, competitors[b, t]]
        order = np.mean([max(0, 0.1 - float(kept[i] - kept[i + 1])) for i in range(2)])
        push = np.mean([max(0, 0.1 - float(kept[i] - rivals[i])) for i in range(3)])
        each.setdefault(b, []).append(order + push)
    arguments = scores, reference, competitors, mask
    mean = np.mean(np.concatenate(list(each.values())))
    assert RankPreservingLoss()(*arguments).item() == pytest.approx(mean, abs=1e-6)
    summed = RankPreservingLoss(reduction="sequence_sum")(*arguments).item()
    assert summed == pytest.approx(sum(np.mean(values) for values in each.values()), abs=1e-6)


def test_gradients_sum_to_zero_and_reach_only_the_items_of_the_table():
    torch.manual_seed(2)
    scores, (reference, competitors) = torch.randn(2, 3, 8, requires_grad=True), _table()
    (grad,) = torch.autograd.grad(RankPreservingLoss()(scores, reference, competitors, EVERY), scores)
    assert torch.allclose(grad.sum(-1), torch.zeros(2, 3), atol=1e-7)
    untouched = torch.ones_like(grad).scatter(2, torch.cat([reference, competitors], -1), 0.0)
    assert not (grad * untouched).any()
    shifted = RankPreservingLoss()(scores + 3, reference, competitors, EVERY)
    assert shifted.item() == pytest.approx(RankPreservingLoss()(scores, reference, competitors, EVERY).item(), abs=1e-6)


def test_no_position_gives_zero_with_a_gradient_of_zero():
    scores = torch.randn(2, 3, 8, requires_grad=True)
    for reduction in ("mean", "sequence_sum"):
        loss = RankPreservingLoss(reduction=reduction)(scores, *_table(), ~EVERY)
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, scores)[0].any()


def test_a_batch_twice_doubles_only_the_sum():
    torch.manual_seed(3)
    scores, (reference, competitors) = torch.randn(2, 3, 8), _table()
    twice = [torch.cat([x, x]) for x in (scores, reference, competitors, EVERY)]
    for reduction, factor in (("mean", 1), ("sequence_sum", 2)):
        loss = RankPreservingLoss(reduction=reduction)
        assert loss(*twice).item() == pytest.approx(factor * loss(scores, reference, competitors, EVERY).item())


def _trained(log):
    torch.manual_seed(0)
    model = SASRec(7, 16)
    fit_recommender(model, log, epochs=5)
    return model


def test_references_are_the_first_items_in_evaluation_mode(tmp_path, cycle_log):
    log = cycle_log()
    model = _trained(log)
    references = ReferenceRanks.from_model(model, log, k=3)
    assert model.training
    assert references.coverage == pytest.approx(14 / 15)
    row = int(log.row[(log.user == 2) & (log.time == 13)][0])
    kept, _, mask = references.at(torch.tensor([[row, -1]]))
    expected = score_users(model, log.take(log.time <= 13))[2].topk(3).indices
    assert kept[0, 0].tolist() == expected.tolist()
    assert mask.tolist() == [[True, False]]
    references.save(tmp_path / "table.npz")
    assert torch.equal(ReferenceRanks.load(tmp_path / "table.npz").kept, references.kept)
    last = int(log.row[(log.user == 2) & (log.time == 14)][0])
    with pytest.raises(KeyError, match=str(last)):
        references.at(torch.tensor([[last]]))
    with pytest.raises(ValueError, match=r"half of the 7 items, got 4"):
        ReferenceRanks.from_model(model, log, k=4)


@pytest.mark.parametrize(("kind", "change"), [("delete", -18), ("replace", 0), ("insert", 18)])
def test_copies_hold_exactly_the_fraction_asked_for(kind, change, cycle_log):
    log = cycle_log()
    copy = PerturbationSampler(0.1, (kind,)).sample(log, 0)
    assert len(copy) == len(log) + change
    assert (copy.row == -1).sum() == (0 if kind == "delete" else 18)
    assert (PerturbationSampler(0.1, (kind,)).sample(log, 0).item == copy.item).all()
    if kind == "insert":
        new = np.flatnonzero(copy.row == -1)
        assert (copy.user[new] == copy.user[new + 1]).all()
        assert (copy.time[new] == copy.time[new + 1] - 1).all()
        assert (copy.row[copy.row >= 0] == log.row).all()


def test_fine_tuning_keeps_more_of_the_order_than_training_on(cycle_log):
    log = cycle_log()
    model = _trained(log)
    references = ReferenceRanks.from_model(model, log, k=3)
    state, rows = {k: v.clone() for k, v in model.state_dict().items()}, torch.from_numpy(log.row[log.time < 14])
    loss = {}
    for weight in (0.0, 5.0):
        model.load_state_dict(state)
        Finest(references, weight=weight, epochs=3, lr=5e-3).fit(model, log)
        model.eval()
        again = ReferenceRanks.from_model(model, log, k=3)
        loss[weight] = (again.kept[rows] != references.kept[rows]).float().mean().item()
    assert loss[5.0] < loss[0.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RankPreservingLoss(-1), "margin must be at least 0"),
        (lambda: RankPreservingLoss(reduction="sum"), "reduction must be"),
        (lambda: RankPreservingLoss()(torch.ones(2, 3, 4), *_table(), EVERY), "items below 4"),
        (lambda: RankPreservingLoss()(torch.ones(2, 2, 8), *_table(), EVERY), "must have shape"),
        (lambda: PerturbationSampler(0.6), r"rate must be in \(0, 0.5\]"),
        (lambda: PerturbationSampler(kinds=("swap",)), "kinds must be some of"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()

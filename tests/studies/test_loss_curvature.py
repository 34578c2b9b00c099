import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.studies import loss_curvature as study
from poise.studies.kit.batches import batch_indices

SHORT = study.Plan((1e-3, 1e-2), 6, 4, 3, 1, 1, (0.5, 8), 48, 1)


def test_networks_of_a_seed_share_their_weights_and_norms_begin_branches():
    plain, normed = (study.network(name, 3, SHORT) for name in (study.PLAIN, study.NORMED))
    assert torch.equal(plain.branches[4].weight, normed.branches[4].weight)
    weights = torch.stack([branch.weight for branch in plain.branches])
    assert weights.std().item() == pytest.approx(math.sqrt(2 / study.WIDTH), rel=0.02)
    x = study.examples()[0][:7]
    h = plain.first(x)
    for branch in plain.branches:
        h = h + branch(h.clamp(min=0))
    torch.testing.assert_close(plain(x), plain.last(h))
    scaled = study.network(study.NORMED, 3, SHORT)
    with torch.no_grad():
        scaled.first.weight.mul_(100)
        scaled.first.bias.mul_(100)
        for branch in scaled.branches:
            branch.weight.mul_(100)
    torch.testing.assert_close(scaled(x), normed(x), rtol=1e-3, atol=1e-3)  # the stream's scale does not matter


def test_initialisers_change_lengths_only():
    fresh = study.network(study.PLAIN, 0, SHORT)
    for name in study.INITIALISERS:
        tuned = study.network(name, 0, SHORT)
        for old, new in zip(fresh.branches, tuned.branches, strict=True):
            cosine = F.cosine_similarity(old.weight.flatten(), new.weight.flatten(), dim=0)
            assert cosine.item() == pytest.approx(1, abs=1e-5)
            assert not torch.equal(old.weight, new.weight)


def test_sharpness_of_softmax_regression_at_zero():
    model = nn.Linear(64, 10, bias=False)
    nn.init.zeros_(model.weight)
    x = study.examples()[0][:100].double()
    closed = torch.linalg.eigvalsh(x.T @ x / 100)[-1].item() / 10
    assert study.sharpness(model, 100) == pytest.approx(closed, rel=0.02)
    assert model.weight.dtype == torch.float32
    model.weight.data.fill_(math.nan)
    assert study.sharpness(model, 100) == math.inf


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_torch():
    runs = study.train((study.PLAIN, study.WARM_UP, study.CLIPPED), SHORT, [0, 1], lambda *_: None)
    x, y = study.examples()
    picks = batch_indices([0, 1], len(y), SHORT.steps, study.BATCH)
    for name, result in runs.items():
        for i, lr in enumerate(SHORT.lrs):
            net = study.network(name, 1, SHORT)
            optimizer = torch.optim.SGD(net.parameters(), lr, momentum=study.MOMENTUM)
            losses = []
            for step in range(SHORT.steps):
                if name == study.WARM_UP:
                    optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / SHORT.warm_up)
                if step == SHORT.probe_step:
                    early = study.sharpness(net, SHORT.examples)
                optimizer.zero_grad()
                loss = F.cross_entropy(net(x[picks[step, 1]]), y[picks[step, 1]])
                loss.backward()
                norm = nn.utils.clip_grad_norm_(net.parameters(), study.CLIP if name == study.CLIPPED else math.inf)
                if step == SHORT.probe_step:
                    rate = optimizer.param_groups[0]["lr"]
                    rate *= min(1, study.CLIP / norm.item()) if name == study.CLIPPED else 1
                    ratio = rate * early / (2 * (1 + study.MOMENTUM))
                optimizer.step()
                losses.append(loss.item())
            if np.isfinite(result.loss[i, 1]):
                assert result.loss[i, 1] == pytest.approx(np.mean(losses), rel=0.02)
            assert result.ratio[i, 1] == pytest.approx(ratio, rel=0.05)
        assert result.start[1] == pytest.approx(F.cross_entropy(study.network(name, 1, SHORT)(x), y).item(), rel=1e-5)


def runs_of(loss, start=14.0, fresh=400.0, ratio=None, lrs=(1e-3, 1e-2, 1e-1)):
    loss = np.array(loss, dtype=float)
    ratio = np.ones_like(loss) if ratio is None else np.array(ratio, dtype=float)
    seeds = loss.shape[1]
    return study.Runs(lrs, np.full(seeds, start), np.full(seeds, fresh), loss, ratio, ratio, ratio)


def test_a_network_that_died_at_guessing_has_not_trained():
    runs = runs_of([[0.1, 1.8], [2.302, 1.9], [np.inf, 0.2]])
    assert runs.trained.tolist() == [[True, True], [False, False], [False, True]]
    assert runs.lr_max.tolist() == [1e-3, 1e-1]
    assert runs_of([[1.7]], start=2.0).trained.tolist() == [[False]]
    assert runs_of([[np.inf]]).lr_max.tolist() == [0.0]


def test_numbers_of_the_claims_by_hand():
    bad, good = [9.0, 9.0], [0.1, 0.1]
    plain = runs_of([good, bad, bad], ratio=[[0.5, 0.5], [3, 4], [30, np.inf]])
    warm = runs_of([good, good, bad], ratio=[[0.1, 0.1], [0.4, 0.4], [9, 9]])
    clip = runs_of([bad, good, [9.0, 0.1]], ratio=[[0.1, 0.1], [0.4, 0.4], [9, 1]])
    normed = runs_of([good, good, good], fresh=10.0, ratio=[[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    runs = {study.PLAIN: plain, study.WARM_UP: warm, study.CLIPPED: clip, study.NORMED: normed}
    results = study.Results(SHORT, runs, None)
    assert study.warm_up.measure(results).numbers == {"both": 1.0}
    layer_norm = study.layer_norm.measure(results).numbers
    assert layer_norm == {"flatter": pytest.approx(40), "faster": pytest.approx(100)}
    assert study.threshold.measure(results).numbers == {"inside": 0.0}  # 1e-3 over 3.8 / 400 is below 1
    prediction = study.prediction.measure(results).numbers
    ratio, trained = (np.concatenate([getattr(r, key).ravel() for r in runs.values()]) for key in ("ratio", "trained"))
    pairs = [(a > b) + 0.5 * (a == b) for a in ratio[~trained] for b in ratio[trained]]
    assert prediction["auc"] == pytest.approx(np.mean(pairs))  # the fraction of pairs in the right order
    assert prediction["right"] == pytest.approx(22 / 24)
    assert study.prediction.measure(study.Results(SHORT, dict.fromkeys(study.JUDGED, normed), None)).numbers == {}

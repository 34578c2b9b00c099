import math

import numpy as np
import pytest
import torch
from torch import nn

from poise.studies import layer_norm as study


def model(arm, seed=0):
    torch.manual_seed(seed)
    return study.CharacterLSTM(64, arm)


def test_arms_start_from_the_same_weights_and_differ_in_their_norms_and_gains():
    plain, normed, small = (model(arm) for arm in (study.PLAIN, study.NORMED, study.SMALL_GAIN))
    for other in (normed, small):
        assert torch.equal(plain.embedding.weight, other.embedding.weight)
        assert torch.equal(plain.head.weight, other.head.weight)
        assert torch.equal(plain.recurrent.weight_hh_l0, other.recurrent.cells[0].weight_hh)
    gains = {name: p.unique().tolist() for name, p in normed.named_parameters() if "gain" in name}
    assert len(gains) == 3
    assert all(values == [1.0] for values in gains.values())
    assert all(p.unique().item() == pytest.approx(0.1) for name, p in small.named_parameters() if "gain" in name)


@pytest.mark.parametrize("arm", [study.PLAIN, study.NORMED])
def test_model_is_causal(arm):
    net, x = model(arm), torch.randint(64, (2, 12))
    y = x.clone()
    y[:, 8:] = (y[:, 8:] + 1) % 64
    torch.testing.assert_close(net(x)[:, :8], net(y)[:, :8])
    assert not torch.allclose(net(x)[:, 8:], net(y)[:, 8:])


def test_training_learns_and_is_the_same_for_a_seed():
    first, second = (study.train_characters(study.NORMED, 1e-2, 12, 1) for _ in range(2))
    assert (first == second).all()
    assert first[0] == pytest.approx(math.log(64), abs=0.3)
    assert first[-1] < first[0] - 0.5
    # The arms of a seed see the same windows: with outputs that are still even, losses are nearly equal.
    assert study.train_characters(study.PLAIN, 1e-2, 1, 1)[0] == pytest.approx(first[0], abs=0.2)


def test_trailing_mean_and_share_of_steps():
    falling = np.arange(100.0, 0, -1)
    assert study.trailing(falling)[0] == falling[:20].mean()
    assert study.trailing(falling)[-1] == falling[-20:].mean()
    assert len(study.trailing(falling)) == 81
    assert study.steps_ratio(falling, falling) == 1.0
    # Twice as fast: step t has the loss of step 2 t. Its mean of steps 41..60 lies in the middle of the last 20.
    faster = 100.0 - 2 * np.arange(100)
    reached = study.steps_ratio(faster, falling)
    middle = next(t for t in range(20, 101) if faster[t - 20 : t].mean() <= falling[-20:].mean())
    assert reached == middle / 100
    assert 0.5 <= reached <= 0.6
    assert study.steps_ratio(falling + 30, falling) == math.inf


def test_perceptrons_normalise_hidden_layers_only_and_share_their_weights():
    for norm in study.NORMS:
        layers = list(study.perceptron(norm, 3))
        assert isinstance(layers[-1], nn.Linear)
        kinds = [type(layer) for layer in layers if not isinstance(layer, nn.Linear | nn.ReLU)]
        assert kinds == {"batch norm": [nn.BatchNorm1d] * 2, "layer norm": [nn.LayerNorm] * 2, "no norm": []}[norm]
        assert torch.equal(layers[0].weight, study.perceptron("no norm", 3)[0].weight)


def test_digits_are_learned_and_evaluated_by_running_statistics():
    losses = study.train_digits("batch norm", 16, 60, (0, 1))
    assert losses.shape == (2,)
    assert (losses < 1.0).all()
    alone = study.train_digits("batch norm", 16, 60, (1,))
    assert alone[0] == pytest.approx(losses[1], rel=0.05)

import math

import pytest
import torch

from poise.data import load_text
from poise.studies.kit.character_gpt import CONTEXT, CharacterGPT, corpus, next_character_loss


def model(qk_norm, width=32, seed=0):
    return CharacterGPT(width, 64, qk_norm, torch.Generator().manual_seed(seed))


def ids(batch=3, seed=0):
    return torch.randint(64, (batch, CONTEXT), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_model_is_causal(qk_norm):
    net, x = model(qk_norm), ids()
    y = x.clone()
    y[:, 20:] = (y[:, 20:] + 1) % 64
    torch.testing.assert_close(net(x)[:, :20], net(y)[:, :20])
    assert not torch.allclose(net(x)[:, 20:], net(y)[:, 20:])


def test_initialisation_is_the_papers():
    net = model(False, width=128)
    assert net.tokens.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    down = net.blocks[0].down.weight
    assert down.abs().max().item() <= 2 * 512**-0.5
    assert not any(name.endswith("bias") for name, _ in net.named_parameters())


def test_windows_come_from_the_last_tenth_and_are_never_trained_on():
    text, whole = corpus(), load_text().ids
    assert text.windows.shape == (32, CONTEXT + 1)
    assert len(text.train) == pytest.approx(0.9 * len(whole), abs=1)
    assert torch.equal(text.windows[0], whole[len(text.train) :][: CONTEXT + 1])
    assert torch.equal(text.windows[-1], whole[-CONTEXT - 1 :])


def test_the_loss_is_that_of_each_next_character():
    def certain(x):
        return 50.0 * torch.nn.functional.one_hot(x + 1, 9)

    counting = torch.arange(8).expand(2, 8)
    assert next_character_loss(certain, counting).item() == pytest.approx(0, abs=1e-6)
    assert next_character_loss(lambda x: torch.zeros(*x.shape, 9), counting).item() == pytest.approx(math.log(9))

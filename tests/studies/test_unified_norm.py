import numpy as np
import pytest
import torch
from torch import nn

from poise.studies import unified_norm as study


def test_patches_are_squares_of_the_image():
    x = torch.arange(128.0).view(2, 64)
    patches, image = study.patches(x), x[1].view(8, 8)
    assert patches.shape == (2, 16, 4)
    assert torch.equal(patches[1, 0], image[:2, :2].flatten())
    assert torch.equal(patches[1, 7], image[2:4, 6:].flatten())


def test_the_block_is_that_of_torch():
    torch.manual_seed(0)
    ours = study.Block(32, 2, nn.LayerNorm)
    theirs = nn.TransformerEncoderLayer(32, 2, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    state = {
        "self_attn.in_proj": ours.qkv, "self_attn.out_proj": ours.out, "linear1": ours.up, "linear2": ours.down,
        "norm1": ours.norm1, "norm2": ours.norm2,
    }  # fmt: skip
    names = {"self_attn.in_proj": ("in_proj_weight", "in_proj_bias")}
    for name, module in state.items():
        weight, bias = names.get(name, ("weight", "bias"))
        prefix = "self_attn" if name == "self_attn.in_proj" else name
        theirs.load_state_dict({f"{prefix}.{weight}": module.weight, f"{prefix}.{bias}": module.bias}, strict=False)
    x = torch.randn(3, 16, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_fluctuation_in_closed_form():
    still = np.ones((50, 1, 3))
    np.testing.assert_allclose(study.fluctuation(still), [[0, 0, 1]], atol=1e-12)
    moving = still.copy()
    moving[::2, 0, 0] = 4  # means 2.5 and 2, deviation 1.5
    moving[0, 0, 1] = 100
    variation, gap, sticking_out = study.fluctuation(moving)[0]
    column = moving[:, 0, 1]
    assert variation == pytest.approx(0.6)  # the median of 0, 0.6 and that of the spiked channel
    assert gap == pytest.approx(max(1 - 2 / 2.5, 1 - np.exp(np.log(column).mean()) / column.mean()))
    assert sticking_out == pytest.approx(100)


@pytest.mark.slow
def test_same_seed_same_run_and_the_callers_state_is_untouched():
    state = torch.get_rng_state()
    first, second, other = (study.train(study.FILTERED, True, 8, seed) for seed in (1, 1, 2))
    assert first.accuracy == second.accuracy
    assert np.array_equal(first.moments, second.moments)
    assert not np.array_equal(first.moments, other.moments)
    assert torch.equal(state, torch.get_rng_state())


def test_every_arm_has_its_norm_everywhere():
    for arm in study.STRESSED_ARMS:
        net = study.DigitTransformer(study.norms(arm, 10))
        kinds = {type(module) for name, module in net.named_modules() if "norm" in name}
        assert kinds == {type(study.norms(arm, 10)(4))}

import numpy as np
import pytest
import torch
from torch import nn

from poise.studies import unified_norm as study


def test_patches_are_squares_of_the_image():
    from poise.data import load_digits

    x, _, held_out, _ = study.digits(0)
    assert (x.shape, held_out.shape) == ((1300, 16, 4), (497, 16, 4))
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    image = load_digits().inputs[order[0]].view(8, 8) / 16
    assert torch.equal(x[0, 0], image[:2, :2].flatten())
    assert torch.equal(x[0, 7], image[2:4, 6:].flatten())


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


CASES = [
    ("parity", {"difference": -1.0, "far_below": 1 / 3}, "reproduced"),
    ("parity", {"difference": 5.0, "far_below": 0.0}, "reproduced"),
    ("parity", {"difference": -2.0, "far_below": 1 / 3}, "partly"),
    ("parity", {"difference": -4.0, "far_below": 2 / 3}, "refuted"),
    ("outliers", {"lost": 1.0, "lost_unfiltered": 5.0}, "reproduced"),
    ("outliers", {"lost": 1.0, "lost_unfiltered": 0.5}, "partly"),
    ("outliers", {"lost": 4.0, "lost_unfiltered": 5.0}, "partly"),
    ("outliers", {"lost": 4.0, "lost_unfiltered": 3.0}, "refuted"),
    ("batch-norm", {"below": 20.0, "below_with_outliers": 4.0}, "reproduced"),
    ("batch-norm", {"below": -15.0, "below_with_outliers": 50.0}, "partly"),
    ("batch-norm", {"below": -10.0, "below_with_outliers": 1.0}, "refuted"),
    ("inference", {"ratio": 1.2}, "reproduced"),
    ("inference", {"ratio": 0.9}, "refuted"),
]


@pytest.mark.parametrize(("claim", "numbers", "verdict"), CASES)
def test_a_verdict_follows_from_the_numbers(claim, numbers, verdict):
    assert {c.id: c.judge for c in study.CLAIMS}[claim](numbers) == verdict


@pytest.mark.slow
def test_the_tiny_study_runs_and_reports(run_tiny):
    outcome = run_tiny("unified-norm")
    assert all(result.verdict != "not tested" for result in outcome.results)
    assert "How the statistics move" in outcome.report().to_html()

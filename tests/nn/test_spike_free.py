import math

import pytest
import torch
from torch import nn

from poise.nn import scale_embedding, small_init_std, spike_free_


def transformer(width=64, depth=3):
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
    model = nn.Module()
    model.tokens, model.head = nn.Embedding(500, width, padding_idx=0), nn.Linear(width, 500, bias=False)
    model.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    return model


def test_standard_deviations_of_every_rule():
    model = transformer()
    report = spike_free_(model, embedding="direct")
    sigma = math.sqrt(2 / (5 * 64))
    for layer in model.body.layers:
        assert layer.linear1.weight.std().item() == pytest.approx(sigma, rel=0.03)
        assert layer.self_attn.in_proj_weight.std().item() == pytest.approx(sigma, rel=0.03)
        for end in (layer.linear2, layer.self_attn.out_proj):
            assert end.weight.std().item() == pytest.approx(sigma / math.sqrt(6), rel=0.04)
            assert (end.bias == 0).all()
    assert model.tokens.weight[1:].std().item() == pytest.approx(1, rel=0.02)
    assert (model.tokens.weight[0] == 0).all()
    assert "sigma / sqrt(2 N)" in report.changed["body.layers.2.linear2.weight"]
    assert not report.skipped
    assert math.sqrt(64) * small_init_std(64) == pytest.approx(math.sqrt(0.4))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_transformers_with_scaled_embeddings(name, make, run):
    model, x = make(name)
    report = spike_free_(model, embedding="unit")
    assert ("lm_head.weight" in report.skipped) == (name == "gpt2")
    scale_embedding(model, "unit")
    assert run(model, x).isfinite().all()
    if name == "gpt2":
        with pytest.raises(ValueError, match=r"lm_head\.weight is tied"):
            spike_free_(make(name)[0], embedding="direct")


def test_same_generator_same_weights_and_embeddings_left_alone():
    first, second = transformer(), transformer()
    before = first.tokens.weight.clone()
    for model in (first, second):
        spike_free_(model, embedding=None, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.body.layers[1].linear1.weight, second.body.layers[1].linear1.weight)
    assert torch.equal(first.tokens.weight, before)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Linear(3, 3), {}, "not to be inferred"),
        (transformer(), {"n_layers": -1}, "must be at least 1"),
        (transformer(), {"embedding": "large"}, "embedding must be"),
    ],
)
def test_bad_input(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        spike_free_(model, **arguments)


def test_bad_width():
    with pytest.raises(ValueError, match="d_model must be at least 1"):
        small_init_std(0)

import math

import pytest
import torch
from torch import nn

from poise.nn import EmbeddingGradientShrink, EmbeddingLayerNorm, ScaledEmbedding


@pytest.mark.parametrize("dim", [64, 500])
@pytest.mark.parametrize(("scale", "std"), [("sqrt_dim", math.sqrt(0.4)), ("unit", 1.0), (10.0, None)])
def test_standard_deviation_at_any_size(dim, scale, std):
    embedding = ScaledEmbedding(400, dim, scale)
    wanted = 10 * math.sqrt(2 / (5 * dim)) if std is None else std
    assert embedding(torch.arange(400)).std().item() == pytest.approx(wanted, rel=0.02)


def test_gradient_is_scaled_and_padding_stays_zero():
    embedding, plain = ScaledEmbedding(5, 4, scale=3.0, padding_idx=0), nn.Embedding(5, 4, padding_idx=0)
    plain.load_state_dict(embedding.state_dict())
    tokens = torch.tensor([[0, 2, 2]])
    for each in (embedding, plain):
        each(tokens).pow(1).sum().backward()
    torch.testing.assert_close(embedding.weight.grad, 3 * plain.weight.grad)
    assert (embedding(tokens)[0, 0] == 0).all()


def test_shrunk_gradient_and_untouched_forward():
    x = torch.randn(3, 4, requires_grad=True)
    y = EmbeddingGradientShrink(0.1)(x)
    assert torch.equal(y, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.1))


def test_norm_after_the_embedding_gives_every_token_unit_deviation():
    embedding = EmbeddingLayerNorm(50, 200)
    out = embedding(torch.arange(50))
    torch.testing.assert_close(out.std(-1, correction=0), torch.ones(50), rtol=1e-2, atol=0)
    assert embedding.weight.std().item() == pytest.approx(math.sqrt(2 / 1000), rel=0.03)


@pytest.mark.parametrize("embedding", [ScaledEmbedding(9, 4), EmbeddingLayerNorm(9, 4)])
def test_compile_half_empty(embedding):
    tokens = torch.tensor([[1, 2], [3, 8]])
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), embedding(tokens))
    assert embedding(torch.empty(0, 2, dtype=torch.long)).shape == (0, 2, 4)
    assert embedding.to(torch.bfloat16)(tokens).dtype == torch.bfloat16


@pytest.mark.parametrize("scale", ["large", 0.0, -1.0, math.inf])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match="scale must be"):
        ScaledEmbedding(4, 4, scale)


def test_bad_settings():
    with pytest.raises(ValueError, match="alpha must lie"):
        EmbeddingGradientShrink(0.0)
    with pytest.raises(ValueError, match="embedding_dim must be at least 2"):
        EmbeddingLayerNorm(4, 1)

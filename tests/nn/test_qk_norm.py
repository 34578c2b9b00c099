import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.nn import QKNorm, transplant_logit_scale

KINDS = ("layer", "rms")


def heads(*shape, scale=1.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_formula_in_float64(kind):
    norm = QKNorm(6, kind).double()
    with torch.no_grad():
        norm.query_gain.copy_(torch.linspace(0.5, 2, 6))
    q, k = heads(3, 4, 5, 6, dtype=torch.float64)
    centred = q - q.mean(-1, keepdim=True) if kind == "layer" else q
    expected = norm.query_gain * centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(q, k)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e4), seed=st.integers(0, 10_000), gain=st.floats(0.1, 30))
def test_logits_stay_below_the_bound_of_the_gains(kind, scale, seed, gain):
    norm = QKNorm(8, kind).double()
    with torch.no_grad():
        norm.query_gain.fill_(gain)
        norm.key_gain.mul_(-0.5)
    q, k = norm(*heads(2, 7, 8, scale=scale, seed=seed, dtype=torch.float64))
    logits = q @ k.transpose(-1, -2) / math.sqrt(8)
    assert norm.logit_bound() == pytest.approx(0.5 * gain * math.sqrt(8))
    assert logits.abs().max() <= norm.logit_bound() * (1 + 1e-9)


def test_bound_is_reached_by_parallel_vectors():
    norm = QKNorm(4, "rms").double()
    q = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    query, key = norm(q, 5 * q)
    assert (query @ key / 2).item() == pytest.approx(norm.logit_bound(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_of_the_projections_does_not_matter(kind):
    norm = QKNorm(16, kind).double()
    q, k = heads(2, 3, 16, dtype=torch.float64)
    torch.testing.assert_close(norm(1000 * q, k)[0], norm(q, k)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gains_are_shared_by_heads_and_there_is_no_bias(kind):
    assert {name: tuple(p.shape) for name, p in QKNorm(16, kind).named_parameters()} == {
        "query_gain": (16,),
        "key_gain": (16,),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_and_keeps_its_dtype(kind, dtype):
    norm = QKNorm(16, kind).to(dtype)
    q, k = heads(2, 3, 16, scale=1000, dtype=dtype)  # squares exceed float16
    query, key = norm(q, k)
    assert query.dtype == key.dtype == dtype
    exact = copy.deepcopy(norm).double()(q.double(), k.double())[0]
    torch.testing.assert_close(query.double(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_attention_matching_dtypes(kind):
    project, norm = nn.Linear(16, 48), QKNorm(16, kind)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = project(torch.randn(2, 1, 5, 16)).chunk(3, -1)
        q, k = norm(q, k)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert q.dtype == k.dtype == v.dtype == out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert norm.query_gain.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_graph_breaks(kind):
    norm = QKNorm(8, kind)
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    q, k = heads(2, 5, 8)
    torch.testing.assert_close(compiled(q, k), norm(q, k))


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives(kind):
    norm = QKNorm(3, kind).double()
    q, k = (x.requires_grad_() for x in heads(2, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(norm, (q, k))
    assert torch.autograd.gradgradcheck(norm, (q, k))


def test_empty_batch_and_cross_attention():
    q, k = QKNorm(4)(torch.empty(0, 2, 3, 4), torch.empty(0, 2, 9, 4))
    assert q.shape == (0, 2, 3, 4)
    assert k.shape == (0, 2, 9, 4)


def test_state_dict_round_trip():
    first, second = QKNorm(4), QKNorm(4)
    nn.init.normal_(first.query_gain)
    second.load_state_dict(first.state_dict())
    q, k = heads(3, 4)
    torch.testing.assert_close(first(q, k), second(q, k))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 1}, "head_dim must be at least 2"),
        ({"head_dim": 4, "kind": "batch"}, "kind must be one of"),
        ({"head_dim": 4, "eps": 0.0}, "eps must be positive"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        QKNorm(**arguments)


def test_wrong_head_size_is_named():
    with pytest.raises(ValueError, match="key must end in head_dim=4"):
        QKNorm(4)(torch.zeros(2, 4), torch.zeros(2, 5))


@pytest.mark.parametrize("kappa", [0.3, 1.0, 1e3])
def test_transplanted_scale_makes_parallel_logits_exactly_kappa_root_head_dim(kappa):
    q, _ = heads(5, 16, dtype=torch.float64)
    g = transplant_logit_scale(q, kappa)
    torch.testing.assert_close((g * g).sum(-1) / 4, torch.full((5,), kappa * 4, dtype=torch.float64))
    assert (g @ g.T / 4).max() <= kappa * 4 * (1 + 1e-12)


@pytest.mark.parametrize("kappa", [0.0, -1.0, math.nan, math.inf])
def test_bad_kappa(kappa):
    with pytest.raises(ValueError, match="kappa must be positive"):
        transplant_logit_scale(torch.ones(2), kappa)
